"""What a model was made from: the cases that it has learned from and the commands that made it, from the first on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgpsam.errors import UserError
from pgpsam.models.lookup import find_model
from pgpsam.models.spec import ModelSpec
from pgpsam.models.store import load_spec

if TYPE_CHECKING:  # `pgpsam info` must not wait for torch
    from pgpsam.training.data import Case


def check_apart(out: Path, *origins: str | None) -> None:
    """Refuse to write a model over one that it is made from, whose scores and pictures its card may show.

    Args:
        origins: model folders or names of installed models; empty ones count for nothing.

    Raises:
        UserError: `out` is the folder of one of them, or there is no such model.
    """
    for origin in filter(None, origins):
        if find_model(origin).resolve() == out.resolve():
            raise UserError(f"{out} is a model that the new one is made from", "Name another folder with --out.")


def check_unseen(model: str, cases: Sequence[Case], hint: str) -> None:
    """Refuse to score a model, or one that learns from it, on cases that it has learned from.

    Raises:
        UserError: no such model, or it was trained on one of the cases.
    """
    if seen := {case.name for case in cases} & set(trained_cases(load_spec(find_model(model)))):
        raise UserError(
            f"model {model} was trained on {', '.join(sorted(seen))}: a score there would say nothing", hint
        )


def trained_cases(spec: ModelSpec) -> list[str]:
    """Every case that a model has learned from: in this run, or through the models that it was made from."""
    return sorted({case for origin in (spec.training, *_origins(spec)) for case in origin.get("cases", ())})


def trained_commands(spec: ModelSpec) -> list[str]:
    """The commands that made a model, from the first on: those of the models that it was made from, its own."""
    earlier = [command for origin in _origins(spec) for command in origin.get("commands", [])]
    own = (spec.training.get("command"), spec.refiner.get("command"), spec.training.get("ship_command"))
    return list(dict.fromkeys([*earlier, *filter(None, own)]))


def as_origin(*specs: ModelSpec) -> dict[str, Any]:
    """What a model's model.json says of the models that it was made from: their names, cases and commands."""
    return {
        "name": ", ".join(spec.name for spec in specs),
        "cases": sorted({case for spec in specs for case in trained_cases(spec)}),
        "commands": [command for spec in specs for command in trained_commands(spec)],
    }


def _origins(spec: ModelSpec) -> list[Mapping[str, Any]]:
    """What it says of those that it started from, was taught by, is the mean with, a copy of, or that look again."""
    keys = ("started_from", "taught_by", "averaged_with", "copied_from", "second_look")
    return [spec.training.get(key) or {} for key in keys]
