"""What every encoder gives: one type, so that the methods need not know which encoder they stand on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Features:
    """An encoder's output for a batch of slices on a grid of h x w tokens.

    Attributes:
        neck: F0, [B, 256, h, w].
        taps: (shallow, deep) features inside the encoder on the same grid, [B, C_i, h, w].
        details: finer features, finest first, [B, D_i, H_i, W_i]; empty where an encoder has none.
    """

    neck: Tensor
    taps: tuple[Tensor, Tensor]
    details: tuple[Tensor, ...] = ()
