"""What a number was measured with: commit, versions, machine. Nothing that names a person,
a host or a path."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

import av
import psutil

DISTRIBUTIONS: Final = (
    "aioice",
    "aiohttp",
    "aiortc",
    "av",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "opencv-python-headless",
    "uvloop",
)
# The ones that decide how fast a codec or an engine is.
CPU_FLAGS: Final = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
)
GIT_TIMEOUT_S: Final = 5.0


def commit() -> dict[str, object]:
    """The checkout's commit, and whether its files differ from it."""
    revision = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": revision, "changed": None if changes is None else bool(changes)}


def versions() -> dict[str, str]:
    """Of Python and of the distributions that are installed and matter."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for library in ("libavcodec", "libswscale"):
        if library in av.library_versions:
            found[library] = ".".join(map(str, av.library_versions[library]))
    return found


def machine() -> dict[str, object]:
    """The processor, its flags that matter, cores, memory and operating system."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cores_of_machine": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def load_before() -> list[float]:
    """Load averages over 1, 5 and 15 minutes: a busy machine makes a number worthless."""
    return [round(load, 2) for load in psutil.getloadavg()]


def _cpu() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown", set()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or platform.processor() or "unknown", set(flags.split())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
