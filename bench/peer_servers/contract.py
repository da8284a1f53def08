"""What the headless peer reads of an answer to its offer."""

import re
from typing import Any

from bench.peer_servers.finder import Finder


def answer_body(session: str, sdp: str, finder: Finder) -> dict[str, Any]:
    """What the headless peer reads of an answer."""
    return {
        "sdp": sdp,
        "type": "answer",
        "session": session,
        "options": {},
        "codec": _first_video_codec(sdp),
        "model": finder.report(),
        "encoder": "aiortc",
    }


def _first_video_codec(sdp: str) -> str:
    payload_type = re.search(r"^m=video \S+ \S+ (\d+)", sdp, re.MULTILINE)
    number = payload_type.group(1) if payload_type else ""
    name = re.search(rf"^a=rtpmap:{number} (\w+)/", sdp, re.MULTILINE)
    return name.group(1) if name else "none"
