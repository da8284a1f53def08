"""RFC 9725 and draft-ietf-wish-whep-03, row by row; names of rows as in the checklists."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import ClientResponse

from server.access import limits
from server.edge.gateway import FRAGMENT, SDP, link_header
from server.sdp_rules import publish_offer, view_offer
from tests.gateway.offers import FFMPEG, OBS, SIMULCAST, TRANSPORT, VIEWER
from tests.gateway.watching import sending, streaming
from tests.serving import Serving, changed, serving, until

pytestmark = pytest.mark.service

CANDIDATE = "a=candidate:1 1 udp 2130706431 192.0.2.9 50000 typ host\r\n"
UFRAG, PWD = "8e43cbdc", "d69b2fe0ba5f548e71ea12907d21a14b"
SAME = f"a=ice-ufrag:{UFRAG}\r\na=ice-pwd:{PWD}\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:1\r\n"
OTHER = SAME.replace(UFRAG, "fresh123").replace(PWD, "f" * 24)


def without(text: str, line: str) -> str:
    assert line in text.splitlines()
    return "".join(f"{kept}\n" for kept in text.splitlines() if kept != line)


async def send(
    server: Serving, method: str, path: str, body: str | None = None, **headers: str
) -> tuple[ClientResponse, str]:
    """One request; the reply with its body read."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with server.http.request(
        method, server.url + path, data=body, headers=named, skip_auto_headers=["Content-Type"]
    ) as reply:
        return reply, await reply.text()


async def post(
    server: Serving, path: str, body: str, content_type: str = SDP
) -> tuple[ClientResponse, str]:
    return await send(server, "POST", path, body, Content_Type=content_type)


async def publish(server: Serving, body: str = FFMPEG) -> tuple[str, str]:
    """Session path and ETag of a new publisher."""
    reply, text = await post(server, "/whip/cam", body)
    assert reply.status == 201, text
    return reply.headers["Location"], reply.headers["ETag"]


def is_problem(reply: ClientResponse, text: str) -> bool:
    """S4: RFC 9457, and nothing of our insides."""
    return reply.content_type == "application/problem+json" and "Traceback" not in text


# --- P: the POST ---


@pytest.mark.parametrize("offer", [FFMPEG, OBS, SIMULCAST], ids=["ffmpeg", "obs", "simulcast"])
async def test_p1_p6_p7_p8_offer_gets_a_whole_answer(offer: str) -> None:
    async with streaming() as server:
        reply, answer = await post(server, "/whip/cam", offer)
        assert (reply.status, reply.content_type) == (201, SDP)
        sections = re.split(r"^(?=m=)", answer, flags=re.MULTILINE)[1:]
        assert len(sections) == offer.count("\nm=")
        for section in sections:
            assert "a=recvonly" in section
            assert "a=rtcp-mux" in section
        assert "a=candidate:" in answer
        assert "a=end-of-candidates" in answer
        assert "a=group:BUNDLE" in answer
        # Layers are not taken; an answer without them makes a publisher send one (RFC 8853).
        assert not re.search("^a=(rid|simulcast):|rtp-stream-id", answer, re.MULTILINE)
        # A3: at least 128 random bits; A10 (T10): a strong ETag.
        assert re.fullmatch(r"/whip/cam/[\w-]{22,}", reply.headers["Location"])
        assert re.fullmatch(r'"[^"]+"', reply.headers["ETag"])
        assert reply.headers["Accept-Patch"] == FRAGMENT


