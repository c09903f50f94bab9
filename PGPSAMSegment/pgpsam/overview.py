"""One picture of a result: the slices that show most, the prompts beside the masks, and what is what.

Radiological: the patient's right is on the image's left, superior is up, and a millimetre is as long in every
direction. All is drawn on one matplotlib axes whose unit is the picture's pixel, y downwards, without pyplot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from .labels import Label
from .pages import png, write_whole
from .segmentation import PromptPoint, Segmentation
from .volume import Volume

WIDTH = 1800  # pixels of the picture; its height follows from the patient's shape
DISCLAIMER = "Not for clinical use"

Axis = Literal["axial", "coronal", "sagittal"]
Content = Literal["prompts", "masks"]
Box = tuple[float, float, float, float]
_T = TypeVar("_T")

_AXES: tuple[Axis, ...] = ("axial", "coronal", "sagittal")  # they cut the canonical axes z, y, x
_CONTENTS: tuple[Content, ...] = ("prompts", "masks")
_SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom
_DPI = 100
_AXIAL_ROWS = 3
_MIN_STACK = 8  # slices: a coronal or sagittal cut through fewer shows nothing
WINDOW = (-160.0, 240.0)  # HU: soft tissue, width 400 at level 40
_AIR_HU = -300.0
_MARGIN, _GAP, _TOP, _FOOTER, _LEGEND = 30, 12, 126, 44, 320  # pixels
_SIDE = 0.32  # the part of the images' width that the coronal and sagittal cuts take
_MIN_BODY, _MAX_BODY = 430, 1290  # pixels: height of the images
_LINE = 27  # pixels between two lines of the legend
_LEGEND_ROWS = 40
_CHIP = 10.0  # pixels: radius of a number's disc
_PEAKS = 3  # at most, that are drawn of an organ in a slice
_NEAR_MM = 5.0  # from a slice, within which peaks are drawn on it
_CONFIDENCE: dict[str, Any] = {  # orange to teal is told apart by everyone
    "cmap": LinearSegmentedColormap.from_list("confidence", ["#ff7f2a", "#f1e3cf", "#27a3b8"]),
    "vmin": 0.5,
    "vmax": 1.0,
    "aspect": "auto",
    "interpolation": "nearest",
}
_PAGE, _TEXT, _MUTED, _LETTER, _WARN = "#14171b", "#eceff2", "#98a2ad", "#ffe28a", "#ffc46b"


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
    plane = array.take(index, axis=_AXES.index(axis))
    return plane if axis == "axial" else plane[::-1]


def position_text(volume: Volume, axis: Axis, index: int) -> str:
    """Where the middle of a cut lies in the patient, such as "S 34.2 mm", as Slicer shows it."""
    array_axis = _AXES.index(axis)
    middle = [(n - 1) / 2 for n in volume.shape]
    middle[array_axis] = index
    ras = volume.affine @ [*reversed(middle), 1.0]
    position = round(float(ras[2 - array_axis]), 1)
    letters = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}[axis]
    return f"{letters[position < 0]} {abs(position):.1f} mm"


def overview_png(volume: Volume, segmentation: Segmentation, path: str | os.PathLike[str]) -> bytes:
    """Draws a result and writes it as a PNG, `WIDTH` pixels wide, whole or not at all.

    Args:
        volume: the image.
        segmentation: its result, on the volume's canonical grid.
        path: ends in .png.

    Returns:
        The PNG's bytes, as `report.write_report` takes them.

    Raises:
        UserError: the file can't be written.
    """
    content = draw(volume, segmentation)
    write_whole({Path(path): content})
    return content


def draw(volume: Volume, segmentation: Segmentation) -> bytes:
    """The picture's PNG bytes."""
    panels, height = layout(volume, segmentation)
    figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), facecolor=_PAGE)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    window = _window(volume.array)
    for panel in panels:
        _draw_image(axes, panel, volume, window)
        if panel.content == "prompts":
            _draw_prompts(axes, panel, volume, segmentation)
        else:
            _draw_masks(axes, panel, segmentation)
        _draw_captions(axes, panel, volume)
    _draw_cut_lines(axes, panels, volume.shape[0])
    _draw_header(axes, panels, volume, segmentation)
    end = _draw_legend(axes, volume, segmentation)
    _draw_confidence(axes, panels, segmentation, end, height - _FOOTER)
    unit = " HU" if window == WINDOW else ""
    note = f"Shown from {window[0]:.0f} to {window[1]:.0f}{unit}. Radiological: R is the patient's right."
    _write(axes, _MARGIN, height - _FOOTER / 2, note, 9.5, _MUTED)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))  # last, for every image changes it
    return png(figure, _DPI)


