"""Settings that are given by name over those of a recipe: `--set NAME=VALUE`, and the settings of a request."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pgpsam.errors import UserError
from pgpsam.network.methods import make_settings
from pgpsam.slices import Preparation
from pgpsam.training.augment import Augmentation
from pgpsam.training.settings import TrainingSettings


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """['alpha=4', 'cfm=false'] -> {'alpha': 4, 'cfm': False}; values are JSON, or text where they are not.

    Raises:
        UserError: a pair without '='.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--set {pair}: expected NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values


def apply(settings: TrainingSettings, values: dict[str, Any]) -> TrainingSettings:
    """Put `values` where they belong: the run's own settings, its preparation, its augmentation, or the method's.

    Raises:
        UserError: a value of the wrong type, a preparation that is out of range, or an unknown or unusable setting of
            the method.
    """
    run_values: dict[str, Any] = {}
    preparation = settings.preparation.to_json()
    method = dict(settings.settings)
    variations = settings.augmentation
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if name in preparation:
            preparation[name] = checked(name, value, preparation[name])
        elif name in Augmentation.__dataclass_fields__:
            if variations is None:
                raise UserError(f"--set {name}={value}: this run has no augmentation", "Leave it out.")
            variations = replace(variations, **{name: checked(name, value, getattr(variations, name))})
            run_values["augmentation"] = variations
        elif name == "augmentation":
            if value is not False:
                raise UserError("--set augmentation=false turns augmentation off; it has no other value")
            run_values[name] = variations = None
        elif name in TrainingSettings.__dataclass_fields__:
            run_values[name] = checked(name, value, getattr(settings, name))
        else:
            method[name] = value
    make_settings(settings.method, method)
    return replace(settings, **run_values, settings=method, preparation=Preparation.from_json(preparation))


def checked(name: str, value: Any, default: Any) -> Any:
    """The value, if it is of the default's kind.

    Raises:
        UserError: it is not.
    """
    if not alike(value, default):
        raise UserError(f"--set {name}: {value!r} is not of the kind of {default!r}")
    return value


def alike(value: Any, default: Any) -> bool:
    """Whether a value is of a default's kind, each part of a tuple by itself; whole numbers are floats, NaN is none."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) == len(default) and all(map(alike, value, default))
    if isinstance(default, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(default)
