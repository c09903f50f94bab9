"""From a data set on disk to a scored model folder: choose slices by patient, train, score held-out volumes.

What `Training/finetune.py` calls, and Slicer through the worker. Cases are never split: a patient's slices are all
trained on or all held out.
"""

from __future__ import annotations

import filecmp
import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.looks import LOOKS
from pgpsam.models.store import SPEC_FILE, find_model, load_model, load_spec, save_model
from pgpsam.network.methods import make_settings
from pgpsam.segmenter import Segmenter, Step
from pgpsam.slices import Preparation
from pgpsam.training.calibration import (
    CONFIDENCE,
    OrganSlice,
    Reliability,
    organ_slices,
    reliability,
    write_calibration,
)
from pgpsam.training.card import VALIDATION, copy_pictures, model_card, pictures_of, shows_earlier_scores
from pgpsam.training.choice import ChosenSlices, SliceChoice, checksum, choose_slices
from pgpsam.training.course import Progress
from pgpsam.training.curves import CURVES
from pgpsam.training.data import (
    Case,
    Dataset,
    Sample,
    class_of,
    load_case,
    make_samples,
    read_dataset,
)
from pgpsam.training.failures import FAILURES, Failure, failures, worst_of_each_organ, write_failures
from pgpsam.training.finetune import finetune
from pgpsam.training.metrics import OrganScore, organ_scores, write_scores
from pgpsam.training.origins import trained_cases, trained_commands
from pgpsam.training.picture import write_summary
from pgpsam.training.resuming import CHECKPOINT
from pgpsam.training.selftraining import Teacher, guessed_samples, load_teacher
from pgpsam.training.settings import TrainingSettings, describe

SUMMARY = "summary.png"
LABELS_CHECKSUM = "labels_crc32"  # model.json's word for `choice.checksum`, and for `CaseScores.labels`
_log = logging.getLogger(__name__)


def split_cases(dataset: Dataset, hold_out: Sequence[str] | None) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(training cases, held-out cases).

    Args:
        hold_out: case names; None for what the data set suggests; empty for none.
    """
    held = dataset.select(dataset.validation if hold_out is None else hold_out)
    training = tuple(case for case in dataset.cases if case not in held)
    if not training:
        raise UserError(f"{dataset.folder}: every case is held out, none is left to train on")
    for one, other in product(held, training):
        if same_file(one.image, other.image):
            raise UserError(f"{one.image} is held out and is the same scan as {other.image}", "Remove one of them.")
    return training, held


def same_file(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    return one.stat().st_size == other.stat().st_size and filecmp.cmp(one, other, shallow=False)


def prepare_samples(
    chosen: Sequence[ChosenSlices],
    label_set: LabelSet,
    settings: TrainingSettings,
    teacher: Teacher | None = None,
    progress: Callable[[str, Step], None] | None = None,
) -> list[Sample]:
    """Read the cases, one after the other, and prepare the chosen slices.

    Args:
        chosen: from `choose_slices`.
        label_set: of the data set.
        teacher: labels slices that are not chosen; progress is called while it does, with the case's name.

    Raises:
        UserError: a case cannot be read.
    """
    samples: list[Sample] = []
    for one in chosen:
        if not one.slices and not teacher:
            continue
        case = load_case(one.case, label_set)
        samples += make_samples(case, list(one.slices), settings.preparation)
        if teacher:
            report = partial(progress, case.name) if progress else None
            samples += guessed_samples(teacher, case, one.slices, settings.preparation, report)
    return samples


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
        UserError: no such model or data, a case that the model was trained on (a score there would lie), or no organ
            that both know.
    """
    dataset = read_dataset(data)
    names = cases if cases is not None else (dataset.validation or [c.name for c in dataset.cases])
    chosen = dataset.select(names)
    check_unseen(str(model), chosen, "Name other cases with --cases.")
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


def check_unseen(model: str, cases: Sequence[Case], hint: str) -> None:
    """Refuse to score a model, or one that learns from it, on cases that it has learned from.

    Raises:
        UserError: no such model, or it was trained on one of the cases.
    """
    if seen := {case.name for case in cases} & set(trained_cases(load_spec(find_model(model)))):
        raise UserError(
            f"model {model} was trained on {', '.join(sorted(seen))}: a score there would say nothing", hint
        )


def check_same_run(
    settings: TrainingSettings,
    folder: Path,
    choice: SliceChoice,
    chosen: Sequence[ChosenSlices],
    instead: str,
) -> None:
    """Refuse a finished part of another run.

    Args:
        instead: what the user can do if the run is meant to be another one.

    Raises:
        UserError: it had other settings, slices or labels.
    """
    if not is_same_run(settings, folder, choice, chosen):
        raise UserError(
            f"{folder} was trained with other settings, slices or labels than now", f"Give the same ones, or {instead}."
        )


def is_same_run(settings: TrainingSettings, folder: Path, choice: SliceChoice, chosen: Sequence[ChosenSlices]) -> bool:
    """Whether a finished model came of these settings, slices and labels, as far as its model.json says."""
    spec = load_spec(folder)
    wanted, unsaid = (
        json.loads(json.dumps({**describe(one), LABELS_CHECKSUM: checksum(chosen)}))
        for one in (settings, TrainingSettings())  # what an older version does not say is what is usual
    )
    known = unsaid | spec.training
    same = all(known[key] == value for key, value in wanted.items()) and known.get("choice") == choice.text
    method = (spec.method, spec.backbone, spec.settings)
    ours = (settings.method, settings.backbone, asdict(make_settings(settings.method, settings.settings)))
    return same and method == ours and Preparation.from_json(spec.preparation) == settings.preparation


