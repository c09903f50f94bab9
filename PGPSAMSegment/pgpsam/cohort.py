"""Many volumes, one model in memory: each result in files of its own, one table of organs for all.

A volume that cannot be segmented is told and left out. One that is in the table is not done again, so that a stopped
cohort goes on where it was, unless its file has changed since. Several runs may share a list, as on two GPUs: what one
is at work on comes last in the others. What is not, bit for bit, what the cohort wrote is the user's: it is never
replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from glob import glob, has_magic
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from pgpsam.cohort_lists import COLUMNS, FIGURES, MARK, TABLE, WRITTEN, Lists, read_lists
from pgpsam.errors import UserError, reason
from pgpsam.looks import LOOKS
from pgpsam.memory import is_memory_error
from pgpsam.pages import check_can_write, csv_bytes, write_whole
from pgpsam.report import OrganRow, organ_table, overview_png
from pgpsam.segmenter import Segmenter, Step
from pgpsam.volume import OUTPUTS, read_volume, volume_name, write_array

LOCK = ".lock"  # in the results' folder; held by a cohort while it reads and changes what lies there


def name_sources(inputs: Sequence[str | Path]) -> dict[str, Path]:
    """What each volume's results will be called: its file's name without extension, or its folder's.

    A volume that is named twice, as by two patterns, counts once.

    Args:
        inputs: paths, and patterns such as scans/*.nii.gz, which not every shell expands.

    Raises:
        UserError: two of one name, which would overwrite each other, or one that is not there.
    """
    sources: dict[str, Path] = {}
    for path in (path for each in inputs for path in _expanded(each)):
        if not os.path.exists(path):  # also says so of a name that is too long
            raise UserError(f"no such file or folder: {path}")
        name = volume_name(path)
        if sources.get(name, path).resolve() != path.resolve():
            raise UserError(
                f"{sources[name]} and {path} would both be called {name}",
                "Rename one, or run it by itself with another --out.",
            )
        sources.setdefault(name, path)
    return sources


def _expanded(given: str | Path) -> list[Path]:
    """The path itself, or what fits a pattern, in order."""
    pattern = str(given)
    fitting = sorted(glob(pattern)) if has_magic(pattern) and not os.path.exists(pattern) else []
    return [Path(path) for path in fitting or [pattern]]


def segment_cohort(
    segmenter: Segmenter,
    sources: Mapping[str, Path],
    out: Path,
    organs: Sequence[str] | None = None,
    *,
    extension: str = ".nii.gz",
    pictures: bool = True,
    looks: int = len(LOOKS),
    progress: Callable[[str, Step], None] | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Segment volumes one after the other; other cohorts, of the same volumes too, may be at work in the same folder.

    Writes NAME + extension (labels on the volume's own grid), NAME.png where `pictures` is set, cohort.json (what was
    written, and from what), and organs.csv, which is whole after every volume: a row for each organ that was found,
    with mL, mean HU, mean confidence 0..1, the number of slices, the slices to check (counted from 1, the lowest),
    whether the scan cuts it off, and the volume's path; a volume without any organ has one row. The model is named with
    the first digits of its tensors' SHA-256, for another one may come to bear its name.

    Args:
        sources: the volumes by the names of their results.
        out: made where it is missing.
        organs: as `Segmenter.segment` takes them.
        looks: as `Segmenter.segment` takes them.
        progress: called with a volume's name and its step.
        say: gets a line for each volume.

    Returns:
        The names of the volumes that could not be segmented.

    Raises:
        UserError: an unknown organ or extension, a result that would overwrite an input, a table that cannot be read,
            or the folder or the disk refuses.
    """
    asked = ", ".join(segmenter.label_set.select(organs).names)
    if extension not in OUTPUTS:
        raise UserError(f"'{extension}' is no format of labels", f"Use {', '.join(OUTPUTS)}.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be used: {error.strerror}", "Choose another folder.") from error
    check_can_write(out / TABLE)
    check_inputs(sources, out, extension)
    lock = FileLock(out / LOCK)
    with lock:
        read_lists(out, extension)  # a damaged one is told now
    failed, turns, busy = [], list(sources), set()
    for name in turns:  # which grows by those that another run is at work on
        source = sources[name]
        results = [out / f"{name}{extension}", out / f"{name}.png"]
        wanted = results if pictures else results[:1]
        with ExitStack() as held:
            try:
                made = {
                    "volume": name,
                    "model": f"{segmenter.name}@{segmenter.version}",
                    "looks": str(looks),
                    "asked_for": asked,
                    "source": str(source.resolve()),
                    "source_state": _state(source, out),
                }
                for path in wanted:
                    check_can_write(path)
                if not held.enter_context(_claimed(name, out, patience=1 if name in busy else 0)):
                    if name not in busy:
                        say(f"{name}: another run is at work on it")
                    busy.add(name)
                    turns.append(name)
                    continue
                with lock:
                    lists = read_lists(out, extension)
                    if _is_done(made, wanted, lists):
                        say(f"{name}: done before")
                        continue
                    _check_ours(made, results, lists)
                volume = read_volume(source)
                report = (lambda step, name=name: progress(name, step)) if progress else None
                result = segmenter.segment(volume, organs, progress=report, looks=looks)
                held.enter_context(lock)
                lists = read_lists(out, extension)  # minutes later
                _check_ours(made, results, lists)
            except (UserError, RuntimeError, MemoryError) as error:
                if not isinstance(error, UserError) and not is_memory_error(error):
                    raise
                say(f"{name}: {error if isinstance(error, UserError) else 'not enough memory'}")
                failed.append(name)
                continue
            found = [_figures(row) for row in organ_table(volume, result) if row.ml > 0]
            with _scratch_in(out) as scratch:
                new = [scratch / path.name for path in wanted]
                write_array(new[0], result.labels, volume, "labels", result.label_set)
                if pictures:
                    overview_png(volume, result, new[1])
                _take_place(out, results, new, made, found, lists)
        say(f"{name}: {len(found)} organs in {sum(result.seconds.values()):.0f} s")
    return failed


@contextmanager
def _claimed(name: str, out: Path, patience: float) -> Iterator[bool]:
    """Whether no other run is at work on a volume, as none will be meanwhile; the system frees it if this one dies.

    Args:
        patience: seconds to wait for the other run.
    """
    path = out / f"{LOCK}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"  # the name may be as long as names can be
    claim = FileLock(path)
    try:
        claim.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # Windows removes it with the lock
            path.unlink()
        claim.release()


@contextmanager
def _scratch_in(folder: Path) -> Iterator[Path]:
    """A hidden folder for new files; what the disk refuses in it is told of the folder that the user knows.

    Raises:
        UserError: the disk refuses.
    """
    hint = "Check that it may be written to and has room, and run this again to go on."
    scratch = folder
    try:
        with TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as made:
            scratch = Path(made)
            yield scratch
    except OSError as error:
        raise UserError(f"{folder} can't be written to: {reason(error)}", hint) from error
    except UserError as error:
        raise UserError(error.message.replace(str(scratch), str(folder)), hint) from error


def _take_place(
    out: Path,
    former: Sequence[Path],
    new: Sequence[Path],
    made: Mapping[str, str],
    found: Sequence[Mapping[str, str]],
    lists: Lists,
) -> None:
    """Put a volume's new files where its former ones were, its picture too if there is no new one.

    The former ones go first, and what is said of the new ones comes before them: whatever stops here, the volume is
    done again, and no file is there that is not known.
    """
    mark = {key: made[key] for key in MARK}
    others = [row for row in lists.rows if row["volume"] != made["volume"]]
    rows = others + [{**mark, **figures} for figures in found or [{}]]
    gone = {path.name for path in former}
    known = {file: entry for file, entry in lists.written.items() if file not in gone}
    known |= {path.name: {**made, "sha256": _sha256(path)} for path in new}
    for path in former:
        path.unlink(missing_ok=True)
    text = json.dumps(known, indent=1, ensure_ascii=False)
    write_whole({out / TABLE: csv_bytes(COLUMNS, rows), out / WRITTEN: text.encode()})
    for path in new:
        os.replace(path, out / path.name)


def _is_done(made: Mapping[str, str], wanted: Sequence[Path], lists: Lists) -> bool:
    """Whether the table has this volume and all its files are what was written of it, in this way, of this source."""
    if not lists.has(made):
        return False
    for path in wanted:
        if not path.is_file() or path.name not in lists.written:
            return False
        now = {**made, "sha256": _sha256(path)}
        if any(value not in (now[key], "") for key, value in lists.written[path.name].items()):  # "": nobody knows
            return False
    return True


def _check_ours(made: Mapping[str, str], results: Sequence[Path], lists: Lists) -> None:
    """Refuse to replace what is not as the cohort wrote it, or is of another volume.

    Raises:
        UserError: one of the results, or the volume, by name.
    """
    name, source = made["volume"], lists.sources.get(made["volume"], made["source"])
    if source != made["source"]:
        folder = results[0].parent
        raise UserError(f"{folder} already holds a result called {name}, of {source}", "Give another --out.")
    for path in filter(os.path.lexists, results):
        if path.name not in lists.written:
            raise UserError(f"{path} exists and is no result of this cohort", "Move it, or give another --out.")
        sha256 = lists.written[path.name]["sha256"]
        if sha256 != _sha256(path):
            when = "was changed since this cohort" if sha256 else "may have been changed since an earlier version"
            raise UserError(f"{path} {when} wrote it", "Move it away to have it done again.")


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}", "Move it, or give another --out.") from error


def _state(source: Path, out: Path) -> str:
    """What tells a source from a later one of the same path: its files' number and size, and when the newest changed.

    Raises:
        UserError: it cannot be looked at, or its path cannot stand in a table.
    """
    try:
        str(source.resolve()).encode()
        files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
        stats = [path.stat() for path in files if out.resolve() not in path.resolve().parents]
    except UnicodeEncodeError as error:
        raise UserError(f"{source}: its path is not UTF-8", "Rename it.") from error
    except OSError as error:
        raise UserError(f"{source} cannot be read: {reason(error)}") from error
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return f"{len(stats)} files, {sum(stat.st_size for stat in stats)} bytes, {newest} ns"


def check_inputs(sources: Mapping[str, Path], out: Path, extension: str) -> None:
    """Refuse to overwrite an input.

    Raises:
        UserError: it would.
    """
    inputs = {path.resolve() for path in sources.values()}
    for name, source in sources.items():
        results = [out / f"{name}{extension}", out / f"{name}.png"]
        if inputs & {path.resolve() for path in results}:
            raise UserError(f"the result of {source} would overwrite an input", "Give another --out.")


def _figures(row: OrganRow) -> dict[str, str]:
    checks = " ".join(str(z + 1) for z in row.slices_to_check)
    values = (row.name, f"{row.ml:.2f}", f"{row.mean_hu:.1f}", f"{row.confidence:.3f}", str(row.slices), checks)
    return dict(zip(FIGURES, (*values, str(int(row.cut_off))), strict=True))
