"""What the tests of tile, frame and dashboard share: a camera, a site of another origin, and
questions to a tile."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from bench.browsers.driver import Page
from tests.gateway.publishing import publishing, write_pair
from tests.page.making import ROOT, STOP_DEADLINE_S, free_port

EXAMPLE = ROOT / "docs" / "embed_example" / "app.py"
TILE = "document.querySelector('sightline-tile')"


@contextlib.asynccontextmanager
async def camera(server_url: str, folder: Path, stream: str, key: str = "") -> AsyncIterator[None]:
    """FFmpeg publishes the stream while the block runs."""
    certificate, private = write_pair(folder)
    options = {"cert_file": str(certificate), "key_file": str(private)}
    if key:
        options["authorization"] = key
    async with publishing(f"{server_url}whip/{stream}", **options):
        yield


@contextlib.asynccontextmanager
async def numbered_camera(server_url: str, stream: str) -> AsyncIterator[None]:
    """Numbered pictures are published while the block runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.tile.numbered_camera", f"{server_url}whip/{stream}",
        cwd=ROOT, stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(STOP_DEADLINE_S * 3):
            await process.wait()


@contextlib.asynccontextmanager
async def foreign_site(port: int, sightline: str, *flags: str) -> AsyncIterator[str]:
    """The worked example of the documentation, on an origin of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(EXAMPLE), "--port", str(port), "--sightline", sightline.rstrip("/"),
        *flags, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(STOP_DEADLINE_S * 3):
            line = await process.stdout.readline()
        yield line.decode().strip()
    finally:
        process.terminate()
        await process.wait()


def new_port() -> int:
    return free_port()


async def put_tile(page: Page, **attributes: str) -> None:
    """A tile of this server, 640 wide, alone on the page."""
    await page.evaluate(
        f"""(async () => {{
            await import('/tile.js');
            const tile = document.createElement('sightline-tile');
            for (const [name, value] of Object.entries({json.dumps(attributes)})) {{
                tile.setAttribute(name.replaceAll('_', '-'), value);
            }}
            tile.style.width = '640px';
            document.body.replaceChildren(tile);
        }})()"""
    )


def state_is(state: str) -> str:
    return f"{TILE}?.state === '{state}'"


def statistic(expression: str) -> str:
    """`expression` of the tile's statistics `s`."""
    return f"((s) => {expression})({TILE}.statistics())"


def server_viewers(expression: str) -> str:
    """`expression` of the server's viewers `v`."""
    return f"fetch('/api/stats').then((r) => r.json()).then(({{ viewers: v }}) => {expression})"
