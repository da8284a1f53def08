"""What takes input from others, one function each: bytes in, and nothing may come out but the
refusals that are meant. `test_fuzz.py` feeds them by hypothesis, `python -m tests.fuzz` by
atheris, which follows what the bytes reach.
"""

import argparse
import asyncio
import contextlib
import json
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from aioice import Candidate
from aiortc import RTCDtlsTransport
from aiortc.rtp import RtcpPacket

from server.call_options import CallOptions
from server.data_channel import DetectionChannel
from server.detector.names import parse_names
from server.detector.protobuf import fields
from server.detector.sidecar import check_input, literal
from server.errors import ModelError, RequestError, SettingsError
from server.images import check_image, decode_image
from server.offer import parse_offer, video_codec
from server.rtc.assembly import AssemblyPacket, FrameAssembler
from server.rtc.estimate import LEAST_BPS, START_BPS, RateEstimator
from server.rtc.feedback import MAX_MISSING_PACKETS, NackTracker
from server.rtc.ice import GuardedStunProtocol, IceConnection
from server.rtc.options import RtcOptions
from server.rtc.payload import parse_payload
from server.rtc.sender import VideoSender
from server.sdp_rules import parse_fragment, publish_offer, view_offer
from server.settings_loading import load_settings

CODECS = ("H264", "VP8")
MAX_PACKETS = 64
MAX_PIXELS = 100_000
# What a parser of aiortc's says to a packet that lies; anything else were a fault.
PARSED_BADLY = (ValueError, struct.error, IndexError)
NEVER = ThreadPoolExecutor(1, "never-used")


def sdp(data: bytes) -> None:
    """An offer at each of the three doors."""
    text = data.decode("utf-8", "replace")
    video_codec(text)
    for door in (publish_offer, lambda text: view_offer(text, CODECS)):
        with contextlib.suppress(RequestError):
            door(text)
    with contextlib.suppress(RequestError):
        parse_offer({"sdp": text, "type": "offer"})


def offer_body(data: bytes) -> None:
    """The JSON of `POST /offer` and of a change of options."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(RequestError):
        parse_offer(body)
    if isinstance(body, dict):
        with contextlib.suppress(RequestError):
            CallOptions(mode="exact", confidence=0.5).updated(body)


def fragment(data: bytes) -> None:
    """What is trickled to a session of WHIP or WHEP."""
    with contextlib.suppress(RequestError):
        parse_fragment(data.decode("utf-8", "replace"))


def payload(data: bytes) -> None:
    """The payload of an RTP packet that has one."""
    if not data:
        return
    for codec in CODECS:
        with contextlib.suppress(ValueError):
            parse_payload(codec, data)


def packets(data: bytes) -> None:
    """A stream of packets in any order: 5 bytes each say number, time, marker and contents."""
    assembler = FrameAssembler(
        deadline_ns=200_000_000, freeze_limit_ns=2_000_000_000, max_packets=MAX_PACKETS
    )
    nack, estimator = NackTracker(give_up_ns=200_000_000), RateEstimator()
    at_ns = 10**12
    for place in range(0, len(data) - 4, 5):
        low, high, stamp, flags, step = data[place : place + 5]
        at_ns += step * 1_000_000
        number = (high << 8 | low) & 0xFFFF
        body = None
        if flags & 0x04:
            with contextlib.suppress(ValueError):
                body = parse_payload(CODECS[flags & 1], bytes([flags]) * (1 + (flags >> 4)))
        packet = AssemblyPacket(
            sequence_number=number,
            rtp_timestamp=stamp * 3000,
            marker=bool(flags & 0x02),
            codec_name=CODECS[flags & 1],
            payload=body,
            received_at_ns=at_ns,
            retransmitted=bool(flags & 0x08),
        )
        assembler.add(packet, at_ns)
        assembler.expire(at_ns)
        nack.received(number, at_ns)
        nack.due(at_ns, 30_000_000)
        open_since_ns = assembler.open_since_ns
        if open_since_ns is not None:
            nack.beyond(open_since_ns, at_ns, 30_000_000)
        nack.forget_before(assembler.floor_sequence_number)
        estimator.add(at_ns, number << 8 | stamp, flags * 6)
        assert len(assembler._packets) <= MAX_PACKETS
        assert len(nack) <= MAX_MISSING_PACKETS
        assert LEAST_BPS <= estimator.estimate_bps <= START_BPS


def stun(data: bytes) -> None:
    """A datagram at a media port, which whoever wants may send."""

    async def receive() -> None:
        connection = IceConnection(options=RtcOptions())
        protocol = GuardedStunProtocol(connection)
        protocol.transport = SimpleNamespace(  # type: ignore[assignment]
            sendto=lambda *_: None, is_closing=lambda: False, close=lambda: None
        )
        protocol.local_candidate = Candidate("1", 1, "udp", 1, "127.0.0.1", 1, "host")
        for cut in (data, data[:20], b""):
            protocol.datagram_received(cut, ("192.0.2.1", 9))
        assert connection._queue.empty(), "a stranger's datagram came in"

    asyncio.run(receive())


def rtcp(data: bytes) -> None:
    """What a viewer or a caller reports and asks for, decrypted."""
    try:
        reports = RtcpPacket.parse(data)
    except PARSED_BADLY:
        return  # costs its packet: `server/rtc/guard.py`

    async def take() -> None:
        sent: list[bytes] = []

        async def send(packet: bytes) -> None:
            sent.append(packet)

        transport = SimpleNamespace(state="connected", _send_rtp=send)
        sender = VideoSender(
            "video", cast(RTCDtlsTransport, transport), options=RtcOptions(), encode_executor=NEVER
        )
        for report in reports:
            with contextlib.suppress(*PARSED_BADLY):
                await sender._handle_rtcp_packet(report)
        assert not sent, "what was never sent cannot be sent again"

    asyncio.run(take())


def picture(data: bytes) -> None:
    """A picture file of a WebSocket or a request."""
    try:
        size_wh = check_image(data, MAX_PIXELS)
        video_frame = decode_image(data, size_wh)
    except RequestError:
        return
    turned = video_frame.height, video_frame.width
    assert size_wh in ((video_frame.width, video_frame.height), turned)


def data_channel(data: bytes) -> None:
    """A message of the page."""
    heard: dict[str, Callable[[Any], None]] = {}
    channel = SimpleNamespace(
        readyState="open",
        bufferedAmount=0,
        on=lambda event, handler: heard.__setitem__(event, handler),
        send=lambda text: json.loads(text),
    )
    ours = DetectionChannel()
    ours.open(channel, {"session": "x"})  # type: ignore[arg-type]
    heard["message"](data)
    heard["message"](data.decode("utf-8", "replace"))


def configuration(data: bytes) -> None:
    """A settings file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sightline.yaml"
        path.write_bytes(data)
        with contextlib.suppress(SettingsError):
            load_settings(argparse.Namespace(config=str(path)), {})


def model_metadata(data: bytes) -> None:
    """What a model says about itself."""
    text = data.decode("utf-8", "replace")
    said = literal(text)
    parse_names(said)
    with contextlib.suppress(ModelError):
        check_input(said, "metadata")


def model_bytes(data: bytes) -> None:
    """The fields of a model file."""
    with contextlib.suppress(ModelError, ValueError):
        for _ in fields(data):
            pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        sdp, offer_body, fragment, payload, packets, stun, rtcp, picture, data_channel,
        configuration, model_metadata, model_bytes,
    )
}  # fmt: skip
