"""How each method is trained by default: the figures that experiments decided (Training/EXPERIMENTS.md)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from math import lcm

import torch

from pgpsam.labels import canonical_name
from pgpsam.models.weights import FROM_SCRATCH
from pgpsam.network.backbones import canvas_multiple
from pgpsam.training.augment import Augmentation
from pgpsam.training.settings import TrainingSettings

GPU_ITERATIONS = 1700
LONG = 1000  # iterations from which a run is a long one
ONWARDS, ONWARDS_NEW = 100, 200  # iterations from a trained model and a few slices; with organs that it does not know


def recipe(method: str, iterations: int | None = None) -> TrainingSettings:
    """The default settings of a run of a method.

    Args:
        iterations: optimiser steps; by default as many as two CPU cores do in a time that one waits for.
    """
    settings = _of_method(method)
    if iterations is None:
        return settings
    if iterations < LONG or method not in ("pgp", "pgsam"):
        return replace(settings, iterations=iterations)
    # Time enough to learn rare organs without much weight: nearly equal classes and half Dice at the end keep organs
    # as thin as they are. In a short run both cost more than they give (Training/EXPERIMENTS.md).
    return replace(
        settings,
        iterations=iterations,
        balance=(0.5, 0.1),
        dice_weight=(0.5, 0.5),
        empty_share=0.3,
        average=0.998,
        augmentation=Augmentation(coarse=0.25, cropped=0.15),
    )


def going_on(settings: TrainingSettings, known: Collection[str], organs: Collection[str]) -> TrainingSettings:
    """The same for a run that starts from a trained model.

    Where the model knows all organs, a few slices shall not make it forget what it has learned from many: a quarter of
    the rates, the loss of a long run, and the mean with the weights that it started from. New organs need full rates.
    A short run leaves the encoder as it is, which halves the time and costs next to nothing.

    Args:
        known: names of the organs of the model to start from. organs: of the run.
    """
    theirs, ours = ([canonical_name(name) for name in names] for names in (known, organs))
    if settings.method == "pgp" and ours != theirs:  # some of it mixes the organs, and begins anew
        return settings
    if settings.iterations < LONG:
        settings = replace(settings, keep_encoder=True, replay=4)
    if not set(ours) <= set(theirs):
        return settings
    return replace(
        settings,
        lr=settings.lr / 4,
        published_lr=settings.published_lr / 4,
        balance=(0.1, 0.1),
        dice_weight=(0.5, 0.5),
        start_share=0.5,
    )


def fitted(settings: TrainingSettings) -> TrainingSettings:
    """The same on canvases that the backbone takes: their sides rounded up, in training and afterwards.

    Raises:
        UserError: unknown backbone.
    """
    multiple = canvas_multiple(settings.backbone)
    height, width = (-(-side // multiple) * multiple for side in settings.canvas)
    preparation = replace(settings.preparation, multiple=lcm(settings.preparation.multiple, multiple))
    return replace(settings, canvas=(height, width), preparation=preparation)


def usual_iterations(method: str, device: torch.device) -> int:
    """How long a run is where nothing is said: minutes on either kind of machine; a GPU does more in them."""
    return GPU_ITERATIONS if device.type == "cuda" and method in ("pgp", "pgsam") else recipe(method).iterations


def _of_method(method: str) -> TrainingSettings:
    if method == "probe":
        # The published floor: a frozen encoder, no augmentation, 600 steps of 8 slices.
        return TrainingSettings(
            method="probe", iterations=600, batch=8, canvas=(224, 280), augmentation=None, average=0.0
        )
    if method == "ptsam":
        # Two thousand values an organ: they need, and stand, a high rate; a step decodes every organ by itself. The
        # encoder learns nothing, so that what it made of a slice is worth using again.
        return TrainingSettings(method="ptsam", iterations=600, batch=2, lr=1e-2, weight_decay=0.0, replay=4)
    if method == "samsp":
        # Both passes weigh the same, as published; the second decodes every organ that the first one found.
        return TrainingSettings(method="samsp", iterations=500, batch=2, final_weight=(0.5, 0.5))
    if method == "unet":
        # nnU-Net gives the finest level half of the loss. Replaying spares only the augmentation.
        return TrainingSettings(
            method="unet", backbone=FROM_SCRATCH, iterations=2000, batch=8, lr=1e-3, final_weight=(0.5, 0.5), replay=2
        )
    return TrainingSettings(method=method)


COARSER = 4 / 3  # pixel size of a coarse stage
CANVAS_STEP = 28


def coarse_stage(settings: TrainingSettings) -> TrainingSettings:
    """The same at larger pixels, on a canvas that shows as much: twice the slices in the same time."""
    height, width = (-(-round(side / COARSER) // CANVAS_STEP) * CANVAS_STEP for side in settings.canvas)
    coarse = replace(
        settings,
        canvas=(height, width),
        average=max(settings.average, 0.99) if settings.average else 0.0,
        preparation=replace(settings.preparation, spacing_mm=round(settings.preparation.spacing_mm * COARSER, 3)),
    )
    return fitted(coarse)