@pytest.mark.parametrize(
    ("row", "body", "content_type", "status"),
    [
        ("P2", FFMPEG, "application/json", 415),
        ("P2", FFMPEG, "text/plain", 415),
        ("P3", "hello", SDP, 400),
        ("P3", "v=0\r\nno line of SDP\r\nm=video\r\n", SDP, 400),
        ("P4 two videos", FFMPEG + FFMPEG[FFMPEG.index("m=video") :], SDP, 422),
        ("P4 active", FFMPEG.replace("setup:passive", "setup:active"), SDP, 422),
        ("P5 inactive", FFMPEG.replace("a=sendonly", "a=inactive"), SDP, 422),
        ("P5 recvonly", FFMPEG.replace("a=sendonly", "a=recvonly"), SDP, 422),
        ("P8 no mux", without(FFMPEG, "a=rtcp-mux"), SDP, 422),
        ("P8 no bundle", without(OBS, "a=group:BUNDLE 0 1"), SDP, 422),
        ("P8 half a bundle", OBS.replace("BUNDLE 0 1", "BUNDLE 0"), SDP, 422),
        ("P9", OBS.replace("a=msid:bWRxPzVTcJyoVHQd ", "a=msid:other ", 1), SDP, 422),
        ("P4 no codec of ours", FFMPEG.replace("H264/", "AV1/"), SDP, 422),
        ("P10", FFMPEG + "a=x-padding:" + "x" * 140_000, SDP, 413),
    ],
)
async def test_p_refused_offer(row: str, body: str, content_type: str, status: int) -> None:
    async with streaming() as server:
        reply, text = await post(server, "/whip/cam", body, content_type)
        assert reply.status == status, (row, text)
        assert is_problem(reply, text)
        if status == 415:
            assert reply.headers["Accept-Post"] == SDP
        # Nothing half open: the name is free, no session is left.
        await until(lambda: not server.registry.statistics().sessions)
        assert server.registry.statistics().streams == ()


async def test_p2_without_a_type_is_415() -> None:
    async with streaming() as server:
        reply, _ = await send(server, "POST", "/whip/cam", FFMPEG)
        assert reply.status == 415


async def test_p11_full_server_says_when_to_come_back() -> None:
    async with serving(None, changed(session={"max_sessions": 1})) as server:
        await publish(server)
        reply, text = await post(server, "/whip/other", FFMPEG)
        assert (reply.status, is_problem(reply, text)) == (503, True)
        assert int(reply.headers["Retry-After"]) > 0


async def test_p11_offers_take_turns_but_what_cannot_be_served_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A turn every second, and room for two.
    monkeypatch.setattr(limits, "BURST_TAKES_S", 4.0)
    settings = changed(limits={"calls_per_s": 1.0, "call_burst": 4}, session={"max_sessions": 2})
    async with serving(None, settings) as server:
        loop = asyncio.get_running_loop()
        answered: list[tuple[int, float]] = []

        async def offer(name: str) -> None:
            reply, _ = await post(server, f"/whip/{name}", FFMPEG)
            answered.append((reply.status, loop.time()))

        begun_s = loop.time()
        await asyncio.gather(*(offer(name) for name in ("first", "second", "third")))
        assert sorted(status for status, _ in answered) == [201, 201, 503]
        status, at_s = answered[-1]
        assert status == 201, "the refused one did not wait for a turn"
        assert at_s - begun_s >= 1.0


async def test_p11_streams_are_bounded() -> None:
    async with streaming(max_streams=1) as server:
        await publish(server)
        reply, text = await post(server, "/whip/other", FFMPEG)
        assert reply.status == 503
        assert "max_streams: there are 1" in text


async def test_taken_name_is_409() -> None:
    async with streaming() as server:
        await publish(server)
        reply, text = await post(server, "/whip/cam", FFMPEG)
        assert (reply.status, is_problem(reply, text)) == (409, True)


@pytest.mark.parametrize("name", ["a.b", "x" * 65, "with%20space", "caf%C3%A9"])
@pytest.mark.parametrize("root", ["/whip/", "/whep/"])
async def test_what_is_no_name_is_404(root: str, name: str) -> None:
    async with streaming() as server:
        reply, text = await post(server, root + name, FFMPEG)
        assert reply.status == 404
        assert "1 to 64 of A-Z" in text


@pytest.mark.parametrize("root", ["/whip/cam", "/whep/cam"])
async def test_p13_p14_p15_w2_other_methods_on_the_endpoint(root: str) -> None:
    async with streaming() as server:
        reply, text = await send(server, "GET", root)
        assert (reply.status, text) == (204, "")
        reply, text = await send(server, "HEAD", root)
        assert (reply.status, reply.content_type) == (200, SDP)
        reply, text = await send(server, "OPTIONS", root)
        assert (reply.status, reply.headers["Accept-Post"]) == (200, SDP)
        assert "Link" not in reply.headers
        for method in ("PUT", "DELETE", "PATCH"):
            reply, text = await send(server, method, root)
            assert (reply.status, is_problem(reply, text)) == (405, True)
            assert "POST" in reply.headers["Allow"]


