"""A volume refiner for a trained model: from its data and its slices to the refiner in its folder.

    split the model's patients into folds -> train a model without each fold -> its answers for that fold
    -> train the refiner on all answers -> put it into the model's folder

What is finished stays in the folder `refining` in the model's own until the model is scored, so that a stopped run
goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pgpsam.device import choose_device
from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.models.spec import ModelSpec
from pgpsam.models.store import REFINER_PREFIX, load_model, load_spec, save_model, split_tensors, with_prefix
from pgpsam.network.volume_refiner import refiner_tensors
from pgpsam.segmenter import Segmenter, Step
from pgpsam.slices import Preparation, frame_volume, scale_labels
from pgpsam.training.card import model_card, pictures_of
from pgpsam.training.choice import LABELS_CHECKSUM, ChosenSlices, SliceChoice, checksum, choose_slices
from pgpsam.training.course import Progress
from pgpsam.training.data import IGNORED, Case, Dataset, load_case
from pgpsam.training.origins import check_unseen, trained_cases
from pgpsam.training.recipes import coarse_stage, recipe
from pgpsam.training.refining import Answers, RefinerSettings, gain, train_refiner
from pgpsam.training.resuming import CHECKPOINT
from pgpsam.training.run import check_same_run, finish, is_trained, split_cases, train_on_dataset
from pgpsam.training.settings import TrainingSettings

REFINING = "refining"  # the folder, in the model's own
FOLDS = 3
FOLD_ITERATIONS = 450


def folds_of(names: Sequence[str], count: int) -> list[list[str]]:
    """Patients' names -> folds of about the same size: every `count`-th from the first, from the second, ...

    Raises:
        UserError: fewer patients than folds, or a single fold.
    """
    if not 2 <= count <= len(names):
        hint = "A refiner needs two patients or more, and from 2 folds to one for each of them."
        raise UserError(f"{len(names)} patients cannot be split into {count} folds", hint)
    return [sorted(names)[k::count] for k in range(count)]


def fold_settings(spec: ModelSpec, seed: int = 0) -> TrainingSettings:
    """How the models without a fold are trained: as the first stage of the recipe for few slices, but shorter.

    Their errors should be those that the model makes on patients it has not seen; they need not be the best.
    """
    settings = replace(
        recipe(spec.method),
        backbone=spec.backbone,
        settings=spec.settings,
        preparation=Preparation.from_json(spec.preparation),
        seed=seed,
    )
    return replace(coarse_stage(settings), iterations=FOLD_ITERATIONS)


def refine(
    model: Path,
    dataset: Dataset,
    settings: TrainingSettings,
    choice: SliceChoice,
    *,
    device: str = "auto",
    scoring: Callable[[str, Step], None] | None = None,
    **more: Any,
) -> dict[str, Any] | None:
    """Give a trained model a refiner, score the cases that it was held out from again, and write its card.

    Args:
        model, dataset, settings, choice, more: as for `add_refiner`.
        scoring: called with a case's name while it is segmented.

    Returns:
        The scores' summary; None where no case was held out.

    Raises:
        UserError, Cancelled: as `add_refiner`.
    """
    add_refiner(model, dataset, settings, choice, device=device, **more)
    held = dataset.select(load_spec(model).training.get("held_out", ()))
    summary = finish(model, dataset, held, choice.text, "", device, scoring)
    shutil.rmtree(model / REFINING)
    return summary


def add_refiner(
    model: Path,
    dataset: Dataset,
    settings: TrainingSettings,
    choice: SliceChoice,
    *,
    folds: int = FOLDS,
    hold_out: Sequence[str] = (),
    refining: RefinerSettings | None = None,
    device: str = "auto",
    command: str = "",
    progress: Callable[[str, Progress], None] | None = None,
    labelling: Callable[[str, Step], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Train a refiner and put it into a model's folder, in the place of a former one. What it took stays in `REFINING`.

    Args:
        model: a model folder.
        dataset: what the model was trained on, and the cases that were held out.
        settings: of the models that are trained without a fold.
        choice: the annotated slices that the model was trained on, and no others.
        folds: how many such models. refining: how the refiner is trained.
        hold_out: patients of the model's whom the refiner does not learn from; model.json then says what it does for
            them (`refining.gain`).
        command: what the model card says of how it was made.
        progress: called while training, with what is trained. labelling: with a case's name, while it is segmented.
        cancelled: asked at every step.

    Raises:
        UserError: as `train_on_dataset`; other slices than the model's; too few patients, or none to learn from or to
            compare on; or what a stopped run left was made in another way.
        Cancelled: `cancelled` said so; called again, it goes on.
    """
    refining = refining or RefinerSettings()
    spec = load_spec(model)
    own, chosen = slices_of_model(spec, dataset, choice, settings.seed, hold_out)
    others = [case.name for case in dataset.cases if case not in own]
    answers: list[Answers] = []
    for number, fold in enumerate(folds_of([one.case.name for one in chosen if one.slices], folds), start=1):
        folder = model / REFINING / f"fold{number}"
        learned_from = [one for one in chosen if one.case.name not in fold]
        if is_trained(folder):
            unseen = [case for case in own if case.name in fold]  # with another number of folds, it may know them
            check_unseen(str(folder), unseen, f"Give the same folds, or delete {folder.parent}.")
            check_same_run(settings, folder, choice, learned_from, f"delete {folder.parent}")
        else:
            name = f"without fold {number} of {folds}"
            train_on_dataset(
                dataset,
                folder,
                settings,
                choice,
                name=folder.name,
                hold_out=[*fold, *others],
                device=device,
                resume=(folder / CHECKPOINT).is_file(),
                scored=False,
                chosen=learned_from,
                progress=partial(progress, name) if progress else None,
                cancelled=cancelled,
            )
        theirs = [one for one in chosen if one.case.name in fold and one.slices]
        answers += fold_answers(folder, theirs, dataset.labels, device, labelling, cancelled)
    learned = [one for one in answers if one.case not in hold_out]
    where = choose_device(device)
    refiner = train_refiner(
        learned,
        len(spec.labels) + 1,
        refining,
        where,
        state=model / REFINING / "refiner.pt",
        progress=partial(progress, "refiner") if progress else None,
        cancelled=cancelled,
    )
    about = {
        "channels": list(refiner.channels),
        **asdict(refining),
        "folds": folds,
        "cases": [one.case for one in learned],
        "slices": sum(len(one.annotated) for one in learned),
        "command": command,
    }
    if held := [one for one in answers if one.case in hold_out and one.showing]:
        before, after = gain(refiner, held, where)
        about["held_out"] = {"cases": [one.case for one in held], "dice_before": before, "dice_after": after}
    spec, tensors = load_model(model, as_stored=True)
    spec = replace(spec, refiner=about, scores={})  # these were the model's without it
    tensors = split_tensors(tensors, REFINER_PREFIX)[0] | with_prefix(refiner_tensors(refiner), REFINER_PREFIX)
    save_model(model, spec, tensors, model_card(spec, pictures_of(model)))


