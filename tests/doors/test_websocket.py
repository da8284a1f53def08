"""The WebSocket that takes pictures: stream-yolo's protocol, and clients that mean harm."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, WSServerHandshakeError

from server.logs import EVENT, FIELDS
from tests.doors.files import bomb_png, cmyk_jpeg, jpeg, png, truncated_jpeg, wide_jpeg
from tests.doors.opening import open_server
from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, PUBLISHER, Guarded, guarded, guarded_settings
from tests.gateway.watching import watching
from tests.serving import DEADLINE_S, Serving, until

pytestmark = pytest.mark.service


# The machine that runs the tests is busy: its load is not looked at.
OPEN = guarded_settings(limits={"admit_loop_lag_ms": 0, "admit_wait_ms": 0})


@asynccontextmanager
async def socket(
    server: Serving | Guarded, query: str = "", **more: Any
) -> AsyncIterator[ClientWebSocketResponse]:
    url = server.url.replace("http", "ws") + "/ws/stream" + query
    async with server.http.ws_connect(url, max_msg_size=0, **more) as client:
        yield client


async def ask(client: ClientWebSocketResponse, message: bytes | str) -> dict[str, Any]:
    """Send one message; the next answer."""
    if isinstance(message, str):
        await client.send_str(message)
    else:
        await client.send_bytes(message)
    answer: dict[str, Any] = json.loads(await client.receive_str(timeout=DEADLINE_S))
    return answer


async def test_a_picture_gets_what_stream_yolo_answers_and_the_times_of_its_stages() -> None:
    async with open_server(FakeDetector(name="cup")) as server, socket(server) as client:
        answer = await ask(client, jpeg(101, 67))
        assert answer["detections"] == [
            {"box": [25, 16, 50, 33], "score": 1.0, "label": 0, "name": "cup"}
        ]
        assert all(type(side) is int for side in answer["detections"][0]["box"])
        assert answer["size"] == [101, 67]
        assert {"decode", "wait", "prepare", "infer", "boxes"} <= set(answer["stages_ms"])
        assert answer["server_ms"] > 0


async def test_the_end_of_a_socket_is_one_event_that_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "server.edge.picture_socket")
    async with open_server(FakeDetector()) as server:
        async with socket(server, "?stream=porch") as client:
            await ask(client, jpeg(64, 48))
        await until(lambda: bool(caplog.records))
    [record] = caplog.records
    told = getattr(record, FIELDS)
    assert getattr(record, EVENT) == "socket ended"
    assert (told["stream"], told["reason"], told["pictures"]) == ("porch", "the client left", 1)
    assert len(told["session"]) == 8


async def test_every_picture_gets_its_own_answer_in_order() -> None:
    async with open_server(FakeDetector()) as server, socket(server) as client:
        sizes = [(64 + 2 * index, 48) for index in range(20)]
        for size in sizes:
            await client.send_bytes(jpeg(*size))
        answers = [json.loads(await client.receive_str(timeout=DEADLINE_S)) for _ in sizes]
        assert [tuple(answer["size"]) for answer in answers] == sizes
        assert [answer["seq"] for answer in answers] == list(range(20))


async def test_png_and_cmyk_and_grey_pictures_are_taken() -> None:
    async with open_server(FakeDetector()) as server, socket(server) as client:
        for data in (
            png(40, 30),
            png(40, 30, channels=4),
            cmyk_jpeg(40, 30),
            jpeg(40, 30, grey=True),
        ):
            assert (await ask(client, data))["size"] == [40, 30]


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (b"", "empty"),
        (b"no picture at all", "neither JPEG nor PNG"),
        (truncated_jpeg(), "ends early"),
        (jpeg(64, 48)[:30], "neither JPEG nor PNG"),
        (wide_jpeg(10_000, 10_000), "max_image_megapixels"),
        (bomb_png(20_000, 20_000), "max_image_megapixels"),
        (png(64, 48)[:60], "cannot be decoded"),
        ("text", "binary"),
    ],
)  # fmt: skip
async def test_a_wrong_message_gets_an_error_and_the_socket_stays(
    message: bytes | str, word: str
) -> None:
    async with open_server(FakeDetector()) as server, socket(server) as client:
        answer = await ask(client, message)
        assert word in answer["error"] + answer.get("detail", "")
        assert "detections" not in answer
        assert "detections" in await ask(client, jpeg(64, 48))


async def test_compression_is_declined_and_pings_are_answered() -> None:
    async with open_server(FakeDetector()) as server:
        url = server.url.replace("http", "ws") + "/ws/stream"
        async with server.http.ws_connect(url, compress=15, autoping=False) as client:
            assert client.compress == 0
            await client.ping(b"there?")
            message = await client.receive(timeout=DEADLINE_S)
            assert (message.type, message.data) == (WSMsgType.PONG, b"there?")


async def test_a_message_of_17_mib_ends_the_socket_and_no_other() -> None:
    async with open_server(FakeDetector()) as server, socket(server) as other:
        async with socket(server) as client:
            # The server need not take the rest of what it has refused.
            with contextlib.suppress(ConnectionError):
                await client.send_bytes(bytes(17 << 20))
            message = await client.receive(timeout=DEADLINE_S)
            assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR)
        assert "detections" in await ask(other, jpeg(64, 48))
        await refusals_are(server, {"too_large": 1})


async def test_a_message_of_16_mib_is_looked_at() -> None:
    async with open_server(FakeDetector()) as server, socket(server) as client:
        data = jpeg(64, 48)
        answer = await ask(client, data + bytes((16 << 20) - len(data)))
        assert answer["size"] == [64, 48]


async def test_one_socket_too_many_gets_503_and_those_inside_are_served() -> None:
    settings: dict[str, Any] = {"images": {"max_sockets": 2}}
    async with open_server(FakeDetector(), **settings) as server:
        async with socket(server) as first, socket(server):
            with pytest.raises(WSServerHandshakeError) as refused:
                async with socket(server):
                    pass
            assert refused.value.status == 503
            assert refused.value.headers is not None
            assert refused.value.headers["Retry-After"]
            assert "detections" in await ask(first, jpeg(64, 48))
        async with socket(server) as later:
            assert "detections" in await ask(later, jpeg(64, 48))


async def test_500_idle_sockets_are_capped_and_let_go() -> None:
    settings: dict[str, Any] = {"images": {"socket_idle_s": 0.3, "max_sockets": 40}}
    async with open_server(FakeDetector(), **settings) as server:
        url = server.url.replace("http", "ws") + "/ws/stream"

        async def idle() -> int:
            try:
                async with server.http.ws_connect(url) as client:
                    message = await client.receive(timeout=DEADLINE_S)
                    assert message.type is WSMsgType.CLOSE
                    return 200
            except WSServerHandshakeError as error:
                return error.status

        statuses = await asyncio.gather(*(idle() for _ in range(500)))
        assert set(statuses) == {200, 503}
        async with socket(server) as client:
            assert "detections" in await ask(client, jpeg(64, 48))


async def test_a_client_that_reads_nothing_is_waited_for_and_costs_the_others_nothing() -> None:
    async with open_server(FakeDetector()) as server, socket(server) as other:
        url = server.url.replace("http", "ws") + "/ws/stream"
        client = await server.http.ws_connect(url)
        for _ in range(300):
            await client.send_bytes(b"no picture")
        assert "detections" in await ask(other, jpeg(64, 48))
        await client.close()


async def test_without_a_detector_the_answer_says_so() -> None:
    async with open_server(None) as server, socket(server) as client:
        assert (await ask(client, jpeg(64, 48)))["error"] == "detector: there is none"


async def test_a_detector_that_fails_gets_the_picture_an_error() -> None:
    detector = FakeDetector()
    detector.failure = RuntimeError("broken")
    async with open_server(detector) as server, socket(server) as client:
        assert "failed on this picture" in (await ask(client, jpeg(64, 48)))["error"]
        detector.failure = None
        assert "detections" in await ask(client, jpeg(64, 48))


async def test_a_detector_that_hangs_gets_the_picture_an_error_within_the_deadline() -> None:
    detector = FakeDetector()
    detector.go_on.clear()
    settings: dict[str, Any] = {"images": {"answer_timeout_s": 0.3}}
    try:
        async with open_server(detector, **settings) as server, socket(server) as client:
            first = await ask(client, jpeg(64, 48))
            assert "answer_timeout_s" in first["error"]
            await detector_is(server, "stalled")
            assert (await ask(client, jpeg(64, 48)))["error"] == "detector: it hangs"
            detector.go_on.set()
            await detector_is(server, "fake")
            assert (await ask(client, jpeg(80, 48)))["size"] == [80, 48]
    finally:
        detector.go_on.set()


async def test_query_chooses_what_is_told() -> None:
    async with open_server(FakeDetector(name="cup")) as server:
        async with socket(server, "?classes=person") as client:
            assert (await ask(client, jpeg(64, 48)))["detections"] == []
        async with socket(server, "?classes=person,cup&confidence=0.9") as client:
            assert len((await ask(client, jpeg(64, 48)))["detections"]) == 1
        for query in ("?confidence=much", "?confidence=2"):
            with pytest.raises(WSServerHandshakeError) as refused:
                async with socket(server, query):
                    pass
            assert refused.value.status == 422


async def test_the_server_stops_with_sockets_open() -> None:
    async with ClientSession() as http:
        async with open_server(FakeDetector()) as server:
            client = await http.ws_connect(server.url.replace("http", "ws") + "/ws/stream")
            await ask(client, jpeg(64, 48))
            receiving = asyncio.create_task(client.receive())
        message = await asyncio.wait_for(receiving, DEADLINE_S)
        assert message.type is WSMsgType.CLOSE
        assert client.close_code == 1001


async def test_pictures_become_a_stream_that_can_be_watched() -> None:
    async with open_server(FakeDetector()) as server, socket(server, "?stream=gate") as client:
        assert "detections" in await ask(client, jpeg(64, 48))
        async with server.http.get(f"{server.url}/api/streams/gate") as reply:
            stream = await reply.json()
        assert (stream["source"], stream["live"]) == ("websocket", True)
        with pytest.raises(WSServerHandshakeError) as refused:
            async with socket(server, "?stream=gate"):
                pass
        assert refused.value.status == 409
        async with watching(server, "gate") as viewer:

            async def send() -> None:
                while True:
                    await ask(client, jpeg(64, 48))

            sending = asyncio.create_task(send())
            try:
                picture = await viewer.picture()
                assert (picture.width, picture.height) == (64, 48)
            finally:
                sending.cancel()
                await asyncio.wait([sending])


# --- who may come in ---


async def test_a_key_opens_as_bearer_as_ticket_or_as_first_message() -> None:
    async with guarded(OPEN) as server:
        headers = {"Authorization": f"Bearer {PUBLISHER}"}
        async with socket(server, headers=headers) as client:
            assert "detections" in await ask(client, jpeg(64, 48))
        _, body = await server.ask("POST", "/api/tickets", PUBLISHER)
        query = f"?ticket={body['ticket']}"
        async with socket(server, query) as client:
            assert "detections" in await ask(client, jpeg(64, 48))
        with pytest.raises(WSServerHandshakeError) as refused:
            async with socket(server, query):
                pass
        assert refused.value.status == 401
        async with socket(server, "?stream=gate") as client:
            await client.send_str(json.dumps({"token": PUBLISHER}))
            assert "detections" in await ask(client, jpeg(64, 48))


async def test_a_key_that_may_only_watch_is_refused_before_the_upgrade() -> None:
    async with guarded(OPEN) as server:
        with pytest.raises(WSServerHandshakeError) as refused:
            async with socket(server, headers={"Authorization": f"Bearer {FRONT}"}):
                pass
        assert refused.value.status == 403
        form = {"api_key": PUBLISHER}
        status, _ = await server.ask("POST", "/v1/vision/detection", FRONT, data=form)
        assert status == 403


async def test_a_key_for_some_streams_publishes_no_other() -> None:
    key = "front-publisher-key-of-the-tests-1"
    settings = guarded_settings(
        auth={"api_keys": (f"publish:front-*:{key}",)},
        limits={"admit_loop_lag_ms": 0, "admit_wait_ms": 0},
    )
    async with guarded(settings) as server:
        headers = {"Authorization": f"Bearer {key}"}
        async with socket(server, "?stream=front-door", headers=headers) as client:
            assert "detections" in await ask(client, jpeg(64, 48))
        with pytest.raises(WSServerHandshakeError) as refused:
            async with socket(server, "?stream=back-door", headers=headers):
                pass
        assert refused.value.status == 403
        async with socket(server, "?stream=back-door") as client:
            assert "error" in await ask(client, json.dumps({"token": key}))


@pytest.mark.parametrize(
    "first",
    [
        jpeg(64, 48),
        "not JSON",
        "[]",
        json.dumps({"token": 7}),
        json.dumps({"token": "x" * 40}),
        json.dumps({"token": FRONT}),
        "{" * 5000,
    ],
)  # fmt: skip
async def test_whoever_does_not_say_who_he_is_is_told_and_let_go(first: bytes | str) -> None:
    async with guarded(OPEN) as server, socket(server) as client:
        answer = await ask(client, first)
        assert set(answer) == {"error"}
        message = await client.receive(timeout=DEADLINE_S)
        assert message.type is WSMsgType.CLOSE
        assert client.close_code == 1008


async def test_a_token_that_ends_closes_its_socket() -> None:
    async with guarded(OPEN) as server:
        wish = {"scopes": ["publish"], "ttl": "1h"}
        _, token = await server.ask("POST", "/api/tokens", ADMIN, json=wish)
        async with socket(server) as client:
            await client.send_str(json.dumps({"token": token["token"]}))
            assert "detections" in await ask(client, jpeg(64, 48))
            await server.ask("DELETE", f"/api/tokens/{token['id']}", ADMIN)
            message = await client.receive(timeout=DEADLINE_S)
            assert message.type is WSMsgType.CLOSE
            assert client.close_code == 1001


# --- small parts ---


async def detector_is(server: Serving, state: str) -> None:
    """Wait until the server says so."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with server.http.get(f"{server.url}/readyz") as reply:
                if (await reply.json())["detector"] == state:
                    return


async def refusals_are(server: Serving, expected: dict[str, int]) -> None:
    """Wait until the server counts these."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if (await server.stats())["pictures"]["doors"]["websocket"]["refused"] == expected:
                return
