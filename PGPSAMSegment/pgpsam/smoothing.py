"""Class scores smoothed along z: organs go on from slice to slice, and a network that sees single slices forgets it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

REACH = 2.0  # standard deviations to either side


class AlongZ:
    """A Gaussian along z over slices that arrive one after the other.

    Args:
        sigma_mm: its standard deviation; 0 passes the slices on as they are.
        spacing_mm: between slices.
    """

    def __init__(self, sigma_mm: float, spacing_mm: float) -> None:
        self.radius = math.floor(REACH * sigma_mm / spacing_mm)
        steps = range(self.radius + 1)
        self.weights = [math.exp(-0.5 * (step * spacing_mm / sigma_mm) ** 2) if step else 1.0 for step in steps]
        self.waiting: list[int] = []
        self.near: dict[int, Tensor] = {}

    def add(self, z: int, scores: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Take the next slice and give those whose neighbours have all been seen.

        Args:
            z: index, larger than those before; a gap is a slice without scores, which has no say.
            scores: [...] of any shape, the same for all slices.

        Yields:
            (z, the weighted mean of its neighbours' scores and its own).
        """
        self.near[z] = scores
        self.waiting.append(z)
        yield from self._ready(z - self.radius)

    def finish(self) -> Iterator[tuple[int, Tensor]]:
        """The slices that were still waiting for neighbours."""
        if self.waiting:
            yield from self._ready(self.waiting[-1])

    def _ready(self, last: int) -> Iterator[tuple[int, Tensor]]:
        while self.waiting and self.waiting[0] <= last:
            z = self.waiting.pop(0)
            around = [(self.weights[abs(n - z)], s) for n, s in self.near.items() if abs(n - z) <= self.radius]
            whole = sum(weight for weight, _ in around)
            yield (
                z,
                sum((weight / whole * scores for weight, scores in around[1:]), around[0][0] / whole * around[0][1]),
            )
            self.near = {n: s for n, s in self.near.items() if n > z - self.radius}