async def test_c1_c2_pages_of_allowed_origins_read_the_headers() -> None:
    site = "https://dash.example"
    async with serving(None, changed(auth={"allowed_origins": (site,)})) as server:
        reply, _ = await send(
            server,
            "OPTIONS",
            "/whip/cam",
            Origin=site,
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="authorization, content-type",
        )
        assert reply.status == 200
        assert reply.headers["Access-Control-Allow-Origin"] == site
        for method in ("POST", "PATCH", "DELETE", "OPTIONS"):
            assert method in reply.headers["Access-Control-Allow-Methods"]
        for header in ("Authorization", "Content-Type", "If-Match"):
            assert header in reply.headers["Access-Control-Allow-Headers"]
        reply, _ = await send(server, "POST", "/whip/cam", FFMPEG, Content_Type=SDP, Origin=site)
        assert reply.status == 201
        exposed = reply.headers["Access-Control-Expose-Headers"].split(", ")
        assert set(exposed) >= {
            *("Location", "ETag", "Link", "Retry-After"),
            *("Accept-Post", "Accept-Patch", "WWW-Authenticate"),
        }
        # As well where sessions are patched and ended.
        reply, _ = await send(
            server,
            "OPTIONS",
            reply.headers["Location"],
            Origin=site,
            Access_Control_Request_Method="PATCH",
            Access_Control_Request_Headers="authorization, content-type, if-match",
        )
        assert reply.status == 200
        assert reply.headers["Access-Control-Allow-Origin"] == site
        assert "PATCH" in reply.headers["Access-Control-Allow-Methods"]
        assert "If-Match" in reply.headers["Access-Control-Allow-Headers"]
        reply, _ = await send(
            server, "POST", "/whip/b", FFMPEG, Content_Type=SDP, Origin="https://evil.example"
        )
        assert reply.status == 403


async def test_i1_ice_servers_come_as_links() -> None:
    rtc = {
        "ice_servers": ("stun:127.0.0.1:9", "turn:127.0.0.1:9?transport=udp"),
        "ice_username": "u",
        "ice_credential": "c",
        "gather_timeout_s": 0.1,
    }
    async with serving(None, changed(rtc=rtc)) as server:
        reply, text = await post(server, "/whip/cam", FFMPEG)
        assert reply.status == 201, text
        assert reply.headers.getall("Link") == [
            '<stun:127.0.0.1:9>; rel="ice-server"',
            '<turn:127.0.0.1:9?transport=udp>; rel="ice-server"; username="u"; credential="c"; '
            'credential-type="password"',
        ]


def test_i1_a_link_holds_no_credentials_that_are_not_there() -> None:
    assert link_header({"urls": "stun:s"}) == '<stun:s>; rel="ice-server"'


# --- A: who may ---


