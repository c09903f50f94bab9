"""What a user takes away beside the labels: a table of organs, a page to read, and the prompts for Slicer.

It measures and writes results, and knows nothing of how they came about.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import __version__
from .errors import UserError
from .labels import Label
from .overview import DISCLAIMER, draw, overview_png
from .pages import facts, image, page, write_whole
from .panels import position_text
from .segmentation import PromptPoint, Segmentation
from .volume import Volume

__all__ = ["OrganRow", "organ_table", "overview_png", "write_points", "write_report"]

SLICES_TO_CHECK = 3

# The schema's identifier, as Slicer 5 writes it; nothing is loaded from there.
_MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


@dataclass(frozen=True)
class OrganRow:
    """What was measured of one organ; nan where an organ that was not found has no value.

    Attributes:
        id: the organ's id.
        name: the organ's name.
        ml: its volume in mL, 0 where it was not found.
        mean_hu: the mean of the image over its voxels.
        std_hu: the standard deviation of the image over its voxels.
        confidence: the mean confidence over its voxels, 0..1.
        slices: how many axial slices hold a part of it.
        slices_to_check: canonical z indices of the slices where it is least confident and below its own mean,
            least confident first.
        cut_off: it reaches the first or last slice, so that a part of it may lie outside the scan.
    """

    id: int
    name: str
    ml: float
    mean_hu: float
    std_hu: float
    confidence: float
    slices: int
    slices_to_check: tuple[int, ...]
    cut_off: bool


def organ_table(volume: Volume, segmentation: Segmentation) -> list[OrganRow]:
    """Measures every organ of the label set, in its order.

    Args:
        volume: the image.
        segmentation: its result, on the volume's canonical grid.
    """
    found = {}
    for label, box, organ in segmentation.organs():
        values = volume.array[box][organ].astype(np.float64)
        by_slice = segmentation.confidence_by_slice(box, organ)
        confidence = float(segmentation.confidence[box][organ].mean(dtype=np.float64))
        found[label.id] = OrganRow(
            id=label.id,
            name=label.name,
            ml=values.size * volume.voxel_ml,
            mean_hu=float(values.mean()),
            std_hu=float(values.std()),
            confidence=confidence,
            slices=int(np.isfinite(by_slice).sum()),
            slices_to_check=_least(by_slice, confidence, box[0].start),
            cut_off=volume.shape[0] > 1 and (box[0].start == 0 or box[0].stop == volume.shape[0]),
        )
    return [found.get(label.id, _absent(label)) for label in segmentation.label_set]


def _absent(label: Label) -> OrganRow:
    return OrganRow(label.id, label.name, 0.0, math.nan, math.nan, math.nan, 0, (), False)


def _least(by_slice: NDArray[np.float64], mean: float, first: int) -> tuple[int, ...]:
    """The slices below the mean, least confident first; nan sorts last and is below nothing."""
    order = np.argsort(by_slice, kind="stable")[:SLICES_TO_CHECK]
    return tuple(first + int(z) for z in order if by_slice[z] < mean)


# ------------------------------------------------------------------------------------------------------- page


def write_report(
    volume: Volume,
    segmentation: Segmentation,
    path: str | os.PathLike[str],
    overview: bytes | None = None,
) -> None:
    """Writes a self-contained HTML page, whole or not at all.

    Args:
        volume: the image.
        segmentation: its result, on the volume's canonical grid.
        path: ends in .html.
        overview: the PNG that `overview_png` gave; it is drawn where it is None.

    Raises:
        UserError: the file can't be written.
    """
    rows = organ_table(volume, segmentation)
    picture = draw(volume, segmentation) if overview is None else overview
    found = sum(row.ml > 0 for row in rows)
    body = f"""<h1>{escape(volume.name)}</h1>
