"""Memory that is freed stays with the process, unless the environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_WORK = """
import resource, sys
import numpy as np
from boxwright.freed_memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(24 << 20, np.uint8)
    np.ones(24 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
_GLIBC = sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION") is not None


def _run(word: str, **environment: str) -> tuple[str, int]:
    told = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _WORK, word],
        env={**told, "NUMPY_MADVISE_HUGEPAGE": "0", **environment},  # a fault for each 4 KiB
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(not _GLIBC, reason="malloc's settings are glibc's")
def test_blocks_that_are_freed_are_not_taken_from_the_system_again() -> None:
    """48 MiB taken a second time: next to no page faults, and thousands where nothing was said."""
    said, kept = _run("keep")
    assert said == "True" and kept < 100
    said, fresh = _run("no", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1048576")
    assert said == "None" and fresh > 1000 + kept


@pytest.mark.skipif(not _GLIBC, reason="malloc's settings are glibc's")
@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_the_environment_goes_first(name: str) -> None:
    """What the user said about malloc is not overruled."""
    said, _ = _run("keep", **{name: "1048576"})
    assert said == "False"
