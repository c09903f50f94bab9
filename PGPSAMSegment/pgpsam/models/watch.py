"""The caller's view of a fetch: how far it is, and a way to stop it.

It counts bytes, and does not know where they come from or go to.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pgpsam.errors import Cancelled

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

CHUNK = 1 << 20  # bytes that are read, written and reported at once


class Watch:
    """The caller's two callbacks: progress, once a megabyte at most, and cancel."""

    def __init__(self, total: int, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self._total, self._progress, self._cancelled = total, progress, cancelled
        self._reported = -1

    def report(self, done: int) -> None:
        """Stop if the caller wants so; otherwise pass on the number of bytes done."""
        self._stop_if_cancelled()
        step = done // CHUNK if done < self._total else self._total
        if self._progress is not None and step != self._reported:
            self._reported = step
            self._progress(done, self._total)

    def sleep(self, seconds: float) -> None:
        """Wait, but notice a cancel within a fifth of a second."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._stop_if_cancelled()
            time.sleep(min(left, 0.2))

    def _stop_if_cancelled(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("fetching the weights was cancelled")
