"""One picture of a result: the slices that show most, the prompts beside the masks, and what is what.

Radiological: the patient's right is on the image's left, superior is up, and a millimetre is as long in every
direction. All is drawn on one matplotlib axes whose unit is the picture's pixel, y downwards, without pyplot.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage

from .labels import Label
from .legend import draw_confidence, draw_legend
from .marks import LETTER, MUTED, PAGE, TEXT, WARN, dots, dotted, draw_chips, is_left, rgb, shorten, write
from .pages import png, write_whole
from .panels import AXES, FOOTER, MARGIN, NEAR_MM, TOP, WIDTH, Panel, in_plane, layout, position_text
from .segmentation import PromptPoint, Segmentation
from .volume import Volume

DISCLAIMER = "Not for clinical use"
WINDOW = (-160.0, 240.0)  # HU: soft tissue, width 400 at level 40

_SIDES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom
_DPI = 100
_PEAKS = 3  # at most, that are drawn of an organ in a slice


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
    figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), facecolor=PAGE)
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
    end = draw_legend(axes, volume, segmentation)
    draw_confidence(axes, panels, segmentation, end, height - FOOTER)
    unit = " HU" if window == WINDOW else ""
    note = f"Shown from {window[0]:.0f} to {window[1]:.0f}{unit}. Radiological: R is the patient's right."
    write(axes, MARGIN, height - FOOTER / 2, note, 9.5, MUTED)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))  # last, for every image changes it
    return png(figure, _DPI)


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
        tint[ids == label.id] = (*rgb(label), alpha)
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
    draw_chips(axes, panel, ids > 0, sorted(chips, key=lambda chip: -chip[2]))


def _outline(axes: Axes, panel: Panel, mask: NDArray[np.bool_], label: Label) -> None:
    """Draws the edge of a mask ``[row, column]``, dashed for an organ of the left side."""
    rows, columns = (np.arange(-1, n + 1) + s.start for n, s in zip(mask.shape, panel.shown, strict=True))
    x, y = panel.place(rows, columns)
    style = (0, (3.2, 1.8)) if is_left(label) else "solid"
    around = np.pad(mask, 1).astype(np.float32)  # closes the edge at the image's own
    axes.contour(x, y, around, levels=[0.5], colors=[rgb(label)], linewidths=1.6, linestyles=[style], zorder=3)


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
            dots(axes, places, rgb(label))
            chips.append((label, (float(places[0, 0]), float(places[0, 1])), 0.0))
        elif region.any():
            chips.append((label, *_middle(panel, region)))
    draw_chips(axes, panel, ids > 0, sorted(chips, key=lambda chip: -chip[2]))


def _peaks(panel: Panel, points: Sequence[PromptPoint], label: Label, step: float) -> list[PromptPoint]:
    """An organ's points near an axial panel, nearest first and then strongest; slices lie `step` mm apart."""
    near = []
    for point in points:
        away = abs(point.z - panel.index) * step
        if point.label_id == label.id and away <= NEAR_MM and panel.holds(point.y, point.x):
            near.append((away, -point.weight, point))
    return [point for _, _, point in sorted(near, key=lambda entry: entry[:2])[:_PEAKS]]


# ------------------------------------------------------------------------------------------------------- text


def _on_image(axes: Axes, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
    halo = [withStroke(linewidth=2.4, foreground="black")]
    write(axes, x, y, text, size, color, path_effects=halo, zorder=9, **style)


def _draw_captions(axes: Axes, panel: Panel, volume: Volume) -> None:
    """Which cut it is, which side is where, and a scale."""
    left, top, width, height = panel.cell
    count = volume.shape[AXES.index(panel.axis)]
    number = f"{panel.axis} {panel.index + 1} of {count}"
    position = position_text(volume, panel.axis, panel.index)
    _on_image(axes, left + 10, top + 15, number, 9.5, TEXT)
    _on_image(axes, left + width - 10, top + 15, position, 9.5, TEXT, ha="right")
    places = (
        (left + 14, top + height / 2),
        (left + width - 14, top + height / 2),
        (left + width / 2, top + 15),
        (left + width / 2, top + height - 15),
    )
    for letter, place in zip(_SIDES[panel.axis], places, strict=True):
        _on_image(axes, *place, letter, 11, LETTER, ha="center", weight="bold")
    _draw_scale(axes, panel, volume)


def _draw_scale(axes: Axes, panel: Panel, volume: Volume) -> None:
    left, top, width, height = panel.cell
    pixels_a_mm = panel.step[1] / in_plane(volume.spacing[::-1], panel.axis)[1]
    fitting = [mm for mm in (100, 50, 20, 10, 5, 2, 1) if mm * pixels_a_mm < 0.3 * width]
    if not fitting:
        return
    mm = fitting[0]
    x, y = left + 12, top + height - 14
    axes.plot([x, x + mm * pixels_a_mm], [y, y], color="black", linewidth=4.0, zorder=9)
    axes.plot([x, x + mm * pixels_a_mm], [y, y], color=TEXT, linewidth=2.0, zorder=9)
    text = f"{mm // 10} cm" if mm >= 10 else f"{mm} mm"
    _on_image(axes, x + mm * pixels_a_mm + 8, y, text, 8.5, TEXT)


def _draw_cut_lines(axes: Axes, panels: Sequence[Panel], slices: int) -> None:
    """Where the axial slices lie in the other cuts."""
    axial = sorted({panel.index for panel in panels if panel.axis == "axial"})
    for panel in panels:
        if panel.axis != "axial":
            for index in axial:
                _, y = panel.place(slices - 1 - index, 0)
                dotted(axes, panel.box[0], panel.box[0] + panel.box[2], y)


def _draw_header(axes: Axes, panels: Sequence[Panel], volume: Volume, segmentation: Segmentation) -> None:
    write(axes, MARGIN, 38, shorten(volume.name, 70), 19, TEXT, weight="bold")
    z, y, x = volume.shape
    size = " x ".join(str(n) for n in (x, y, z)) + " voxels of "
    size += " x ".join(f"{step:.3g}" for step in volume.spacing) + " mm"
    seconds = sum(segmentation.seconds.values())
    parts = (size, f"model {shorten(segmentation.model, 40)}", segmentation.device, f"{seconds:.1f} s")
    write(axes, MARGIN, 72, "   ·   ".join(parts), 11, MUTED)
    write(axes, WIDTH - MARGIN, 38, DISCLAIMER, 13, WARN, ha="right", weight="bold")
    looked = "where the model looked" if segmentation.points or segmentation.regions.any() else "none"
    for content, heading in (("prompts", f"Prompts: {looked}"), ("masks", "Masks: what it drew")):
        cell = next(panel.cell for panel in panels if panel.content == content)
        write(axes, cell[0], TOP - 16, heading, 11.5, TEXT, weight="bold")
