"""Where a model fails worst, as pictures: of each organ the slice with the largest wrong area."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from pgpsam.overview import WINDOW
from pgpsam.pages import png, write_whole
from pgpsam.panels import position_text
from pgpsam.training.calibration import OrganSlice
from pgpsam.volume import Volume

FAILURES = "failures.png"
SHOWN = 8
SIDE_MM = 180.0  # of the part of the slice that is shown
DRAWN, FOUND = "#3ddc84", "#ff7f2a"


@dataclass(frozen=True, eq=False)
class Failure:
    """An organ's worst slice.

    Attributes:
        slice: which, and its Dice and confidence.
        wrong_mm2: what was found and is none, and what was missed.
        place: where along z, such as "S 34.2 mm".
        image: [h, w] in HU, around what is wrong. found, drawn: the organ there, [h, w].
        pixel_mm: (dy, dx).
    """

    slice: OrganSlice
    wrong_mm2: float
    place: str
    image: NDArray[np.float32]
    found: NDArray[np.bool_]
    drawn: NDArray[np.bool_]
    pixel_mm: tuple[float, float]


def failures(
    volume: Volume, found: NDArray[Any], drawn: NDArray[Any], slices: Sequence[OrganSlice], organs: Sequence[str]
) -> list[Failure]:
    """Each organ's worst slice in a case.

    Args:
        found, drawn: class indices [z, y, x], 0 for background, i for the i-th organ.
        slices: of this case, as `calibration.organ_slices` gives them.
        organs: their names.
    """
    dx, dy, _ = volume.spacing
    worst: dict[str, OrganSlice] = {}
    for one in slices:
        if one.organ not in worst or wrong(one) > wrong(worst[one.organ]):
            worst[one.organ] = one
    made = []
    for organ, one in worst.items():
        ours, theirs = (labels[one.z] == 1 + organs.index(organ) for labels in (found, drawn))
        if not (ours ^ theirs).any():
            continue
        y, x = (round(float(c)) for c in ndimage.center_of_mass(ours ^ theirs))
        ry, rx = round(SIDE_MM / 2 / dy), round(SIDE_MM / 2 / dx)
        part = slice(max(0, y - ry), y + ry), slice(max(0, x - rx), x + rx)
        place = position_text(volume, "axial", one.z)
        image = volume.array[one.z][part].copy()
        made.append(Failure(one, wrong(one) * dx * dy, place, image, ours[part], theirs[part], (dy, dx)))
    return made


def wrong(one: OrganSlice) -> float:
    """Voxels that are the organ's in only one of the two: (n + m) (1 - Dice)."""
    return (one.predicted + one.reference) * (1.0 - one.dice)


def worst_of_each_organ(found: Sequence[Failure]) -> list[Failure]:
    """One an organ, over all cases; the largest wrong area first."""
    first: dict[str, Failure] = {}
    for failure in sorted(found, key=lambda f: -f.wrong_mm2):
        first.setdefault(failure.slice.organ, failure)
    return list(first.values())


def write_failures(found: Sequence[Failure], path: Path, title: str) -> None:
    """Draws the worst ones, at most `SHOWN`, as a PNG; radiological view, the patient's right on the left.

    Raises:
        UserError: the disk refuses.
    """
    worst = worst_of_each_organ(found)[:SHOWN]
    columns = min(4, max(1, len(worst)))
    rows = max(1, -(-len(worst) // columns))
    figure = Figure(figsize=(3.0 * columns, 3.6 * rows + 0.5), layout="constrained", facecolor="white")
    figure.suptitle(title, parse_math=False, fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, failure in zip(grid, worst, strict=False):
        one, (dy, dx) = failure.slice, failure.pixel_mm
        height, width = failure.image.shape
        extent = (0.0, width * dx, height * dy, 0.0)
        axes.imshow(failure.image, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], extent=extent)
        centres = (np.arange(width) + 0.5) * dx, (np.arange(height) + 0.5) * dy
        for mask, colour in ((failure.drawn, DRAWN), (failure.found, FOUND)):
            if mask.any():
                axes.contour(*centres, mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)
        sure = "missed" if one.confidence is None else f"confidence {one.confidence:.2f}"
        text = f"{one.organ}\n{one.case}, {failure.place}\nDice {one.dice:.2f}, {sure}"
        axes.set_title(text, parse_math=False, fontsize=8, loc="left")
    write_whole({path: png(figure, dpi=100)})
