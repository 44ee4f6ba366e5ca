"""The process starts anew once, with its arguments, and not where it has been told already."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = "import os, sys; print(os.getpid()); from runtime import huge_pages; huge_pages.ask(); " \
          "print(os.environ['GLIBC_TUNABLES'], *sys.argv[1:], sys.flags.optimize)"  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="there is nothing to be told on other systems")
@pytest.mark.parametrize(
    ("told", "expected", "starts"),
    [
        ("", "glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.top_pad=4096", "glibc.malloc.top_pad=4096:glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0", 1),
    ],
)
def test_it_starts_anew_once_with_its_arguments(told: str, expected: str, starts: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": told, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-O", "-c", PROGRAM, "an argument", "--flag"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *processes, said = done.stdout.splitlines()
    assert said == f"{expected} an argument --flag 1"
    assert len(processes) == starts and len(set(processes)) == 1
