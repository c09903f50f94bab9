"""A model's large tensors at half the size: whole numbers of 8 bits with a scale a row.

w ~ s q, with q in -127..127 and s = max |w| of the row / 127. A row is what makes one output: the last axis of a matrix
or of a stack of matrices, everything but the first axis of a convolution. Small tensors stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".row_scale"  # of the name under which a row's scales are stored
LEAST = 4096  # values
LEVELS = 127


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Large floating tensors as int8 of the same shape, with their scales beside them; the others unchanged.

    The scales are float32, of the tensor's shape with length 1 along what makes a row.
    """
    packed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if value.ndim < 2 or value.numel() < LEAST or not value.is_floating_point():
            packed[name] = value
            continue
        inner = (-1,) if value.ndim < 4 else tuple(range(1, value.ndim))
        scale = value.float().abs().amax(inner, keepdim=True) / LEVELS
        packed[name] = (value.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        packed[name + SCALE] = scale
    return packed


def expand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `compact` packed, in half precision as all stored weights; other tensors unchanged.

    Raises:
        ValueError: scales that do not fit their tensor, or belong to none.
    """
    scales = {name.removesuffix(SCALE): value for name, value in tensors.items() if name.endswith(SCALE)}
    values = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    for name, scale in scales.items():
        packed = values.get(name)
        if packed is None or packed.dtype != torch.int8 or scale.ndim != packed.ndim:
            raise ValueError(f"the scales of {name} belong to no packed tensor")
        try:
            values[name] = (packed.float() * scale).half()
        except RuntimeError as error:
            raise ValueError(f"the scales of {name} do not fit it") from error
        if values[name].shape != packed.shape:
            raise ValueError(f"the scales of {name} do not fit it")
    return values
