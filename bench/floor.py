"""The floor: what the work at hand costs on this machine when there is no server in its way.

Client encode, server decode, detection, server encode, client decode: the same pictures, libraries
and settings as in a call, one frame at a time on one thread in the rhythm of the camera, nothing
else running. A server adds its own share, the network's and the waiting; the ratio to the floor
tells how much.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.errors import ServerError
from bench.record import Record
from bench.stages import add_stage_options, run_stages
from server.model_registry import chosen_model

CHECKOUT: Final = Path(__file__).parents[1]
FRAMES: Final = 120
TIMEOUT_S: Final = 120.0
LINES_SHOWN: Final = 8


async def measure_apart(arguments: Sequence[str]) -> dict[str, Any]:
    """`bench floor` in a process of its own, so that no model stays in a measuring client.

    Returns the summary of its record. Raises `ServerError` when it fails.
    """
    with TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "bench", "floor", "--json", "--out", folder, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=CHECKOUT,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise ServerError(f"the floor was not measured within {TIMEOUT_S:g} s") from None
    lines = out.decode(errors="replace").splitlines()
    if process.returncode or not lines:
        said = "\n".join(err.decode(errors="replace").splitlines()[-LINES_SHOWN:])
        raise ServerError(f"the floor was not measured:\n{said}")
    return dict(Record.from_json(lines[-1]).summary)


def ratio_to(floor: dict[str, Any] | None, p50_ms: float | None) -> float | None:
    """How many times the floor's median a median is."""
    found = ((floor or {}).get("unavoidable_ms") or {}).get("p50")
    return p50_ms / found if p50_ms and found else None


def describe_ratio(floor: dict[str, Any], ratio: float | None) -> str:
    parts = ", ".join(
        f"{stage} {values['p50']:.1f}"
        for stage, values in floor["stages_ms"].items()
        if stage != "draw"
    )
    told = "" if ratio is None else f"; one call's p50 is {ratio:.2f} times that"
    return f"floor p50 {floor['unavoidable_ms']['p50']:.1f} ms ({parts}){told}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Encode, decode, detect, encode, decode: each frame of a clip on one thread, in the rhythm "
        "of a camera, with no server. What no server can be faster than."
    )
    add_stage_options(parser, frames=FRAMES)
    add = parser.add_argument
    add("--model", metavar="NAME", default="", help="none leaves detection out; else our own")
    add("--fps", type=float, default=30.0, help="frames per second; 0 for no pause between (30)")


def run(options: argparse.Namespace) -> int:
    return run_stages("floor", options, chosen_model(options.model) or None, fps=options.fps)
