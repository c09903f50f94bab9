"""A trained model -> one to give away: its large tensors in 8 bits, its name, and scores that others may read.

Where a model was trained on from another, the mean of both models' weights often does better than either (Wortsman
et al., "Model soups", 2022); weights that changed little may stay the earlier one's. Of two that were trained apart the
mean is of no use, but one can take the first look at every slice and the other the second.

A model that learned from every patient cannot be scored. Its card shows the scores of its twin: a model that was
trained in the same way, but without the patients that are scored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.models.compact import compact
from pgpsam.models.lookup import find_model
from pgpsam.models.spec import ModelSpec
from pgpsam.models.store import (
    REFINER_PREFIX,
    SECOND_PREFIX,
    load_model,
    load_spec,
    save_model,
    split_tensors,
    with_prefix,
)
from pgpsam.segmenter import Step
from pgpsam.training.card import VALIDATION, copy_pictures, model_card, pictures_of, shows_earlier_scores
from pgpsam.training.curves import CURVES
from pgpsam.training.data import Case, read_dataset
from pgpsam.training.origins import as_origin, check_apart, trained_cases
from pgpsam.training.run import SUMMARY, finish
from pgpsam.training.scoring import remove_scores


def ship(
    model: str,
    out: Path,
    *,
    name: str = "",
    description: str = "",
    data: Path | None = None,
    twin: str = "",
    average_with: str = "",
    keep: str = "",
    second: str = "",
    device: str = "auto",
    command: str = "",
    scoring: Callable[[str, Step], None] | None = None,
) -> dict[str, Any] | None:
    """Write the copy.

    Args:
        model: a model folder or an installed model. out: the copy's folder, another one; a model in it is replaced,
            with its pages.
        name, description: of the copy; empty for the folder's name and the model's description.
        data: the data set whose held-out cases the copy is scored on.
        twin: a scored model of the same method and settings, whose scores the copy shows.
        average_with: a model of the same kind whose weights are averaged with this one's.
        keep: a regular expression: tensors whose names begin so are those of `average_with`, not the mean.
        second: a model of the same kind that takes the copy's second look, in place of one that has taken it so far.
        command: what the card says of how it was made.
        scoring: called with a case's name while it is segmented.

    Returns:
        The summary of the copy's scores; None where it was not scored.

    Raises:
        UserError: no such model, the same folder, a twin, a model to average with or one to look again of another
            kind, one of the last two that has learned from what is held out, `keep` without one to average with or of
            no use, a twin without scores, or data without a case that was held out.
    """
    check_apart(out, model, twin, average_with, second)
    folder = find_model(model)
    spec, tensors = load_model(folder)
    training = {**spec.training, "ship_command": command}
    if "ship_command" in spec.training:
        training["copied_from"] = as_origin(spec)
    if spec.scores and "started_from" in training:  # those that the model shows are its own, not an earlier stage's
        kept = {key: value for key, value in training["started_from"].items() if key not in ("scores", "scored")}
        training["started_from"] = kept
    spec = replace(
        spec,
        name=name or out.resolve().name,
        description=description or spec.description,
        training=training,
        scores={},
    )
    if average_with:
        other, others = load_model(find_model(average_with))
        check_alike(other, spec, f"{average_with} cannot be averaged with {model}")
        check_left_out(other, spec, average_with, model)
        tensors = average(tensors, others, keep)
        spec = replace(spec, training={**spec.training, "averaged_with": as_origin(other)})
    elif keep:
        raise UserError("--keep says what stays of another model", "Name it with --average-with.")
    if second:
        other, others = load_model(find_model(second), as_stored=True)
        check_alike(other, spec, f"{second} cannot look again for {model}")
        check_left_out(other, spec, second, model)
        for prefix in (REFINER_PREFIX, SECOND_PREFIX):  # of its adapter alone
            others, _ = split_tensors(others, prefix)
        tensors, _ = split_tensors(tensors, SECOND_PREFIX)
        tensors |= with_prefix(others, SECOND_PREFIX)
        told = {**as_origin(other), "scores": other.scores}
        spec = replace(spec, training={**spec.training, "second_look": told})
    if twin:
        other = load_spec(find_model(twin))
        check_alike(other, spec, f"{twin} is no twin of {model}")
        if not other.scores:
            raise UserError(f"{twin} has no scores", "Score it first: ship it with --data.")
        alone = {"alone": True} if "second_look" in spec.training and "second_look" not in other.training else {}
        spec = replace(spec, scores={"model": other.name, **other.scores, **alone})  # it may show its own twin's
    held: tuple[Case, ...] = ()
    if data:
        dataset = read_dataset(data)
        held = dataset.select(spec.training.get("held_out", ()))
        if not held:
            raise UserError(f"{model} learned from every case of {data}", "Show a twin's scores with --scores-of.")
    shown = find_model(twin or model) if not data and (twin or shows_earlier_scores(spec)) else None
    save_model(out, spec, compact(tensors), model_card(spec, pictures_of(shown) if shown else ()))
    remove_scores(out / VALIDATION)  # of a model that was here before, as the next two
    for page in (CURVES, SUMMARY):
        (out / page).unlink(missing_ok=True)
    if shown:  # the card shows its scores in place of the copy's own
        copy_pictures(shown, out)
    if not data:
        return None
    return finish(out, dataset, held, spec.training.get("choice", "not recorded"), "", device, scoring)


def check_alike(other: ModelSpec, spec: ModelSpec, complaint: str) -> None:
    """Raises UserError where two models differ in more than their weights."""
    alike = ("method", "settings", "backbone", "preparation", "labels")
    if differs := [key for key in alike if getattr(other, key) != getattr(spec, key)]:
        raise UserError(f"{complaint}: its {differs[0]} is another")


def check_left_out(other: ModelSpec, spec: ModelSpec, its_name: str, name: str) -> None:
    """Raises UserError where another model, which is to be part of a copy, has learned from what is held out."""
    if seen := sorted({*spec.training.get("held_out", ())} & {*trained_cases(other)}):
        raise UserError(f"{its_name} was trained on {', '.join(seen)}, which {name} holds out for scores")


def average(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], keep: str) -> dict[str, Tensor]:
    """The mean of two models' tensors of the same names; those that match `keep` at their beginning are `others`'.

    Tensors of any shape, each with its model's counterpart; the mean has the first model's number type.

    Raises:
        UserError: only one of them has a volume refiner or a second network; `keep` is no regular expression, or fits
            no tensor.
    """
    if unlike := sorted(tensors.keys() ^ others.keys()):
        parts = {REFINER_PREFIX: "a volume refiner", SECOND_PREFIX: "a second network"}
        what = next((part for prefix, part in parts.items() if unlike[0].startswith(prefix)), unlike[0])
        raise UserError(f"the two models cannot be averaged: only one of them has {what}")
    try:
        kept = {name for name in others if keep and re.match(keep, name)}
    except re.error as error:
        raise UserError(f"--keep {keep} is no regular expression: {error}") from error
    if keep and not kept:
        raise UserError(f"--keep {keep} fits no tensor", f"There are {', '.join(sorted(others)[:3])}, ...")
    return {
        name: others[name] if name in kept else ((value.float() + others[name].float()) / 2).to(value.dtype)
        for name, value in tensors.items()
    }
