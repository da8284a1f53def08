"""The routes of our contract that the headless peer needs, for servers that answer offers."""

import argparse
import asyncio
import secrets
import signal
from typing import Any, Protocol

from aiohttp import web
from aiortc import RTCSessionDescription

from bench.peer_servers import finder as detector
from bench.peer_servers.contract import answer_body
from bench.peer_servers.finder import Finder


class Calls(Protocol):
    """What differs from server to server. Loop only."""

    async def answer(self, session: str, offer: RTCSessionDescription) -> RTCSessionDescription: ...

    async def end(self, session: str) -> None:
        """Unknown sessions are let pass."""
        ...

    def sessions(self) -> list[str]: ...


def run(calls_of: "CallsOf", description: str) -> None:
    """Parse the arguments, load the detector, serve on 127.0.0.1 until a signal."""
    parser = argparse.ArgumentParser(description=description)
    detector.add_arguments(parser)
    options = parser.parse_args()
    finder = detector.made_from(options)
    asyncio.run(_serve(calls_of, finder, options.port))


class CallsOf(Protocol):
    """Makes the calls on the loop."""

    def __call__(self, finder: Finder) -> Calls: ...


async def _serve(calls_of: CallsOf, finder: Finder, port: int) -> None:
    calls = calls_of(finder)
    runner = web.AppRunner(_application(calls, finder), handle_signals=False, access_log=None)
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stop.wait()
        for session in calls.sessions():
            await calls.end(session)
    finally:
        await runner.cleanup()


def _application(calls: Calls, finder: Finder) -> web.Application:
    async def ready(_: web.Request) -> web.Response:
        return web.json_response({"ready": True})

    async def stats(_: web.Request) -> web.Response:
        return web.json_response(detector.statistics(finder))

    async def offer(request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        session = secrets.token_hex(8)
        description = await calls.answer(session, RTCSessionDescription(body["sdp"], "offer"))
        return web.json_response(answer_body(session, description.sdp, finder))

    async def delete(request: web.Request) -> web.Response:
        await calls.end(request.match_info["session"])
        return web.json_response({})

    application = web.Application()
    application.router.add_get("/readyz", ready)
    application.router.add_get("/api/stats", stats)
    application.router.add_post("/offer", offer)
    application.router.add_delete("/sessions/{session}", delete)
    return application
