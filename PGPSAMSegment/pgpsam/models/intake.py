"""How a file comes into the cache folder: one process at a time, and under its final name only once it is right.

It comes from a server, or is copied from a file given by hand. This room does not know HTTP, which is `transfer`'s
affair, nor where the cache folder is and whether the file is there already.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pgpsam.errors import UserError, reason
from pgpsam.models.published import BaseWeights, by_hand_hint, megabytes
from pgpsam.models.transfer import Transfer, file_size
from pgpsam.models.verify import HashMemory, checked, content_fault
from pgpsam.models.watch import CHUNK, Watch

LOCK_POLL_S = 0.2


@contextmanager
def alone(target: Path, watch: Watch) -> Iterator[None]:
    """Hold the file's lock, which the system frees even if this process dies.

    While another process holds it, the progress shown is that process's.
    """
    folder = target.parent / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{target.name}.lock")
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_S)
            break
        except Timeout:
            watch.report(file_size(_part_of(target)))
    try:
        yield
    finally:
        lock.release()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, no permission) into a UserError."""
    try:
        yield
    except OSError as error:
        message = f"cannot write to {folder}: {reason(error)}"
        raise UserError(message, "Free some space, or set PGPSAM_CACHE to another folder") from error


def adopt(source: Path, target: Path, entry: BaseWeights, watch: Watch) -> None:
    """Copy a file given by hand; the copy is what is checked."""
    hint = f"Give the file that {entry.url} publishes"
    checked(source, entry, HashMemory(target.parent), hint)
    _check_space(target.parent, entry.size)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _copy(source, scratch, watch)
        fault = content_fault(scratch, entry)
        if fault:
            raise UserError(f"{source} changed while it was copied: {fault}", hint)
        _publish(scratch, target, entry)
        _part_of(target).unlink(missing_ok=True)
    finally:
        scratch.unlink(missing_ok=True)


def _copy(source: Path, scratch: Path, watch: Watch) -> None:
    with source.open("rb") as reader, scratch.open("wb") as writer:
        done = 0
        while block := reader.read(CHUNK):
            writer.write(block)
            done += len(block)
            watch.report(done)


def download(url: str, target: Path, entry: BaseWeights, watch: Watch) -> None:
    """Fetch a file, and go on from the `.part` file that an earlier call left; what arrived is what is checked."""
    part = _part_of(target)
    resumed = part.exists()
    while True:
        transfer = Transfer(url, part, entry, watch)
        _check_space(target.parent, entry.size - transfer.received())
        transfer.run()
        fault = content_fault(part, entry)
        if fault is None:
            return _publish(part, target, entry)
        part.unlink()
        if not resumed:
            raise UserError(f"{url} gave a wrong file for {entry.backbone}: {fault}", by_hand_hint(entry))
        # An older part can come from another server or version of the file: one try from the first byte.
        resumed = False


def _publish(scratch: Path, target: Path, entry: BaseWeights) -> None:
    """Give the complete, checked file its final name, in one step."""
    with scratch.open("r+b") as stream:
        os.fsync(stream.fileno())
    os.replace(scratch, target)
    memory = HashMemory(target.parent)
    memory.add(target, memory.mark(target, entry))


def _part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {megabytes(free)} free, but the weights need {megabytes(needed)}",
            "Free some space, or set PGPSAM_CACHE to another folder",
        )
