"""Streams with real parts: FFmpeg or a peer publishes, peers watch, one encoder serves all."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakeDetector
from tests.gateway.offers import VIEWER
from tests.gateway.publishing import SIZE_WH, publishing, write_pair
from tests.gateway.watching import SDP, Watcher, sending, streaming, watching
from tests.serving import DEADLINE_S, Serving, calling, until

pytestmark = pytest.mark.loopback


async def stream_json(server: Serving, name: str) -> dict[str, Any]:
    async with server.http.get(f"{server.url}/api/streams/{name}") as reply:
        body: dict[str, Any] = await reply.json()
        return body


async def live(server: Serving, name: str) -> None:
    """Wait until pictures come in."""
    async with asyncio.timeout(DEADLINE_S):
        while not (await stream_json(server, name)).get("live"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def no_signal_shown(watcher: Watcher) -> None:
    """Wait for a picture that is not plain: it carries the text."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_written_on(await watcher.picture()):
            pass


def is_written_on(frame: Any) -> bool:
    luma = frame.to_ndarray(format="yuv420p")[: frame.height]
    lower = luma[frame.height // 2 :].astype(np.int32)
    return bool(lower.max() - lower.min() > 100)


async def test_pictures_that_are_not_shown_are_counted_by_reason() -> None:
    detector = FakeDetector()
    async with streaming(detector) as server, sending(server, "yard"):
        await live(server, "yard")
        detector.go_on.clear()

        def dropped() -> dict[str, int]:
            [stream] = server.registry.statistics().streams
            return stream.dropped

        def gave_way(counts: dict[str, int]) -> int:
            # For a newer one that was there, or in time for one that is due.
            return counts.get("replaced", 0) + counts.get("stale", 0)

        # One is with the detector; those behind it give way.
        await until(lambda: gave_way(dropped()) >= 2)
        detector.go_on.set()
        told = (await stream_json(server, "yard"))["dropped"]
        assert gave_way(told) >= 2
        # Only the reasons there were.
        assert all(count > 0 for count in told.values())


async def test_ffmpeg_publishes_and_a_viewer_sees_boxes(tmp_path: Path) -> None:
    certificate, key = write_pair(tmp_path)
    async with streaming(FakeDetector()) as server:
        url = f"{server.url}/whip/porch"
        async with publishing(url, cert_file=str(certificate), key_file=str(key)):
            await until(lambda: bool(server.registry.statistics().streams))
            async with watching(server, "porch", channel=True) as watcher:
                frame = await watcher.picture()
                assert (frame.width, frame.height) == SIZE_WH
                hello = await watcher.message("type")
                assert (hello["type"], hello["stream"]) == ("hello", "porch")
                found = await watcher.message("boxes")
                assert found["stream"] == "porch"
                assert found["boxes"][0][:4] == [80, 60, 160, 120]
                # The box is drawn: its colour is not in the grey picture.
                chroma = (await watcher.picture()).to_ndarray(format="yuv420p")[240:]
                assert chroma.max() - chroma.min() > 20
        await until(lambda: not server.registry.statistics().sessions)


async def test_ffmpegs_own_certificate_is_refused_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with streaming() as server, publishing(f"{server.url}/whip/porch"):
        await until(lambda: "certificate curve" in str(server.registry.statistics().ended))
    assert "-cert_file" in caplog.text


async def test_five_viewers_share_one_encoder() -> None:
    async with streaming() as server, sending(server, "yard"):
        await live(server, "yard")
        watchers = [Watcher() for _ in range(5)]
        try:
            for watcher in watchers:
                await watcher.watch(server, "yard")
            await asyncio.gather(*(watcher.picture() for watcher in watchers))
            [encoding] = (await stream_json(server, "yard"))["encodings"]
            before = server.registry.statistics().streams[0]
            await until(
                lambda: server.registry.statistics().streams[0].frames >= before.frames + 20
            )
            after = server.registry.statistics().streams[0]
        finally:
            for watcher in watchers:
                await watcher.pc.close()
        assert encoding["fanout"]["viewers"] == 5
        made = after.encodings[0].fanout.encoded - before.encodings[0].fanout.encoded
        assert made <= after.frames - before.frames + 2


async def test_nobody_watches_and_nothing_is_encoded() -> None:
    async with streaming() as server, sending(server, "yard"):
        await live(server, "yard")
        async with watching(server, "yard") as watcher:
            await watcher.picture()
        await until(lambda: server.registry.statistics().streams[0].viewers == 0)
        before = server.registry.statistics().streams[0]
        await until(lambda: server.registry.statistics().streams[0].frames >= before.frames + 10)
        [encoding] = server.registry.statistics().streams[0].encodings
        assert encoding.fanout.encoded <= before.encodings[0].fanout.encoded + 1


async def test_however_many_join_key_frames_stay_two_a_second() -> None:
    async with streaming() as server, sending(server, "yard"):
        await live(server, "yard")
        began = asyncio.get_running_loop().time()
        watchers = [Watcher() for _ in range(6)]
        try:
            for watcher in watchers:
                await watcher.watch(server, "yard")
                await watcher.picture()
            seconds = asyncio.get_running_loop().time() - began
            [encoding] = server.registry.statistics().streams[0].encodings
        finally:
            for watcher in watchers:
                await watcher.pc.close()
        assert 1 <= encoding.fanout.keyframes <= 2 * seconds + 1


async def test_an_offer_that_the_server_did_not_get_to_may_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with streaming() as server, sending(server, "yard"):
        with monkeypatch.context() as hurried:
            hurried.setattr("server.registry.NEGOTIATION_TIMEOUT_S", 0.0)
            url = f"{server.url}/whep/yard"
            async with server.http.post(url, data=VIEWER, headers=SDP) as reply:
                assert reply.status == 503
                assert int(reply.headers["Retry-After"]) > 0
                assert "negotiation" in (await reply.json())["detail"]
        assert server.registry.statistics().viewers == ()
        async with watching(server, "yard") as watcher:
            await watcher.picture()


async def test_low_rung_is_half_the_size_and_made_only_when_watched() -> None:
    async with streaming() as server, sending(server, "yard"):
        await live(server, "yard")
        async with watching(server, "yard") as full:
            assert ((await full.picture()).width) == 320
            rungs = [e.rung for e in server.registry.statistics().streams[0].encodings]
            assert rungs == ["full"]
            async with watching(server, "yard", "?rung=low") as low:
                frame = await low.picture()
                assert (frame.width, frame.height) == (160, 120)


async def test_source_leaves_and_returns_under_the_eyes_of_its_viewer() -> None:
    async with streaming() as server:
        async with sending(server, "yard"):
            await live(server, "yard")
            watcher = Watcher()
            await watcher.watch(server, "yard")
            assert not is_written_on(await watcher.picture())
        try:
            await no_signal_shown(watcher)
            assert (await stream_json(server, "yard"))["live"] is False
            async with sending(server, "yard"):
                async with asyncio.timeout(DEADLINE_S):
                    while is_written_on(await watcher.picture()):
                        pass
                body = await stream_json(server, "yard")
                assert (body["viewers"], body["sources"]) == (1, 2)
        finally:
            await watcher.pc.close()


async def test_viewers_end_when_the_source_stays_away() -> None:
    async with streaming(no_signal_s=0.2) as server:
        async with sending(server, "yard"):
            await live(server, "yard")
            watcher = Watcher()
            await watcher.watch(server, "yard")
            await watcher.picture()
        try:
            await until(lambda: not server.registry.statistics().streams)
            await until(lambda: not server.registry.statistics().viewers)
        finally:
            await watcher.pc.close()


async def test_a_call_with_a_name_can_be_watched_and_still_gets_its_own_picture() -> None:
    async with (
        streaming(FakeDetector()) as server,
        calling(server, stream="desk") as caller,
        watching(server, "desk") as watcher,
    ):
        await caller.picture()
        await watcher.picture()
        assert (await stream_json(server, "desk"))["source"] == "call"


async def test_second_source_is_refused_and_with_the_setting_replaces_the_first() -> None:
    async with streaming() as server, sending(server, "yard"):
        with pytest.raises(AssertionError, match="yard has a source"):
            async with sending(server, "yard"):
                pass
    async with (
        streaming(replace_source=True) as server,
        sending(server, "yard"),
        sending(server, "yard"),
    ):
        await until(lambda: len(server.registry.statistics().sessions) == 1)
        ended = server.registry.statistics().ended
        assert ended == {"replaced by another source": 1}
        await live(server, "yard")
