"""Everything that decides a training besides its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pgpsam
from pgpsam.errors import UserError
from pgpsam.slices import Preparation
from pgpsam.training.augment import Augmentation


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a run besides its data.

    Attributes:
        method, backbone, settings: what is trained; `settings` over the method's defaults.
        iterations: optimiser steps. batch: slices a step.
        lr: peak learning rate; `published_lr`: that of the transformer in SAM's decoder.
        weight_decay, warmup: of AdamW (0.9, 0.999); iterations of linear warm-up, then a cosine to 1/1000.
        balance: (first, last) exponent by which rare classes count more in the cross-entropy, linear over the first
            part of the run. dice_weight: (first, last) share of Dice in the loss, likewise.
        final_weight: (first, last) share of the last pass in the loss, linear over the run.
        average: decay of the exponential moving average of the weights that is saved; 0 saves the last ones.
        empty_share: largest share of slices without organs among the annotated ones that are sampled.
        guessed_share: largest share of slices that a model labelled, where there are any.
        replay: how often a varied slice is used, see `batches`.
        canvas: (H, W) in training. augmentation: None for none.
        preparation: how slices become inputs.
        start_from_support: prototypes begin at what the annotated slices show, not at random, where they are not those
            of `start_from`.
        start_from: a trained model with the same method whose weights are the start; see `takeover`.
        start_share: share of the start's weights in what is saved, their mean with the trained ones (Wortsman et al.,
            "Robust fine-tuning of zero-shot models", 2022); only where all weights were the start's.
        keep_encoder: the encoder stays as the start has it; what it makes of a view can then be used several times.
        keep_decoder: so do the weights of the decoder's transformer and hypernetworks, which are most of a model.
    """

    method: str = "pgp"
    backbone: str = "lite_medsam"
    settings: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 450
    batch: int = 4
    lr: float = 2e-3
    published_lr: float = 5e-4
    weight_decay: float = 0.1
    warmup: int = 40
    balance: tuple[float, float] = (0.5, 0.2)
    dice_weight: tuple[float, float] = (0.5, 0.8)
    final_weight: tuple[float, float] = (0.6, 0.98)
    average: float = 0.98
    empty_share: float = 0.15
    guessed_share: float = 0.5
    replay: int = 1
    canvas: tuple[int, int] = (168, 224)
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    preparation: Preparation = field(default_factory=Preparation)
    seed: int = 0
    start_from_support: bool = True
    start_from: str = ""
    start_share: float = 0.0
    keep_encoder: bool = False
    keep_decoder: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for what no run can be made of."""
        for name in ("iterations", "batch", "replay"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: a training needs at least one")
        for name in ("empty_share", "guessed_share", "average", "start_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0 and under 1")
        for name in ("lr", "published_lr", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")
        for name in ("balance", "dice_weight", "final_weight"):
            if not all(0 <= end <= 1 for end in getattr(self, name)):
                raise UserError(f"{name} is {list(getattr(self, name))}: both ends must be from 0 to 1")
        if min(self.canvas) < 1:
            raise UserError(f"canvas {self.canvas}: a side has at least one pixel")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: it must not be negative")


def describe(settings: TrainingSettings) -> dict[str, Any]:
    """The run's settings as JSON values, without what model.json says elsewhere."""
    values = asdict(replace(settings, settings={}))
    for key in ("settings", "method", "backbone", "preparation"):
        del values[key]
    return {**values, "code_version": pgpsam.__version__}
