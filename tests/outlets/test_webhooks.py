"""Webhooks with a real receiver: signed, tried again, in order, bounded, and not everywhere."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from server.errors import SettingsError
from server.outlets.bulletin import DETECTIONS, EVENTS, WAITING_AT_MOST, Bulletin
from server.outlets.webhooks import Webhooks, WebhookStatistics, is_public, signing_key
from server.settings import WebhookSettings
from tests.serving import changed, serving, until

pytestmark = pytest.mark.service

SECRET = "a secret of the tests"


@dataclass(slots=True)
class Receiver:
    """Keeps what is posted; answers with `statuses`, one after the other, then 200."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    """Of its answers."""
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(self, request: web.Request) -> web.Response:
        self.posts.append((dict(request.headers), await request.read()))
        await self.go_on.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers=self.headers)

    def events(self) -> list[str]:
        return [json.loads(body)["data"]["id"] for _, body in self.posts]


@asynccontextmanager
async def receiving(*statuses: int) -> AsyncIterator[Receiver]:
    receiver = Receiver(statuses=list(statuses))
    receiver.go_on.set()
    app = web.Application()
    app.router.add_post("/hook", receiver.post)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        receiver.go_on.set()
        await runner.cleanup()


@asynccontextmanager
async def posting(*urls: str, **keys: Any) -> AsyncIterator[tuple[Bulletin, Webhooks]]:
    settings = WebhookSettings(
        webhook_urls=urls, **{"webhook_private": True, "webhook_retry_s": 0.01} | keys
    )
    bulletin = Bulletin()
    webhooks = Webhooks(settings, bulletin, "test")
    webhooks.start()
    try:
        yield bulletin, webhooks
    finally:
        await webhooks.close(0.2)
        bulletin.close()


def event(number: int) -> dict[str, Any]:
    return {"id": str(number), "stream": "porch", "kind": "enter", "class": "person"}


def only(webhooks: Webhooks) -> WebhookStatistics:
    [statistics] = webhooks.statistics()
    return statistics


async def test_an_event_is_posted_with_a_signature_that_holds() -> None:
    async with receiving() as receiver, posting(receiver.url, webhook_secret=SECRET) as parts:
        bulletin, webhooks = parts
        bulletin.post(EVENTS, "porch", event(1))
        bulletin.post(DETECTIONS, "porch", {"boxes": []})
        await until(lambda: only(webhooks).delivered == 1)
    [(headers, body)] = receiver.posts
    assert json.loads(body)["type"] == "event.enter"
    assert json.loads(body)["data"] == event(1)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
    assert headers["Content-Type"] == "application/json"


async def test_a_receiver_that_fails_twice_gets_the_event_the_third_time() -> None:
    async with receiving(500, 429) as receiver, posting(receiver.url) as (bulletin, webhooks):
        bulletin.post(EVENTS, "porch", event(1))
        bulletin.post(EVENTS, "porch", event(2))
        await until(lambda: only(webhooks).delivered == 2)
        assert only(webhooks).retried == 2
        assert only(webhooks).last_error == ""
    assert receiver.events() == ["1", "1", "1", "2"]
    ids = [headers["webhook-id"] for headers, _ in receiver.posts]
    assert len(set(ids[:3])) == 1
    assert ids[3] != ids[0]


async def test_a_receiver_that_stays_down_costs_an_event_and_no_more() -> None:
    async with (
        receiving(*[503] * 3) as receiver,
        posting(receiver.url, webhook_attempts=3) as (bulletin, webhooks),
    ):
        bulletin.post(EVENTS, "porch", event(1))
        bulletin.post(EVENTS, "porch", event(2))
        await until(lambda: only(webhooks).delivered == 1)
        assert only(webhooks).failed == 1
    assert receiver.events() == ["1", "1", "1", "2"]


async def test_an_address_that_cannot_be_asked_for_costs_its_events_and_not_its_worker() -> None:
    # No label of a name is longer than 63 characters: resolvers raise what is no error of theirs.
    url = f"http://{'a' * 64}.example/hook"
    async with posting(url, webhook_attempts=1) as (bulletin, webhooks):
        for number in (1, 2):
            bulletin.post(EVENTS, "porch", event(number))
        await until(lambda: only(webhooks).failed == 2)
        assert only(webhooks).waiting == 0
        assert only(webhooks).last_error == "UnicodeError"


async def test_a_final_refusal_is_not_tried_again() -> None:
    async with receiving(410) as receiver, posting(receiver.url) as (bulletin, webhooks):
        bulletin.post(EVENTS, "porch", event(1))
        bulletin.post(EVENTS, "porch", event(2))
        await until(lambda: only(webhooks).delivered == 1)
        assert (only(webhooks).refused, only(webhooks).retried) == (1, 0)
    assert receiver.events() == ["1", "2"]


async def test_redirects_are_not_followed() -> None:
    async with receiving() as inner, receiving(307) as outer:
        outer.headers = {"Location": inner.url}
        async with posting(outer.url) as (bulletin, webhooks):
            bulletin.post(EVENTS, "porch", event(1))
            await until(lambda: only(webhooks).refused == 1)
    assert not inner.posts


async def test_a_receiver_that_hangs_is_cut_off_and_tried_again() -> None:
    async with (
        receiving() as receiver,
        posting(receiver.url, webhook_timeout_s=0.2, webhook_attempts=20) as (bulletin, webhooks),
    ):
        receiver.go_on.clear()
        bulletin.post(EVENTS, "porch", event(1))
        await until(lambda: only(webhooks).retried >= 1)
        assert "Timeout" in only(webhooks).last_error
        receiver.go_on.set()
        await until(lambda: only(webhooks).delivered == 1)


async def test_one_receiver_that_is_down_holds_up_no_other() -> None:
    async with receiving() as up, receiving() as down:
        down.go_on.clear()
        async with posting(down.url, up.url) as (bulletin, webhooks):
            for number in range(3):
                bulletin.post(EVENTS, "porch", event(number))
            await until(lambda: webhooks.statistics()[1].delivered == 3)
            assert webhooks.statistics()[0].delivered == 0
    assert up.events() == ["0", "1", "2"]


async def test_the_queue_is_bounded_and_counts_what_falls_out() -> None:
    async with receiving() as receiver, posting(receiver.url) as (bulletin, webhooks):
        receiver.go_on.clear()
        bulletin.post(EVENTS, "porch", event(0))
        await until(lambda: bool(receiver.posts))
        for number in range(WAITING_AT_MOST + 5):
            bulletin.post(EVENTS, "porch", event(number))
        assert only(webhooks).waiting == WAITING_AT_MOST
        assert only(webhooks).dropped == 5


async def test_stopping_posts_what_waits_but_does_not_wait_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with receiving() as receiver:
        async with posting(receiver.url) as (bulletin, _):
            bulletin.post(EVENTS, "porch", event(1))
            bulletin.post(EVENTS, "porch", event(2))
        assert receiver.events() == ["1", "2"]
        async with posting(receiver.url) as (bulletin, _):
            receiver.go_on.clear()
            bulletin.post(EVENTS, "porch", event(3))
            bulletin.post(EVENTS, "porch", event(4))
    assert "1 events were not posted" in caplog.text


class LeadingAstray(AbstractResolver):
    """A name server that gives this machine's address for a name outside."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("private", [False, True])
