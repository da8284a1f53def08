"""The memory we have, how much we may have, and what the C library keeps of what we gave back.

Loading a model leaves tens of megabytes behind: with YOLOX-nano on OpenVINO 199 MiB are resident
after loading, 176 after giving back. And each thread that allocates gets an arena of its own,
up to eight a core, which calls that come and go fill one after another. Large blocks lie outside
of the arenas at first, where a freed one is the system's again; but the C library lets that limit
grow to the largest block it saw freed, and then an encoder's pictures leave holes in the arenas.
"""

import contextlib
import ctypes
import gc
import os
import platform
import resource
import sys
from pathlib import Path

# glibc's numbers of the options, the arenas that decoders, encoders and the loop share, and from
# which size on blocks lie outside of them: an encoder's pictures do, which live as long as a call,
# and those of 1280x720 on their way do not, because a new block is a page fault every 4 KiB.
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
ARENAS = 2
LARGE_BYTES = 3 * 2**19
MIB = 2**20


def set_up_allocator() -> None:
    """Let all threads share a few arenas, and keep large blocks out of them (glibc); before the
    first thread starts."""
    mallopt = _from_libc("mallopt")
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can be asked to (glibc)."""
    gc.collect()
    trim = _from_libc("malloc_trim")
    if trim is not None:
        trim(0)


def _from_libc(name: str) -> "ctypes._NamedFuncPointer | None":
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)


def resident_mib() -> float:
    """Resident memory now; where the system does not tell, the most there has been."""
    if platform.system() == "Linux":
        # Asked before each new call, also when no file can be opened any more.
        with contextlib.suppress(OSError), open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MIB if platform.system() == "Darwin" else 2**10)


def memory_limit_mib(
    cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """What this process may have: the least that its cgroups (version 2) grant, or the machine's
    memory where they grant more or say nothing."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / MIB]
    for group in _groups(cgroups, own):
        try:
            limits.append(int((group / "memory.max").read_text()) / MIB)
        except (OSError, ValueError):
            # Not there, or "max".
            continue
    return min(limits)


def _groups(cgroups: Path, own: Path) -> list[Path]:
    """The group of this process and those that hold it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    parts = [part for part in path.split("/") if part and part != ".."]
    return [cgroups.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
