"""Real peers meet through the relay, and feel what it does."""

import asyncio
from pathlib import Path

import pytest
from aiortc import RTCSessionDescription

from bench.__main__ import OK, WRONG_USAGE, main
from bench.impairment import BLACK_OUT, Impairment
from bench.record import Record
from bench.relay import Relay, RelayError
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.remote_track import RemoteVideoTrack
from tests.rtc.peers import DEADLINE_S, Call, Camera, executor

pytestmark = pytest.mark.loopback

OPTIONS = RtcOptions(video_codecs=("VP8",))


async def test_pictures_pass_and_a_black_out_and_another_address_are_survived() -> None:
    with Relay(seed=3) as relay, executor() as pool:
        near, far, camera = PeerConnection(OPTIONS, pool), PeerConnection(OPTIONS, pool), Camera()
        arrived: asyncio.Future[RemoteVideoTrack] = asyncio.get_running_loop().create_future()
        near.on("track", arrived.set_result)
        try:
            far.addTrack(camera)
            async with asyncio.timeout(DEADLINE_S):
                await far.setLocalDescription(await far.createOffer())
                offer = relay.offer(far.localDescription.sdp)
                await near.setRemoteDescription(RTCSessionDescription(offer, "offer"))
                await near.setLocalDescription(await near.createAnswer())
                answer = relay.answer(near.localDescription.sdp)
                await far.setRemoteDescription(RTCSessionDescription(answer, "answer"))
                call = Call(near, far, camera, await arrived)
            call.deliver_here()
            await call.flows()
            entered = relay.up.counters.entered
            assert entered > 5, "all of it goes through the relay"
            relay.impair(up=BLACK_OUT)
            lost = relay.up.counters.lost
            await call.shows_until(lambda: relay.up.counters.lost > lost + 5)
            relay.impair(up=Impairment(delay_ms=5))
            await call.flows()
            relay.rebind()
            await call.flows()
            # What we send goes to the new address, too: the relay hears it there.
            [connection] = near._connections()
            await call.shows_until(lambda: connection.moves == 1)
            left = relay.down.counters.entered
            await call.shows_until(lambda: relay.down.counters.entered > left)
        finally:
            camera.stop()
            assert await near.close_within(DEADLINE_S) == ()
            assert await far.close_within(DEADLINE_S) == ()


def test_a_description_without_an_address_is_refused() -> None:
    with Relay() as relay, pytest.raises(RelayError):
        relay.offer("v=0\r\nm=video 9 X 96\r\n")


def test_the_command_measures_before_during_and_after(
    moving_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["impair", "--clip", str(moving_clip), "--size", "320x240", "--no-detector"]
    arguments += ["--seconds", "1", "--warmup", "0.3", "--loss", "0.2", "--seed", "4"]

    assert main([*arguments, "--out", str(tmp_path), "--json"]) == OK

    record = Record.from_json(capsys.readouterr().out.splitlines()[-1])
    assert record.settings["path"]["loss"] == 0.2
    phases = record.summary["phases"]
    assert list(phases) == ["before", "during", "after"]
    assert phases["during"]["links"]["up"]["lost"] > 0
    assert phases["before"]["links"]["up"]["lost"] == 0
    assert phases["before"]["returned"] > 0


def test_a_path_with_nothing_wrong_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["impair"]) == WRONG_USAGE
    assert "--loss" in capsys.readouterr().err
