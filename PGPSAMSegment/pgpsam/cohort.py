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
from pgpsam.pages import write_whole
from pgpsam.report import OrganRow, organ_table, overview_png
from pgpsam.segmenter import Segmenter, Step
from pgpsam.volume import output_extension, read_volume, volume_name, write_array

TABLE = "organs.csv"
_COLUMNS = ("volume", "organ", "ml", "mean_hu", "confidence", "slices", "slices_to_check", "cut_off", "model")


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
            raise UserError(f"{sources[name]} and {path} would both be called {name}", "Rename one, or run them apart.")
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
    progress: Callable[[str, Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Segment volumes one after the other.

    Writes NAME + extension (labels on the volume's own grid), NAME.png where `pictures` is set, and organs.csv, which
    is whole after every volume.

    Args:
        sources: the volumes by the names of their results.
        out: made where it is missing.
        organs: as `Segmenter.segment` takes them.
        progress: called with a volume's name and its step.
        cancelled: as `Segmenter.segment` takes it.
        say: gets a line for each volume.

    Returns:
        The names of the volumes that could not be segmented.

    Raises:
        UserError: an unknown organ or extension, or the folder or the disk refuses.
        Cancelled: `cancelled` said so; finished volumes stay.
    """
    segmenter.label_set.select(organs)
    output_extension(f"labels{extension}")
    table = out / TABLE
    try:
        out.mkdir(parents=True, exist_ok=True)
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))) if table.is_file() else []
    except OSError as error:
        raise UserError(f"{out} cannot be used: {error.strerror}", "Choose another folder.") from error
    failed = []
    for name, source in sources.items():
        labels = out / f"{name}{extension}"
        if labels.is_file() and any(row["volume"] == name and row["model"] == segmenter.name for row in rows):
            say(f"{name}: done before")
            continue
        try:
            volume = read_volume(source)
            report = (lambda step, name=name: progress(name, step)) if progress else None
            result = segmenter.segment(volume, organs, progress=report, cancelled=cancelled)
        except UserError as error:
            say(f"{name}: {error}")
            failed.append(name)
            continue
        write_array(labels, result.labels, volume, "labels", result.label_set)
        if pictures:
            overview_png(volume, result, out / f"{name}.png")
        found = [_row(name, row, segmenter.name) for row in organ_table(volume, result) if row.ml > 0]
        rows = [row for row in rows if row["volume"] != name] + (found or [_nothing(name, segmenter.name)])
        write_whole({table: _text(rows)})
        say(f"{name}: {len(found)} organs in {sum(result.seconds.values()):.0f} s")
    return failed


def _row(name: str, row: OrganRow, model: str) -> dict[str, str]:
    checks = " ".join(str(z + 1) for z in row.slices_to_check)
    values = (name, row.name, f"{row.ml:.2f}", f"{row.mean_hu:.1f}", f"{row.confidence:.3f}", str(row.slices), checks)
    return dict(zip(_COLUMNS, (*values, str(int(row.cut_off)), model), strict=True))


def _nothing(name: str, model: str) -> dict[str, str]:
    """The row of a volume in which no organ was found."""
    return {**dict.fromkeys(_COLUMNS, ""), "volume": name, "model": model}


def _text(rows: Sequence[Mapping[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
