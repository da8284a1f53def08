"""The gate before an SDP offer reaches the peer connection: size, counts and kinds.

Pure text checks, so that nothing is built for an offer that cannot be served. What passes may
still fail in negotiation, which the session catches.
"""

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
    check_sdp(sdp)
    return Offer(sdp=sdp, options=options)


def check_sdp(sdp: str) -> None:
    """Refuse what we would not serve, naming the line and the limit."""
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
    for prefix, limit in (("a=candidate", CANDIDATES_AT_MOST), ("a=ssrc", SSRC_LINES_AT_MOST)):
        count = sum(line.startswith(prefix) for line in lines)
        if count > limit:
            raise UnprocessableError(f"sdp: {count} {prefix} lines, at most {limit} are read")
