"""The methods: each joins an encoder with its own way to masks, behind one interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import isfinite
from typing import Any

from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.models.weights import FROM_SCRATCH
from pgpsam.network.base import Output, SegmentationNetwork
from pgpsam.network.descriptions import are_described
from pgpsam.network.pgp import PGPSAM, PGPSettings
from pgpsam.network.pgsam import PGSAM, PGSAMSettings
from pgpsam.network.probe import Probe, ProbeSettings
from pgpsam.network.ptsam import PTSAM, PTSAMSettings
from pgpsam.network.samsp import SAMSP, SAMSPSettings
from pgpsam.network.unet import UNet, UNetSettings

__all__ = ["METHODS", "Output", "SegmentationNetwork", "build_network", "default_method", "make_settings"]

METHODS: dict[str, tuple[type[SegmentationNetwork], type]] = {
    "pgp": (PGPSAM, PGPSettings),
    "ptsam": (PTSAM, PTSAMSettings),
    "samsp": (SAMSP, SAMSPSettings),
    "pgsam": (PGSAM, PGSAMSettings),
    "probe": (Probe, ProbeSettings),
    "unet": (UNet, UNetSettings),
}


def default_method(organs: Sequence[str]) -> str:
    """The most accurate method (Training/EXPERIMENTS.md) that can learn these organs.

    `pgsam` starts from what is written of an organ; organs of which nothing is written are learned by `pgp`.
    """
    return "pgsam" if are_described(organs) else "pgp"


def make_settings(method: str, values: Mapping[str, Any]) -> Any:
    """The method's settings with `values` over the defaults.

    Raises:
        UserError: unknown method or setting, or a value of the wrong type.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'", f"Choose one of {', '.join(METHODS)}.")
    kind = METHODS[method][1]
    known = {f.name: f for f in fields(kind)}
    defaults = asdict(kind())
    for name, value in values.items():
        if name not in known:
            raise UserError(f"method {method} has no setting '{name}'", f"It has {', '.join(known)}.")
        if type(value) is not type(defaults[name]) and not (isinstance(defaults[name], float) and type(value) is int):
            raise UserError(f"setting {name} of method {method} is {value!r}, not a {type(defaults[name]).__name__}")
        if isinstance(value, float) and not isfinite(value):
            raise UserError(f"setting {name} of method {method} is {value}, which is no number")
    return kind(**values)


def build_network(
    method: str,
    backbone: str,
    classes: int,
    settings: Mapping[str, Any],
    published: Mapping[str, Tensor] | None = None,
) -> SegmentationNetwork:
    """A network on its base weights (or on random ones, where `published` is None).

    Raises:
        UserError: unknown method, backbone or setting, or a backbone that the method cannot use.
    """
    checked = make_settings(method, settings)
    kind = METHODS[method][0]
    if kind.from_scratch and backbone != FROM_SCRATCH:
        raise UserError(f"method {method} starts from scratch, without {backbone}", f"Use the backbone {FROM_SCRATCH}.")
    if backbone == FROM_SCRATCH and not kind.from_scratch:
        raise UserError(f"method {method} stands on a backbone, and '{FROM_SCRATCH}' is none", "Name one that is.")
    return kind(backbone, classes, checked, published)  # type: ignore[call-arg]
