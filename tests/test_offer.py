import pytest

from server.call_options import CallOptions
from server.errors import MalformedError, RequestError, UnprocessableError
from server.offer import parse_offer, video_codec

pytestmark = pytest.mark.unit

VIDEO = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n"
FINGERPRINT = "a=fingerprint:sha-256 AB:CD\r\n"
SDP = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n" + VIDEO + FINGERPRINT


def test_a_plain_offer_passes() -> None:
    offer = parse_offer({"sdp": SDP, "type": "offer", "options": {"mode": "smooth"}})
    assert offer.sdp == SDP
    assert offer.options == {"mode": "smooth"}
    assert parse_offer({"sdp": SDP, "type": "offer"}).options == {}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "body"),
        ("v=0", "body"),
        ({}, "type"),
        ({"sdp": SDP, "type": "answer"}, "'answer'"),
        ({"sdp": 1, "type": "offer"}, "sdp"),
        ({"sdp": "hello", "type": "offer"}, "v=0"),
        ({"sdp": SDP, "type": "offer", "extra": 1}, "extra"),
        ({"sdp": SDP, "type": "offer", "options": [1]}, "options"),
    ],
)
def test_what_is_not_an_offer_is_malformed(body: object, told: str) -> None:
    with pytest.raises(MalformedError, match=told):
        parse_offer(body)


@pytest.mark.parametrize(
    ("sdp", "told"),
    [
        (SDP.replace(VIDEO, ""), "no m=video"),
        (SDP + VIDEO, "2 m=video"),
        (SDP + "m=audio 9 X 0\r\nm=application 9 X 0\r\nm=audio 9 X 0\r\n", "4 media sections"),
        (SDP + "m=text 9 X 0\r\n", "m=text"),
        (SDP.replace(FINGERPRINT, ""), "no a=fingerprint"),
        (SDP + "a=mid:0\r\na=group:BUNDLE 0 1\r\n", "a=group:BUNDLE"),
        (SDP + "a=mid:0\r\na=mid:1\r\na=group:BUNDLE 0 1\r\n", "a=mid"),
        (SDP + "a=mid:0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n", "one a=mid"),
        (SDP + "a=x\x00\r\n", "control characters"),
        (SDP + "a=x\x1b[2J\r\n", "control characters"),
        (SDP + "a=setup:active\r\n", "a=setup:active"),
        (SDP + "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n" * 65, "65 a=candidate"),
        (SDP + "a=ssrc:1 cname:x\r\n" * 65, "65 a=ssrc"),
        (SDP + "a=x\r\n" * 2000, "lines"),
        (SDP + "a=" + "x" * 3000 + "\r\n", "2048 characters"),
    ],
)
def test_an_offer_we_would_not_serve_is_refused_before_anything_is_built(
    sdp: str, told: str
) -> None:
    with pytest.raises(UnprocessableError, match=told):
        parse_offer({"sdp": sdp, "type": "offer"})


def test_options_change_only_what_is_named() -> None:
    options = CallOptions().updated({"confidence": 0.5})
    options = options.updated({"classes": ["person", "cat"], "mode": "smooth"})
    assert options == CallOptions("smooth", 0.5, ("person", "cat"))
    assert options.updated({"classes": None}).classes is None
    assert options.updated({"confidence": 1}).to_json()["confidence"] == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "instant"},
        {"mode": None},
        {"confidence": 1.5},
        {"confidence": True},
        {"confidence": "0.5"},
        {"confidence": float("nan")},
        {"classes": "person"},
        {"classes": [1]},
        {"classes": ["x"] * 401},
        {"classes": [""]},
        {"colour": "red"},
    ],
)
def test_a_wrong_option_is_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=f"options.{next(iter(changes))}"):
        CallOptions().updated(changes)


@pytest.mark.parametrize(
    ("sdp", "codec"),
    [
        (SDP + "a=rtpmap:96 VP8/90000\r\na=rtpmap:97 H264/90000\r\n", "VP8"),
        (
            SDP.replace(" 96", " 97 96") + "a=rtpmap:96 VP8/90000\r\na=rtpmap:97 H264/90000\r\n",
            "H264",
        ),
        (SDP, ""),
        ("v=0\r\n", ""),
    ],
)
def test_the_first_codec_of_the_video_line_is_the_one_agreed_on(sdp: str, codec: str) -> None:
    assert video_codec(sdp) == codec
