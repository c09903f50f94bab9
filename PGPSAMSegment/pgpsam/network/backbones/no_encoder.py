"""The backbone of methods that have none: the image goes on as it came. No weights, no tokens."""

from __future__ import annotations

from torch import Tensor, nn

from pgpsam.network.features import Features


class NoEncoder(nn.Module):
    """Input [B, 3, H, W] of any size; features: the image as the neck, with empty taps."""

    stride = 1
    multiple = 1
    reach = 1024.0
    neck_channels = 3
    tap_channels = (0, 0)
    detail_channels: tuple[int, ...] = ()

    def forward(self, image: Tensor) -> Features:
        return Features(neck=image, taps=(image[:, :0], image[:, :0]))

    def lower(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image,)

    def upper(self, parts: tuple[Tensor, ...]) -> Features:
        return self(parts[0])
