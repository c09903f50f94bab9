"""Whether the model's confidence can be believed: is it 0.8 where 8 of 10 voxels are right, and does it find errors?

Two looks at the same results. *Reliability*: of the voxels with a confidence, the share that is right. *Failures*: of
the organs' slices with a Dice under 0.5, the share that a reviewer finds who looks at the least confident 10 % of what
was segmented. Where an organ was missed altogether there is nothing to look at: a failure that nobody finds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pgpsam.pages import csv_bytes, image, page, png, write_whole

CONFIDENCE = "confidence.png"
BINS = 20
FAILED = 0.5  # Dice
LOOKED_AT = 0.1  # the share of the organs' slices that a reviewer has time for


@dataclass(frozen=True)
class OrganSlice:
    """One organ in one slice that shows it, or is said to.

    Attributes:
        z: canonical index.
        dice: 0..1.
        confidence: 0..1, the mean over the organ's voxels; None where none was found.
        predicted, reference: voxels.
    """

    case: str
    z: int
    organ: str
    dice: float
    confidence: float | None
    predicted: int
    reference: int


@dataclass(frozen=True, eq=False)
class Reliability:
    """Voxels of an organ, found or drawn, in bins of equal width of the confidence 0..1; each array is [BINS].

    Attributes:
        voxels: how many.
        confidence: their sum.
        right: how many of them are labelled as in the reference.
    """

    voxels: NDArray[np.float64]
    confidence: NDArray[np.float64]
    right: NDArray[np.float64]

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def error(self) -> float:
        """The expected calibration error: |confidence - share right|, averaged over the voxels."""
        return float(np.abs(self.confidence - self.right).sum() / max(1.0, self.voxels.sum()))


def organ_slices(
    predicted: NDArray[np.integer[Any]],
    reference: NDArray[np.integer[Any]],
    confidence: NDArray[np.float32],
    organs: Sequence[str],
    case: str = "",
) -> list[OrganSlice]:
    """Every organ in every slice that shows it in one of the two.

    Args:
        predicted, reference: class indices [z, y, x], 0 for background, i for the i-th organ.
        confidence: [z, y, x], of what was predicted.
        organs: their N names.
    """
    rows = []
    for z, (ours, theirs, sure) in enumerate(zip(predicted, reference, confidence, strict=True)):

        def count(indices: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
            return np.bincount(indices.ravel(), weights, len(organs) + 1)

        found, drawn = count(ours), count(theirs)
        common, total = count(ours[ours == theirs]), count(ours, sure.ravel())
        for organ in (np.flatnonzero((found + drawn)[1:]) + 1).tolist():
            n, m = int(found[organ]), int(drawn[organ])
            share = float(total[organ] / n) if n else None
            dice = float(2.0 * common[organ] / (n + m))
            rows.append(OrganSlice(case, z, organs[organ - 1], dice, share, n, m))
    return rows


def reliability(
    predicted: NDArray[np.integer[Any]], reference: NDArray[np.integer[Any]], confidence: NDArray[np.float32]
) -> Reliability:
    """Arguments as for `organ_slices`. Voxels that are background in both are left out: they are too many and easy."""
    chosen = (predicted > 0) | (reference > 0)
    shares = confidence[chosen].astype(np.float64)
    index = np.minimum((shares * BINS).astype(int), BINS - 1)

    def binned(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(index, weights, BINS).astype(np.float64)

    return Reliability(
        binned(np.ones_like(shares)), binned(shares), binned((predicted == reference)[chosen].astype(np.float64))
    )


def least_confident_first(rows: Sequence[OrganSlice]) -> list[OrganSlice]:
    """Those in which the organ was found, as a reviewer goes through them."""
    return sorted((row for row in rows if row.predicted), key=lambda row: row.confidence or 0.0)


def failures_found(rows: Sequence[OrganSlice], looked_at: float = LOOKED_AT) -> dict[str, Any]:
    """What a reviewer of the least confident slices finds.

    Returns:
        Numbers of organ slices: ``segmented``, ``failed`` of them or ``missed`` altogether, ``looked_at`` and
        ``found`` among these. ``recall`` = found / (failed + missed) and ``precision`` = found / looked_at, null where
        there is nothing to divide by.
    """
    order = least_confident_first(rows)
    seen = order[: round(looked_at * len(order))]
    failed, found = (sum(row.dice < FAILED for row in some) for some in (order, seen))
    missed = len(rows) - len(order)
    return {
        "segmented": len(order),
        "failed": failed,
        "missed": missed,
        "looked_at": len(seen),
        "found": found,
        "recall": found / (failed + missed) if failed + missed else None,
        "precision": found / len(seen) if seen else None,
    }


def write_calibration(
    rows: Sequence[OrganSlice], reliable: Reliability, folder: Path, title: str, reported: Sequence[str]
) -> dict[str, Any]:
    """Writes ``confidence.csv`` (the organ slices), ``confidence.json``, ``confidence.png`` and ``confidence.html``.

    Args:
        folder: exists.
        reported: names of the organs that publications report.

    Returns:
        The JSON's content: ``calibration_error``, and `failures_found` of the ``reported`` organs and of ``all``.

    Raises:
        UserError: the disk refuses.
    """
    summary = {
        "calibration_error": reliable.error,
        "reported": failures_found([row for row in rows if row.organ in reported]),
        "all": failures_found(rows),
    }
    figures = ("dice", "confidence")
    table = [asdict(r) | {k: None if (v := getattr(r, k)) is None else f"{v:.4f}" for k in figures} for r in rows]
    picture = calibration_plot(rows, reliable)
    write_whole(
        {
            folder / CONFIDENCE: picture,
            folder / "confidence.csv": csv_bytes([f.name for f in fields(OrganSlice)], table),
            folder / "confidence.json": (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode(),
            folder / "confidence.html": page(title, _body(picture, summary, title)),
        }
    )
    return summary


def _body(picture: bytes, summary: dict[str, Any], title: str) -> str:
    lines = [
        f"{group}: {found['failed']} of {found['segmented']} organ slices have a Dice under {FAILED:g}, and "
        f"{found['missed']} were missed; the {found['looked_at']} least confident ones hold {found['found']} of these."
        for group, found in (("Reported organs", summary["reported"]), ("All organs", summary["all"]))
    ]
    shown = image(picture, "Reliability, and failures found by share looked at")
    return (
        f'<h1>{escape(title)}</h1><section class="card">{shown}</section><section class="card">'
        f"{''.join(f'<p>{line}</p>' for line in lines)}"
        f"<p>Expected calibration error: {summary['calibration_error']:.3f}</p></section>"
    )


def calibration_plot(rows: Sequence[OrganSlice], reliable: Reliability) -> bytes:
    """Left: the share of right voxels over confidence. Right: the share of failures found over the share looked at."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    used = reliable.voxels > 0
    left.plot([0, 1], [0, 1], color="#808a95", linewidth=1)
    left.plot(
        reliable.confidence[used] / reliable.voxels[used],
        reliable.right[used] / reliable.voxels[used],
        marker="o",
        color="#3b8eea",
    )
    left.bar((np.arange(BINS) + 0.5) / BINS, reliable.voxels / max(1.0, reliable.voxels.sum()), 0.9 / BINS, alpha=0.3)
    left.set(xlabel="confidence", ylabel="share of voxels that are right", xlim=(0, 1), ylim=(0, 1.02))
    order = least_confident_first(rows)
    failed = np.array([row.dice < FAILED for row in order])
    share = np.arange(1, len(failed) + 1) / max(1, len(failed))
    every = max(1, failed.sum() + len(rows) - len(order))
    right.plot([0, 1], [0, 1], color="#808a95", linewidth=1)
    right.plot(share, np.cumsum(failed) / every, color="#3b8eea")
    right.axvline(LOOKED_AT, color="#808a95", linestyle=":")
    right.set(xlabel="least confident organ slices looked at", ylabel="failures found", xlim=(0, 1), ylim=(0, 1.02))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure, dpi=110)
