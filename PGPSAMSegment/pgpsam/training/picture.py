"""One picture of a run: how the loss fell, and what each organ came to."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pgpsam.pages import png, write_whole


def write_summary(curves: Path, path: Path, title: str, summary: Mapping[str, Any] | None = None) -> None:
    """Draw a run as a PNG.

    Args:
        curves: the run's curves.csv.
        path: ends in .png.
        summary: the scores, as `metrics.summarise` gives them; without, only the loss is drawn.

    Raises:
        UserError: the picture can't be written.
    """
    with curves.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    iterations = [int(row["iteration"]) for row in rows]
    figure = Figure(figsize=(11 if summary else 6, 4.2), layout="constrained")
    figure.suptitle(title, parse_math=False)
    left, *more = figure.subplots(1, 2 if summary else 1, squeeze=False)[0]
    left.plot(iterations, [float(row["loss"]) for row in rows], color="#3b8eea", alpha=0.25, linewidth=0.8)
    left.plot(iterations, [float(row["mean_loss"]) for row in rows], color="#3b8eea")
    left.set(xlabel="iteration", ylabel="loss (pale: of one step)", ylim=(0, None))
    if summary:
        organs = [organ for organ in summary["organs"] if organ["dice"] is not None]
        (right,) = more
        right.barh([organ["organ"] for organ in organs], [organ["dice"] for organ in organs], color="#3b8eea")
        right.bar_label(right.containers[0], fmt="%.2f", padding=3)
        right.invert_yaxis()
        right.set(xlabel=f"Dice, {len(summary['cases'])} cases that were held out", xlim=(0, 1.1))
    for axes in (left, *more):
        axes.spines[["top", "right"]].set_visible(False)
    write_whole({path: png(figure, dpi=110)})
