"""What the C library keeps of the memory we gave back to it.

Loading a model leaves tens of megabytes behind: with YOLOX-nano on OpenVINO 199 MiB are resident
after loading, 176 after giving back. And each thread that allocates gets an arena of its own,
up to eight a core, which calls that come and go fill one after another.
"""

import ctypes
import gc
import sys

# glibc's number of the option, and the arenas that decoders, encoders and the loop share.
M_ARENA_MAX = -8
ARENAS = 2


def limit_arenas() -> None:
    """Let all threads share a few arenas (glibc); before the first thread starts."""
    mallopt = _from_libc("mallopt")
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)


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
