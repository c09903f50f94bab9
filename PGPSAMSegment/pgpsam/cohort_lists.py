"""The two lists of a cohort's folder: organs.csv, for the user, and cohort.json, by which the cohort knows its files.

Another cohort may write to them at the same time, so they are read again where they have changed: under the folder's
lock, for they are written together.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from pgpsam.errors import UserError, reason
from pgpsam.pages import csv_text

TABLE = "organs.csv"
WRITTEN = "cohort.json"
MARK = ("volume", "model", "looks", "asked_for", "source")
FIGURES = ("organ", "ml", "mean_hu", "confidence", "slices", "slices_to_check", "cut_off")
COLUMNS = ("volume", *FIGURES, *MARK[1:])


@dataclass(frozen=True, eq=False)
class Lists:
    """What a folder says of its volumes.

    Attributes:
        rows: as `read_table` gives them. written: as `read_written` gives it.
    """

    rows: list[dict[str, str]]
    written: dict[str, dict[str, str]]

    @cached_property
    def sources(self) -> dict[str, str]:
        """Each volume's path."""
        return {row["volume"]: row["source"] for row in (*self.rows, *self.written.values())}

    def has(self, made: Mapping[str, str]) -> bool:
        """Whether the table holds a volume that was segmented in this way."""
        return tuple(made[key] for key in MARK) in self._marks

    @cached_property
    def _marks(self) -> set[tuple[str, ...]]:
        return {tuple(row[key] for key in MARK) for row in self.rows}


def read_lists(out: Path, extension: str) -> Lists:
    """The lists as they are now; they are parsed only where a file is another one than before.

    Raises:
        UserError: as `read_table` and `read_written`.
    """
    return _parsed(out, extension, *map(_stamp, (out / TABLE, out / WRITTEN)))


@lru_cache(maxsize=1)
def _parsed(out: Path, extension: str, *_: tuple[int, ...]) -> Lists:
    return Lists(read_table(out), read_written(out, extension))


def _stamp(path: Path) -> tuple[int, ...]:
    """What tells a file from the one that takes its place; () where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def read_table(out: Path) -> list[dict[str, str]]:
    """The rows of organs.csv, [] without one.

    Raises:
        UserError: it is not such a table, after an edit in a spreadsheet, say.
    """
    path = out / TABLE
    what = "Move it away" if (out / WRITTEN).is_file() else "Move the whole folder away"
    hint = f"{what}; its volumes are then done again."
    try:
        if not path.is_file():
            return []
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {reason(error)}", hint) from error
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row.values() or None in row for row in rows):
        raise UserError(f"{path} is not the table of a cohort", hint)
    return [{column: csv_text(cell) for column, cell in row.items()} for row in rows]


def read_written(out: Path, extension: str) -> dict[str, dict[str, str]]:
    """What the cohort wrote: by each file's name its SHA-256, the volume's columns in the table, and `_state`.

    Where cohort.json is missing, as beside tables of an earlier version, the files of the table's volumes are taken for
    results whose SHA-256 and source nobody knows, "": they count as done and are never replaced.

    Raises:
        UserError: cohort.json is not such a list.
    """
    path = out / WRITTEN
    hint = "Move the whole folder away; its volumes are then done again."
    if not path.is_file():
        rows = [{**{key: row[key] for key in MARK}, "source_state": "", "sha256": ""} for row in read_table(out)]
        files = {f"{row['volume']}{ending}": row for row in rows for ending in (extension, ".png")}
        return {file: row for file, row in files.items() if os.path.lexists(out / file)}
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        keys = {*MARK, "source_state", "sha256"}
        valid = all(entry.keys() == keys and {*map(type, entry.values())} == {str} for entry in written.values())
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a cohort's: {reason(error)}", hint) from error
    if not valid:
        raise UserError(f"{path} is not a cohort's", hint)
    return dict(written)
