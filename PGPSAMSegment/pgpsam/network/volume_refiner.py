"""What a method says slice by slice, seen as one volume: a small 3D network that corrects it.

A slice alone cannot tell a stomach from a colon, or where an aorta ends; its neighbours can. The network looks at all
slices' answers and at the image on a coarse grid and adds a correction to the slices' logits, which keep their own
resolution. It starts at no correction, and knows nothing of the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.errors import UserError

FLOOR = 1e-4  # a share below counts as this one: its logarithm says no more
CHANNELS = (16, 32, 64, 64, 64)
MARGIN = 4  # cells of air around a volume
LEAST = 16  # cells that four halvings leave one of
WINDOW = 64  # planes that are corrected at once: memory stays the same for the longest scan


class VolumeRefiner(nn.Module):
    """log p -> log p + U(p, image), U a 3D U-Net whose last layer starts at zero.

    Args:
        classes: K, background included.
        channels: of the U-Net's five levels, from the full resolution down.
    """

    def __init__(self, classes: int, channels: Sequence[int] = CHANNELS) -> None:
        from monai.networks.nets import BasicUNet  # not at the top: the first slice must not wait for it

        super().__init__()
        self.channels = tuple(channels)
        self.network = BasicUNet(
            spatial_dims=3,
            in_channels=classes + 1,
            out_channels=classes,
            features=(*channels, channels[0]),
            norm=("batch", {"affine": True}),
            act=("LeakyReLU", {"inplace": True, "negative_slope": 0.01}),
        )
        for deep in ("down_3", "down_4", "upcat_4"):
            setattr(self.network, deep, InFloat32(getattr(self.network, deep)))
        nn.init.zeros_(self.network.final_conv.weight)
        nn.init.zeros_(self.network.final_conv.bias)
        self.to(memory_format=torch.channels_last_3d)

    def forward(self, seen: Tensor) -> Tensor:
        """The correction of the logits.

        Args:
            seen: shares of the classes and the image, both 0..1, [B, K + 1, z, y, x].

        Returns:
            [B, K, z, y, x], float32.
        """
        return self.network(seen.contiguous(memory_format=torch.channels_last_3d)).float()

    def over(self, seen: Tensor) -> Tensor:
        """The correction of a whole volume, in windows along z: [1, K + 1, Z, Y, X] -> [K, Z, Y, X].

        Around the volume it sees what it saw in training: air, which is background.
        """
        from monai.inferers import sliding_window_inference

        size = seen.shape[2:]
        sides = [max(MARGIN, -(-(LEAST - n) // 2)) for n in size]
        border = [side for axis in (2, 1, 0) for side in (sides[axis], sides[axis])]
        padded = torch.cat((F.pad(seen[:, :1], border, value=1.0), F.pad(seen[:, 1:], border)), 1)
        window = (min(padded.shape[2], WINDOW), *padded.shape[3:])
        change = sliding_window_inference(padded, window, 1, self, overlap=(0.5, 0.0, 0.0), mode="gaussian")[0]
        inside = [slice(side, side + n) for side, n in zip(sides, size, strict=True)]
        return change[:, inside[0], inside[1], inside[2]]


class InFloat32(nn.Module):
    """A module outside autocast: on CPUs, bfloat16 weight gradients of a 3D convolution over few voxels are garbage."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *parts: Tensor) -> Tensor:
        with torch.autocast(parts[0].device.type, enabled=False):
            return self.module(*(part.float() for part in parts))


def log_shares(shares: Tensor) -> Tensor:
    """Shares 0..1 -> logits whose softmax they are, but for the floor."""
    return shares.float().clamp_min(FLOOR).log()


def refiner_tensors(refiner: VolumeRefiner) -> dict[str, Tensor]:
    """What a model's file holds of it: convolutions in half precision, vectors and statistics as they are."""
    state = {k: v for k, v in refiner.state_dict().items() if not k.endswith("num_batches_tracked")}
    return {name: value.half() if value.ndim > 1 else value for name, value in state.items()}


def restore_refiner(
    classes: int, description: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> VolumeRefiner:
    """A trained refiner.

    Args:
        classes: K. description: of model.json. tensors: under the network's own names.
        name: what error messages call the model.

    Raises:
        UserError: tensors that do not fit the description.
    """
    channels = description.get("channels")
    if not (
        isinstance(channels, list) and len(channels) == 5 and all(type(c) is int and 0 < c <= 512 for c in channels)
    ):
        raise UserError(f"model {name}: its refiner has the channels {channels}, not five numbers")
    refiner = VolumeRefiner(classes, channels)
    expected = {k: v.shape for k, v in refiner.state_dict().items() if not k.endswith("num_batches_tracked")}
    if {k: v.shape for k, v in tensors.items()} != expected:
        raise UserError(f"model {name}: its refiner's tensors do not fit its {classes} classes or its channels")
    refiner.load_state_dict(dict(tensors), strict=False)
    return refiner
