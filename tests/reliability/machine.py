"""How late this machine itself is: a process of its own that sleeps and looks at the clock.

What a caller waited says something about the server only where the machine was not late too.
"""

import asyncio
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from server.clock import NS_PER_MS

# Sleeps 5 ms and writes when it woke and by how much too late, in ns.
SOURCE = """
import os, struct, time
while True:
    begun = time.monotonic_ns()
    time.sleep(0.005)
    woken = time.monotonic_ns()
    os.write(1, struct.pack("=qq", woken, woken - begun - 5_000_000))
"""
SAMPLE = struct.Struct("=qq")
# Below this a machine is quiet enough for the bounds of the matrix as they are.
QUIET_P99_MS = 2.0


@dataclass(slots=True)
class Machine:
    """Samples since the start; bounded by the length of a test."""

    samples: list[tuple[int, int]] = field(default_factory=list)

    def lateness_ms(self, begin_ns: int, end_ns: int) -> tuple[float, float]:
        """p99 and the longest within a window."""
        late = sorted(late for at_ns, late in self.samples if begin_ns <= at_ns <= end_ns)
        if not late:
            return float("inf"), float("inf")
        return late[int(len(late) * 0.99)] / NS_PER_MS, late[-1] / NS_PER_MS


@asynccontextmanager
async def observed_machine() -> AsyncIterator[Machine]:
    """Samples come in while the block runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-E", "-c", SOURCE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    machine, stdout = Machine(), process.stdout

    async def read() -> None:
        while True:
            machine.samples.append(SAMPLE.unpack(await stdout.readexactly(SAMPLE.size)))

    task = asyncio.create_task(read())
    try:
        yield machine
    finally:
        task.cancel()
        await asyncio.wait([task])
        process.kill()
        await process.wait()