# ----------------------------------------------------------------------------------------------------- layout


def layout(volume: Volume, segmentation: Segmentation) -> tuple[list[Panel], int]:
    """The panels, and the height of the picture in pixels.

    A row for each axial slice, superior first: its prompts, then its masks. At their right, where the stack
    is high enough, a coronal and a sagittal cut.
    """
    shown = _body(volume, segmentation.labels)
    areas = _areas(segmentation)
    axial = sorted(_best_cuts(areas[0], min(_AXIAL_ROWS, volume.shape[0]), _peak_worth(volume, segmentation)))
    stack = volume.shape[0] >= _MIN_STACK
    room = WIDTH - 2 * _MARGIN - _LEGEND - (3 if stack else 2) * _GAP
    side = room * _SIDE if stack else 0.0
    width = (room - side) / 2
    gaps = _GAP * (len(axial) - 1)
    rows, columns = _size_mm(volume, shown, "axial")
    legend = _legend_height(segmentation)
    body = max(min(len(axial) * width * rows / columns + gaps, _MAX_BODY), _MIN_BODY, legend)
    panels = []
    for number, index in enumerate(reversed(axial)):
        height = (body - gaps) / len(axial)
        top = _TOP + number * (height + _GAP)
        for column, content in enumerate(_CONTENTS):
            cell = (_MARGIN + column * (width + _GAP), top, width, height)
            panels.append(_panel(volume, shown, "axial", index, content, cell))
    for number, axis in enumerate(_AXES[1:] if stack else ()):
        height = (body - _GAP) / 2
        cell = (_MARGIN + 2 * (width + _GAP), _TOP + number * (height + _GAP), side, height)
        index = _best_cuts(areas[1 + number], 1)[0]
        panels.append(_panel(volume, shown, axis, index, "masks", cell))
    return panels, round(_TOP + body + _FOOTER)


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
    steps = _in_plane(volume.spacing[::-1], axis)
    return Panel(axis, index, content, cell, box, _in_plane(shown, axis), (steps[0] * scale, steps[1] * scale))


