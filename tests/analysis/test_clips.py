"""Clips begin before their event, play everywhere, and never touch live video."""

import asyncio
import dataclasses
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import pytest

from server.analysis.events import Clip, new_event_id
from server.clock import NS_PER_S, now_ns, unix_ms
from server.errors import UnprocessableError
from server.history.clips import SWEEPS, ClipRecorder
from server.history.mp4 import make_movie
from server.history.reel import OpenClip, Reel
from server.settings import ClipSettings
from tests.analysis.films import Camera
from tests.fakes import FakeDetector
from tests.gate.guarded import ADMIN, FRONT, guarded, guarded_settings
from tests.gateway.watching import sending
from tests.serving import DEADLINE_S, Serving, changed, serving, until

pytestmark = pytest.mark.loopback

EVERYWHERE = [[0, 0], [1, 0], [1, 1], [0, 1]]
ZONES = {"zones": [{"id": "room", "points": EVERYWHERE}]}
LIMITS = {"admit_loop_lag_ms": 0, "admit_wait_ms": 0}
QUICK = {"clips": True, "clip_before_s": 1.0, "clip_after_s": 0.5, "clips_reserve_mib": 0}


# --- films ---


def test_a_film_has_every_picture_at_its_time_and_its_index_in_front() -> None:
    camera = Camera()
    pictures = [camera.shoot(keyframe=number in (0, 30)) for number in range(60)]
    movie = make_movie(pictures, show=40)
    assert movie.size_wh == (320, 240)
    assert movie.duration_ms == pytest.approx(2000, abs=70)
    assert 0 < movie.data.find(b"moov") < movie.data.find(b"mdat")
    with av.open(io.BytesIO(movie.data), "r") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [packet.is_keyframe for packet in packets] == [n in (0, 30) for n in range(60)]
        assert [packet.pts for packet in packets] == [3000 * number for number in range(60)]
        container.seek(0)
        frames = list(container.decode(stream))
        assert len(frames) == 60
        # The bar where it was in the last picture.
        assert frames[-1].to_ndarray()[100, 59 * 4 + 10] > 180
    picture = av.CodecContext.create("mjpeg", "r").decode(av.Packet(movie.thumbnail or b""))[0]
    assert picture.to_ndarray()[100, 40 * 4 + 10] > 180


def test_a_film_of_nothing_or_of_nonsense_is_refused() -> None:
    camera = Camera()
    first, second = camera.shoot(keyframe=True), camera.shoot()
    with pytest.raises(UnprocessableError):
        make_movie([])
    with pytest.raises(UnprocessableError, match="key frame"):
        make_movie([second])
    broken = dataclasses.replace(first, payloads=(b"\x61nonsense", b"\x7c"))
    with pytest.raises(UnprocessableError):
        make_movie([broken])


def test_media_time_that_jumps_makes_a_film_all_the_same() -> None:
    camera = Camera()
    pictures = [camera.shoot(keyframe=number == 0) for number in range(10)]
    pictures[5:] = [
        dataclasses.replace(picture, rtp_timestamp=(picture.rtp_timestamp - 10**9) & 0xFFFF_FFFF)
        for picture in pictures[5:]
    ]
    assert make_movie(pictures).duration_ms < 1000


# --- the last seconds ---


class Fanout:
    """Stands for an encoding."""

    def __init__(self) -> None:
        self.viewers: list[Any] = []
        self.wishes = 0

    def join(self, viewer: Any) -> None:
        self.viewers.append(viewer)

    def leave(self, viewer: Any) -> None:
        self.viewers.remove(viewer)

    def wish_keyframe(self) -> None:
        self.wishes += 1


class Stage:
    """A reel with a camera, in which pictures come when the test says."""

    def __init__(self, room: int = 10**9, **settings: Any) -> None:
        self.memory = 0
        self.room = room
        self.clips: list[OpenClip] = []
        self.fanout = Fanout()
        self.camera = Camera((64, 48))
        self.reel = Reel(
            self.fanout,  # type: ignore[arg-type]
            ClipSettings(**settings),
            (1, 2),
            self._weigh,
            self.clips.append,
        )

    def _weigh(self, size: int) -> bool:
        self.memory += size
        return self.memory <= self.room

    def roll(self, count: int, every: int = 10) -> None:
        for number in range(count):
            self.reel.send_picture(self.camera.shoot(keyframe=number % every == 0))


