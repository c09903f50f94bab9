"""Which slices of a result are shown, and where: the cuts that show most, and the layout of the picture in pixels.

Places are pixels of the picture, y downwards. It leaves room for the legend, so it knows which organs are listed
there, but it does not know how anything is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .labels import Label
from .segmentation import Segmentation
from .volume import Volume

WIDTH = 1800  # pixels of the picture; its height follows from the patient's shape

Axis = Literal["axial", "coronal", "sagittal"]
Content = Literal["prompts", "masks"]
Box = tuple[float, float, float, float]
_T = TypeVar("_T")

AXES: tuple[Axis, ...] = ("axial", "coronal", "sagittal")  # they cut the canonical axes z, y, x
_CONTENTS: tuple[Content, ...] = ("prompts", "masks")
_AXIAL_ROWS = 3
MIN_STACK = 8  # slices: a coronal or sagittal cut through fewer shows nothing
_AIR_HU = -300.0
MARGIN, _GAP, TOP, FOOTER, LEGEND = 30, 12, 126, 44, 320  # pixels
_SIDE = 0.32  # the part of the images' width that the coronal and sagittal cuts take
_MIN_BODY, _MAX_BODY = 430, 1290  # pixels: height of the images
LINE = 27  # pixels between two lines of the legend
LEGEND_ROWS = 40
NEAR_MM = 5.0  # from a slice, within which peaks are drawn on it


@dataclass(frozen=True)
class Panel:
    """A cut through the volume, and where it lies in the picture.

    Attributes:
        axis: the direction of the cut.
        index: where it cuts, a canonical index.
        content: what is drawn over the image.
        cell: ``(left, top, width, height)`` of the black cell, in pixels of the picture.
        box: the same of the image in it.
        shown: the part of the plane that is shown, ``(rows, columns)`` as `cut` gives it.
        step: pixels of the picture between two ``(rows, columns)``.
    """

    axis: Axis
    index: int
    content: Content
    cell: Box
    box: Box
    shown: tuple[slice, slice]
    step: tuple[float, float]

    def crop(self, array: NDArray[Any]) -> NDArray[Any]:
        """What is shown, ``[row, column]``, of an array ``[z, y, x]``."""
        return cut(array, self.axis, self.index)[self.shown]

    def place(self, row: Any, column: Any) -> tuple[Any, Any]:
        """The centre of a voxel of the plane, in pixels ``(x, y)`` of the picture; arrays give arrays."""
        x = self.box[0] + (column - self.shown[1].start + 0.5) * self.step[1]
        return x, self.box[1] + (row - self.shown[0].start + 0.5) * self.step[0]

    def holds(self, row: float, column: float) -> bool:
        """Whether a voxel of the plane is shown."""
        rows, columns = self.shown
        return rows.start <= row < rows.stop and columns.start <= column < columns.stop


def cut(array: NDArray[Any], axis: Axis, index: int) -> NDArray[Any]:
    """A plane ``[row, column]`` of an array ``[z, y, x]`` as a radiologist sees it.

    Axial: anterior on top, the patient's right on the left. Coronal: superior on top, the patient's right on
    the left. Sagittal: superior on top, anterior on the left.
    """
    plane = array.take(index, axis=AXES.index(axis))
    return plane if axis == "axial" else plane[::-1]


def position_text(volume: Volume, axis: Axis, index: int) -> str:
    """Where the middle of a cut lies in the patient, such as "S 34.2 mm", as Slicer shows it."""
    array_axis = AXES.index(axis)
    middle = [(n - 1) / 2 for n in volume.shape]
    middle[array_axis] = index
    ras = volume.affine @ [*reversed(middle), 1.0]
    position = round(float(ras[2 - array_axis]), 1)
    letters = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}[axis]
    return f"{letters[position < 0]} {abs(position):.1f} mm"


def in_plane(triple: tuple[_T, _T, _T], axis: Axis) -> tuple[_T, _T]:
    """What belongs to the rows and the columns of a plane, of what belongs to z, y and x."""
    z, y, x = triple
    return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[axis]


# ----------------------------------------------------------------------------------------------------- layout


def layout(volume: Volume, segmentation: Segmentation) -> tuple[list[Panel], int]:
    """The panels, and the height of the picture in pixels.

    A row for each axial slice, superior first: its prompts, then its masks. At their right, where the stack
    is high enough, a coronal and a sagittal cut.
    """
    shown = _body(volume, segmentation.labels)
    areas = _areas(segmentation)
    axial = sorted(_best_cuts(areas[0], min(_AXIAL_ROWS, volume.shape[0]), _peak_worth(volume, segmentation)))
    stack = volume.shape[0] >= MIN_STACK
    room = WIDTH - 2 * MARGIN - LEGEND - (3 if stack else 2) * _GAP
    side = room * _SIDE if stack else 0.0
    width = (room - side) / 2
    gaps = _GAP * (len(axial) - 1)
    rows, columns = _size_mm(volume, shown, "axial")
    legend = _legend_height(segmentation)
    body = max(min(len(axial) * width * rows / columns + gaps, _MAX_BODY), _MIN_BODY, legend)
    panels = []
    for number, index in enumerate(reversed(axial)):
        height = (body - gaps) / len(axial)
        top = TOP + number * (height + _GAP)
        for column, content in enumerate(_CONTENTS):
            cell = (MARGIN + column * (width + _GAP), top, width, height)
            panels.append(_panel(volume, shown, "axial", index, content, cell))
    for number, axis in enumerate(AXES[1:] if stack else ()):
        height = (body - _GAP) / 2
        cell = (MARGIN + 2 * (width + _GAP), TOP + number * (height + _GAP), side, height)
        index = _best_cuts(areas[1 + number], 1)[0]
        panels.append(_panel(volume, shown, axis, index, "masks", cell))
    return panels, round(TOP + body + FOOTER)


def _panel(
    volume: Volume,
    shown: tuple[slice, slice, slice],
    axis: Axis,
    index: int,
    content: Content,
    cell: Box,
) -> Panel:
    """Fits a plane into its cell, as large as it goes, in the middle."""
    left, top, width, height = cell
    rows, columns = _size_mm(volume, shown, axis)
    scale = min(width / columns, height / rows)  # pixels a mm
    size = columns * scale, rows * scale
    box = (left + (width - size[0]) / 2, top + (height - size[1]) / 2, *size)
    steps = in_plane(volume.spacing[::-1], axis)
    return Panel(axis, index, content, cell, box, in_plane(shown, axis), (steps[0] * scale, steps[1] * scale))


def _size_mm(volume: Volume, shown: tuple[slice, slice, slice], axis: Axis) -> tuple[float, float]:
    """``(rows, columns)`` of what is shown of a plane, in mm."""
    rows, columns = in_plane(shown, axis)
    steps = in_plane(volume.spacing[::-1], axis)
    return (rows.stop - rows.start) * steps[0], (columns.stop - columns.start) * steps[1]


def _body(volume: Volume, labels: NDArray[np.uint8]) -> tuple[slice, slice, slice]:
    """The box ``(z, y, x)`` to show: all slices, cut to the patient and to all that is labelled.

    The patient is the largest part of the projection along z that is mostly not air, after an opening that
    takes the table away; the whole slice where there is none.
    """
    nz, ny, nx = volume.shape
    dx, dy, _ = volume.spacing
    mostly = (volume.array > _AIR_HU).mean(axis=0) > 0.3
    reach = max(1, round(4.0 / max(dx, dy)))  # half of 8 mm
    pieces, count = ndimage.label(ndimage.binary_opening(mostly, iterations=reach))
    if not count:
        return slice(0, nz), slice(0, ny), slice(0, nx)
    shown = (pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()) | labels.any(axis=0)
    y, x = ndimage.find_objects(shown.astype(np.uint8))[0]
    edges = [(s.start - 2 * reach, s.stop + 2 * reach, n) for s, n in ((y, ny), (x, nx))]
    y, x = (slice(max(0, start), min(n, stop)) for start, stop, n in edges)
    return slice(0, nz), y, x


def _legend_height(segmentation: Segmentation) -> float:
    return LINE * (len(legend_labels(segmentation)) + 7.5)


def legend_labels(segmentation: Segmentation) -> list[Label]:
    """All organs, or where they are too many only those that were found, and of these the first."""
    if len(segmentation.label_set) <= LEGEND_ROWS:
        return list(segmentation.label_set)
    return [label for label, _, _ in segmentation.organs()][:LEGEND_ROWS]


# ------------------------------------------------------------------------------------------------------- cuts


def _areas(segmentation: Segmentation) -> list[NDArray[np.float64]]:
    """For each axis z, y, x: ``[organ, position]``, an organ's area in a cut over that in its largest."""
    areas = [np.zeros((len(segmentation.label_set), n)) for n in segmentation.labels.shape]
    for row, (_, box, organ) in enumerate(segmentation.organs()):
        for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
            area = organ.sum(axis=others)
            areas[axis][row, box[axis]] = area / area.max()
    return areas


