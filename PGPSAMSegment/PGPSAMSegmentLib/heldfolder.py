"""Folders in use: a lock beside each tells whose process lives, so that the next one can remove what a crash has left.

A folder that holds a finished model always stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from .enginefolder import try_lock

LOCK = ".pgpsam-lock"  # ends the name of the file beside a folder that is in use


class HeldFolder:
    """A folder in use, which `sweep` leaves alone until this process lets go of it or ends.

    Args:
        folder: it exists; the lock is a file beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._lock = folder.with_name(folder.name + LOCK).open("ab")
        if not try_lock(self._lock):  # the file system knows no locks, or a sweep has it: without it none touches us
            self.let_go()

    def let_go(self) -> None:
        """Leaves the folder to whoever wants it."""
        self._lock.close()
        with contextlib.suppress(OSError):
            Path(self._lock.name).unlink()

    def remove(self) -> None:
        """Lets go of the folder, which goes as well unless it is a finished model."""
        _remove_unfinished(self.path)
        self.let_go()


def sweep(parent: Path) -> None:
    """Removes the folders whose process has ended, most likely in a crash, before it let go; finished models stay."""
    for path in parent.glob(f"?*{LOCK}"):
        with contextlib.suppress(OSError):  # it is another user's
            with path.open("r+b") as lock:
                # Another one may have swept meanwhile, and have made a folder and a lock of the same name.
                free = try_lock(lock) and os.path.samestat(os.fstat(lock.fileno()), path.stat())
                if free:
                    _remove_unfinished(path.with_name(path.name.removesuffix(LOCK)))
            if free:
                path.unlink()


def is_finished(folder: Path) -> bool:
    return (folder / "model.json").exists()  # a trained state without a model is of no use here


def _remove_unfinished(folder: Path) -> None:
    if not is_finished(folder):
        shutil.rmtree(folder, ignore_errors=True)  # what is still open on Windows stays
