"""Whole volumes scored against their labels, and the pages that say so."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.looks import LOOKS
from pgpsam.segmenter import Segmenter, Step
from pgpsam.training.calibration import (
    CONFIDENCE,
    OrganSlice,
    Reliability,
    organ_slices,
    reliability,
    write_calibration,
)
from pgpsam.training.data import Case, Dataset, class_of, load_case, read_dataset, shortened
from pgpsam.training.failures import FAILURES, Failure, failures, worst_of_each_organ, write_failures
from pgpsam.training.metrics import OrganScore, organ_scores, write_scores
from pgpsam.training.origins import check_unseen

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CaseScores:
    """What scoring whole volumes gives: of each organ, and of each organ's slices with the model's confidence.

    Attributes:
        gaps: of each case that has any, how many slices `unlabelled_between` counts.
        labels: CRC-32 of what people drew, which tells one scoring of a case from another.
    """

    organs: list[OrganScore]
    slices: list[OrganSlice]
    reliability: Reliability
    failures: list[Failure]
    gaps: Mapping[str, int]
    labels: int

    def write(self, folder: Path, dataset: Dataset, title: str, about: Mapping[str, str]) -> dict[str, Any]:
        """scores.{csv,json,html}, confidence.{csv,json,html,png} and failures.png; `metrics.summarise` of the scores,
        with the key ``confidence``, as `calibration.write_calibration` gives it, and ``note`` where a reader must know
        more. Means are over what was scored."""
        scored = {row.label_id for row in self.organs}
        if left_out := [label.name for label in dataset.labels if label.id not in scored]:
            about = {**about, "not scored, as the model does not know them": ", ".join(left_out)}
        note: dict[str, str] = {}
        if self.gaps:
            counts = ", ".join(f"{case} ({count})" for case, count in self.gaps.items())
            note["note"] = (
                f"Slices between labelled ones that show no organ are scored as background, in {counts}; "
                "if they were left out, the scores are too low."
            )
        reported = [label for label in dataset.labels if label.id in scored.intersection(dataset.reported or scored)]
        summary = write_scores(self.organs, folder, title, [label.id for label in reported], {**about, **note})
        names = [label.name for label in reported]
        trust = write_calibration(self.slices, self.reliability, folder, f"{title}: confidence", names)
        colours = "green: drawn by people, orange: found by the model"
        write_failures(self.failures, folder / FAILURES, f"{title}: the largest error of each organ ({colours})")
        return {**summary, "confidence": trust, **note}


def score_cases(
    segmenter: Segmenter,
    dataset: Dataset,
    cases: Sequence[Case],
    progress: Callable[[str, Step], None] | None = None,
    clean: bool = True,
    looks: int = len(LOOKS),
) -> CaseScores:
    """Segment whole volumes, every slice, and score them against their labels.

    Organs go by name, in whatever spelling. Those that the model does not know are left out; a warning names them.

    Args:
        progress: called with a case's name and its step.
        clean, looks: as `Segmenter.segment` takes them.

    Raises:
        UserError: unreadable cases, or a model that knows no organ of the data set.
    """
    organs: list[OrganScore] = []
    slices: list[OrganSlice] = []
    trust: list[Reliability] = []
    failed: list[Failure] = []
    gaps: dict[str, int] = {}
    crc = 0
    ids = np.array([0, *dataset.labels.ids], np.uint8)
    theirs = np.zeros(256, np.uint8)  # the model's id -> the data set's class index, by the organ's name
    names = dataset.labels.names
    for label in segmenter.label_set:
        theirs[label.id] = class_of(label.name, dataset.labels)
    left_out = [name for index, name in enumerate(names, start=1) if index not in theirs]
    if len(left_out) == len(names):
        raise UserError(
            f"{segmenter.name} knows none of the organs of {dataset.folder}: {', '.join(names)}",
            f"It knows {', '.join(segmenter.label_set.names)}.",
        )
    if left_out:
        _log.warning("%s does not know %s: left out of the scores", segmenter.name, ", ".join(left_out))
    known = LabelSet(tuple(label for label in dataset.labels if label.name not in left_out))
    for case in cases:
        loaded = load_case(case, dataset.labels)
        crc = zlib.crc32(np.ascontiguousarray(loaded.labels), crc)
        if between := unlabelled_between(loaded.labels):
            gaps[case.name] = between
            _log.warning(
                "%s: %d slices between its labelled ones show no organ and are scored as background", case.name, between
            )
        result = segmenter.segment(
            loaded.volume,
            progress=(lambda step, name=case.name: progress(name, step)) if progress else None,  # type: ignore[misc]
            looks=looks,
            clean=clean,
        )
        found, drawn = theirs[result.labels], loaded.labels * np.isin(loaded.labels, theirs)
        own = organ_slices(found, drawn, result.confidence, names, case.name)
        slices += own
        failed = worst_of_each_organ([*failed, *failures(loaded.volume, found, drawn, own, names)])
        trust.append(reliability(found, drawn, result.confidence))
        organs += organ_scores(ids[found], ids[drawn], loaded.volume.spacing, known, case=case.name)
    return CaseScores(organs, slices, sum(trust[1:], trust[0]), failed, gaps, crc)


def unlabelled_between(labels: NDArray[np.uint8]) -> int:
    """How many slices of [z, y, x] between the first and the last that show an organ show none: left out, perhaps."""
    filled = np.flatnonzero(labels.any((1, 2)))
    return int(filled[-1] - filled[0] + 1 - len(filled)) if len(filled) else 0


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    cases: Sequence[str] | None = None,
    device: str = "auto",
    clean: bool = True,
    looks: int = len(LOOKS),
    progress: Callable[[str, Step], None] | None = None,
) -> dict[str, Any]:
    """Score a model on a data set's held-out cases and write scores.{csv,json,html},
    confidence.{csv,json,html,png} and failures.png.

    Args:
        cases: names; None for the data set's suggested validation cases, or all where it suggests none.
        clean, looks: as `Segmenter.segment` takes them.

    Returns:
        The summary, as `CaseScores.write` gives it.

    Raises:
        UserError: no such model or data, a case that the model was trained on (a score there would lie), no case with
            an organ, or no organ that both know.
    """
    dataset = read_dataset(data)
    names = cases if cases is not None else (dataset.validation or [c.name for c in dataset.cases])
    chosen = dataset.select(names)
    check_unseen(str(model), chosen, "Name other cases with --cases.")
    check_scorable(dataset, chosen, "Export them again, or name other cases with --cases.")
    segmenter = Segmenter.load(model, device)
    scores = score_cases(segmenter, dataset, chosen, progress, clean, looks)
    about = {
        "model": segmenter.name,
        "data": dataset.name,
        "cases": ", ".join(c.name for c in chosen),
        "looks at every slice": str(looks),
        "clean up": "stray pieces of one-piece organs removed" if clean else "none",
    }
    return scores.write(Path(out), dataset, f"{segmenter.name} on {dataset.name}", about)


def check_scorable(dataset: Dataset, cases: Sequence[Case], hint: str) -> None:
    """Read the cases that are to be scored, so that what is wrong with them is told before the work, not after it.

    A warning names those whose labels are empty.

    Raises:
        UserError: one cannot be read, or the labels of all are empty.
    """
    empty = [case.name for case in cases if not load_case(case, dataset.labels).labels.any()]
    if empty and len(empty) == len(cases):
        raise UserError(f"{dataset.folder}: the labels of {shortened(empty)} show no organ to score", hint)
    if empty:
        _log.warning("%s: the labels show no organ to score. %s", shortened(empty), hint)


def remove_scores(folder: Path) -> None:
    """Removes what `CaseScores.write` writes, and the folder if nothing else is in it."""
    pages = [f"{name}.{kind}" for name in ("scores", "confidence") for kind in ("csv", "json", "html")]
    for name in (*pages, CONFIDENCE, FAILURES):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