def slices_of_model(
    spec: ModelSpec, dataset: Dataset, choice: SliceChoice, seed: int, hold_out: Sequence[str]
) -> tuple[list[Case], list[ChosenSlices]]:
    """The patients that a model learned from, and their slices that it was trained on.

    Args:
        seed: with which they were drawn, where model.json does not say.
        hold_out: as for `add_refiner`.

    Raises:
        UserError: other slices than the model's; patients to hold out that are none of its own or show no organ; or no
            others that do.
    """
    seen = set(trained_cases(spec))  # what it started from may have learned from other data, too
    training, _ = split_cases(dataset, spec.training.get("held_out", ()))
    own = [case for case in training if case.name in seen]
    if unknown := set(hold_out) - {case.name for case in own}:
        raise UserError(f"{spec.name} was not trained on {', '.join(sorted(unknown))}: nothing to hold out")
    # Drawn as the model's were: with its seed, and from all patients that could have got a slice.
    drawn = choose_slices(dataset, training, choice, spec.training.get("seed", seed))
    check_same_slices(spec, choice, drawn)
    chosen = [one for one in drawn if one.case.name in seen]
    showing = {one.case.name for one in chosen if one.showing}
    if empty := set(hold_out) - showing:
        raise UserError(f"the slices of {', '.join(sorted(empty))} show no organ to compare on", "Hold out others.")
    if showing <= set(hold_out):
        raise UserError(f"{dataset.folder}: no patient is left for the refiner of {spec.name} to learn from")
    return own, chosen


def check_same_slices(spec: ModelSpec, choice: SliceChoice, drawn: Sequence[ChosenSlices]) -> None:
    """Refuse other slices or labels than those that a model was trained on, as far as its model.json says.

    Raises:
        UserError: they were chosen in another way, there are more or fewer, or they are labelled otherwise.
    """
    count = sum(len(one.slices) for one in drawn)
    unhashed = choice.text.partition(" (SHA-256")[0]  # how a list was recorded once
    theirs = spec.training.get("choice", choice.text), spec.training.get("slices", count)
    if theirs not in ((choice.text, count), (unhashed, count)):
        raise UserError(
            f"{spec.name} was trained on {theirs[0]}, {theirs[1]} in all, not on {choice.text}, {count} in all",
            "Give the same data and the same options for the slices.",
        )
    if spec.training.get(LABELS_CHECKSUM, checksum(drawn)) != checksum(drawn):
        raise UserError(f"{spec.name} was trained on other labels of these slices", "Train it anew, then refine it.")


def fold_answers(
    folder: Path,
    chosen: Sequence[ChosenSlices],
    label_set: LabelSet,
    device: str,
    labelling: Callable[[str, Step], None] | None,
    cancelled: Callable[[], bool] | None,
) -> list[Answers]:
    """What a fold's model says of the fold's patients; kept in its folder, a file a patient and what is drawn there.

    Args:
        folder: the model's. chosen: the patients' annotated slices. label_set: of the data set.
    """
    segmenter: Segmenter | None = None
    made: list[Answers] = []
    for one in chosen:
        case = load_case(one.case, label_set)
        path = folder / f"{case.name}-{checksum([one]):08x}.safetensors"
        if not path.is_file():
            segmenter = segmenter or Segmenter.load(folder, device)
            report = partial(labelling, case.name) if labelling else None
            stack = segmenter.answers(case.volume, progress=report, cancelled=cancelled)
            frame = replace(frame_volume(case.volume, segmenter.preparation), size=stack.shape[1:])
            labels = torch.full((stack.depth, *frame.size), IGNORED, dtype=torch.uint8)
            labels[list(one.slices)] = scale_labels(case.labels, frame, list(one.slices))
            part = path.with_suffix(".part")
            save_file({"shares": stack.shares, "image": stack.image, "labels": labels}, part)
            os.replace(part, path)
        made.append(Answers(case.name, **load_file(path), slice_mm=case.volume.spacing[2]))
    return made
