"""Settings that are given by name over those of a recipe: `--set NAME=VALUE`, and the settings of a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pgpsam.errors import UserError
from pgpsam.network.methods import make_settings
from pgpsam.slices import Preparation
from pgpsam.training.augment import Augmentation
from pgpsam.training.finetune import TrainingSettings


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
        if name in preparation:
            preparation[name] = value
        elif name in Augmentation.__dataclass_fields__:
            if variations is None:
                raise UserError(f"--set {name}={value}: this run has no augmentation", "Leave it out.")
            value = tuple(value) if isinstance(value, list) else value
            variations = replace(variations, **{name: checked(name, value, getattr(variations, name))})
            run_values["augmentation"] = variations
        elif name == "augmentation":
            if value is not False:
                raise UserError("--set augmentation=false turns augmentation off; it has no other value")
            run_values[name] = variations = None
        elif name in TrainingSettings.__dataclass_fields__:
            run_values[name] = checked(
                name, tuple(value) if isinstance(value, list) else value, getattr(settings, name)
            )
        else:
            method[name] = value
    make_settings(settings.method, method)
    return replace(settings, **run_values, settings=method, preparation=Preparation.from_json(preparation))


def checked(name: str, value: Any, default: Any) -> Any:
    """The value, if it is of the default's kind.

    Raises:
        UserError: it is not.
    """
    alike = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
    if alike and isinstance(default, tuple):
        alike = len(value) == len(default) and all(isinstance(v, (int, float)) for v in value)
    if not alike:
        raise UserError(f"--set {name}: {value!r} is not of the kind of {default!r}")
    return value
