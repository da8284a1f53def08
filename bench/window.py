"""From the logs of one client to its report over the measured window. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.camera import SendTimes
from bench.eye import EyeStatistics, Returned
from bench.statistics import (
    Distribution,
    Freezes,
    Second,
    by_second,
    distribution,
    freezes,
    growth_per_minute,
    quantiles,
    rate_per_s,
)
from server.clock import NS_PER_MS, NS_PER_S

INFERENCE_STAGE = "infer"


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time: pictures handed to the encoder within it count."""

    begin_at_ns: int
    end_at_ns: int

    def holds(self, at_ns: int) -> bool:
        return self.begin_at_ns <= at_ns < self.end_at_ns

    @property
    def duration_s(self) -> float:
        return (self.end_at_ns - self.begin_at_ns) / NS_PER_S


@dataclass(frozen=True, slots=True)
class Message:
    """Text of the data channel, parsed only after the measurement."""

    arrived_at_ns: int
    text: str


@dataclass(frozen=True, slots=True)
class ServerShare:
    """What the server says about its own part, on the data channel."""

    messages: int
    stages_ms: Mapping[str, Distribution]
    own_ms: Distribution | None
    """First packet in to last packet out, without inference."""
    total_ms: Distribution | None
    """First packet in to last packet out."""
    boxes_per_frame: float
    dropped: Mapping[str, Any]
    """The server's own counts since the start of the call."""


@dataclass(frozen=True, slots=True)
class ClientReport:
    """One client of one run. Times are milliseconds."""

    name: str
    sent: int
    returned: int
    lost: int
    """Sent in the window and never read back: dropped on either way, or unreadable."""
    unreadable: int
    misread: int
    repeated: int
    read_from_lower_strip: int
    slots_skipped: int
    """Pictures the client itself was too late to send, since the start."""
    fps_sent: float
    fps_received: float
    latency_ms: Distribution | None
    freezes: Freezes
    growth_ms_per_minute: float
    send_ms: Distribution | None
    """The client's own: handed over until its last packet left."""
    encode_ms: Distribution | None
    receive_ms: Distribution | None
    """The client's own: first packet until the bar code was read."""
    server: ServerShare
    quantiles_ms: Sequence[float] = ()
    """The delay at 0, 1 .. 100 percent."""
    seconds_ms: Sequence[Second] = ()
    """The delay second by second, by when the picture was handed over."""


def client_report(
    name: str,
    window: Window,
    handed_at_ns: Sequence[int],
    send_times: Sequence[SendTimes],
    returned: Sequence[Returned],
    messages: Iterable[Message],
    eye_before: EyeStatistics,
    eye_after: EyeStatistics,
    slots_skipped: int,
    waits_for_boxes: bool,
) -> ClientReport:
    """Cut the logs to the window and describe what is left."""
    sent = sum(window.holds(at_ns) for at_ns in handed_at_ns)
    inside = [picture for picture in returned if window.holds(picture.handed_at_ns)]
    latencies_ms = [ms(picture.read_at_ns - picture.handed_at_ns) for picture in inside]
    arrivals_ms = [ms(picture.read_at_ns) for picture in returned]
    arrived = sum(window.holds(picture.read_at_ns) for picture in returned)
    outgoing = [times for times in send_times if window.holds(times.handed_at_ns)]
    return ClientReport(
        name=name,
        sent=sent,
        returned=len(inside),
        lost=sent - len(inside),
        unreadable=eye_after.unreadable - eye_before.unreadable,
        misread=eye_after.misread - eye_before.misread,
        repeated=eye_after.repeated - eye_before.repeated,
        read_from_lower_strip=sum(picture.copy == 1 for picture in inside),
        slots_skipped=slots_skipped,
        fps_sent=rate_per_s(sent, window.duration_s),
        fps_received=rate_per_s(arrived, window.duration_s),
        latency_ms=distribution(latencies_ms),
        freezes=freezes(arrivals_ms, ms(window.begin_at_ns), ms(window.end_at_ns)),
        growth_ms_per_minute=growth_per_minute(
            [picture.handed_at_ns / NS_PER_S for picture in inside], latencies_ms
        ),
        send_ms=distribution([ms(t.sent_at_ns - t.handed_at_ns) for t in outgoing]),
        encode_ms=distribution([ms(t.encoded_at_ns - t.encode_started_at_ns) for t in outgoing]),
        receive_ms=distribution([ms(p.read_at_ns - p.received_at_ns) for p in inside]),
        server=server_share(
            (m.text for m in messages if window.holds(m.arrived_at_ns)), waits_for_boxes
        ),
        quantiles_ms=quantiles(latencies_ms),
        seconds_ms=by_second(
            [(p.handed_at_ns - window.begin_at_ns) / NS_PER_S for p in inside], latencies_ms
        ),
    )


def server_share(texts: Iterable[str], waits_for_boxes: bool) -> ServerShare:
    """What detection messages say; other messages and unknown keys are passed over.

    A message has the time inference took for its own frame, but the whole way only of the
    frame that left last. So the way of one frame is put together from the message about it
    and the next one, matched by the instant its first packet came. In mode smooth a picture
    doesn't wait for its boxes and there is no inference in its way.
    """
    stages: dict[str, list[float]] = {}
    infer_ms_by_arrival: dict[int, float] = {}
    total_ms_by_arrival: dict[int, float] = {}
    boxes = messages = 0
    dropped: Mapping[str, Any] = {}
    for text in texts:
        try:
            message = json.loads(text)
        except ValueError:
            continue
        if not isinstance(message, dict) or not isinstance(message.get("stages_ms"), dict):
            continue
        messages += 1
        boxes += len(message.get("boxes") or ())
        dropped = message.get("dropped") or dropped
        for name, value in message["stages_ms"].items():
            stages.setdefault(name, []).append(float(value))
        received_ms, sent_ms = message.get("received_server_ms"), message.get("sent_server_ms")
        total_ms = message.get("server_ms")
        if received_ms and INFERENCE_STAGE in message["stages_ms"]:
            infer_ms_by_arrival[_key(received_ms)] = float(message["stages_ms"][INFERENCE_STAGE])
        if sent_ms and total_ms:
            total_ms_by_arrival[_key(sent_ms - total_ms)] = float(total_ms)
    described = {name: distribution(values) for name, values in stages.items()}
    if waits_for_boxes:
        own = [
            total_ms - infer_ms_by_arrival[near]
            for key, total_ms in total_ms_by_arrival.items()
            for near in (key - 1, key, key + 1)
            if near in infer_ms_by_arrival
        ]
    else:
        own = list(total_ms_by_arrival.values())
    return ServerShare(
        messages=messages,
        stages_ms={name: found for name, found in described.items() if found is not None},
        own_ms=distribution(own),
        total_ms=distribution(list(total_ms_by_arrival.values())),
        boxes_per_frame=boxes / messages if messages else 0.0,
        dropped=dropped,
    )


def _key(instant_ms: float) -> int:
    """Hundredths of a millisecond: coarser than rounding, finer than two frames are apart."""
    return round(instant_ms * 100)


def ms(duration_ns: int) -> float:
    """For reports; instants keep their microseconds as floats here for many days."""
    return duration_ns / NS_PER_MS
