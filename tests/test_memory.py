"""How much memory we have, and how much we may have."""

import mmap
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from server.memory import memory_limit_mib, resident_mib
from tests.processes import ROOT

pytestmark = pytest.mark.unit

MACHINE_MIB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20


HOLES = """
import sys
from server.memory import resident_mib, set_up_allocator
if sys.argv[1] == "set up":
    set_up_allocator()
bytearray(2**24)  # Freed at once: from now on glibc by itself keeps blocks of this size.
before = resident_mib()
blocks, pins = [], []
for _ in range(32):
    blocks.append(bytearray(2**21))
    pins.append(bytearray(100_000))
blocks.clear()
print(resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is set up")
@pytest.mark.parametrize(("how", "kept"), [("set up", False), ("as it is", True)])
def test_large_blocks_of_those_who_left_are_given_back(how: str, kept: bool) -> None:
    words = [sys.executable, "-c", HOLES, how]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert (float(told.stdout) > 32) is kept


def test_memory_that_is_touched_is_resident_until_it_is_given_back() -> None:
    before_mib = resident_mib()
    with mmap.mmap(-1, 64 << 20) as ballast:
        for page in range(0, len(ballast), mmap.PAGESIZE):
            ballast[page] = 1
        assert resident_mib() > before_mib + 50
    assert resident_mib() < before_mib + 14


def test_without_a_file_to_ask_with_it_is_the_most_there_has_been() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before_mib = resident_mib()
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        most_mib = resident_mib()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert most_mib >= before_mib


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        # A container sees its own group as the root of all.
        ("0::/\n", {"": "536870912\n"}, 512),
        # A service of systemd, or one of the groups that hold it.
        ("0::/system.slice/x.service\n", {"system.slice/x.service": "1073741824"}, 1024),
        ("0::/a/b\n", {"a": "268435456", "a/b": "max\n"}, 256),
        ("0::/a/b\n", {"a": "268435456", "a/b": "134217728"}, 128),
        # Another one's group says nothing of ours.
        ("0::/a\n", {"b": "1048576"}, MACHINE_MIB),
        # More than there is, version 1, nonsense, nothing.
        ("0::/\n", {"": "9223372036854771712"}, MACHINE_MIB),
        ("4:memory:/x\n", {"x": "1048576"}, MACHINE_MIB),
        ("0::/\n", {"": "much"}, MACHINE_MIB),
        ("", {}, MACHINE_MIB),
    ],
)  # fmt: skip
def test_the_least_of_what_the_cgroups_grant_is_the_limit(
    tmp_path: Path, own: str, limits: dict[str, str], expected: float
) -> None:
    (tmp_path / "self").write_text(own)
    for group, text in limits.items():
        folder = tmp_path / "cgroups" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(text)
    assert memory_limit_mib(tmp_path / "cgroups", tmp_path / "self") == expected


def test_without_cgroups_the_machine_is_the_limit(tmp_path: Path) -> None:
    assert memory_limit_mib(tmp_path, tmp_path / "nothing") == MACHINE_MIB
