"""What WHIP and WHEP ask of an offer beyond what every offer must be; pure text checks.

RFC 9725 section 4.2 and draft-ietf-wish-whep-03. What fails is 422: well formed, not served.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from server.errors import MalformedError, NotAcceptableError, UnprocessableError
from server.offer import CANDIDATES_AT_MOST, Offer, check_sdp

DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
PUBLISHING, VIEWING = ("sendonly", "sendrecv"), ("recvonly", "sendrecv")


@dataclass(frozen=True, slots=True)
class Fragment:
    """A trickled SDP fragment (RFC 8840): credentials as far as named, and candidates."""

    credentials: tuple[str, str]
    candidates: tuple[str, ...]


def publish_offer(text: str) -> Offer:
    """A WHIP offer, checked."""
    offer = _offer(text, PUBLISHING)
    streams = {line.split(":", 1)[1].partition(" ")[0] for line in _lines(text, "a=msid:")}
    if len(streams) > 1:
        raise UnprocessableError(f"sdp: tracks of {len(streams)} media streams, at most 1")
    return offer


def view_offer(text: str, codecs: Sequence[str]) -> Offer:
    """A WHEP offer, checked; it must take one of the codecs that we send."""
    offer = _offer(text, VIEWING)
    names = {name.upper() for name in re.findall(r"^a=rtpmap:\d+ ([^/\s]+)/90000", text, re.M)}
    if names.isdisjoint(codecs):
        raise NotAcceptableError(f"sdp: none of {', '.join(codecs)} is among the offered codecs")
    return offer


def parse_fragment(text: str) -> Fragment:
    """The body of a PATCH."""
    lines = text.splitlines()
    if not lines or any(not re.match(r"[a-z]=", line) for line in lines if line):
        raise MalformedError("body: not an SDP fragment")
    candidates = tuple(line[2:] for line in lines if line.startswith("a=candidate:"))
    if len(candidates) > CANDIDATES_AT_MOST:
        raise UnprocessableError(
            f"body: {len(candidates)} candidates, at most {CANDIDATES_AT_MOST} are read"
        )
    return Fragment((_value(text, "a=ice-ufrag:"), _value(text, "a=ice-pwd:")), candidates)


def _offer(text: str, allowed: Sequence[str]) -> Offer:
    if not text.startswith("v=0") or "\nm=" not in text:
        raise MalformedError("body: not a session description (v=0, then m= sections)")
    if any(not re.match(r"[a-z]=", line) for line in text.splitlines() if line):
        raise MalformedError("body: a line is not of the form x=value")
    check_sdp(text)
    head, *sections = re.split(r"^(?=m=)", text, flags=re.MULTILINE)
    session_direction = _direction(head) or "sendrecv"
    mids = []
    for section in sections:
        kind = section[2:].split(" ", 1)[0]
        mids += [line.split(":", 1)[1] for line in _lines(section, "a=mid:")]
        if kind == "application":
            continue
        direction = _direction(section) or session_direction
        if direction not in allowed:
            raise UnprocessableError(f"sdp: m={kind} is {direction}, not {' or '.join(allowed)}")
        if "a=rtcp-mux" not in section.splitlines():
            raise UnprocessableError(f"sdp: m={kind} is without a=rtcp-mux")
    bundled = {mid for line in _lines(head, "a=group:BUNDLE") for mid in line.split()[1:]}
    if len(sections) > 1 and (len(mids) < len(sections) or not bundled.issuperset(mids)):
        raise UnprocessableError("sdp: not all sections are in one a=group:BUNDLE")
    return Offer(sdp=text, options={})


def _direction(section: str) -> str:
    for line in section.splitlines():
        if line.startswith("a=") and line[2:] in DIRECTIONS:
            return line[2:]
    return ""


def _lines(text: str, prefix: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(prefix)]


def _value(text: str, prefix: str) -> str:
    found = _lines(text, prefix)
    return found[0].removeprefix(prefix) if found else ""
