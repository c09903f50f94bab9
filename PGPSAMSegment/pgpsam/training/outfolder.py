"""The folder that a training writes a model to: it can be written to, holds nothing of worth, and is nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock, Timeout

from pgpsam.errors import UserError, reason
from pgpsam.models.spec import SPEC_FILE
from pgpsam.training.resuming import CHECKPOINT

LOCK = ".lock"  # in a model folder while a training is at work in it


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a model folder, which is made where it is missing and goes if nothing comes of it.

    The system frees the lock even if this process dies.

    Raises:
        UserError: another one is at work in it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        hint = "Wait until it has ended, or name another folder."
        raise UserError(f"another training is at work in {folder}", hint) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes it with the lock
            (folder / LOCK).unlink()
        lock.release()
        if made:
            with suppress(OSError):
                folder.rmdir()


def check_free(
    out: Path,
    overwrite: bool,
    hint: str = "Name another folder, replace it with --overwrite, or go on with --resume if its scoring was stopped.",
) -> None:
    """Keep what a folder holds from being replaced unasked.

    Args:
        hint: what to do where it holds a model.

    Raises:
        UserError: a stopped run's state, or a model that nobody asked to overwrite.
    """
    if (out / CHECKPOINT).is_file():
        raise UserError(f"{out / CHECKPOINT} is there, of a stopped run", "Go on with --resume, or delete it.")
    if (out / SPEC_FILE).is_file() and not overwrite:
        raise UserError(f"{out} holds a model already", hint)


def check_folder(folder: Path) -> None:
    """Notice now what would end a run when it writes its first file.

    Raises:
        UserError: the folder cannot be made, or nothing can be written into it.
    """
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"{folder} cannot be made: {nearest} is no folder", "Name another folder.")
    try:
        with NamedTemporaryFile(prefix=".", suffix=".part", dir=nearest):
            pass
    except OSError as error:
        hint = "Check its permissions and the disk, or name another folder."
        raise UserError(f"{folder} can't be written to: {reason(error)}", hint) from error
