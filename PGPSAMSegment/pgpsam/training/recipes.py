"""How each method is trained by default: the figures that experiments decided (Training/EXPERIMENTS.md)."""

from __future__ import annotations

from pgpsam.training.finetune import TrainingSettings


def recipe(method: str) -> TrainingSettings:
    """The default settings of a run of a method."""
    if method == "probe":
        # The published floor: a frozen encoder, no augmentation, 600 steps of 8 slices.
        return TrainingSettings(
            method="probe", iterations=600, batch=8, canvas=(224, 280), augmentation=None, average=0.0
        )
    return TrainingSettings(method=method)
