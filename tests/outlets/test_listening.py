"""SSE and WebSocket with a real server: who hears what, who comes back, who is let go."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, WSMsgType, WSServerHandshakeError

from server.app import BULLETIN
from server.outlets.bulletin import DETECTIONS, EVENTS, STATUS
from server.settings import Settings
from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, guarded
from tests.gateway.watching import sending, streaming
from tests.outlets.reading import Reader
from tests.serving import DEADLINE_S, Serving, calling, changed, serving, until

pytestmark = pytest.mark.service


@asynccontextmanager
async def following(url: str, http: ClientSession, **headers: str) -> AsyncIterator[Reader]:
    async with http.get(url, headers=headers) as reply:
        assert reply.status == 200, await reply.text()
        assert reply.content_type == "text/event-stream"
        yield Reader(reply)


def outlets(**keys: object) -> Settings:
    return changed(outlets=keys, limits={"admit_loop_lag_ms": 0, "admit_wait_ms": 0})


async def listening(server: Serving, count: int = 1) -> None:
    await until(lambda: server.bulletin.statistics().subscriptions == count)


async def audience(server: Serving) -> dict[str, Any]:
    found: dict[str, Any] = (await server.stats())["audience"]
    return found


async def test_detections_of_a_stream_come_with_the_names_of_their_classes() -> None:
    async with (
        streaming(FakeDetector()) as server,
        calling(server, stream="desk"),
        following(f"{server.url}/api/streams/desk/detections", server.http) as reader,
    ):
        hello = await reader.next()
        assert hello.kind == "hello"
        assert hello.data == {"type": "hello", "names": ["fake"]}
        assert reader.retry_ms > 0
        found = await reader.wait_for("detections")
        assert found.data["stream"] == "desk"
        assert found.data["boxes"] == [[80.0, 60.0, 160.0, 120.0, 0, 1.0, None]]


async def test_a_source_that_rests_until_it_is_watched_is_woken_by_a_listener() -> None:
    settings = changed(sources={"demo": "on"}, limits={"admit_loop_lag_ms": 0})
    async with serving(FakeDetector(), settings) as server:
        async with following(f"{server.url}/api/streams/demo/detections", server.http) as reader:
            found = await reader.wait_for("detections")
            assert found.data["stream"] == "demo"
        await listening(server, 0)


async def test_following_ends_with_the_stream() -> None:
    async with streaming(FakeDetector()) as server:
        async with sending(server, "yard"):
            reply = await server.http.get(f"{server.url}/api/streams/yard/detections")
        async with reply:
            reader = Reader(reply)
            while (event := await reader.wait_for("status")).data["state"] != "ended":
                pass
            assert event.data["stream"] == "yard"
            assert (await reader.next()).data == {"type": "end", "reason": "stream ended"}
            with pytest.raises(EOFError):
                await reader.next()
        async with server.http.get(f"{server.url}/api/streams/yard/detections") as again:
            assert again.status == 404
            assert again.content_type == "application/problem+json"


async def test_live_events_are_filtered_by_topic_and_stream() -> None:
    async with serving(None) as server:
        url = f"{server.url}/api/events/live?stream=porch&topics=events"
        async with following(url, server.http) as reader:
            await reader.wait_for("hello")
            server.bulletin.post(EVENTS, "yard", {"id": "1"})
            server.bulletin.post(DETECTIONS, "porch", {"seq": 1})
            server.bulletin.post(STATUS, "porch", {"state": "live"})
            server.bulletin.post(EVENTS, "porch", {"id": "2"})
            event = await reader.next()
            assert (event.kind, event.data) == ("event", {"id": "2"})


async def test_whoever_comes_back_gets_what_was_missed_once() -> None:
    async with serving(None) as server:
        url = f"{server.url}/api/events/live"
        async with following(url, server.http) as reader:
            await reader.wait_for("hello")
            server.bulletin.post(EVENTS, "porch", {"id": "1"})
            seen = await reader.wait_for("event")
        server.bulletin.post(EVENTS, "porch", {"id": "2"})
        server.bulletin.post(EVENTS, "porch", {"id": "3"})
        headers = {"Last-Event-ID": seen.last_id}
        async with following(url, server.http, **headers) as reader:
            missed = [(await reader.wait_for("event")).data["id"] for _ in range(2)]
            assert missed == ["2", "3"]
            server.bulletin.post(EVENTS, "porch", {"id": "4"})
            assert (await reader.next()).data["id"] == "4"


async def test_who_left_before_the_first_event_misses_none_either() -> None:
    async with serving(None) as server:
        url = f"{server.url}/api/events/live"
        server.bulletin.post(EVENTS, "porch", {"id": "before"})
        async with following(url, server.http) as reader:
            hello = await reader.wait_for("hello")
        server.bulletin.post(EVENTS, "porch", {"id": "meanwhile"})
        async with following(url, server.http, **{"Last-Event-ID": hello.last_id}) as reader:
            assert (await reader.wait_for("event")).data["id"] == "meanwhile"


async def test_an_id_of_an_earlier_run_brings_all_since_the_start() -> None:
    async with serving(None) as server:
        server.bulletin.post(EVENTS, "porch", {"id": "1"})
        url = f"{server.url}/api/events/live?last_event_id=00000000-99"
        async with following(url, server.http) as reader:
            assert (await reader.wait_for("event")).data["id"] == "1"


async def test_signs_of_life_come_while_nothing_happens() -> None:
    async with (
        serving(None, outlets(keep_alive_s=0.1)) as server,
        following(f"{server.url}/api/events/live", server.http) as reader,
    ):
        await reader.wait_for("hello")
        line = await asyncio.wait_for(reader.reply.content.readline(), DEADLINE_S)
        assert line.startswith(b":")


async def test_a_connection_that_is_gone_is_noticed_without_a_message() -> None:
    async with serving(None, outlets(keep_alive_s=600)) as server:
        async with following(f"{server.url}/api/events/live", server.http) as reader:
            await reader.wait_for("hello")
            await listening(server)
        await listening(server, 0)
        assert (await audience(server))["ended"] == {"left": 1}


@pytest.mark.parametrize("query", ["topics=boxes", "fps=0", "fps=x", "topics=events&stream=a/b"])
async def test_wrong_wishes_are_refused_with_a_problem(query: str) -> None:
    async with serving(None) as server:
        async with server.http.get(f"{server.url}/api/events/live?{query}") as reply:
            assert reply.status in (400, 404)
            assert reply.content_type == "application/problem+json"
        assert server.bulletin.statistics().subscriptions == 0


async def test_one_listener_too_many_is_refused_and_counted() -> None:
    async with serving(None, outlets(max_listeners=1)) as server:
        url = f"{server.url}/api/events/live"
        async with following(url, server.http) as reader:
            await reader.wait_for("hello")
            async with server.http.get(url) as reply:
                assert reply.status == 503
                assert int(reply.headers["Retry-After"]) > 0
            with pytest.raises(WSServerHandshakeError, match="503"):
                await server.http.ws_connect(f"{server.url}/ws/detections")
        await listening(server, 0)
        assert (await audience(server))["refused"] == 2


@asynccontextmanager
async def a_reader_that_stops(server: Serving, path: str) -> AsyncIterator[socket.socket]:
    """A connection that asks and then reads nothing, with little room for what comes."""
    host, port = server.url.removeprefix("http://").split(":")
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    own.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(own, (host, int(port)))
        await loop.sock_sendall(own, f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await listening(server)
        yield own
    finally:
        own.close()


async def post_until(server: Serving, over: Callable[[], bool]) -> int:
    """Detections as a fast camera makes them; how many it took."""
    boxes = [[1.0, 2.0, 3.0, 4.0, 0, 0.5, None]] * 20
    count = 0
    async with asyncio.timeout(DEADLINE_S):
        while not over():
            server.bulletin.post(DETECTIONS, "porch", {"seq": count, "boxes": boxes})
            count += 1
            await asyncio.sleep(0.0005)
    return count


async def test_a_slow_reader_gets_newer_detections_and_no_backlog() -> None:
    async with serving(None) as server:
        path = "/api/events/live?topics=detections"
        async with a_reader_that_stops(server, path) as own:
            # Nothing has left for so long that hundreds were replaced.
            statistics = server.bulletin.statistics
            count = await post_until(server, lambda: statistics().replaced >= 300)
            received, last = b"", f'"seq":{count - 1}'.encode()
            async with asyncio.timeout(DEADLINE_S):
                while last not in received:
                    received += await asyncio.get_running_loop().sock_recv(own, 65536)
        told = received.count(b"event: detections")
        # What lay in the connection, and the newest.
        assert told == count - statistics().replaced
        assert len(received) < 256 * 1024


async def test_a_reader_that_takes_nothing_is_let_go() -> None:
    async with serving(None, outlets(listener_timeout_s=0.5)) as server:
        path = "/api/events/live?topics=detections"
        async with a_reader_that_stops(server, path):
            await post_until(server, lambda: not server.bulletin.statistics().subscriptions)
        assert (await audience(server))["ended"] == {"too slow": 1}


async def test_two_hundred_listeners_hear_of_an_event() -> None:
    settings = changed(outlets={"max_listeners": 200}, limits={"requests_per_s": 0})
    async with serving(None, settings) as server:
        async with ClientSession(connector=TCPConnector(limit=0)) as http:
            url = f"{server.url}/api/events/live"
            replies = await asyncio.gather(*(http.get(url) for _ in range(200)))
            await listening(server, 200)
            server.bulletin.post(EVENTS, "porch", {"id": "1"})
            events = await asyncio.gather(*(Reader(reply).wait_for("event") for reply in replies))
            assert [event.data["id"] for event in events] == ["1"] * 200
            for reply in replies:
                reply.close()
        await listening(server, 0)


async def test_websocket_tells_the_same_as_the_data_channel() -> None:
    async with streaming(FakeDetector()) as server, calling(server, stream="desk"):
        async with server.http.ws_connect(f"{server.url}/ws/detections?stream=desk") as ws:
            async with asyncio.timeout(DEADLINE_S):
                hello = await ws.receive_json()
                assert hello == {"type": "hello", "names": ["fake"]}
                while (message := await ws.receive_json()).get("type") == "status":
                    assert message["stream"] == "desk"
        assert message["boxes"] == [[80.0, 60.0, 160.0, 120.0, 0, 1.0, None]]
        assert {"stream", "seq", "rtp_timestamp", "captured_unix_ms", "size"} <= message.keys()
        await listening(server, 0)


async def test_websocket_carries_events_and_says_why_it_ends() -> None:
    async with serving(None) as server:
        async with server.http.ws_connect(f"{server.url}/ws/detections?topics=events") as ws:
            await ws.receive_json()
            server.bulletin.post(EVENTS, "porch", {"id": "1", "kind": "enter"})
            async with asyncio.timeout(DEADLINE_S):
                event = await ws.receive_json()
            assert event.pop("notice_id").startswith(server.bulletin.run)
            assert event == {"type": "event", "id": "1", "kind": "enter"}
            await ws.send_str("x" * 5000)
            async with asyncio.timeout(DEADLINE_S):
                assert (await ws.receive()).type == WSMsgType.CLOSE
        await listening(server, 0)


async def test_stopping_ends_all_who_listen_at_once() -> None:
    loop = asyncio.get_running_loop()
    async with ClientSession() as http:
        async with serving(None) as server:
            reply = await http.get(f"{server.url}/api/events/live")
            ws = await http.ws_connect(f"{server.url}/ws/detections")
            await listening(server, 2)
            began = loop.time()
        # Without being told they would have used up `shutdown_timeout_s`.
        assert loop.time() - began < Settings().server.shutdown_timeout_s
        end = await Reader(reply).wait_for("end")
        assert end.data["reason"] == "server stops"
        async with asyncio.timeout(DEADLINE_S):
            assert (await ws.receive_json())["type"] == "hello"
            closing = await ws.receive()
        assert (closing.type, closing.extra) == (WSMsgType.CLOSE, "server stops")
        await ws.close()


async def test_a_key_hears_of_its_own_streams_only() -> None:
    async with guarded() as server:
        bulletin = server.app[BULLETIN]
        headers = {"Authorization": f"Bearer {FRONT}"}
        url = f"{server.url}/api/events/live?topics=events"
        async with following(url, server.http, **headers) as reader:
            await reader.wait_for("hello")
            bulletin.post(EVENTS, "back-yard", {"id": "1"})
            bulletin.post(EVENTS, "front-door", {"id": "2"})
            assert (await reader.next()).data["id"] == "2"
        for path in ("api/events/live?stream=back-yard", "api/streams/back-yard/detections"):
            assert (await server.ask("GET", f"/{path}", FRONT))[0] == 403
        assert (await server.ask("GET", "/api/events/live"))[0] == 401


async def test_a_token_that_ends_takes_its_listeners_along() -> None:
    async with guarded() as server:
        _, issued = await server.ask("POST", "/api/tokens", ADMIN, json={"scopes": ["view"]})
        headers = {"Authorization": f"Bearer {issued['token']}"}
        async with following(f"{server.url}/api/events/live", server.http, **headers) as reader:
            await reader.wait_for("hello")
            await server.ask("DELETE", f"/api/tokens/{issued['id']}", ADMIN)
            assert (await reader.wait_for("end")).data["reason"] == "token ended"


async def test_a_ticket_opens_where_no_header_can_be_sent() -> None:
    async with guarded() as server:
        _, ticket = await server.ask("POST", "/api/tickets", FRONT)
        url = f"{server.url}/api/events/live?ticket={ticket['ticket']}"
        async with following(url, server.http) as reader:
            await reader.wait_for("hello")
        async with server.http.get(url) as reply:
            assert reply.status == 401


async def test_metrics_and_statistics_count_listeners() -> None:
    async with (
        serving(None) as server,
        following(f"{server.url}/api/events/live", server.http) as reader,
    ):
        await reader.wait_for("hello")
        server.bulletin.post(EVENTS, "porch", {"id": "1"})
        await reader.wait_for("event")
        found = await server.stats()
        assert found["audience"]["listening"] == {"sse": 1}
        assert found["bulletin"]["posted"]["events"] == 1
        async with server.http.get(f"{server.url}/metrics") as reply:
            text = await reply.text()
    assert 'sightline_audience{kind="sse"} 1.0' in text
    assert 'sightline_notices_total{topic="events"} 1.0' in text
