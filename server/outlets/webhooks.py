"""Events posted to other servers by HTTP, signed and tried again. On the loop.

The headers are those of the Standard Webhooks specification, so receivers find ready-made checks.
Each address has a worker and a bounded queue of its own (`outlets/bulletin.py`): one that is down
holds up no other. The order of events is kept; an event that fails for good is counted and left.

Names are looked up here, and what they lead to is checked before a connection is made: a name
that leads into the own network is refused unless `webhook_private`. Redirects are not followed.
"""

import asyncio
import base64
import binascii
import datetime
import hashlib
import hmac
import ipaddress
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from server.access.auth import matches
from server.backoff import backoff_s
from server.clock import unix_ms
from server.errors import SettingsError
from server.outlets.bulletin import EVENTS, Bulletin, Notice, Subscription
from server.settings import WebhookSettings
from server.urls import split_url

logger = logging.getLogger(__name__)

SECRET_BYTES_AT_LEAST = 16
MOST_S = 60.0
# Answers that say "later"; others from 300 on are final.
AGAIN = frozenset({408, 409, 425, 429})
# Addresses of IPv6 that stand for one of IPv4 behind a translator.
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class WebhookStatistics:
    """One address: counts since start."""

    target: str
    """Scheme and host; paths may be secrets."""
    delivered: int
    retried: int
    refused: int
    """Final refusals by the receiver, and addresses that are not permitted."""
    failed: int
    """Given up after all tries."""
    dropped: int
    """Fell out of the queue, the oldest first."""
    waiting: int
    last_error: str


class NotPermittedError(Exception):
    """The name leads to an address that `webhook_private` would have to allow."""


class CheckedResolver(AbstractResolver):
    """Looks names up and keeps addresses of the own network back."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(self, host: str, *arguments: object, **more: object) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, *arguments, **more)  # type: ignore[arg-type]
        permitted = [result for result in found if is_public(result["host"])]
        if not permitted:
            raise NotPermittedError
        return permitted

    async def close(self) -> None:
        await self._resolver.close()


def is_public(text: str) -> bool:
    """Whether an address is one of the internet at large."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address.sixtofour is not None:
            address = address.sixtofour
        elif address in TRANSLATED:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.is_global and not address.is_multicast


def signing_key(secret: str) -> bytes:
    """The bytes to sign with: of `whsec_...` what is behind it, else the text itself."""
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            raise SettingsError("webhook_secret: what follows whsec_ is not base64") from None
    else:
        key = secret.encode()
    if len(key) < SECRET_BYTES_AT_LEAST:
        raise SettingsError(f"webhook_secret: under {SECRET_BYTES_AT_LEAST} characters")
    return key