def _peak_worth(volume: Volume, segmentation: Segmentation) -> NDArray[np.float64]:
    """``[z]``: what it adds to an axial slice that peaks would be drawn on it."""
    worth = np.zeros(volume.shape[0])
    reach = int(NEAR_MM / volume.spacing[2])
    for point in segmentation.points:
        worth[max(0, point.z - reach) : point.z + reach + 1] += 0.1
    return worth


def _best_cuts(areas: NDArray[np.float64], count: int, extra: NDArray[np.float64] | float = 0.0) -> list[int]:
    """Positions that together show the most of every organ; evenly spread where there is none.

    Args:
        areas: ``[organ, position]``, as `_areas` gives it.
        count: how many, at most the number of positions.
        extra: ``[position]``, added to what a position is worth; an organ at its largest is worth 1.
    """
    positions = areas.shape[1]
    if not areas.any():
        return [int((number + 0.5) * positions / count) for number in range(count)]
    apart = max(1, positions // 12)
    areas = np.sqrt(areas)  # two organs at half their size show more than one at its largest
    shown, allowed, chosen = np.zeros((len(areas), 1)), np.ones(positions, dtype=bool), []
    for _ in range(count):
        worth = np.maximum(areas, shown).sum(axis=0) + 0.15 * areas.sum(axis=0) + extra
        chosen.append(int(np.where(allowed, worth, -1.0).argmax()))
        shown = np.maximum(shown, areas[:, chosen[-1:]])
        near = np.abs(np.arange(positions) - chosen[-1]) < apart
        free = allowed & ~near
        allowed = free if free.any() else allowed & (np.arange(positions) != chosen[-1])
    return chosen