def train_on_dataset(
    dataset: Dataset,
    out: str | Path,
    settings: TrainingSettings,
    choice: SliceChoice,
    *,
    name: str = "",
    description: str = "",
    hold_out: Sequence[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    teachers: Sequence[str] = (),
    command: str = "",
    scored: bool = True,
    chosen: Sequence[ChosenSlices] | None = None,
    progress: Callable[[Progress], None] | None = None,
    labelling: Callable[[str, Step], None] | None = None,
    scoring: Callable[[str, Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any] | None:
    """Train on a data set, score the held-out cases, and write both into the model folder.

    Args:
        teachers: trained models whose confident labels, together, on slices without annotation are learned too.
        resume: go on with a stopped run; one that was stopped while it was scored is scored again.
        scored: score the held-out cases when the model is trained.
        chosen: the training cases' slices, where they were chosen before; None to choose them now.
        progress, labelling, scoring: called while training, and with a case's name while it is segmented.

    Returns:
        The scores' summary; None where no case was held out or `scored` is off.

    Raises:
        UserError: as `choose_slices` and `finetune`; a teacher or the model to start from is not there, or was
            trained on a case that is to be held out; no slice is left to the teachers.
    """
    out = Path(out)
    training, held = split_cases(dataset, hold_out)
    for origin in filter(None, (settings.start_from, *teachers)):
        check_unseen(origin, held, "Hold out other cases with --hold-out.")
    taught: dict[str, Any] = {}
    master: Teacher | None = None
    if teachers:
        master = load_teacher(teachers, dataset.labels, device)
        specs = [load_spec(find_model(one)) for one in teachers]
        taught["taught_by"] = {
            "name": ", ".join(spec.name for spec in specs),
            "cases": sorted({case for spec in specs for case in trained_cases(spec)}),
            "commands": [command for spec in specs for command in trained_commands(spec)],
        }
    if chosen is None:
        chosen = choose_slices(dataset, training, choice, settings.seed)
    if resume and is_trained(out):  # it was stopped while it was scored
        check_same_run(settings, out, choice, chosen, "train anew with --overwrite instead of --resume")
        return finish(out, dataset, held if scored else (), choice.text, settings.start_from, device, scoring)
    samples = prepare_samples(chosen, dataset.labels, settings, master, labelling)
    if teachers and not any(sample.guessed for sample in samples):
        raise UserError(
            f"no slice is left for {', '.join(teachers)} to label: all are annotated", "Leave out --teacher."
        )
    finetune(
        samples,
        dataset.labels,
        settings,
        out,
        name=name or out.resolve().name,
        description=description,
        provenance={
            "data": dataset.name,
            "choice": choice.text,
            LABELS_CHECKSUM: checksum(chosen),
            "held_out": [case.name for case in held],
            "command": command,
            **taught,
        },
        device=device,
        resume=resume,
        progress=progress,
        cancelled=cancelled,
    )
    remove_scores(out / VALIDATION)  # of a model that was here before
    return finish(out, dataset, held if scored else (), choice.text, settings.start_from, device, scoring)


def is_trained(folder: Path) -> bool:
    """Whether a model's folder holds the model and no state of a training that goes on."""
    return (folder / SPEC_FILE).is_file() and not (folder / CHECKPOINT).is_file()


def remove_scores(folder: Path) -> None:
    """Removes what `CaseScores.write` writes, and the folder if nothing else is in it."""
    pages = [f"{name}.{kind}" for name in ("scores", "confidence") for kind in ("csv", "json", "html")]
    for name in (*pages, CONFIDENCE, FAILURES):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def finish(
    folder: Path,
    dataset: Dataset,
    held: Sequence[Case],
    choice: str,
    start_from: str,
    device: str,
    scoring: Callable[[str, Step], None] | None = None,
) -> dict[str, Any] | None:
    """Score a trained model on its held-out cases; write scores, card and summary picture into its folder.

    Args:
        choice: which slices it was trained on, in words.
        start_from: the model whose scores the card shows where no case is held out; may be empty.

    Returns:
        The scores' summary; None where no case is held out. Then the card shows those of the model it started from.
    """
    spec, tensors = load_model(folder, as_stored=True)
    summary: dict[str, Any] | None = None
    if held:
        scores = score_cases(Segmenter.load(folder, device), dataset, held, scoring)
        about = {
            "model": folder.name,
            "data": dataset.name,
            "training": choice,
            "held out": str(len(held)),
            "looks at every slice": str(len(LOOKS)),
        }
        summary = scores.write(folder / VALIDATION, dataset, f"{folder.name}: held-out cases", about)
        split = [case.name for case in held]
        told = {"split": split, LABELS_CHECKSUM: scores.labels, "looks": len(LOOKS), "summary": summary}
        spec = replace(spec, scores=told)
    elif start_from and shows_earlier_scores(spec):
        copy_pictures(find_model(start_from), folder)
    save_model(folder, spec, tensors, model_card(spec, pictures_of(folder)))
    if (folder / CURVES).is_file():  # a model that was copied without its curves can get a refiner, too
        write_summary(folder / CURVES, folder / SUMMARY, spec.name, summary)
    return summary
