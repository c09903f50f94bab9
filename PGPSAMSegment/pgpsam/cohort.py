"""Many volumes, one model in memory: each result in files of its own, one table of organs for all.

A volume that cannot be segmented is told and left out. One that is in the table is not done again, so that a stopped
cohort goes on where it was.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pgpsam.errors import UserError
from pgpsam.looks import LOOKS
from pgpsam.memory import is_memory_error
from pgpsam.pages import csv_bytes, write_whole
from pgpsam.report import OrganRow, organ_table, overview_png
from pgpsam.segmenter import Segmenter, Step
from pgpsam.volume import output_extension, read_volume, volume_name, write_array

TABLE = "organs.csv"
_COLUMNS = (
    *("volume", "organ", "ml", "mean_hu", "confidence", "slices", "slices_to_check", "cut_off"),
    *("model", "looks", "asked_for", "source"),
)


def name_sources(inputs: Sequence[str | Path]) -> dict[str, Path]:
    """What each volume's results will be called: its file's name without extension, or its folder's.

    Raises:
        UserError: two of one name, which would overwrite each other, or one that is not there.
    """
    sources: dict[str, Path] = {}
    for path in map(Path, inputs):
        name = volume_name(path)
        if not path.exists():
            raise UserError(f"no such file or folder: {path}")
        if name in sources:
            raise UserError(
                f"{sources[name]} and {path} would both be called {name}",
                "Rename one, or run it by itself with another --out.",
            )
        sources[name] = path
    return sources


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
    cancelled: Callable[[], bool] | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Segment volumes one after the other.

    Writes NAME + extension (labels on the volume's own grid), NAME.png where `pictures` is set, and organs.csv, which
    is whole after every volume: a row for each organ that was found, with mL, mean HU, mean confidence 0..1, the number
    of slices, the slices to check (counted from 1, the lowest), whether the scan cuts it off, and the volume's path; a
    volume without any organ has one row. The model is named with the first digits of its tensors' SHA-256, for another
    one may come to bear its name.

    Args:
        sources: the volumes by the names of their results.
        out: made where it is missing.
        organs: as `Segmenter.segment` takes them.
        looks: as `Segmenter.segment` takes them.
        progress: called with a volume's name and its step.
        cancelled: as `Segmenter.segment` takes it.
        say: gets a line for each volume.

    Returns:
        The names of the volumes that could not be segmented.

    Raises:
        UserError: an unknown organ or extension, a result that would overwrite an input or another volume's result, or
            the folder or the disk refuses.
        Cancelled: `cancelled` said so; finished volumes stay.
    """
    asked = ", ".join(segmenter.label_set.select(organs).names)
    if output_extension(f"labels{extension}") != extension:
        raise UserError(f"'{extension}' is no format of labels", "Use .nii.gz, .nii, .nrrd, .mha or .seg.nrrd.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be used: {error.strerror}", "Choose another folder.") from error
    check_results(sources, out, extension)
    failed = []
    for name, source in sources.items():
        labels, picture = out / f"{name}{extension}", out / f"{name}.png"
        mark = {
            "volume": name,
            "model": f"{segmenter.name}@{segmenter.version}",
            "looks": str(looks),
            "asked_for": asked,
            "source": str(source.resolve()),
        }
        written = labels.is_file() and (picture.is_file() or not pictures)
        if written and any(mark.items() <= row.items() for row in read_table(out)):
            say(f"{name}: done before")
            continue
        try:
            volume = read_volume(source)
            report = (lambda step, name=name: progress(name, step)) if progress else None
            result = segmenter.segment(volume, organs, progress=report, cancelled=cancelled, looks=looks)
        except (UserError, RuntimeError, MemoryError) as error:
            if not isinstance(error, UserError) and not is_memory_error(error):
                raise
            say(f"{name}: {error if isinstance(error, UserError) else 'not enough memory'}")
            failed.append(name)
            continue
        found = [_figures(row) for row in organ_table(volume, result) if row.ml > 0]
        others = [row for row in read_table(out) if row["volume"] != name]
        rows = others + [{**mark, **figures} for figures in found or [{}]]
        # A former result goes first and its row comes before it: whatever stops here, the volume is done again.
        labels.unlink(missing_ok=True)
        write_whole({out / TABLE: csv_bytes(_COLUMNS, rows)})
        write_array(labels, result.labels, volume, "labels", result.label_set)
        if pictures:
            overview_png(volume, result, picture)
        say(f"{name}: {len(found)} organs in {sum(result.seconds.values()):.0f} s")
    return failed


def check_results(sources: Mapping[str, Path], out: Path, extension: str) -> None:
    """Refuse to overwrite what is not an earlier result of the same volume.

    Raises:
        UserError: it would.
    """
    inputs = {path.resolve() for path in sources.values()}
    made = {row["volume"]: row["source"] for row in read_table(out)}
    for name, source in sources.items():
        results = [out / f"{name}{extension}", out / f"{name}.png"]
        if inputs & {path.resolve() for path in results}:
            raise UserError(f"the result of {source} would overwrite an input", "Give another --out.")
        if name in made and made[name] != str(source.resolve()):
            raise UserError(f"{out} already holds a result called {name}, of {made[name]}", "Give another --out.")
        if name not in made and (strange := [path for path in results if path.exists()]):
            raise UserError(f"{strange[0]} exists and is no result of this cohort", "Move it, or give another --out.")


def read_table(out: Path) -> list[dict[str, str]]:
    """The rows of organs.csv, [] without one.

    Raises:
        UserError: it is not such a table, after an edit in a spreadsheet, say.
    """
    path = out / TABLE
    try:
        if not path.is_file():
            return []
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}", "Move it away; its volumes are then done again.") from error
    if tuple(reader.fieldnames or ()) != _COLUMNS or any(None in row.values() or None in row for row in rows):
        raise UserError(f"{path} is not the table of a cohort", "Move it away; its volumes are then done again.")
    return rows


def _figures(row: OrganRow) -> dict[str, str]:
    checks = " ".join(str(z + 1) for z in row.slices_to_check)
    values = (row.name, f"{row.ml:.2f}", f"{row.mean_hu:.1f}", f"{row.confidence:.3f}", str(row.slices), checks)
    return dict(zip(_COLUMNS[1:8], (*values, str(int(row.cut_off))), strict=True))