def test_a_clip_begins_with_what_was_before_and_ends_after_its_event() -> None:
    stage = Stage(clip_before_s=60, clip_after_s=0.5)
    stage.roll(30)
    stage.reel.event("a" * 32, ends=False, lasts=True)
    stage.roll(10)
    assert stage.clips == []
    stage.reel.event("b" * 32, ends=False, lasts=True)
    stage.reel.event("a" * 32, ends=True, lasts=False)
    stage.reel.event("b" * 32, ends=True, lasts=False)
    # Its time is up.
    assert stage.reel.open is not None
    stage.reel.open.until_ns = now_ns() - 1
    stage.roll(1)
    [clip] = stage.clips
    assert len(clip.pictures) == 41
    assert clip.pictures[0][1].keyframe
    assert clip.event_id == "a" * 32
    assert stage.reel.open is None


def test_only_whole_groups_leave_the_last_seconds() -> None:
    stage = Stage(clip_before_s=0)
    stage.roll(35)
    stage.reel.event("a" * 32, ends=False, lasts=False)
    stage.reel.close()
    [clip] = stage.clips
    # From the last key frame on.
    assert [picture.keyframe for _, picture in clip.pictures] == [True] + [False] * 4


def test_a_clip_does_not_outlast_its_limit() -> None:
    stage = Stage(clip_at_most_s=1)
    stage.roll(1)
    stage.reel.event("a" * 32, ends=False, lasts=True)
    assert stage.reel.open is not None
    at_ns, picture = stage.reel.open.pictures[0]
    stage.reel.open.pictures[0] = at_ns - 2 * NS_PER_S, picture
    stage.roll(1)
    assert len(stage.clips) == 1


def test_a_stream_that_has_no_key_frame_yet_begins_with_its_first() -> None:
    stage = Stage()
    stage.reel.event("a" * 32, ends=False, lasts=True)
    assert stage.fanout.wishes == 1
    stage.reel.send_picture(dataclasses.replace(stage.camera.shoot(True), keyframe=False))
    stage.reel.send_picture(stage.camera.shoot(True))
    assert stage.reel.open is not None
    assert len(stage.reel.open.pictures) == 1


def test_an_end_without_a_clip_begins_none() -> None:
    stage = Stage()
    stage.roll(5)
    stage.reel.event("a" * 32, ends=True, lasts=False)
    assert stage.reel.open is None


def test_without_room_a_clip_ends_early_and_only_the_newest_group_is_kept() -> None:
    stage = Stage(room=3000, clip_before_s=60)
    stage.roll(5)
    stage.reel.event("a" * 32, ends=False, lasts=True)
    stage.roll(200, every=5)
    assert len(stage.clips) == 1
    assert stage.memory - stage.clips[0].size < 3000 + 3 * 2000


def test_a_rest_ends_the_clip_and_nothing_of_before_is_in_the_next() -> None:
    stage = Stage(clip_before_s=60)
    stage.roll(5)
    stage.reel.event("a" * 32, ends=False, lasts=True)
    stage.reel.pause()
    assert [len(clip.pictures) for clip in stage.clips] == [5]
    assert stage.memory == stage.clips[0].size
    stage.reel.pause()
    stage.roll(2)
    stage.reel.event("b" * 32, ends=False, lasts=True)
    stage.reel.close()
    assert [len(clip.pictures) for clip in stage.clips] == [5, 2]


def test_memory_is_given_back() -> None:
    stage = Stage(clip_before_s=0)
    stage.roll(50)
    stage.reel.event("a" * 32, ends=False, lasts=True)
    stage.roll(50)
    stage.reel.close()
    assert stage.memory == stage.clips[0].size
    stage = Stage()
    stage.roll(50)
    stage.reel.event("a" * 32, ends=False, lasts=True)
    stage.reel.close(lost=True)
    assert stage.memory == 0
    assert stage.clips == []
    assert stage.fanout.viewers == []


# --- the whole ---


@asynccontextmanager
async def recording(folder: Path, **clips: Any) -> AsyncIterator[Serving]:
    settings = changed(
        auth={"state_dir": str(folder)},
        limits=LIMITS,
        sources={"demo": "on"},
        clips={**QUICK, **clips},
    )
    async with serving(FakeDetector(), settings) as server:
        yield server


async def ask(server: Serving, path: str, **more: Any) -> tuple[int, Any]:
    async with server.http.get(server.url + path, **more) as reply:
        return reply.status, await (
            reply.json() if reply.content_type.endswith("json") else reply.read()
        )


