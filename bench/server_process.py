"""The measured server as a process of its own: started, awaited, ended."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp

from bench.errors import ServerError
from server.clock import NS_PER_S, now_ns

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 8.0
POLL_S: Final = 0.02
LINES_SHOWN: Final = 15
# A bench asks what the machine can do, so the server takes every call: one that stalled while
# its model was read would otherwise refuse the first calls for its loop's lag.
TAKES_EVERY_CALLER: Final = (
    "--admit-loop-lag-ms=0",
    "--admit-wait-ms=0",
    "--max-calls-per-address=0",
    "--open-burst=10000",
)
TAKES_EVERY_CALL: Final = (*TAKES_EVERY_CALLER, "--calls-per-s=0")
CHECKOUT: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server answers, and which process it is when we started it."""

    url: str
    pid: int | None
    start_s: float | None
    """From the start of the process to its first ready answer."""


@asynccontextmanager
async def running(url: str | None, module_args: Sequence[str]) -> AsyncIterator[RunningServer]:
    """The server at `url`, which is left alone; without one, one that is `started`."""
    if url is not None:
        yield RunningServer(url.rstrip("/"), None, None)
        return
    async with started(module_args) as server:
        yield server


@asynccontextmanager
async def started(
    module_args: Sequence[str],
    python: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningServer]:
    """`python -m <module_args> --port N` on a free loopback port, ended on the way out.

    `python` may be that of another environment; modules of this checkout are found all the same.
    `variables` add to the environment.

    Raises `ServerError` with the end of its log when it exits or isn't ready in time.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        started_at_ns = now_ns()
        process = await asyncio.create_subprocess_exec(
            str(python or sys.executable),
            "-m",
            *module_args,
            "--port",
            str(port),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=CHECKOUT,
            env={**os.environ, **(variables or {})},
        )
        try:
            try:
                await _wait_ready(url, process)
            except TimeoutError:
                raise ServerError(
                    f"the server is not ready after {START_TIMEOUT_S:g} s:\n{_tail(log.fileno())}"
                ) from None
            except ChildProcessError:
                raise ServerError(
                    f"the server ended with {process.returncode}:\n{_tail(log.fileno())}"
                ) from None
            start_s = (now_ns() - started_at_ns) / NS_PER_S
            yield RunningServer(url, process.pid, start_s)
        finally:
            await _end(process)


async def _wait_ready(url: str, process: asyncio.subprocess.Process) -> None:
    timeout = aiohttp.ClientTimeout(total=2)
    async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession(timeout=timeout) as http:
        while True:
            if process.returncode is not None:
                raise ChildProcessError
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with http.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(POLL_S)


async def _end(process: asyncio.subprocess.Process) -> None:
    """First politely, then not. Nobody is left to be sent elsewhere, as SIGTERM would."""
    for stop_signal in (signal.SIGINT, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(stop_signal)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    end = os.pread(descriptor, 8192, max(0, size - 8192))
    return "\n".join(end.decode(errors="replace").splitlines()[-LINES_SHOWN:])