def signature(key: bytes, delivery_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = f"{delivery_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def checked_target(url: str, private: bool) -> str:
    """Scheme and host of an address that may be posted to; messages never show the rest."""
    parts = split_url(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError("webhook_urls: not all are http:// or https:// with a host")
    host = parts.hostname
    target = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    try:
        public = is_public(host)
    except ValueError:
        # A name: what it leads to is checked each time.
        public = True
    if not public and not private:
        raise SettingsError(f"webhook_urls: {target} is a private address; see webhook_private")
    return target


class Webhook:
    """One address and its worker."""

    def __init__(
        self,
        settings: WebhookSettings,
        url: str,
        key: bytes | None,
        subscription: Subscription,
        run: str,
    ) -> None:
        self._settings = settings
        self._url = url
        self._key = key
        self._run = run
        self.target = checked_target(url, settings.webhook_private)
        self.subscription = subscription
        self._delivered = self._retried = self._refused = self._failed = 0
        self._last_error = ""

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Post what comes until the subscription ends."""
        async for notice in self.subscription:
            try:
                await self._deliver(http, notice)
            except Exception as error:
                # The top of this address's work: whatever a library raises costs one event. Its
                # text may repeat the address, which may be a secret; its kind does not.
                self._failed += 1
                self._say(type(error).__name__)
                logger.debug("Webhook %s", self.target, exc_info=True)

    def statistics(self) -> WebhookStatistics:
        counts = self.subscription.statistics()
        return WebhookStatistics(
            target=self.target,
            delivered=self._delivered,
            retried=self._retried,
            refused=self._refused,
            failed=self._failed,
            dropped=counts.dropped,
            waiting=counts.waiting,
            last_error=self._last_error,
        )

    async def _deliver(self, http: aiohttp.ClientSession, notice: Notice) -> None:
        body = _body(notice)
        # The same on every try, so that a receiver can tell a repetition.
        delivery_id = f"msg_{self._run}{notice.number}"
        attempts = self._settings.webhook_attempts
        for attempt in range(1, attempts + 1):
            wait_s = 0.0
            try:
                status, wait_s = await self._post(http, delivery_id, body)
            except NotPermittedError:
                self._refuse("its name leads to a private address (webhook_private)")
                return
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._say(type(error).__name__)
            else:
                if status < 300:
                    self._delivered += 1
                    self._last_error = ""
                    return
                if status < 500 and status not in AGAIN:
                    self._refuse(f"answered {status}")
                    return
                self._say(f"answered {status}")
            if attempt < attempts:
                self._retried += 1
                pause_s = backoff_s(attempt, self._settings.webhook_retry_s, MOST_S)
                await asyncio.sleep(max(pause_s, wait_s))
        self._failed += 1

    async def _post(
        self, http: aiohttp.ClientSession, delivery_id: str, body: bytes
    ) -> tuple[int, float]:
        """Status and how long the receiver asks to wait."""
        timestamp_s = int(unix_ms() / 1000)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(timestamp_s),
        }
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, delivery_id, timestamp_s, body)
        async with http.post(self._url, data=body, headers=headers, allow_redirects=False) as reply:
            wished = reply.headers.get("Retry-After", "")
            wait_s = float(wished) if wished.isdecimal() and wished.isascii() else 0.0
            return reply.status, min(wait_s, MOST_S)

    def _refuse(self, error: str) -> None:
        self._refused += 1
        self._say(error)

    def _say(self, error: str) -> None:
        """A line when something is wrong that was not before."""
        if error != self._last_error:
            logger.warning("Webhook %s: %s", self.target, error)
        self._last_error = error


class Webhooks:
    """All addresses of the settings. `start` and `close` belong to the application."""

    def __init__(
        self,
        settings: WebhookSettings,
        bulletin: Bulletin,
        version: str,
        make_resolver: Callable[[], AbstractResolver] = aiohttp.DefaultResolver,
    ) -> None:
        self._settings = settings
        self._version = version
        self._make_resolver = make_resolver
        self._tasks: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession | None = None
        key = signing_key(settings.webhook_secret) if settings.webhook_secret else None
        for url in settings.webhook_urls:
            checked_target(url, settings.webhook_private)
        run = secrets.token_hex(6)
        self._webhooks = [
            Webhook(settings, url, key, self._subscribe(bulletin), f"{run}{index:02}")
            for index, url in enumerate(settings.webhook_urls)
        ]

    def _subscribe(self, bulletin: Bulletin) -> Subscription:
        patterns = self._settings.webhook_streams
        return bulletin.subscribe(
            [EVENTS], allows=lambda stream: any(matches(pattern, stream) for pattern in patterns)
        )

    def start(self) -> None:
        """Begin to post."""
        if not self._webhooks:
            return
        resolver = self._make_resolver()
        if not self._settings.webhook_private:
            resolver = CheckedResolver(resolver)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, limit_per_host=1),
            timeout=aiohttp.ClientTimeout(total=self._settings.webhook_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"Sightline/{self._version}"},
        )
        self._tasks = [
            asyncio.create_task(webhook.run(self._http), name=f"webhook {webhook.target}")
            for webhook in self._webhooks
        ]

    async def close(self, timeout_s: float) -> None:
        """Post what waits, as far as that goes within the time. Idempotent."""
        for webhook in self._webhooks:
            webhook.subscription.finish()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        for webhook in self._webhooks:
            if left := webhook.statistics().waiting:
                logger.warning("Webhook %s: %d events were not posted", webhook.target, left)
            webhook.subscription.close()
        if self._http is not None:
            await self._http.close()

    def statistics(self) -> tuple[WebhookStatistics, ...]:
        return tuple(webhook.statistics() for webhook in self._webhooks)


def _body(notice: Notice) -> bytes:
    """As the specification has it: what kind, when, and the event itself."""
    at = datetime.datetime.fromtimestamp(unix_ms() / 1000, datetime.UTC)
    body = {
        "type": f"event.{notice.message.get('kind', 'other')}",
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": notice.message,
    }
    return json.dumps(body, separators=(",", ":")).encode()