async def put_zones(server: Serving, stream: str) -> None:
    async with server.http.put(f"{server.url}/api/streams/{stream}/zones", json=ZONES) as reply:
        assert reply.status == 200


async def first_clip(server: Serving, stream: str = "yard") -> dict[str, Any]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            # 503 while the database opens.
            status, body = await ask(server, f"/api/streams/{stream}/clips")
            if status == 200 and body["clips"]:
                clip: dict[str, Any] = body["clips"][-1]
                return clip
            await asyncio.sleep(0.02)


async def test_from_the_event_to_the_film(tmp_path: Path) -> None:
    async with recording(tmp_path) as server:
        await put_zones(server, "yard")
        async with sending(server, "yard"):
            # Nobody watches: it is encoded for the recorder alone.
            await until(lambda: server.recorder.statistics().open == 1)
            await until(lambda: any(e.fanout.encoded > 5 for e in encodings(server)))
        clip = await first_clip(server)
        [event] = (await ask(server, "/api/events"))[1]["events"]
        assert clip["event_id"] == event["id"]
        assert clip["size"] == [320, 240]
        assert clip["started_unix_ms"] <= event["started_unix_ms"] + 1000
        status, film = await ask(server, clip["url"])
        assert (status, len(film)) == (200, clip["bytes"])
        with av.open(io.BytesIO(film), "r") as container:
            assert len(list(container.decode(video=0))) > 3
        status, part = await ask(server, clip["url"], headers={"Range": "bytes=4-7"})
        assert (status, part) == (206, b"ftyp")
        assert (await ask(server, clip["url"], headers={"Range": "bytes=99999999-"}))[0] == 416
        status, thumbnail = await ask(server, clip["thumbnail_url"])
        assert thumbnail.startswith(b"\xff\xd8")
        assert {path.stat().st_mode & 0o077 for path in (tmp_path / "clips").iterdir()} == {0}
        statistics = (await server.stats())["clips"]
        assert (statistics["state"], statistics["written"], statistics["lost"]) == ("ready", 1, 0)
        assert statistics["memory_bytes"] == 0
    async with recording(tmp_path) as server:
        assert await first_clip(server) == clip


def encodings(server: Serving) -> list[Any]:
    streams = server.registry.statistics().streams
    return [encoding for stream in streams for encoding in stream.encodings]


async def test_nothing_is_encoded_where_no_zone_is_watched(tmp_path: Path) -> None:
    async with recording(tmp_path) as server, sending(server, "yard"):
        await until(lambda: any(s.frames > 5 for s in server.registry.statistics().streams))
        assert encodings(server) == []
        # Zones that come later are recorded with their first event.
        await put_zones(server, "yard")
        await until(lambda: any(e.fanout.encoded > 0 for e in encodings(server)))


async def test_clips_are_off_unless_asked_for(tmp_path: Path) -> None:
    async with recording(tmp_path, clips=False) as server, sending(server, "yard"):
        await put_zones(server, "yard")
        await until(lambda: server.journal.statistics().written == 1)
        assert encodings(server) == []
        assert (await server.stats())["clips"]["state"] == "off"
        assert (await ask(server, "/api/streams/yard/clips"))[1] == {"clips": [], "next": None}


