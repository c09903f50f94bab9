"""How near a prediction comes to a reference, organ by organ: Dice, HD95 in mm, surface Dice; and the pages.

* Dice: twice the common voxels over the sum of both.
* HD95: the distances from every surface voxel of either mask to the other's surface, both directions in one
  pool; its 95th percentile, in mm. A surface voxel has a face neighbour outside the mask.
* NSD: the part of both surfaces that lies within the tolerance of the other, weighted by area in mm2.

An organ that the reference does not have is not scored: its Dice would be 0 or 1 by one voxel. What was
predicted there is kept as `OrganScore.false_positive_ml`. An organ that only the prediction lacks was missed:
Dice 0, NSD 0, and no HD95, which has no value then; means of HD95 always come with the number missed.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.metrics import compute_surface_dice, get_mask_edges, get_surface_distance
from numpy.typing import NDArray
from scipy import ndimage

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.pages import csv_bytes, facts, image, page, png, write_whole

TOLERANCE_MM = 2.0

_MEASURES = ("dice", "hd95_mm", "nsd")
_WORST_DICE, _WORST_MM = 0.4, 40.0  # where the pages' colours end in red
_GREY = "#808a95"  # reads on a light and on a dark page


@dataclass(frozen=True)
class OrganScore:
    """One organ of one case.

    Attributes:
        case: the case's name.
        label_id: the organ's id.
        organ: the organ's name.
        dice: 0..1; nan where the reference has no such organ.
        hd95_mm: in mm; nan where the reference or the prediction has no such organ.
        nsd: 0..1; nan where the reference has no such organ.
        reference_ml: the organ's volume in the reference.
        predicted_ml: the organ's volume in the prediction.
    """

    case: str
    label_id: int
    organ: str
    dice: float
    hd95_mm: float
    nsd: float
    reference_ml: float
    predicted_ml: float

    @property
    def scored(self) -> bool:
        """The reference has the organ."""
        return self.reference_ml > 0

    @property
    def missed(self) -> bool:
        """The reference has the organ, and the prediction has nothing of it."""
        return self.scored and self.predicted_ml == 0

    @property
    def false_positive_ml(self) -> float:
        """What was predicted of an organ that the reference does not have at all."""
        return 0.0 if self.scored else self.predicted_ml


# ---------------------------------------------------------------------------------------------------- scoring


def organ_scores(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing_xyz: Sequence[float],
    label_set: LabelSet,
    tolerance_mm: float = TOLERANCE_MM,
    case: str = "",
) -> list[OrganScore]:
    """Scores every organ of the label set; other ids in the arrays count as background.

    Args:
        prediction: ``[z, y, x]`` of any integer type.
        reference: ``[z, y, x]``, on the same grid.
        spacing_xyz: ``(dx, dy, dz)`` in mm.
        tolerance_mm: of the NSD.
        case: the name that the rows carry.

    Returns:
        One row an organ, in the order of the label set.

    Raises:
        ValueError: the two arrays have different shapes.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    spacing_zyx = [float(step) for step in reversed(spacing_xyz)]
    voxel_ml = math.prod(spacing_zyx) / 1000.0
    boxes = [ndimage.find_objects(labels) for labels in (prediction, reference)]
    rows = []
    for label in label_set:
        box = _common_box([found[label.id - 1] for found in boxes if label.id <= len(found)])
        measures, voxels = (math.nan,) * 3, (0, 0)
        if box is not None:
            masks = prediction[box] == label.id, reference[box] == label.id
            measures = _measures(*masks, spacing_zyx, tolerance_mm)
            voxels = int(masks[0].sum()), int(masks[1].sum())
        volumes = voxels[1] * voxel_ml, voxels[0] * voxel_ml
        rows.append(OrganScore(case, label.id, label.name, *measures, *volumes))
    return rows


def _common_box(boxes: Iterable[tuple[slice, ...] | None]) -> tuple[slice, ...] | None:
    """The smallest box that holds all of them; None without any."""
    given = [box for box in boxes if box is not None]
    if not given:
        return None
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*given, strict=True))


