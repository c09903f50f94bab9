"""The course of a training over its iterations, of a network as of a volume refiner: news, rate, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """One step's news. Losses are running means."""

    iteration: int
    iterations: int
    loss: float
    seconds: float
    eta_seconds: float


def learning_rate(iteration: int, iterations: int, warmup: int) -> float:
    """Factor on the peak rate: linear warm-up, then a cosine to almost nothing."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    done = (iteration - warmup) / max(1, iterations - warmup)
    return max(1e-3, 0.5 * (1 + math.cos(math.pi * done)))


class Average:
    """Exponential moving average of the trained tensors, with a warm-up so that the start is forgotten."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = {name: value.clone() for name, value in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for name, value in tensors.items():
            self.tensors[name].lerp_(value, 1 - decay)

    def restore(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint held of `steps` and `tensors`."""
        self.steps = steps
        for name, value in tensors.items():
            self.tensors[name].copy_(value)