async def test_a_name_that_leads_into_the_own_network_is_refused_unless_allowed(
    private: bool,
) -> None:
    async with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", "hooks.example")
        bulletin = Bulletin()
        settings = WebhookSettings(webhook_urls=(url,), webhook_private=private)
        webhooks = Webhooks(settings, bulletin, "test", LeadingAstray)
        webhooks.start()
        try:
            bulletin.post(EVENTS, "porch", event(1))
            await until(lambda: only(webhooks).delivered + only(webhooks).refused == 1)
            assert only(webhooks).delivered == private
            assert len(receiver.posts) == private
        finally:
            await webhooks.close(1)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.0.1", "0.0.0.0",
     "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "2002:a00:1::1",
     "64:ff9b::a00:1"],
)  # fmt: skip
def test_addresses_of_the_own_network_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_addresses_of_the_internet_are_known(address: str) -> None:
    assert is_public(address)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "events.md"


def code_of_the_page(word: str) -> str:
    """The one block of Python with this word in it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [code] = [block for block in blocks if word in block]
    return str(code)


async def test_the_check_that_the_page_shows_holds() -> None:
    names: dict[str, Any] = {}
    exec(code_of_the_page("is_ours"), names)
    secret = "whsec_" + base64.b64encode(b"0123456789abcdefghij").decode()
    async with receiving() as receiver, posting(receiver.url, webhook_secret=secret) as parts:
        parts[0].post(EVENTS, "porch", event(1))
        await until(lambda: only(parts[1]).delivered == 1)
    [(headers, body)] = receiver.posts
    assert names["is_ours"](secret, headers, body)
    assert not names["is_ours"](secret, headers, body + b" ")
    assert not names["is_ours"](secret.replace("MD", "MF"), headers, body)
    assert not names["is_ours"](secret, headers | {"webhook-timestamp": "1"}, body)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"webhook_urls": ("http://127.0.0.1/secret-path",)}, "webhook_private"),
        ({"webhook_urls": ("ftp://example.org/secret-path",)}, "http"),
        ({"webhook_urls": ("http://example.org:port/secret-path",)}, "http"),
        ({"webhook_urls": ("http://[secret-path",)}, "http"),
        ({"webhook_urls": ("http://a\u2100b/secret-path",)}, "http"),
        ({"webhook_urls": ("https://example.org",), "webhook_secret": "short"}, "16"),
        ({"webhook_urls": ("https://example.org",), "webhook_secret": "whsec_?"}, "base64"),
    ],
)
async def test_wrong_settings_are_named_without_showing_secrets(
    keys: dict[str, Any], word: str
) -> None:
    with pytest.raises(SettingsError, match=word) as caught:
        Webhooks(WebhookSettings(**keys), Bulletin(), "test")
    assert "secret-path" not in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_secret_of_the_specification_is_taken_apart() -> None:
    raw = b"0123456789abcdef"
    assert signing_key(f"whsec_{base64.b64encode(raw).decode()}") == raw


async def test_the_server_posts_events_and_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with receiving() as receiver:
        keys = {
            "webhook_urls": (f"{receiver.url}?key=hidden-in-the-url",),
            "webhook_private": True,
            "webhook_secret": SECRET,
        }
        async with serving(None, changed(webhooks=keys)) as server:
            server.bulletin.post(EVENTS, "porch", event(1))
            await until(lambda: bool(receiver.posts))
            [counted] = (await server.stats())["webhooks"]
            async with server.http.get(f"{server.url}/metrics") as reply:
                metrics = await reply.text()
        assert counted["target"] == receiver.url.removesuffix("/hook")
        assert "sightline_webhook_events_total{" in metrics
        for text in (caplog.text, metrics, json.dumps(counted)):
            assert "hidden-in-the-url" not in text
            assert SECRET not in text
