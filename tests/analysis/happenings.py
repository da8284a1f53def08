"""Happenings as a scene would tell them, for tests of what comes behind it."""

import dataclasses
import itertools
from typing import Any

from server.analysis.events import Event, new_event_id
from server.analysis.scene import Happening
from server.clock import now_ns, unix_ms
from server.frame import Frame, Stamps
from tests.fakes import grey_video_frame

NUMBERS = itertools.count(1)


def begins(*, pictured: bool = True, **changes: Any) -> Happening:
    """Somebody enters."""
    at_unix_ms = round(unix_ms())
    event = Event(
        id=new_event_id(at_unix_ms),
        stream="yard",
        kind="enter",
        class_name="person",
        track_id=next(NUMBERS),
        zone="room",
        started_unix_ms=at_unix_ms,
        ended_unix_ms=None,
        score=0.8,
        box=(0.1, 0.1, 0.4, 0.4),
    )
    frame = Frame(grey_video_frame(), 0, 0, Stamps()) if pictured else None
    return Happening(dataclasses.replace(event, **changes), True, frame, now_ns())


def ends(happening: Happening) -> Happening:
    event = happening.event
    ended = dataclasses.replace(event, ended_unix_ms=event.started_unix_ms + 1000)
    return Happening(ended, False, None, now_ns())
