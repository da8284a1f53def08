"""A server that sends every picture back as it came: the floor of the instrument.

`python -m bench echo` runs it in a process of its own, so that `bench glass --against echo`
measures what two peers and the codec cost by themselves. `--stock` is plain aiortc.
"""

import argparse
import asyncio
import concurrent.futures
import re
import secrets
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psutil
from aiohttp import web
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from bench.command import OK, run_async
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.receiver import RemoteVideoTrack

if TYPE_CHECKING:
    from av import VideoFrame

    from server.rtc.decoding import DecodedFrame

CLOSE_TIMEOUT_S: Final = 2.0
PEERS_AT_MOST: Final = 64

Connect = Callable[[], RTCPeerConnection]


class EchoTrack(MediaStreamTrack):
    """Serves the newest picture. Bound: one; an unserved one is replaced and counted."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._put_on = asyncio.get_running_loop()
        self._newest: VideoFrame | None = None
        self._arrived = asyncio.Event()
        self.dropped_replaced = 0

    def put_from_thread(self, decoded: "DecodedFrame") -> None:
        """On the decoder thread; the loop may be gone already."""
        with suppress(RuntimeError):
            self._put_on.call_soon_threadsafe(self._put, decoded.video_frame)

    async def recv(self) -> "VideoFrame":
        while self._newest is None:
            if self.readyState != "live":
                raise MediaStreamError
            self._arrived.clear()
            await self._arrived.wait()
        video_frame, self._newest = self._newest, None
        return video_frame

    def stop(self) -> None:
        super().stop()
        self._arrived.set()

    def _put(self, video_frame: "VideoFrame") -> None:
        self.dropped_replaced += self._newest is not None
        self._newest = video_frame
        self._arrived.set()


class EchoServer:
    """The few routes of the server's contract which a headless peer needs. Loop only.

    Owns its peers; `close` ends them within a deadline each.
    """

    def __init__(self, stock: bool) -> None:
        self._stock = stock
        self._calls: dict[str, RTCPeerConnection] = {}
        self._executor = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="echo-encode")

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/readyz", self._ready)
        application.router.add_get("/api/stats", self._stats)
        application.router.add_post("/offer", self._offer)
        application.router.add_delete("/sessions/{session}", self._delete)

        async def close(_: web.Application) -> None:
            await self.close()

        application.on_shutdown.append(close)
        return application

    async def close(self) -> None:
        for session in tuple(self._calls):
            await self._end(session)
        self._executor.shutdown(wait=False)

    async def _ready(self, _: web.Request) -> web.Response:
        return web.json_response({"ready": True, "detector": "none: echo"})

    async def _stats(self, _: web.Request) -> web.Response:
        process = psutil.Process()
        times = process.cpu_times()
        return web.json_response(
            {
                "stages_ms": {},
                "loop_lag_ms": None,
                "sessions": [{"session": session} for session in self._calls],
                "process": {
                    "cpu_s": times.user + times.system,
                    "resident_mib": process.memory_info().rss / 2**20,
                    "threads": process.num_threads(),
                },
            }
        )

    async def _offer(self, request: web.Request) -> web.Response:
        if len(self._calls) >= PEERS_AT_MOST:
            return web.json_response({"status": 503, "title": "Unavailable"}, status=503)
        body: dict[str, Any] = await request.json()
        connection = self._connect()
        session = secrets.token_hex(8)
        self._calls[session] = connection
        await connection.setRemoteDescription(RTCSessionDescription(body["sdp"], "offer"))
        await connection.setLocalDescription(await connection.createAnswer())
        description = connection.localDescription
        return web.json_response(
            {
                "sdp": description.sdp,
                "type": description.type,
                "session": session,
                "options": {},
                "codec": _first_video_codec(description.sdp),
                "model": None,
                "encoder": "aiortc" if self._stock else "sightline",
            }
        )

    async def _delete(self, request: web.Request) -> web.Response:
        await self._end(request.match_info["session"])
        return web.json_response({})

    def _connect(self) -> RTCPeerConnection:
        if self._stock:
            connection: RTCPeerConnection = RTCPeerConnection()

            def relay(track: MediaStreamTrack) -> None:
                if track.kind == "video":
                    connection.addTrack(track)

            connection.on("track", relay)
            return connection

        patched = PeerConnection(RtcOptions(), self._executor)

        def echo(track: MediaStreamTrack) -> None:
            if isinstance(track, RemoteVideoTrack):
                outgoing = EchoTrack()
                track.deliver_to(outgoing.put_from_thread)
                patched.addTrack(outgoing)

        patched.on("track", echo)
        return patched

    async def _end(self, session: str) -> None:
        connection = self._calls.pop(session, None)
        if isinstance(connection, PeerConnection):
            await connection.close_within(CLOSE_TIMEOUT_S)
        elif connection is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(connection.close(), CLOSE_TIMEOUT_S)


def _first_video_codec(sdp: str) -> str:
    payload_type = re.search(r"^m=video \S+ \S+ (\d+)", sdp, re.MULTILINE)
    number = payload_type.group(1) if payload_type else ""
    name = re.search(rf"^a=rtpmap:{number} (\w+)/", sdp, re.MULTILINE)
    return name.group(1) if name else "none"


async def serve(port: int, stock: bool, stop: asyncio.Event) -> None:
    """Serve on 127.0.0.1 until `stop` is set."""
    server = EchoServer(stock)
    runner = web.AppRunner(server.application(), handle_signals=False, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stop.wait()
    finally:
        await runner.cleanup()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Echoes calls on 127.0.0.1 until it is told to end."
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stock", action="store_true", help="plain aiortc, nothing changed")


def run(options: argparse.Namespace) -> int:
    async def until_told() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(options.port, options.stock, stop)

    run_async(until_told())
    return OK