def _in_plane(triple: tuple[_T, _T, _T], axis: Axis) -> tuple[_T, _T]:
    """What belongs to the rows and the columns of a plane, of what belongs to z, y and x."""
    z, y, x = triple
    return {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[axis]


def _size_mm(volume: Volume, shown: tuple[slice, slice, slice], axis: Axis) -> tuple[float, float]:
    """``(rows, columns)`` of what is shown of a plane, in mm."""
    rows, columns = _in_plane(shown, axis)
    steps = _in_plane(volume.spacing[::-1], axis)
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
    reach = int(_NEAR_MM / volume.spacing[2])
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


# ----------------------------------------------------------------------------------------------------- images


def _window(array: NDArray[np.float32]) -> tuple[float, float]:
    """Soft tissue for CT; for an image without values of air, all but its darkest and brightest hundredth."""
    if array.min() < -50:
        return WINDOW
    step = max(1, max(array.shape) // 128)
    low, high = np.percentile(array[:, ::step, ::step], [1, 99])
    return float(low), float(high) if high > low else float(low) + 1.0


def _draw_image(axes: Axes, panel: Panel, volume: Volume, window: tuple[float, float]) -> None:
    left, top, width, height = panel.cell
    axes.add_patch(Rectangle((left, top), width, height, color="black", linewidth=0, zorder=0))
    _show(axes, panel, panel.crop(volume.array), cmap="gray", vmin=window[0], vmax=window[1], zorder=1)


def _show(axes: Axes, panel: Panel, pixels: NDArray[Any], **style: Any) -> None:
    """Fills a panel's box with ``[row, column]`` or ``[row, column, rgba]``."""
    left, top, width, height = panel.box
    extent = (left, left + width, top + height, top)
    axes.imshow(pixels, extent=extent, aspect="auto", interpolation="bilinear", **style)


def _fill(axes: Axes, panel: Panel, ids: NDArray[np.uint8], labels: Iterable[Label], alpha: float) -> None:
    """Tints the voxels ``[row, column]`` of these organs in their colours."""
    tint = np.zeros((*ids.shape, 4), dtype=np.float32)
    for label in labels:
        tint[ids == label.id] = (*_rgb(label), alpha)
    _show(axes, panel, tint, zorder=2)


def _draw_masks(axes: Axes, panel: Panel, segmentation: Segmentation) -> None:
    ids = panel.crop(segmentation.labels)
    present = [label for label in segmentation.label_set if (ids == label.id).any()]
    _fill(axes, panel, ids, present, 0.16)
    chips = []
    for label in present:
        mask = ids == label.id
        _outline(axes, panel, mask, label)
        chips.append((label, *_middle(panel, mask)))
    _draw_chips(axes, panel, ids > 0, sorted(chips, key=lambda chip: -chip[2]))


def _outline(axes: Axes, panel: Panel, mask: NDArray[np.bool_], label: Label) -> None:
    """Draws the edge of a mask ``[row, column]``, dashed for an organ of the left side."""
    rows, columns = (np.arange(-1, n + 1) + s.start for n, s in zip(mask.shape, panel.shown, strict=True))
    x, y = panel.place(rows, columns)
    style = (0, (3.2, 1.8)) if _is_left(label) else "solid"
    around = np.pad(mask, 1).astype(np.float32)  # closes the edge at the image's own
    axes.contour(x, y, around, levels=[0.5], colors=[_rgb(label)], linewidths=1.6, linestyles=[style], zorder=3)


def _middle(panel: Panel, mask: NDArray[np.bool_]) -> tuple[tuple[float, float], float]:
    """The middle of the widest part of a mask, in pixels ``(x, y)``, and how far its edge is from there."""
    padded = np.pad(mask, 1)
    depth = ndimage.distance_transform_edt(padded, sampling=panel.step)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    centre = panel.place(row + panel.shown[0].start, column + panel.shown[1].start)
    return (float(centre[0]), float(centre[1])), float(depth.max())


def _draw_prompts(axes: Axes, panel: Panel, volume: Volume, segmentation: Segmentation) -> None:
    """The attended regions as tints, the peaks near the slice as dots, and a number for every organ."""
    ids = panel.crop(segmentation.regions)
    _fill(axes, panel, ids, segmentation.label_set, 0.45)
    chips = []
    for label in segmentation.label_set:
        region = ids == label.id
        peaks = _peaks(panel, segmentation.points, label, volume.spacing[2])
        if peaks:
            places = np.array([panel.place(point.y, point.x) for point in peaks])
            _dots(axes, places, _rgb(label))
            chips.append((label, (float(places[0, 0]), float(places[0, 1])), 0.0))
        elif region.any():
            chips.append((label, *_middle(panel, region)))
    _draw_chips(axes, panel, ids > 0, sorted(chips, key=lambda chip: -chip[2]))


def _dots(axes: Axes, places: NDArray[np.float64], color: Any) -> None:
    """Marks places ``[n, (x, y)]``."""
    axes.scatter(places[:, 0], places[:, 1], s=26, color=color, edgecolors="white", linewidths=0.9, zorder=6)


def _peaks(panel: Panel, points: Sequence[PromptPoint], label: Label, step: float) -> list[PromptPoint]:
    """An organ's points near an axial panel, nearest first and then strongest; slices lie `step` mm apart."""
    near = []
    for point in points:
        away = abs(point.z - panel.index) * step
        if point.label_id == label.id and away <= _NEAR_MM and panel.holds(point.y, point.x):
            near.append((away, -point.weight, point))
    return [point for _, _, point in sorted(near, key=lambda entry: entry[:2])[:_PEAKS]]


# ------------------------------------------------------------------------------------------------------ chips


def _draw_chips(
    axes: Axes,
    panel: Panel,
    marked: NDArray[np.bool_],
    targets: Sequence[tuple[Label, tuple[float, float], float]],
) -> None:
    """Numbers the organs, within them where there is room, else beside them with a line to it.

    Args:
        marked: ``[row, column]`` of what is shown: where something is drawn that a number should not hide.
        targets: organ, place ``(x, y)`` in pixels, and the free radius around it.
    """
    taken: list[tuple[float, float]] = []
    for label, target, room in targets:
        if room > _CHIP + 3:
            place = target
        else:
            place = _beside(panel, marked, target, taken)
            x, y = zip(target, place, strict=True)
            halo = [withStroke(linewidth=2.2, foreground="black")]
            axes.plot(x, y, color=_rgb(label), linewidth=1.0, path_effects=halo, zorder=4)
        taken.append(place)
        _chip(axes, place, label)


def _beside(
    panel: Panel,
    marked: NDArray[np.bool_],
    target: tuple[float, float],
    taken: Sequence[tuple[float, float]],
) -> tuple[float, float]:
    """The best place for a number near a target: free of other numbers, within the cell, hiding little."""
    left, top, width, height = panel.cell
    best, best_cost = target, float("inf")
    for distance in (24.0, 34.0, 46.0, 60.0):
        for angle in np.arange(16) * (np.pi / 8):
            x, y = target[0] + distance * np.cos(angle), target[1] + distance * np.sin(angle)
            inside = left + 26 < x < left + width - 26 and top + 34 < y < top + height - 34
            crowded = sum(np.hypot(x - u, y - v) < 2.3 * _CHIP for u, v in taken)
            cost = distance / 12 + 6 * _hidden(panel, marked, x, y) + 20 * crowded + (0 if inside else 40)
            if cost < best_cost:
                best, best_cost = (float(x), float(y)), cost
    return best


def _hidden(panel: Panel, marked: NDArray[np.bool_], x: float, y: float) -> float:
    """The part of a number's disc at a place that lies over marked voxels."""
    row, column = (y - panel.box[1]) / panel.step[0], (x - panel.box[0]) / panel.step[1]
    reach = _CHIP / panel.step[0], _CHIP / panel.step[1]
    rows = slice(max(0, int(row - reach[0])), max(0, int(row + reach[0]) + 1))
    columns = slice(max(0, int(column - reach[1])), max(0, int(column + reach[1]) + 1))
    under = marked[rows, columns]
    return float(under.mean()) if under.size else 0.0


def _chip(axes: Axes, place: tuple[float, float], label: Label) -> None:
    color = _rgb(label)
    axes.add_patch(Circle(place, _CHIP, facecolor=color, edgecolor="black", linewidth=1.0, zorder=7))
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 0.45
    ink = "black" if bright else "white"
    size = 7.6 if label.id < 100 else 6.0
    _write(axes, place[0], place[1], str(label.id), size, ink, ha="center", weight="bold", zorder=8)


# ------------------------------------------------------------------------------------------------------- text


def _write(axes: Axes, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
    """Plain text, vertically centred at a place in pixels; dollar signs are only dollar signs."""
    axes.text(x, y, text, fontsize=size, color=color, parse_math=False, **{"va": "center_baseline", **style})


def _on_image(axes: Axes, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
    halo = [withStroke(linewidth=2.4, foreground="black")]
    _write(axes, x, y, text, size, color, path_effects=halo, zorder=9, **style)


def _draw_captions(axes: Axes, panel: Panel, volume: Volume) -> None:
    """Which cut it is, which side is where, and a scale."""
    left, top, width, height = panel.cell
    count = volume.shape[_AXES.index(panel.axis)]
    number = f"{panel.axis} {panel.index + 1} of {count}"
    position = position_text(volume, panel.axis, panel.index)
    _on_image(axes, left + 10, top + 15, number, 9.5, _TEXT)
    _on_image(axes, left + width - 10, top + 15, position, 9.5, _TEXT, ha="right")
    places = (
        (left + 14, top + height / 2),
        (left + width - 14, top + height / 2),
        (left + width / 2, top + 15),
        (left + width / 2, top + height - 15),
    )
    for letter, place in zip(_SIDES[panel.axis], places, strict=True):
        _on_image(axes, *place, letter, 11, _LETTER, ha="center", weight="bold")
    _draw_scale(axes, panel, volume)


def _draw_scale(axes: Axes, panel: Panel, volume: Volume) -> None:
    left, top, width, height = panel.cell
    pixels_a_mm = panel.step[1] / _in_plane(volume.spacing[::-1], panel.axis)[1]
    fitting = [mm for mm in (100, 50, 20, 10, 5, 2, 1) if mm * pixels_a_mm < 0.3 * width]
    if not fitting:
        return
    mm = fitting[0]
    x, y = left + 12, top + height - 14
    axes.plot([x, x + mm * pixels_a_mm], [y, y], color="black", linewidth=4.0, zorder=9)
    axes.plot([x, x + mm * pixels_a_mm], [y, y], color=_TEXT, linewidth=2.0, zorder=9)
    text = f"{mm // 10} cm" if mm >= 10 else f"{mm} mm"
    _on_image(axes, x + mm * pixels_a_mm + 8, y, text, 8.5, _TEXT)


def _draw_cut_lines(axes: Axes, panels: Sequence[Panel], slices: int) -> None:
    """Where the axial slices lie in the other cuts."""
    axial = sorted({panel.index for panel in panels if panel.axis == "axial"})
    for panel in panels:
        if panel.axis != "axial":
            for index in axial:
                _, y = panel.place(slices - 1 - index, 0)
                _dotted(axes, panel.box[0], panel.box[0] + panel.box[2], y)


def _draw_header(axes: Axes, panels: Sequence[Panel], volume: Volume, segmentation: Segmentation) -> None:
    _write(axes, _MARGIN, 38, _shorten(volume.name, 70), 19, _TEXT, weight="bold")
    z, y, x = volume.shape
    size = " x ".join(str(n) for n in (x, y, z)) + " voxels of "
    size += " x ".join(f"{step:.3g}" for step in volume.spacing) + " mm"
    seconds = sum(segmentation.seconds.values())
    parts = (size, f"model {_shorten(segmentation.model, 40)}", segmentation.device, f"{seconds:.1f} s")
    _write(axes, _MARGIN, 72, "   ·   ".join(parts), 11, _MUTED)
    _write(axes, WIDTH - _MARGIN, 38, DISCLAIMER, 13, _WARN, ha="right", weight="bold")
    looked = "where the model looked" if segmentation.points or segmentation.regions.any() else "none"
    for content, heading in (("prompts", f"Prompts: {looked}"), ("masks", "Masks: what it drew")):
        cell = next(panel.cell for panel in panels if panel.content == content)
        _write(axes, cell[0], _TOP - 16, heading, 11.5, _TEXT, weight="bold")


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# ----------------------------------------------------------------------------------------------------- legend


def _legend_labels(segmentation: Segmentation) -> list[Label]:
    """All organs, or where they are too many only those that were found, and of these the first."""
    if len(segmentation.label_set) <= _LEGEND_ROWS:
        return list(segmentation.label_set)
    return [label for label, _, _ in segmentation.organs()][:_LEGEND_ROWS]


def _legend_sides() -> tuple[float, float]:
    return WIDTH - _MARGIN - _LEGEND + 12, WIDTH - _MARGIN


def _legend_height(segmentation: Segmentation) -> float:
    return _LINE * (len(_legend_labels(segmentation)) + 7.5)


def _draw_legend(axes: Axes, volume: Volume, segmentation: Segmentation) -> float:
    """Number, line, name and volume of every organ, and what the signs mean; returns where it ends."""
    left, right = _legend_sides()
    _write(axes, left, _TOP - 16, "Organs", 11.5, _TEXT, weight="bold")
    _write(axes, right, _TOP - 16, "mL", 11.5, _MUTED, ha="right")
    voxels = {label.id: int(organ.sum()) for label, _, organ in segmentation.organs()}
    labels = _legend_labels(segmentation)
    y = _TOP + _LINE / 2
    for label in labels:
        _draw_legend_row(axes, left, right, y, label, voxels.get(label.id, 0) * volume.voxel_ml)
        y += _LINE
    if rest := len(segmentation.label_set) - len(labels):
        text = f"and {rest} more, listed in the report" if labels else f"none of {rest} found"
        _write(axes, left, y, text, 10, _MUTED)
        y += _LINE
    y += _LINE / 2
    signs = [
        (_sign_region, "attended region"),
        (_sign_peak, f"attended most, within {_NEAR_MM:.0f} mm"),
        (_sign_dashes, "dashed: left of a pair"),
    ]
    if volume.shape[0] >= _MIN_STACK:
        signs.append((_sign_level, "level of an axial slice"))
    for draw_sign, text in signs:
        draw_sign(axes, left, y)
        _write(axes, left + 52, y, text, 9.5, _MUTED)
        y += _LINE
    return y


def _draw_legend_row(axes: Axes, left: float, right: float, y: float, label: Label, ml: float) -> None:
    _chip(axes, (left + _CHIP, y), label)
    style: Any = (0, (2.6, 1.5)) if _is_left(label) else "solid"
    axes.plot([left + 26, left + 44], [y, y], color=_rgb(label), linewidth=2.2, linestyle=style, zorder=3)
    color = _TEXT if ml else _MUTED
    _write(axes, left + 52, y, _shorten(label.name, 25), 10.5, color)
    _write(axes, right, y, _format_ml(ml) if ml else "not found", 10.5, color, ha="right")


def _format_ml(ml: float) -> str:
    return f"{ml:,.0f}" if ml >= 100 else f"{ml:.1f}" if ml >= 0.1 else "< 0.1"


def _sign_region(axes: Axes, left: float, y: float) -> None:
    axes.add_patch(Rectangle((left + 22, y - 7), 22, 14, color=_MUTED, alpha=0.5, linewidth=0))


def _sign_peak(axes: Axes, left: float, y: float) -> None:
    _dots(axes, np.array([[left + 33, y]]), _MUTED)


def _sign_dashes(axes: Axes, left: float, y: float) -> None:
    axes.plot([left + 22, left + 44], [y, y], color=_MUTED, linewidth=2.0, linestyle=(0, (2.6, 1.5)))


def _sign_level(axes: Axes, left: float, y: float) -> None:
    _dotted(axes, left + 22, left + 44, y)


def _draw_confidence(
    axes: Axes, panels: Sequence[Panel], segmentation: Segmentation, top: float, bottom: float
) -> None:
    """A column an organ, superior on top: the mean confidence in each slice, where the organ is."""
    columns = [
        (label, box[0].start, segmentation.confidence_by_slice(box, organ))
        for label, box, organ in segmentation.organs()
    ][:_LEGEND_ROWS]
    top += 70  # below the heading and the numbers
    if not columns or segmentation.labels.shape[0] < _MIN_STACK or bottom - top < 120:
        return
    left, right = _legend_sides()
    pitch = min(26.0, (right - left) / len(columns))
    width = pitch * len(columns)
    first = min(start for _, start, _ in columns)
    last = max(start + len(values) for _, start, values in columns) - 1
    tall = (bottom - top) / (last - first + 1)  # pixels a slice
    _write(axes, left, top - 48, "Confidence by slice", 11.5, _TEXT, weight="bold")
    _write(axes, left, bottom + 16, f"slice {last + 1} on top, {first + 1} at the bottom", 9, _MUTED)
    _draw_confidence_scale(axes, right, top - 48)
    axes.add_patch(Rectangle((left, top), width, bottom - top, color="black", linewidth=0, zorder=0))
    for number, (label, start, values) in enumerate(columns):
        x = left + number * pitch
        size = min(8.5, pitch * 0.4)
        ink = to_hex(_rgb(label))
        _write(axes, x + pitch / 2, top - 14, str(label.id), size, ink, ha="center", weight="bold")
        low = bottom - (start - first) * tall
        extent = (x + 0.15 * pitch, x + 0.85 * pitch, low, low - len(values) * tall)
        axes.imshow(values[::-1, np.newaxis], extent=extent, **_CONFIDENCE)
    for index in {panel.index for panel in panels if panel.axis == "axial"}:
        if first <= index <= last:
            _dotted(axes, left, left + width, bottom - (index - first + 0.5) * tall)


def _dotted(axes: Axes, left: float, right: float, y: float) -> None:
    """The level of an axial slice."""
    axes.plot((left, right), (y, y), color=_LETTER, linewidth=1.0, alpha=0.7, linestyle=(0, (1, 3)), zorder=3)


def _draw_confidence_scale(axes: Axes, right: float, y: float) -> None:
    low, high = _CONFIDENCE["vmin"], _CONFIDENCE["vmax"]
    _write(axes, right, y, f"{high:.1f}", 9, _MUTED, ha="right")
    ramp = np.linspace(low, high, 64)[np.newaxis]
    axes.imshow(ramp, extent=(right - 84, right - 28, y + 6, y - 6), **_CONFIDENCE)
    _write(axes, right - 90, y, f"{low:.1f}", 9, _MUTED, ha="right")


def _rgb(label: Label) -> tuple[float, float, float]:
    red, green, blue = label.color
    return red / 255, green / 255, blue / 255


def _is_left(label: Label) -> bool:
    """Both of a pair have one colour in Slicer's terminology, so the left one is drawn dashed."""
    return label.modifier is not None and label.modifier.meaning == "Left"
