"""What the picture is drawn with: its colours, text, the numbers of organs, dots, and dotted lines.

Places are pixels of the picture, y downwards, on matplotlib axes whose unit that is. It knows what a panel covers,
so that a number finds free room there, but not what a picture is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from .labels import Label
from .panels import Panel

PAGE, TEXT, MUTED, LETTER, WARN = "#14171b", "#eceff2", "#98a2ad", "#ffe28a", "#ffc46b"
CHIP = 10.0  # pixels: radius of a number's disc


def rgb(label: Label) -> tuple[float, float, float]:
    red, green, blue = label.color
    return red / 255, green / 255, blue / 255


def is_left(label: Label) -> bool:
    """Both of a pair have one colour in Slicer's terminology, so the left one is drawn dashed."""
    return label.modifier is not None and label.modifier.meaning == "Left"


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def write(axes: Axes, x: float, y: float, text: str, size: float, color: str, **style: Any) -> None:
    """Plain text, vertically centred at a place in pixels; dollar signs are only dollar signs."""
    axes.text(x, y, text, fontsize=size, color=color, parse_math=False, **{"va": "center_baseline", **style})


def dots(axes: Axes, places: NDArray[np.float64], color: Any) -> None:
    """Marks places ``[n, (x, y)]``."""
    axes.scatter(places[:, 0], places[:, 1], s=26, color=color, edgecolors="white", linewidths=0.9, zorder=6)


def dotted(axes: Axes, left: float, right: float, y: float) -> None:
    """The level of an axial slice."""
    axes.plot((left, right), (y, y), color=LETTER, linewidth=1.0, alpha=0.7, linestyle=(0, (1, 3)), zorder=3)


# ------------------------------------------------------------------------------------------------------ chips


def draw_chips(
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
        if room > CHIP + 3:
            place = target
        else:
            place = _beside(panel, marked, target, taken)
            x, y = zip(target, place, strict=True)
            halo = [withStroke(linewidth=2.2, foreground="black")]
            axes.plot(x, y, color=rgb(label), linewidth=1.0, path_effects=halo, zorder=4)
        taken.append(place)
        chip(axes, place, label)


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
            crowded = sum(np.hypot(x - u, y - v) < 2.3 * CHIP for u, v in taken)
            cost = distance / 12 + 6 * _hidden(panel, marked, x, y) + 20 * crowded + (0 if inside else 40)
            if cost < best_cost:
                best, best_cost = (float(x), float(y)), cost
    return best


def _hidden(panel: Panel, marked: NDArray[np.bool_], x: float, y: float) -> float:
    """The part of a number's disc at a place that lies over marked voxels."""
    row, column = (y - panel.box[1]) / panel.step[0], (x - panel.box[0]) / panel.step[1]
    reach = CHIP / panel.step[0], CHIP / panel.step[1]
    rows = slice(max(0, int(row - reach[0])), max(0, int(row + reach[0]) + 1))
    columns = slice(max(0, int(column - reach[1])), max(0, int(column + reach[1]) + 1))
    under = marked[rows, columns]
    return float(under.mean()) if under.size else 0.0


def chip(axes: Axes, place: tuple[float, float], label: Label) -> None:
    color = rgb(label)
    axes.add_patch(Circle(place, CHIP, facecolor=color, edgecolor="black", linewidth=1.0, zorder=7))
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 0.45
    ink = "black" if bright else "white"
    size = 7.6 if label.id < 100 else 6.0
    write(axes, place[0], place[1], str(label.id), size, ink, ha="center", weight="bold", zorder=8)
