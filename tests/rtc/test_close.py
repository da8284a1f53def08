"""The end of a peer connection, whenever it comes: bounded, twice, complete."""

import asyncio
import threading

import pytest
from aiortc import RTCSessionDescription
from aiortc.rtcrtpparameters import RTCRtpReceiveParameters

from server.rtc.decoding import DecodedFrame
from server.rtc.options import RtcOptions
from server.rtc.peer import FFMPEG_WHIP, PeerConnection
from server.rtc.receiver import RemoteVideoTrack, VideoReceiver
from tests.rtc.peers import (
    DEADLINE_S,
    Camera,
    calling,
    executor,
    negotiate,
    reaches,
    stock_peer,
)

pytestmark = pytest.mark.loopback

OPTIONS = RtcOptions(video_codecs=("VP8",))


async def test_closing_a_peer_that_never_began() -> None:
    with executor() as pool:
        peer = PeerConnection(OPTIONS, pool)
        peer.addTransceiver("video")
        assert await peer.close_within(DEADLINE_S) == ()
        assert peer.connectionState == "closed"
        assert await peer.close_within(DEADLINE_S) == ()


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 50, 100, 200])
async def test_closing_while_connecting(turns: int) -> None:
    with executor() as pool:
        near, far = PeerConnection(OPTIONS, pool), stock_peer()
        camera = Camera()
        far.addTrack(camera)
        await negotiate(far, near)
        for _ in range(turns):
            await asyncio.sleep(0.001 if turns >= 20 else 0)
        assert await near.close_within(DEADLINE_S) == ()
        camera.stop()
        async with asyncio.timeout(DEADLINE_S):
            await far.close()
    for thread in threading.enumerate():
        if "decoder" in thread.name:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
    assert near.connectionState == "closed"


async def test_a_receiver_that_was_stopped_does_not_begin_after_all() -> None:
    with executor() as pool:
        peer = PeerConnection(OPTIONS, pool)
        receiver = peer.addTransceiver("video").receiver
        assert isinstance(receiver, VideoReceiver)
        receiver._track = RemoteVideoTrack("late")
        await receiver.stop()
        await receiver.receive(RTCRtpReceiveParameters())
        assert receiver.survivors() == ()
        assert receiver.track.readyState == "ended"
        assert await peer.close_within(DEADLINE_S) == ()


async def test_closing_twice_at_once() -> None:
    async with calling(OPTIONS) as call:
        first, second = await asyncio.gather(
            call.near.close_within(DEADLINE_S), call.near.close_within(DEADLINE_S)
        )
        assert first == second == ()
        async with asyncio.timeout(DEADLINE_S):
            await call.near.close()


async def test_closing_while_pictures_are_decoded() -> None:
    async with calling(OPTIONS) as call:
        for level in range(40, 200, 2):
            call.camera.show(level)
        await call.decoded.get()
        assert await call.near.close_within(DEADLINE_S) == ()


async def test_closing_after_the_peer_vanished() -> None:
    async with calling(OPTIONS) as call:
        for connection in call.far._connections():  # type: ignore[attr-defined]
            connection.cut()
        assert await call.near.close_within(DEADLINE_S) == ()


async def test_what_does_not_end_in_time_is_named() -> None:
    gate, inside = threading.Event(), asyncio.Event()
    async with calling(OPTIONS) as call:
        loop = asyncio.get_running_loop()

        def block(decoded: DecodedFrame) -> None:
            loop.call_soon_threadsafe(inside.set)
            assert gate.wait(DEADLINE_S)

        try:
            call.track.deliver_to(block)
            call.camera.show(60)
            async with asyncio.timeout(DEADLINE_S):
                await inside.wait()
            survivors = await call.near.close_within(0.05)
            assert "peer-close" in survivors
            assert any("decoder" in name for name in survivors)
            async with asyncio.timeout(DEADLINE_S):
                # The base class's own close, called by others, does not hang behind it.
                await call.near.close()
        finally:
            gate.set()
        worker = call.receiver._worker
        assert worker is not None
        assert await worker.wait_ended(DEADLINE_S)
        worker._thread.join(DEADLINE_S)


async def test_an_offer_without_fingerprint_does_not_hang_half_open() -> None:
    with executor() as pool:
        near, far = PeerConnection(OPTIONS, pool), stock_peer()
        camera = Camera()
        far.addTrack(camera)
        closed = asyncio.Event()

        def note() -> None:
            if near.signalingState == "closed":
                closed.set()

        near.on("signalingstatechange", note)
        await far.setLocalDescription(await far.createOffer())
        offer = far.localDescription
        offer.sdp = "\n".join(
            line for line in offer.sdp.splitlines() if not line.startswith("a=fingerprint")
        )
        await near.setRemoteDescription(offer)
        await near.setLocalDescription(await near.createAnswer())
        await far.setRemoteDescription(near.localDescription)
        async with asyncio.timeout(DEADLINE_S):
            await closed.wait()
        assert await near.close_within(DEADLINE_S) == ()
        camera.stop()
        await far.close()


@pytest.mark.parametrize(("session", "told"), [("-", True), (FFMPEG_WHIP, False)])
async def test_the_end_is_told_but_to_ffmpegs_muxer(session: str, told: bool) -> None:
    with executor() as pool:
        near, far = PeerConnection(OPTIONS, pool), stock_peer()
        camera = Camera()
        far.addTrack(camera)
        await far.setLocalDescription(await far.createOffer())
        offer = RTCSessionDescription(
            far.localDescription.sdp.replace("s=-", f"s={session}"), far.localDescription.type
        )
        await near.setRemoteDescription(offer)
        await near.setLocalDescription(await near.createAnswer())
        await far.setRemoteDescription(near.localDescription)
        await reaches(near, "connected")
        await reaches(far, "connected")

        sent: list[bytes] = []
        [transport] = near._RTCPeerConnection__iceTransports
        send = transport._send

        async def note(data: bytes) -> None:
            sent.append(data)
            await send(data)

        transport._send = note
        assert await near.close_within(DEADLINE_S) == ()
        # A first byte of 20 to 63 is DTLS (RFC 7983).
        assert any(20 <= data[0] <= 63 for data in sent) == told
        camera.stop()
        await far.close()