def _measures(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_zyx: list[float], tolerance_mm: float
) -> tuple[float, float, float]:
    """Dice, HD95 in mm and NSD of two masks ``[z, y, x]``, cropped to what they hold."""
    if not reference.any():
        return math.nan, math.nan, math.nan
    if not prediction.any():
        return 0.0, math.nan, 0.0
    common = int((prediction & reference).sum())
    dice = 2.0 * common / (int(prediction.sum()) + int(reference.sum()))
    return (
        dice,
        _hd95(prediction, reference, spacing_zyx),
        _nsd(prediction, reference, spacing_zyx, tolerance_mm),
    )


def _hd95(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_zyx: list[float]) -> float:
    """As the papers' code pools the two directions; MONAI's function takes the larger of two percentiles."""
    ours, theirs = get_mask_edges(prediction, reference, crop=False)
    there = get_surface_distance(ours, theirs, spacing=spacing_zyx)
    back = get_surface_distance(theirs, ours, spacing=spacing_zyx)
    return float(np.percentile(np.concatenate([there, back]), 95))


def _nsd(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing_zyx: list[float],
    tolerance_mm: float,
) -> float:
    ours, theirs = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))  # [1, 1, z, y, x]
    with warnings.catch_warnings():  # MONAI 1.5 and 1.6 warn of an argument that they themselves pass
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        score = compute_surface_dice(
            ours, theirs, [tolerance_mm], include_background=True, spacing=spacing_zyx, use_subvoxels=True
        )
    return float(score)


# ---------------------------------------------------------------------------------------------------- summary


