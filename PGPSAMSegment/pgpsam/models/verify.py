"""Whether a file is the one it should be, by its size and SHA-256, and the memory of which files were.

It reads files and never changes one; only its memory is written. It does not know how a file got where it lies, nor
where the cache folder is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from contextlib import suppress
from pathlib import Path

from pgpsam.errors import UserError, reason
from pgpsam.models.published import BaseWeights
from pgpsam.models.watch import CHUNK

_log = logging.getLogger(__name__)


def checked(path: Path, entry: BaseWeights, memory: HashMemory, hint: str) -> Path:
    """`path` itself if it is the file that `entry` describes; otherwise a UserError says what differs."""
    if not path.is_file():
        raise UserError(f"no such file: {path}", hint)
    fault = _fault(path, entry, memory)
    if fault:
        raise UserError(f"{path} is not the weights of {entry.backbone}: {fault}", hint)
    return path


def is_here(path: Path, entry: BaseWeights, memory: HashMemory) -> bool:
    """Whether `path` is there, and is the file that `entry` describes."""
    return path.is_file() and _fault(path, entry, memory) is None


def _fault(path: Path, entry: BaseWeights, memory: HashMemory) -> str | None:
    """What is wrong with the existing file `path`, or None. A file found right is not hashed again."""
    try:
        mark = memory.mark(path, entry)  # before the hashing, so that a later change shows
        if memory.knows(path, mark):
            return None
        fault = content_fault(path, entry)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    if fault is None:
        memory.add(path, mark)
    return fault


def content_fault(path: Path, entry: BaseWeights) -> str | None:
    """What is wrong with the existing file `path`, or None; it is hashed, whatever was found before."""
    size = path.stat().st_size
    if size != entry.size:
        return f"expected {entry.size} bytes, got {size}"
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        return f"expected SHA-256 {entry.sha256}, got {digest.hexdigest()}"
    return None


class HashMemory:
    """Which files were found right before, by path, size and time of change: hashing 2.5 GB takes seconds.

    It lives in `verified.json` in the cache folder. It only saves time: when it is lost, damaged or cannot be
    written (a shared read-only cache), files are hashed again.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "verified.json"

    @staticmethod
    def mark(path: Path, entry: BaseWeights) -> list[object]:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns, entry.sha256]

    def knows(self, path: Path, mark: list[object]) -> bool:
        return self._marks().get(str(path.resolve())) == mark

    def add(self, path: Path, mark: list[object]) -> None:
        marks = self._marks() | {str(path.resolve()): mark}
        scratch = self._file.with_name(f".verified.{uuid.uuid4().hex}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(marks, indent=1), encoding="utf-8")
            os.replace(scratch, self._file)
        except OSError as error:
            _log.debug("the checked file %s is not remembered: %s", path, error)
            with suppress(OSError):
                scratch.unlink(missing_ok=True)

    def _marks(self) -> dict[str, object]:
        try:
            marks = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.debug("ignored %s: %s", self._file, error)
            return {}
        return marks if isinstance(marks, dict) else {}
