"""A trained model -> one to give away: its large tensors in 8 bits, its name, and scores that others may read.

A model that learned from every patient cannot be scored. Its card shows the scores of its twin: a model that was
trained in the same way, but without the patients that are scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgpsam.errors import UserError
from pgpsam.models.compact import compact
from pgpsam.models.store import find_model, load_model, load_spec, save_model
from pgpsam.segmenter import Step
from pgpsam.training.card import copy_pictures, model_card
from pgpsam.training.data import Case, read_dataset
from pgpsam.training.run import SliceChoice, finish


def ship(
    model: str,
    out: Path,
    *,
    name: str = "",
    description: str = "",
    data: Path | None = None,
    twin: str = "",
    device: str = "auto",
    command: str = "",
    scoring: Callable[[str, Step], None] | None = None,
) -> dict[str, Any] | None:
    """Write the copy.

    Args:
        model: a model folder or an installed model. out: the copy's folder, another one.
        name, description: of the copy; empty for the folder's name and the model's description.
        data: the data set whose held-out cases the copy is scored on.
        twin: a scored model of the same method and settings, whose scores the copy shows.
        command: what the card says of how it was made.
        scoring: called with a case's name while it is segmented.

    Returns:
        The summary of the copy's scores; None where it was not scored.

    Raises:
        UserError: no such model, the same folder, a twin of another kind or without scores, or data without a case
            that was held out.
    """
    folder = find_model(model)
    if out.exists() and out.resolve() == folder.resolve():
        raise UserError(f"{out} is the model itself", "Name another folder with --out.")
    spec, tensors = load_model(folder)
    spec = replace(
        spec,
        name=name or out.resolve().name,
        description=description or spec.description,
        training={**spec.training, "ship_command": command},
        scores={},
    )
    if twin:
        other = load_spec(find_model(twin))
        alike = ("method", "settings", "backbone", "preparation", "labels")
        if differs := [key for key in alike if getattr(other, key) != getattr(spec, key)]:
            raise UserError(f"{twin} is no twin of {model}: its {differs[0]} is another")
        if not other.scores:
            raise UserError(f"{twin} has no scores", "Score it first: ship it with --data.")
        spec = replace(spec, scores={**other.scores, "model": other.name})
    held: tuple[Case, ...] = ()
    if data:
        dataset = read_dataset(data)
        held = dataset.select(spec.training.get("held_out", ()))
        if not held:
            raise UserError(f"{model} learned from every case of {data}", "Show a twin's scores with --scores-of.")
    save_model(out, spec, compact(tensors), model_card(spec))
    if twin:
        copy_pictures(find_model(twin), out)
    if not data:
        return None
    return finish(out, dataset, held, SliceChoice().text, "", device, scoring)
