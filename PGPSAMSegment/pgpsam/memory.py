"""What the process does with memory: keeps what it freed for the next batch and gives it back after the last, tells its
peak, and knows its lack.

Every step allocates and frees the same tens of megabytes; glibc returns such blocks to the kernel at once, and getting
them again, page by page, costs more time on a CPU than the arithmetic of many layers does.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # the worker must not wait for torch before it is needed
    import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # malloc.h
MEGABYTE = 1 << 20
LACK = (
    "out of memory",  # CUDA, cuDNN and Apple's devices
    "alloc_failed",  # CUDA's libraries: CUBLAS_STATUS_ALLOC_FAILED
    "not enough memory",  # the CPU's allocator on Windows, and this project's own message
    "can't allocate memory",  # the CPU's allocator on Linux and macOS
)
T = TypeVar("T")
_log = logging.getLogger(__name__)


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; call it before torch allocates. False where the C library is another one."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wishes = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2047 * MEGABYTE), (M_TOP_PAD, 64 * MEGABYTE), (M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in wishes)


def give_back_freed_memory() -> None:
    """Return to the system what glibc keeps, at the end of a job: half a GB or more; elsewhere nothing is kept."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def is_memory_error(error: BaseException) -> bool:
    """Whether memory ran out, in whatever way Python, numpy or torch say so; it does not import torch."""
    text = f"{type(error).__name__}: {error}".lower()
    return isinstance(error, MemoryError) or "outofmemory" in text or any(words in text for words in LACK)


def if_it_fits(work: Callable[[], T]) -> T | None:
    """What `work` returns; None if memory ran out, and then what it had taken is free again."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_memory_error(error):
            raise
        _log.info("memory ran out: %s", error)
    if torch := sys.modules.get("torch"):  # only here: until now the error has held the tensors
        torch.cuda.empty_cache()
    return None


def peak_memory_gb(device: torch.device) -> float:
    """The most memory in GB (2^30 bytes) that was in use since the process began: the GPU's on CUDA, else its own."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    if platform.system() == "Windows":
        import psutil  # type: ignore[import-untyped]

        return psutil.Process().memory_info().peak_wset / 2**30
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if platform.system() == "Darwin" else peak / 2**20