async def test_a1_a2_keys_and_scopes() -> None:
    publisher, viewer = "publisher-key-of-20-chars", "viewer-key-of-20-characters"
    keys = (f"publish:cam:{publisher}", f"view:cam:{viewer}")
    auth = {"auth": "on", "api_keys": keys, "token_secret": "s" * 40}
    async with serving(None, changed(auth=auth)) as server:
        reply, _ = await post(server, "/whip/cam", FFMPEG)
        assert (reply.status, reply.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
        for key, path, status in (
            (viewer, "/whip/cam", 403),
            (publisher, "/whip/other", 403),
            (publisher, "/whip/cam", 201),
            (publisher, "/whep/cam", 403),
            # W5: what may not be seen does not show whether it exists.
            (viewer, "/whep/other", 403),
        ):
            body = FFMPEG if "whip" in path else VIEWER
            reply, text = await send(
                server, "POST", path, body, Content_Type=SDP, Authorization=f"Bearer {key}"
            )
            assert reply.status == status, (path, text)
            if status == 201:
                session = reply.headers["Location"]
        # P14: a browser's preflight cannot carry a key.
        for path in ("/whip/cam", "/whep/cam", session):
            reply, _ = await send(server, "OPTIONS", path)
            assert reply.status == 200
        # A1: nor is a PATCH taken without one.
        reply, _ = await send(server, "PATCH", session, SAME, Content_Type=FRAGMENT, If_Match="*")
        assert reply.status == 401
        # A3: the URL alone is not enough.
        reply, _ = await send(server, "DELETE", session)
        assert reply.status == 401
        reply, _ = await send(server, "DELETE", session, Authorization=f"Bearer {viewer}")
        assert reply.status == 404
        reply, _ = await send(server, "DELETE", session, Authorization=f"Bearer {publisher}")
        assert reply.status == 200


# --- T: the PATCH ---


@pytest.mark.parametrize(
    ("row", "body", "content_type", "match", "status"),
    [
        ("T1", SAME + CANDIDATE, FRAGMENT, "own", 204),
        ("T1 end of candidates", SAME + "a=end-of-candidates\r\n", FRAGMENT, "own", 204),
        ("T1 in a list", SAME + CANDIDATE, FRAGMENT, "listed", 204),
        ("T2 T3 T9 restart", OTHER + CANDIDATE, FRAGMENT, "*", 422),
        ("T5", SAME + CANDIDATE, FRAGMENT, None, 428),
        ("T6", SAME + CANDIDATE, FRAGMENT, '"stale"', 412),
        ("T7", SAME + CANDIDATE, SDP, "own", 415),
        ("T8 no such name", SAME + CANDIDATE.replace("192.0.2.9", "x.local"), FRAGMENT, "own", 204),
        ("T8 not UDP", SAME + CANDIDATE.replace("udp", "tcp"), FRAGMENT, "own", 204),
        ("T8 no candidate", SAME + "a=candidate:nonsense\r\n", FRAGMENT, "own", 204),
        ("T8 no port", SAME + CANDIDATE.replace("50000", "x"), FRAGMENT, "own", 204),
        ("too many", SAME + CANDIDATE * 65, FRAGMENT, "own", 422),
        ("no fragment", "nonsense", FRAGMENT, "own", 400),
        ("empty", "", FRAGMENT, "own", 400),
    ],
)
async def test_t_patch(
    row: str, body: str, content_type: str, match: str | None, status: int
) -> None:
    async with streaming() as server:
        session, own = await publish(server)
        headers = {"Content_Type": content_type}
        if match is not None:
            headers["If_Match"] = {"own": own, "listed": f'"x", {own}'}.get(match, match)
        reply, text = await send(server, "PATCH", session, body, **headers)
        assert reply.status == status, (row, text)
        if status == 204:
            assert text == ""
            assert "ETag" not in reply.headers
        if status == 415:
            assert reply.headers["Accept-Patch"] == FRAGMENT
        # T9: whatever was refused, the session stands.
        assert len(server.registry.statistics().sessions) == 1


async def test_options_of_a_session_say_what_may_be_patched() -> None:
    async with streaming() as server:
        session, _ = await publish(server)
        reply, _ = await send(server, "OPTIONS", session)
        assert (reply.status, reply.headers["Accept-Patch"]) == (200, FRAGMENT)


# --- D: the DELETE ---


async def test_d1_d2_d3_delete_ends_at_once_and_only_once() -> None:
    async with streaming() as server, sending(server, "cam") as url:
        session = url.removeprefix(server.url)
        # D1: conditions are not looked at.
        reply, _ = await send(server, "DELETE", session, If_Match='"stale"')
        assert reply.status == 200
        assert server.registry.statistics().streams == ()
        for method in ("DELETE", "PATCH"):
            reply, text = await send(
                server, method, session, SAME, Content_Type=FRAGMENT, If_Match="*"
            )
            assert (reply.status, is_problem(reply, text)) == (404, True)


async def test_session_belongs_to_its_stream_and_its_protocol() -> None:
    async with streaming() as server:
        session, _ = await publish(server)
        session_id = session.rsplit("/", 1)[1]
        for path in (f"/whip/other/{session_id}", f"/whep/cam/{session_id}", "/whip/cam/unknown"):
            reply, _ = await send(server, "DELETE", path)
            assert reply.status == 404, path


# --- W: WHEP ---


async def test_w1_viewer_gets_a_sendonly_answer_with_the_extensions_it_offered() -> None:
    async with streaming() as server:
        await publish(server)
        reply, answer = await post(server, "/whep/cam", VIEWER)
        assert (reply.status, reply.content_type) == (201, SDP)
        assert re.fullmatch(r"/whep/cam/[\w-]{22,}", reply.headers["Location"])
        assert "a=sendonly" in answer
        assert "a=end-of-candidates" in answer
        assert "a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay" in answer
        assert "a=extmap:9 http://www.webrtc.org/experiments/rtp-hdrext/abs-capture" in answer
        # The server's own preference stands first.
        assert answer.index("H264/90000") > 0
        own = reply.headers["ETag"]
        session = reply.headers["Location"]
        reply, _ = await send(
            server, "PATCH", session, SAME + CANDIDATE, Content_Type=FRAGMENT, If_Match=own
        )
        assert reply.status == 204
        reply, _ = await send(server, "DELETE", session)
        assert reply.status == 200
        reply, _ = await send(server, "DELETE", session)
        assert reply.status == 404


@pytest.mark.parametrize(
    ("row", "change", "query", "status"),
    [
        ("W1 sendonly", lambda sdp: sdp.replace("a=recvonly", "a=sendonly"), "", 422),
        ("W1 inactive", lambda sdp: sdp.replace("a=recvonly", "a=inactive"), "", 422),
        ("W4", lambda sdp: re.sub("(VP8|H264)/", "AV1/", sdp), "", 406),
        ("rung", lambda sdp: sdp, "?rung=middle", 400),
        ("malformed", lambda sdp: "hello", "", 400),
    ],
)
async def test_w_refused_offer(
    row: str, change: Callable[[str], str], query: str, status: int
) -> None:
    async with streaming() as server:
        await publish(server)
        reply, text = await post(server, f"/whep/cam{query}", change(VIEWER))
        assert (reply.status, is_problem(reply, text)) == (status, True), (row, text)
        assert server.registry.statistics().streams[0].viewers == 0


async def test_w3_source_away_is_409_with_a_time_to_come_back() -> None:
    async with streaming() as server:
        session, _ = await publish(server)
        reply, _ = await post(server, "/whep/cam", VIEWER)
        assert reply.status == 201
        await send(server, "DELETE", session)
        # The stream is kept for the viewer that is there.
        reply, text = await post(server, "/whep/cam", VIEWER)
        assert (reply.status, is_problem(reply, text)) == (409, True)
        assert 2 <= int(reply.headers["Retry-After"]) <= 10


async def test_w5_unknown_stream_is_404_whatever_is_offered() -> None:
    async with streaming() as server:
        for body in (VIEWER, VIEWER.replace("a=recvonly", "a=sendonly")):
            reply, text = await post(server, "/whep/nobody", body)
            assert (reply.status, is_problem(reply, text)) == (404, True)


async def test_w6_viewers_are_bounded() -> None:
    async with streaming(max_viewers=1) as server:
        await publish(server)
        reply, _ = await post(server, "/whep/cam", VIEWER)
        assert reply.status == 201
        reply, text = await post(server, "/whep/cam", VIEWER)
        assert reply.status == 503
        assert "max_viewers: 1" in text
        assert int(reply.headers["Retry-After"]) > 0


# --- what streams there are ---


async def test_streams_are_listed_and_read() -> None:
    async with streaming() as server:
        await publish(server)
        async with server.http.get(f"{server.url}/api/streams") as reply:
            [stream] = (await reply.json())["streams"]
        async with server.http.get(f"{server.url}/api/streams/cam") as reply:
            same: dict[str, Any] = await reply.json()
        assert (stream["name"], stream["source"], stream["live"]) == ("cam", "whip", False)
        assert same["name"] == "cam"
        async with server.http.get(f"{server.url}/api/streams/other") as reply:
            assert reply.status == 404


def test_sendrecv_is_tolerated_on_both_sides() -> None:
    both = FFMPEG.replace("a=sendonly", "a=sendrecv")
    assert publish_offer(both).sdp == both
    assert view_offer(both, ("H264",)).sdp == both
    assert TRANSPORT in both