async def test_what_is_no_clip_is_not_found(tmp_path: Path) -> None:
    async with recording(tmp_path) as server:
        for clip_id in ("0" * 32, "../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "x"):
            for kind in ("mp4", "jpg"):
                assert (await ask(server, f"/api/clips/{clip_id}.{kind}"))[0] == 404
        assert (await ask(server, "/api/streams/yard/clips?limit=x"))[0] == 400


async def test_clips_of_other_streams_are_as_if_they_were_not(tmp_path: Path) -> None:
    async with recording(tmp_path) as server:
        await put_zones(server, "back")
        async with sending(server, "back"):
            await until(lambda: server.recorder.statistics().open == 1)
            # A clip that has no picture yet when its stream ends is none.
            await until(lambda: any(e.fanout.encoded > 5 for e in encodings(server)))
        clip = await first_clip(server, "back")
    async with guarded(guarded_settings(auth={"state_dir": str(tmp_path)})) as server:
        async with asyncio.timeout(DEADLINE_S):
            while (await server.ask("GET", clip["url"], ADMIN))[0] != 200:
                pass
        assert (await server.ask("GET", clip["url"], FRONT))[0] == 404
        assert (await server.ask("GET", clip["thumbnail_url"], FRONT))[0] == 404
        assert (await server.ask("GET", "/api/streams/back/clips", FRONT))[0] == 403
        assert (await server.ask("GET", clip["url"]))[0] == 401


async def test_a_clip_ends_with_the_pictures_of_its_stream(tmp_path: Path) -> None:
    async with recording(tmp_path, clip_after_s=30) as server:
        await put_zones(server, "demo")
        async with server.http.get(f"{server.url}/api/streams/demo/mjpeg") as pictures:
            assert pictures.status == 200
            await until(lambda: server.recorder.statistics().open == 1)
            await until(lambda: any(e.fanout.encoded > 5 for e in encodings(server)))
        # Nobody looks any more, and the demo rests.
        await until(lambda: server.recorder.statistics().written == 1)
        statistics = server.recorder.statistics()
        assert (statistics.open, statistics.memory_bytes) == (0, 0)


def recorder_of(server: Serving) -> ClipRecorder:
    return server.recorder


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class FakeStore:
    """Clips in a list."""

    def __init__(self, clips: list[Clip]) -> None:
        self.clips = clips

    async def write_clip(self, clip: Clip) -> None:
        self.clips.append(clip)

    async def clip(self, clip_id: str) -> Clip | None:
        return next((clip for clip in self.clips if clip.id == clip_id), None)

    async def clip_bytes(self) -> int:
        return sum(clip.size_bytes for clip in self.clips)

    async def oldest_clips(self, limit: int) -> list[Clip]:
        return sorted(self.clips, key=lambda clip: clip.started_unix_ms)[:limit]

    async def forget_clips(self, identities: list[str]) -> None:
        self.clips = [clip for clip in self.clips if clip.id not in identities]


async def test_old_clips_and_what_has_no_room_are_forgotten_with_their_files(
    tmp_path: Path,
) -> None:
    async with recording(tmp_path, clips_max_mib=1, clips_keep_days=1) as server:
        recorder = recorder_of(server)
        recorder.folder.mkdir(exist_ok=True)
        newest = round(unix_ms())
        ages = [10 * 86_400_000, 50_000, 40_000, 30_000]
        store = FakeStore(
            [
                Clip(new_event_id(newest - age), "yard", newest - age, 1000, 600_000, (2, 2))
                for age in ages
            ]
        )
        clips = list(store.clips)
        for clip in clips:
            recorder.path(clip.id).write_bytes(b"film")
        await recorder.forget(store)
        assert store.clips == clips[3:]
        assert names_in(recorder.folder) == [f"{clips[3].id}.mp4"]
        assert recorder.statistics().forgotten == 3


async def test_files_that_a_crash_left_behind_go(tmp_path: Path) -> None:
    async with recording(tmp_path) as server:
        recorder = recorder_of(server)
        recorder.folder.mkdir(exist_ok=True)
        known = Clip("a" * 32, "yard", 1, 1000, 4, (2, 2))
        names = [f"{'a' * 32}.mp4", f"{'b' * 32}.mp4", f"{'c' * 32}.12345678.part", "notes.txt"]
        for name in names:
            file = recorder.folder / name
            file.write_bytes(b"film")
            os.utime(file, (1, 1))
        fresh = recorder.folder / f"{'d' * 32}.mp4"
        fresh.write_bytes(b"film")
        await recorder._sweep(FakeStore([known]))
        assert sorted(names_in(recorder.folder)) == sorted([names[0], fresh.name, "notes.txt"])


async def test_what_a_crash_left_just_before_the_start_goes_with_the_second_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    half = folder / f"{'c' * 32}.12345678.part"
    half.write_bytes(b"film")
    monkeypatch.setattr("server.history.clips.KEEP_EVERY_S", 0.5)
    later_s = unix_ms() / 1000 + 3600
    os.utime(half, (later_s, later_s))
    settings = changed(
        auth={"state_dir": str(tmp_path)},
        clips=QUICK,
        store={"store": f"sqlite:///{tmp_path}/events.db"},
    )
    async with serving(FakeDetector(), settings) as server:
        recorder = recorder_of(server)
        assert recorder.folder == folder
        await until(lambda: recorder._sweeps_left < SWEEPS)
        # Too young for the first, and then old enough.
        assert half.exists()
        os.utime(half, (1, 1))
        await until(lambda: not half.exists())
