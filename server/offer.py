"""The gate before an SDP offer reaches the peer connection: size, counts and kinds.

Pure text checks, so that nothing is built for an offer that cannot be served. What passes may
still fail in negotiation, which the session catches.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import MalformedError, UnprocessableError

MEDIA_SECTIONS_AT_MOST = 3
CANDIDATES_AT_MOST = 64
SSRC_LINES_AT_MOST = 64
LINES_AT_MOST = 2000
LINE_LENGTH_AT_MOST = 2048


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer worth negotiating."""

    sdp: str
    options: Mapping[str, object]
    stream: str = ""
    """The name under which others may watch; empty for none."""


def parse_offer(body: object) -> Offer:
    """The JSON body of `POST /offer`, checked."""
    if not isinstance(body, dict):
        raise MalformedError("body: not a JSON object with sdp and type")
    unknown = sorted(set(body) - {"sdp", "type", "options"})
    if unknown:
        raise MalformedError(f"{unknown[0][:40]}: unknown; known are sdp, type, options")
    if body.get("type") != "offer":
        raise MalformedError(f"type: {body.get('type')!r:.40} is not 'offer'")
    sdp = body.get("sdp")
    if not isinstance(sdp, str) or not sdp.startswith("v=0"):
        raise MalformedError("sdp: not a session description (it starts with v=0)")
    options = body.get("options") or {}
    if not isinstance(options, dict):
        raise MalformedError("options: not a JSON object")
    stream = options.get("stream")
    if stream is not None and not isinstance(stream, str):
        raise MalformedError("options.stream: not text")
    check_sdp(sdp)
    rest = {name: value for name, value in options.items() if name != "stream"}
    return Offer(sdp=sdp, options=rest, stream=stream or "")


def check_sdp(sdp: str) -> None:
    """Refuse what we would not serve, naming the line and the limit."""
    if re.search(r"[^\r\n\x20-\x7e\x80-\uffff]", sdp):
        raise UnprocessableError("sdp: holds control characters")
    lines = sdp.splitlines()
    if len(lines) > LINES_AT_MOST:
        raise UnprocessableError(f"sdp: {len(lines)} lines, at most {LINES_AT_MOST} are read")
    if any(len(line) > LINE_LENGTH_AT_MOST for line in lines):
        raise UnprocessableError(f"sdp: a line is over {LINE_LENGTH_AT_MOST} characters")
    media = [line[2:].split(" ", 1)[0] for line in lines if line.startswith("m=")]
    if len(media) > MEDIA_SECTIONS_AT_MOST:
        raise UnprocessableError(
            f"sdp: {len(media)} media sections, at most {MEDIA_SECTIONS_AT_MOST} are served"
        )
    unknown = [kind for kind in media if kind not in ("video", "audio", "application")]
    if unknown:
        raise UnprocessableError(
            f"sdp: m={unknown[0][:20]} is not one of video, audio, application"
        )
    for kind in ("video", "audio", "application"):
        if media.count(kind) > 1:
            raise UnprocessableError(f"sdp: {media.count(kind)} m={kind} sections, at most 1")
    if "video" not in media:
        raise UnprocessableError("sdp: no m=video section, there is nothing to look at")
    if not any(line.startswith("a=fingerprint:") for line in lines):
        raise UnprocessableError("sdp: no a=fingerprint line, the peer could not be recognised")
    if "a=setup:active" in lines:
        # We would have to accept the first handshake that comes, from whoever sends it.
        raise UnprocessableError("sdp: a=setup:active is not served, a=setup:actpass is")
    named = [line[6:] for line in lines if line.startswith("a=mid:")]
    mids = set(named)
    if any(section.count("\na=mid:") > 1 for section in re.split(r"^m=", sdp, flags=re.MULTILINE)):
        # aiortc keeps the last name, and finds no transport for the section that had the first.
        raise UnprocessableError("sdp: a=mid twice in one section")
    if len(mids) < len(named):
        raise UnprocessableError("sdp: two sections of one a=mid")
    for line in lines:
        if line.startswith("a=group:BUNDLE") and not mids.issuperset(line.split()[1:]):
            raise UnprocessableError("sdp: a=group:BUNDLE names a section that is not there")
    for prefix, limit in (("a=candidate", CANDIDATES_AT_MOST), ("a=ssrc", SSRC_LINES_AT_MOST)):
        count = sum(line.startswith(prefix) for line in lines)
        if count > limit:
            raise UnprocessableError(f"sdp: {count} {prefix} lines, at most {limit} are read")


def video_codec(sdp: str) -> str:
    """The codec an answer settles on: the first of its video line; empty when it has none."""
    first = re.search(r"^m=video \d+ \S+ (\d+)", sdp, re.MULTILINE)
    if first is None:
        return ""
    name = re.search(rf"^a=rtpmap:{first[1]} ([^/\s]+)/", sdp, re.MULTILINE)
    return name[1] if name else ""


def one_line(error: Exception) -> str:
    """The first line of what an SDP parser says, for the caller."""
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:160]
