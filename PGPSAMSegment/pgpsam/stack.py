"""A volume's slices as one stack: what was said of each, on a coarse grid of fixed millimetres, and corrections back.

In the plane the grid covers the body box of `slices.Frame`, along z the whole volume. To the grid, neighbours are
averaged; from it, values are interpolated linearly. Along z both are matrices, so that training can take any part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pgpsam.slices import Frame, Preparation, scale_slices
from pgpsam.volume import Volume

GRID_MM = (4.0, 3.0, 3.0)  # (z, y, x)


def grid_shape(volume: Volume, frame: Frame) -> tuple[int, int, int]:
    """(Z, Y, X): how many cells of `GRID_MM` cover the volume's body box."""
    dx, dy, dz = volume.spacing
    y0, y1, x0, x1 = frame.box
    sides = (volume.shape[0] * dz, (y1 - y0) * dy, (x1 - x0) * dx)
    depth, height, width = (max(1, round(side / mm)) for side, mm in zip(sides, GRID_MM, strict=True))
    return depth, height, width


def in_plane(values: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, C, h, w] over the body box -> [n, C, *size] over the same, averaging where the cells are larger."""
    shrinks = size[0] < values.shape[-2]
    return F.interpolate(values.float(), size, mode="bilinear", antialias=shrinks, align_corners=False)


def tent_weights(places: Tensor, count: int, width: float = 1.0) -> Tensor:
    """Weights of linear interpolation between samples 0..count-1; of averaging, where `width` is more than 1.

    Args:
        places: where values are wanted, in samples, [n]; places beyond the ends take the end's value.
        width: half width of the weighting, in samples.

    Returns:
        [n, count]; rows sum to 1.
    """
    inside = places.clamp(0, count - 1)
    weights = (1 - (inside[:, None] - torch.arange(count)).abs() / width).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


def to_planes(slices: Tensor, places: Tensor, thickness: float) -> Tensor:
    """Slices [n, ...] -> grid planes [Z, ...].

    Args:
        places: the planes' places, in slices, [Z]. thickness: a plane's, in slices.
    """
    return torch.tensordot(tent_weights(places, len(slices), max(1.0, thickness)), slices, 1)


def view(shares: Tensor, image: Tensor, planes: int) -> Tensor:
    """What a volume refiner sees of a whole volume.

    Args:
        shares: of the classes, on the grid in the plane, [D, K, Y, X]. image: [D, Y, X].
        planes: Z, which cover the D slices.

    Returns:
        float32 [1, K + 1, Z, Y, X].
    """
    thickness = len(shares) / planes
    places = (torch.arange(planes) + 0.5) * thickness - 0.5
    seen = torch.cat((shares.float(), image[:, None].float()), 1)
    return to_planes(seen, places, thickness).transpose(0, 1)[None]


def slice_weights(depth: int, planes: int) -> Tensor:
    """How D slices lie between the Z grid planes that cover them: [D, Z]."""
    return tent_weights((torch.arange(depth) + 0.5) * planes / depth - 0.5, planes)


class Stack:
    """One volume's slices and what a network says of them.

    Args:
        volume: the CT. frame: its body box. preparation: of the network. classes: K.

    Attributes:
        shape: (Z, Y, X) of the grid.
        image: float16 [D, Y, X], 0..1, all slices on the grid in the plane.
        shares: of the classes, float16 [D, K, Y, X]; background where no slice was added.
    """

    def __init__(self, volume: Volume, frame: Frame, preparation: Preparation, classes: int) -> None:
        self.shape = grid_shape(volume, frame)
        self.depth, self.slice_mm = volume.shape[0], volume.spacing[2]
        coarse = replace(frame, size=self.shape[1:])
        self.image = scale_slices(volume, coarse, preparation, range(self.depth)).half()
        self.shares = torch.zeros(self.depth, classes, *self.shape[1:], dtype=torch.float16)
        self.shares[:, 0] = 1
        self.logits: dict[int, Tensor] = {}

    def add(self, z: int, logits: Tensor) -> None:
        """A slice's logits on the body box's pixels, [K, h, w]."""
        self.shares[z] = in_plane(logits.float().softmax(0)[None], self.shape[1:])[0].half().cpu()
        self.logits[z] = logits.half().cpu()

    def planes(self) -> Tensor:
        """What a volume refiner sees: the shares and the image, float32 [1, K + 1, Z, Y, X]."""
        return view(self.shares, self.image, self.shape[0])

    def correct(self, change: Tensor) -> Callable[[int], Tensor]:
        """Corrected logits of the slices that were added.

        Args:
            change: what a volume refiner says, [K, Z, Y, X].

        Returns:
            z -> [K, h, w], float32.
        """
        weights = slice_weights(self.depth, self.shape[0]).to(change.device)

        def corrected(z: int) -> Tensor:
            logits = self.logits[z].to(change.device).float()
            near = weights[z].nonzero()[:, 0]  # two planes at most
            own = torch.einsum("z,czhw->chw", weights[z][near], change[:, near])
            return logits + F.interpolate(own[None], logits.shape[-2:], mode="bilinear", align_corners=False)[0]

        return corrected