def summarise(rows: Sequence[OrganScore], reported_labels: Sequence[int] | None = None) -> dict[str, Any]:
    """Means, as JSON values; null where nothing was scored.

    The mean of a group of organs is the mean over organs of each organ's mean over cases, so that an organ
    that some cases lack weighs as much as the others.

    Args:
        rows: of all cases.
        reported_labels: ids of the organs that a publication reports; all where it is None.

    Returns:
        ``organs``: for each its means over cases, and how many cases were scored, missed, or without it
        (``absent``) and what was predicted in the latter in all. ``all`` and ``reported``: means over organs.
        ``cases``: for each the means over its organs, ``all`` and ``reported``.

    Raises:
        ValueError: a reported id that no row has.
    """
    ids = list(dict.fromkeys(row.label_id for row in rows))
    reported = ids if reported_labels is None else list(reported_labels)
    if unknown := set(reported) - set(ids):
        raise ValueError(f"no scores of the reported ids {sorted(unknown)}")
    organs = [_organ_summary([row for row in rows if row.label_id == label_id]) for label_id in ids]
    cases = []
    for case in dict.fromkeys(row.case for row in rows):
        own = [row for row in rows if row.case == case]
        of_reported = [row for row in own if row.label_id in reported]
        cases.append({"case": case, "all": _case_means(own), "reported": _case_means(of_reported)})
    return {
        "reported_labels": reported,
        "all": _organ_means(organs),
        "reported": _organ_means([organ for organ in organs if organ["id"] in reported]),
        "organs": organs,
        "cases": cases,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(given) / len(given) if given else None


def _organ_summary(rows: Sequence[OrganScore]) -> dict[str, Any]:
    return {
        "id": rows[0].label_id,
        "organ": rows[0].organ,
        **{measure: _mean(getattr(row, measure) for row in rows) for measure in _MEASURES},
        "cases": sum(row.scored for row in rows),
        "missed": sum(row.missed for row in rows),
        "absent": sum(not row.scored for row in rows),
        "false_positive_ml": math.fsum(row.false_positive_ml for row in rows),
    }


def _organ_means(organs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    means = {measure: _mean(organ[measure] for organ in organs) for measure in _MEASURES}
    scored = sum(organ["cases"] > 0 for organ in organs)
    return {**means, "organs": scored, "missed": sum(organ["missed"] for organ in organs)}


def _case_means(rows: Sequence[OrganScore]) -> dict[str, Any]:
    means = {measure: _mean(getattr(row, measure) for row in rows) for measure in _MEASURES}
    scored = sum(row.scored for row in rows)
    return {**means, "organs": scored, "missed": sum(row.missed for row in rows)}


# ---------------------------------------------------------------------------------------------------- writing


def write_scores(
    rows: Sequence[OrganScore],
    folder: str | os.PathLike[str],
    title: str,
    reported_labels: Sequence[int] | None = None,
    about: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes ``scores.csv``, ``scores.json`` and ``scores.html``; none appears before all are written.

    Args:
        rows: of all cases; at least one.
        folder: made where it is missing.
        title: the page's heading, such as the model's name and the data's.
        reported_labels: as `summarise` takes it.
        about: facts to repeat in the JSON and on the page, such as the model, the data and the split.

    Returns:
        The summary, as `summarise` gives it.

    Raises:
        UserError: the disk refuses.
    """
    summary = summarise(rows, reported_labels)
    facts_given = dict(about or {})
    folder = Path(folder)
    values = [_json_row(row) for row in rows]
    record = {"title": title, "about": facts_given, "summary": summary, "rows": values}
    table = [row | {"missed": int(row["missed"])} for row in values]
    files = {
        folder / "scores.csv": csv_bytes(list(table[0]), table),
        folder / "scores.json": (json.dumps(record, indent=1, allow_nan=False) + "\n").encode(),
        folder / "scores.html": page(title, _body(rows, summary, title, facts_given)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} can't be made: {error.strerror}", "Choose another folder") from error
    write_whole(files)
    return summary


def _json_row(row: OrganScore) -> dict[str, Any]:
    values = {
        "case": row.case,
        "id": row.label_id,
        "organ": row.organ,
        **{measure: getattr(row, measure) for measure in (*_MEASURES, "reference_ml", "predicted_ml")},
        "false_positive_ml": row.false_positive_ml,
        "missed": row.missed,
    }
    return {
        key: (None if math.isnan(value) else round(value, 6)) if isinstance(value, float) else value
        for key, value in values.items()
    }


# ------------------------------------------------------------------------------------------------------- page


def _body(rows: Sequence[OrganScore], summary: Mapping[str, Any], title: str, about: Mapping[str, str]) -> str:
    parts = [f"<h1>{escape(title)}</h1>", _tiles(summary)]
    if about:
        parts.append(f'<section class="card">{facts(about)}</section>')
    chart = image(_strip_chart(rows, summary), "Dice of every case, by organ")
    parts += [
        f'<section class="card"><h2>Dice by organ</h2>{chart}</section>',
        f'<section class="card"><h2>Means over cases</h2>{_organ_table(summary)}</section>',
    ]
    for measure, heading in (("dice", "Dice by case"), ("hd95_mm", "HD95 by case, in mm")):
        table = _case_table(rows, summary, measure)
        parts.append(f'<section class="card"><h2>{heading}</h2>{table}</section>')
    parts.append(
        '<p class="muted">An organ that the reference does not have is not scored (–). '
        "A missed organ counts as Dice 0 and NSD 0 and has no HD95. "
        "NSD is the part of the surfaces within the tolerance. * marks the reported organs.</p>"
    )
    return "\n".join(parts)


def _tiles(summary: Mapping[str, Any]) -> str:
    tiles = [("cases", str(len(summary["cases"])))]
    everything = len(summary["reported_labels"]) == len(summary["organs"])
    for group in ("reported",) if everything else ("reported", "all"):
        means = summary[group]
        suffix = f", mean of {means['organs']} organs"
        tiles.append((f"Dice{suffix}", _text("dice", means["dice"])))
        tiles.append((f"HD95 in mm{suffix}", _text("hd95_mm", means["hd95_mm"])))
        tiles.append((f"NSD{suffix}", _text("nsd", means["nsd"])))
    tiles.append(("organs missed", str(summary["all"]["missed"])))
    return '<div class="tiles">' + "".join(f"<div><b>{b}</b><span>{a}</span></div>" for a, b in tiles) + "</div>"


def _text(measure: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.1f}" if measure == "hd95_mm" else f"{value:.3f}"


def _cell(measure: str, value: float | None) -> str:
    """A table cell, from red over yellow to green as the value is better."""
    text = _text(measure, value)
    if value is None or math.isnan(value):
        return f"<td>{text}</td>"
    if measure == "hd95_mm":
        good = 1.0 - math.log1p(value) / math.log1p(_WORST_MM)
    else:
        good = (value - _WORST_DICE) / (1.0 - _WORST_DICE)
    hue = 125 * min(max(good, 0.0), 1.0)
    return f'<td style="background:hsl({hue:.0f} 75% 45% / .28)">{text}</td>'


def _starred(organ: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    return organ["organ"] + (" *" if organ["id"] in summary["reported_labels"] else "")


def _organ_table(summary: Mapping[str, Any]) -> str:
    heads = ("organ", "Dice", "HD95 mm", "NSD", "cases", "missed", "absent", "false positive mL")
    lines = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for organ in summary["organs"]:
        cells = [f"<td>{escape(_starred(organ, summary))}</td>"]
        cells += [_cell(measure, organ[measure]) for measure in _MEASURES]
        cells += [f"<td>{organ[key]}</td>" for key in ("cases", "missed", "absent")]
        cells.append(f"<td>{organ['false_positive_ml']:.1f}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    for group, name in (("reported", "mean of the reported organs *"), ("all", "mean of all organs")):
        means = summary[group]
        cells = [f"<td>{name}</td>"] + [_cell(measure, means[measure]) for measure in _MEASURES]
        lines.append(f'<tr class="mean">{"".join(cells)}<td></td><td>{means["missed"]}</td><td></td><td></td></tr>')
    return f"<table>{''.join(lines)}</table>"


def _case_table(rows: Sequence[OrganScore], summary: Mapping[str, Any], measure: str) -> str:
    heads = "".join(f"<th>{escape(_starred(organ, summary))}</th>" for organ in summary["organs"])
    lines = [f"<tr><th>case</th>{heads}<th>mean *</th></tr>"]
    values = {(row.case, row.label_id): getattr(row, measure) for row in rows}
    for case in summary["cases"]:
        cells = [_cell(measure, values.get((case["case"], organ["id"]))) for organ in summary["organs"]]
        cells.append(_cell(measure, case["reported"][measure]))
        lines.append(f"<tr><td>{escape(case['case'])}</td>{''.join(cells)}</tr>")
    return f'<table class="matrix">{"".join(lines)}</table>'


def _strip_chart(rows: Sequence[OrganScore], summary: Mapping[str, Any]) -> bytes:
    """A dot a case, a bar over the middle half and a line at the median; transparent."""
    organs = summary["organs"]
    figure = Figure(figsize=(9.6, 0.7 + 0.34 * len(organs)), facecolor="none", layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    for row_number, organ in enumerate(organs):
        dice = np.array([row.dice for row in rows if row.label_id == organ["id"] and row.scored])
        if not dice.size:
            continue
        low, median, high = np.percentile(dice, [25, 50, 75])
        axes.barh(row_number, high - low, left=low, height=0.5, color="#3b8eea", alpha=0.30)
        axes.plot([median] * 2, [row_number - 0.27, row_number + 0.27], color="#3b8eea", linewidth=2.2)
        spread = np.linspace(-0.14, 0.14, dice.size) if dice.size > 1 else np.zeros(1)
        axes.scatter(dice, row_number + spread, s=16, color="#3b8eea", edgecolors="none", alpha=0.9)
    axes.set_yticks(range(len(organs)), [_starred(organ, summary) for organ in organs], parse_math=False)
    axes.set_ylim(len(organs) - 0.4, -0.6)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.tick_params(colors=_GREY, length=0, labelsize=10)
    axes.grid(axis="x", color=_GREY, alpha=0.3, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return png(figure, dpi=120)
