"""Freed memory stays with the process while it works."""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys

import pytest
import torch

from pgpsam.memory import is_memory_error
from pgpsam.terminal import run

FAULTS = """
import resource, sys
import torch
from pgpsam.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(20):
    torch.ones(12_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(12_000_000)  # 48 MB: more than what glibc comes to keep by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives large blocks back at once")
def test_blocks_are_not_fetched_from_the_system_again():
    assert page_faults("kept") < page_faults("given back") / 10


GIVEN_BACK = """
import psutil, torch
from pgpsam.memory import give_back_freed_memory, keep_freed_memory

keep_freed_memory()
torch.ones(75_000_000)
process = psutil.Process()
kept = process.memory_info().rss
give_back_freed_memory()
print(kept - process.memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_an_idle_process_gives_back_what_it_kept():
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 250_000_000


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("injected"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("No space left on device"), False),
    ],
)
def test_lack_of_memory_is_known_by_what_torch_says_of_it(error, lack):
    assert is_memory_error(error) is lack


def test_a_command_that_lacks_memory_ends_with_one_line(capsys):
    def fails(error):
        def main(_):
            raise error

        return run(main, argparse.Namespace(debug=False))

    assert fails(MemoryError()) == 2
    assert capsys.readouterr().err == "error: not enough memory. Close other programs, or crop the volume.\n"
    with pytest.raises(RuntimeError, match="shapes"):
        fails(RuntimeError("shapes"))
