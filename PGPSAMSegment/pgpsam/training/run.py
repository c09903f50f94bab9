"""From a data set on disk to a scored model folder: choose slices by patient, train, score held-out volumes.

What `Training/finetune.py` calls, and Slicer through the worker. Cases are never split: a patient's slices are all
trained on or all held out.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.looks import LOOKS
from pgpsam.models.lookup import find_model
from pgpsam.models.spec import SPEC_FILE
from pgpsam.models.store import load_model, load_spec, save_model
from pgpsam.network.methods import make_settings
from pgpsam.segmenter import Segmenter, Step
from pgpsam.slices import Preparation
from pgpsam.training.card import VALIDATION, copy_pictures, model_card, pictures_of, shows_earlier_scores
from pgpsam.training.choice import LABELS_CHECKSUM, ChosenSlices, SliceChoice, checksum, choose_slices
from pgpsam.training.course import Progress
from pgpsam.training.curves import CURVES
from pgpsam.training.data import Case, Dataset, Sample, load_case, make_samples
from pgpsam.training.finetune import finetune
from pgpsam.training.origins import as_origin, check_unseen
from pgpsam.training.picture import write_summary
from pgpsam.training.resuming import CHECKPOINT
from pgpsam.training.scoring import remove_scores, score_cases
from pgpsam.training.selftraining import Teacher, guessed_samples, load_teacher
from pgpsam.training.settings import TrainingSettings, describe

SUMMARY = "summary.png"


def split_cases(dataset: Dataset, hold_out: Sequence[str] | None) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(training cases, held-out cases).

    Args:
        hold_out: case names; None for what the data set suggests; empty for none.
    """
    held = dataset.select(dataset.validation if hold_out is None else hold_out)
    training = tuple(case for case in dataset.cases if case not in held)
    if not training:
        raise UserError(f"{dataset.folder}: every case is held out, none is left to train on", "Hold out fewer.")
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
    teacher = load_teacher(teachers, dataset.labels, device) if teachers else None
    if chosen is None:
        chosen = choose_slices(dataset, training, choice, settings.seed)
    if resume and is_trained(out):  # it was stopped while it was scored
        check_same_run(settings, out, choice, chosen, "train anew with --overwrite instead of --resume")
    else:
        provenance = {
            "data": dataset.name,
            "choice": choice.text,
            LABELS_CHECKSUM: checksum(chosen),
            "held_out": [case.name for case in held],
            "command": command,
            **({"taught_by": as_origin(*(load_spec(find_model(one)) for one in teachers))} if teachers else {}),
        }
        samples = prepare_samples(chosen, dataset.labels, settings, teacher, labelling)
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
            provenance=provenance,
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