<p class="muted">{found} of {len(rows)} organs found by the model {escape(segmentation.model)}</p>
<p class="warn">{DISCLAIMER}. Drawn by software: a person must check every organ.</p>
<section class="card">{image(picture, "Slices with the organs' outlines and the prompts")}</section>
<section class="card"><h2>Organs</h2>{_rows_html(rows, segmentation, volume)}{_notes(rows)}</section>
<section class="card"><h2>How it was made</h2>{facts(_facts(volume, segmentation))}</section>
<section class="card"><h2>Time</h2>{_seconds_html(segmentation.seconds)}</section>"""
    write_whole({Path(path): page(f"{volume.name}: organs", body)})


def _rows_html(rows: Sequence[OrganRow], segmentation: Segmentation, volume: Volume) -> str:
    heads = ("Organ", "Volume mL", "Mean HU", "SD HU", "Confidence", "Slices")
    first = "".join(f"<th>{head}</th>" for head in heads) + '<th class="text">Least confident slices</th>'
    labels = segmentation.label_set
    others = (_row_html(row, labels.by_id(row.id), volume) for row in rows)
    return f"<table><tr>{first}</tr>{''.join(others)}</table>"


def _row_html(row: OrganRow, label: Label, volume: Volume) -> str:
    red, green, blue = label.color
    swatch = f'<span class="swatch" style="background:rgb({red} {green} {blue})"></span>'
    name = f"<td>{swatch}{escape(row.name)}{' †' if row.cut_off else ''}</td>"
    if not row.ml:
        return f'<tr class="absent">{name}<td>not found</td>{"<td></td>" * 5}</tr>'
    numbers = (
        f"{row.ml:,.1f}",
        f"{row.mean_hu:.0f}",
        f"{row.std_hu:.0f}",
        f"{row.confidence:.2f}",
        row.slices,
    )
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    checks = ", ".join(f"{z + 1} ({position_text(volume, 'axial', z)})" for z in row.slices_to_check)
    return f'<tr>{name}{cells}<td class="text wrap">{checks}</td></tr>'


def _notes(rows: Sequence[OrganRow]) -> str:
    note = "Slices are counted from 1, from inferior to superior. Confidence is the model's own, from 0 to 1."
    if any(row.cut_off for row in rows):
        note += " † reaches the first or last slice: a part of the organ may lie outside the scan."
    return f'<p class="muted">{note}</p>'


def _facts(volume: Volume, segmentation: Segmentation) -> dict[str, str]:
    z, y, x = volume.shape
    return {
        "Image": volume.name,
        "Voxels": f"{x} x {y} x {z}",
        "Spacing": " x ".join(f"{step:.3f}" for step in volume.spacing) + " mm",
        "Model": segmentation.model,
        "Device": segmentation.device,
        "Software": f"pgpsam {__version__}",
    }


def _seconds_html(seconds: dict[str, float]) -> str:
    stages = "".join(f"<tr><td>{escape(name)}</td><td>{time:.2f}</td></tr>" for name, time in seconds.items())
    total = f'<tr class="mean"><td>together</td><td>{math.fsum(seconds.values()):.2f}</td></tr>'
    return f'<table class="narrow"><tr><th>Stage</th><th>Seconds</th></tr>{stages}{total}</table>'


# ----------------------------------------------------------------------------------------------------- points


def write_points(path: str | os.PathLike[str], volume: Volume, segmentation: Segmentation) -> None:
    """Writes the prompts' points as Slicer reads them: a point list for every organ, in its colour.

    A point is called as its organ and described by its weight; positions are in LPS mm. The file appears
    whole or not at all.

    Args:
        path: ends in .mrk.json.
        volume: the image.
        segmentation: its result, on the volume's canonical grid.

    Raises:
        UserError: another extension, or the file can't be written.
    """
    path = Path(path)
    if not path.name.lower().endswith(".mrk.json"):
        raise UserError(f"{path}: Slicer reads points from .mrk.json only", "Give it a name that ends so")
    lists = []
    for label in segmentation.label_set:
        points = [point for point in segmentation.points if point.label_id == label.id]
        if points:
            lists.append(_point_list(label.name, label.color, points, volume))
    if not lists:  # Slicer refuses a file without any list
        lists.append(_point_list("prompts", (255, 255, 255), [], volume))
    text = json.dumps({"@schema": _MARKUPS_SCHEMA, "markups": lists}, indent=1, allow_nan=False)
    write_whole({path: text.encode()})


def _point_list(
    name: str, color: tuple[int, int, int], points: Sequence[PromptPoint], volume: Volume
) -> dict[str, Any]:
    shade = [channel / 255 for channel in color]
    return {
        "type": "Fiducial",
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "controlPoints": [
            {
                "id": str(number),
                "label": name,
                "description": f"{point.weight:.4g}",
                "position": _lps(volume, point),
                "locked": True,
                "positionStatus": "defined",
            }
            for number, point in enumerate(points, start=1)
        ],
        # Slicer shows points that are selected, as these are, in the second colour.
        "display": {
            "color": shade,
            "selectedColor": shade,
            "pointLabelsVisibility": False,
            "glyphScale": 1.5,
        },
    }


def _lps(volume: Volume, point: PromptPoint) -> list[float]:
    """A voxel's centre in LPS mm; Slicer's own RAS has the first two axes the other way round."""
    right, anterior, superior, _ = volume.affine @ [point.x, point.y, point.z, 1.0]
    return [-float(right) + 0.0, -float(anterior) + 0.0, float(superior)]
