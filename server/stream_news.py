"""What is said about one stream: boxes and signal to its viewers, states and what is found to the
bulletin. On the loop."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from server.clock import now_ns, unix_ms
from server.detections import Detections
from server.frame import Frame
from server.hub import SentShot
from server.messages import frame_message
from server.outlets.bulletin import DETECTIONS, ENDED, STATUS, Bulletin
from server.rtc.relay import RelayedTime
from server.shot import Shot


class Listener(Protocol):
    """Whoever takes messages as text."""

    def tell(self, text: str) -> None: ...


class StreamNews:
    """Who hears it is for the stream to say; what was said last is remembered here."""

    def __init__(self, stream: str, bulletin: Bulletin) -> None:
        self._stream = stream
        self._bulletin = bulletin
        self._told: Detections | None = None
        self._state = ""

    # --- to viewers ---

    def tell_drawn(self, sent: SentShot, detections: Detections, to: Sequence[Listener]) -> None:
        """Boxes of a picture that has left with them drawn."""
        message = frame_message(
            self._stream,
            sent.shot.frame,
            detections,
            rtp_timestamp=sent.rtp_timestamp,
            stages_ms=sent.stamps.stages_ms(),
            sent=sent.stamps,
        )
        _tell(message, to)

    def tell_beside(
        self,
        frame: Frame,
        detections: Detections,
        relayed: RelayedTime,
        to: Sequence[Listener],
    ) -> None:
        """Boxes for those who draw them themselves, with the time of their frame as it left."""
        message = frame_message(
            self._stream,
            frame,
            detections,
            rtp_timestamp=relayed.rtp_timestamp,
            stages_ms=frame.stamps.stages_ms(),
            sent=replace(frame.stamps, sent_at_ns=relayed.sent_at_ns),
        )
        _tell(message, to)

    def tell_signal(self, live: bool, to: Sequence[Listener]) -> None:
        """For those who get packets as they come: nobody draws `no signal` for them."""
        _tell({"type": "signal", "live": live}, to)

    # --- to the bulletin ---

    def post_found(self, shot: Shot) -> None:
        """Boxes as soon as they are known, whether the stream is watched or not."""
        # In mode `smooth` the same boxes are shown on several pictures, moved on.
        frame, found = shot.found or (shot.frame, shot.detections)
        if found is None or found is self._told:
            return
        self._told = found
        if not self._bulletin.wanted(DETECTIONS, self._stream):
            return
        message = frame_message(
            self._stream,
            frame,
            found,
            rtp_timestamp=frame.rtp_timestamp,
            stages_ms=frame.stamps.stages_ms(),
            sent=replace(frame.stamps, sent_at_ns=now_ns()),
        )
        self._bulletin.post(DETECTIONS, self._stream, message, shot.names)

    @property
    def state(self) -> str:
        """As posted last."""
        return self._state

    def post_state(self, state: str, source: str) -> None:
        """How the stream stands, when that is new; `source` is its kind, empty for none."""
        if state == self._state or self._state == ENDED:
            return
        self._state = state
        message = {
            "stream": self._stream,
            "state": state,
            "source": source,
            "unix_ms": round(unix_ms(), 1),
        }
        self._bulletin.post(STATUS, self._stream, message)


def _tell(message: dict[str, Any], to: Sequence[Listener]) -> None:
    text = json.dumps(message, separators=(",", ":"))
    for listener in to:
        listener.tell(text)
