"""The column at the picture's right: the organs and their volumes, what the signs mean, and confidence by slice.

It knows the marks that it explains, but not how the images are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.patches import Rectangle

from .labels import Label
from .marks import CHIP, MUTED, TEXT, chip, dots, dotted, is_left, rgb, shorten, write
from .panels import LEGEND, LEGEND_ROWS, LINE, MARGIN, MIN_STACK, NEAR_MM, TOP, WIDTH, Panel, legend_labels
from .segmentation import Segmentation
from .volume import Volume

_CONFIDENCE: dict[str, Any] = {  # orange to teal is told apart by everyone
    "cmap": LinearSegmentedColormap.from_list("confidence", ["#ff7f2a", "#f1e3cf", "#27a3b8"]),
    "vmin": 0.5,
    "vmax": 1.0,
    "aspect": "auto",
    "interpolation": "nearest",
}


def _legend_sides() -> tuple[float, float]:
    return WIDTH - MARGIN - LEGEND + 12, WIDTH - MARGIN


def draw_legend(axes: Axes, volume: Volume, segmentation: Segmentation) -> float:
    """Number, line, name and volume of every organ, and what the signs mean; returns where it ends."""
    left, right = _legend_sides()
    write(axes, left, TOP - 16, "Organs", 11.5, TEXT, weight="bold")
    write(axes, right, TOP - 16, "mL", 11.5, MUTED, ha="right")
    voxels = {label.id: int(organ.sum()) for label, _, organ in segmentation.organs()}
    labels = legend_labels(segmentation)
    y = TOP + LINE / 2
    for label in labels:
        _draw_legend_row(axes, left, right, y, label, voxels.get(label.id, 0) * volume.voxel_ml)
        y += LINE
    if rest := len(segmentation.label_set) - len(labels):
        text = f"and {rest} more, listed in the report" if labels else f"none of {rest} found"
        write(axes, left, y, text, 10, MUTED)
        y += LINE
    y += LINE / 2
    signs = [
        (_sign_region, "attended region"),
        (_sign_peak, f"attended most, within {NEAR_MM:.0f} mm"),
        (_sign_dashes, "dashed: left of a pair"),
    ]
    if volume.shape[0] >= MIN_STACK:
        signs.append((_sign_level, "level of an axial slice"))
    for draw_sign, text in signs:
        draw_sign(axes, left, y)
        write(axes, left + 52, y, text, 9.5, MUTED)
        y += LINE
    return y


def _draw_legend_row(axes: Axes, left: float, right: float, y: float, label: Label, ml: float) -> None:
    chip(axes, (left + CHIP, y), label)
    style: Any = (0, (2.6, 1.5)) if is_left(label) else "solid"
    axes.plot([left + 26, left + 44], [y, y], color=rgb(label), linewidth=2.2, linestyle=style, zorder=3)
    color = TEXT if ml else MUTED
    write(axes, left + 52, y, shorten(label.name, 25), 10.5, color)
    write(axes, right, y, _format_ml(ml) if ml else "not found", 10.5, color, ha="right")


def _format_ml(ml: float) -> str:
    return f"{ml:,.0f}" if ml >= 100 else f"{ml:.1f}" if ml >= 0.1 else "< 0.1"


def _sign_region(axes: Axes, left: float, y: float) -> None:
    axes.add_patch(Rectangle((left + 22, y - 7), 22, 14, color=MUTED, alpha=0.5, linewidth=0))


def _sign_peak(axes: Axes, left: float, y: float) -> None:
    dots(axes, np.array([[left + 33, y]]), MUTED)


def _sign_dashes(axes: Axes, left: float, y: float) -> None:
    axes.plot([left + 22, left + 44], [y, y], color=MUTED, linewidth=2.0, linestyle=(0, (2.6, 1.5)))


def _sign_level(axes: Axes, left: float, y: float) -> None:
    dotted(axes, left + 22, left + 44, y)


# ------------------------------------------------------------------------------------------------- confidence


def draw_confidence(axes: Axes, panels: Sequence[Panel], segmentation: Segmentation, top: float, bottom: float) -> None:
    """A column an organ, superior on top: the mean confidence in each slice, where the organ is."""
    columns = [
        (label, box[0].start, segmentation.confidence_by_slice(box, organ))
        for label, box, organ in segmentation.organs()
    ][:LEGEND_ROWS]
    top += 70  # below the heading and the numbers
    if not columns or segmentation.labels.shape[0] < MIN_STACK or bottom - top < 120:
        return
    left, right = _legend_sides()
    pitch = min(26.0, (right - left) / len(columns))
    width = pitch * len(columns)
    first = min(start for _, start, _ in columns)
    last = max(start + len(values) for _, start, values in columns) - 1
    tall = (bottom - top) / (last - first + 1)  # pixels a slice
    write(axes, left, top - 48, "Confidence by slice", 11.5, TEXT, weight="bold")
    write(axes, left, bottom + 16, f"slice {last + 1} on top, {first + 1} at the bottom", 9, MUTED)
    _draw_confidence_scale(axes, right, top - 48)
    axes.add_patch(Rectangle((left, top), width, bottom - top, color="black", linewidth=0, zorder=0))
    for number, (label, start, values) in enumerate(columns):
        x = left + number * pitch
        size = min(8.5, pitch * 0.4)
        ink = to_hex(rgb(label))
        write(axes, x + pitch / 2, top - 14, str(label.id), size, ink, ha="center", weight="bold")
        low = bottom - (start - first) * tall
        extent = (x + 0.15 * pitch, x + 0.85 * pitch, low, low - len(values) * tall)
        axes.imshow(values[::-1, np.newaxis], extent=extent, **_CONFIDENCE)
    for index in {panel.index for panel in panels if panel.axis == "axial"}:
        if first <= index <= last:
            dotted(axes, left, left + width, bottom - (index - first + 0.5) * tall)


def _draw_confidence_scale(axes: Axes, right: float, y: float) -> None:
    low, high = _CONFIDENCE["vmin"], _CONFIDENCE["vmax"]
    write(axes, right, y, f"{high:.1f}", 9, MUTED, ha="right")
    ramp = np.linspace(low, high, 64)[np.newaxis]
    axes.imshow(ramp, extent=(right - 84, right - 28, y + 6, y - 6), **_CONFIDENCE)
    write(axes, right - 90, y, f"{low:.1f}", 9, MUTED, ha="right")
