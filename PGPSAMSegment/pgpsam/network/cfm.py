"""Contextual Feature Modulation: image-wide context along rows, columns and channels (PGP-SAM, eq. 1, 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.network.backbones.tiny_vit import LayerNorm2d


class CFM(nn.Module):
    """Project an encoder tap to C channels and modulate it by its own context.

    F_s = mean over height + mean over width (broadcast);
    spatial = F * sigmoid(phi_kx1(ReLU(LN(phi_1xk(F_s)))))                                     (eq. 1)
    channel = F * sigmoid(phi_1x1(ReLU(LN(phi_1x1(mean over positions of F)))))                (eq. 2)
    output = F + spatial + channel.  The strip convolutions phi_1xk, phi_kx1 are depthwise.

    Args:
        inputs: channels of the tap.
        channels: C.
        strip: k, the strip's length in tokens.
        modulate: False leaves only the projection (the ablation without CFM).
    """

    def __init__(self, inputs: int, channels: int = 256, strip: int = 5, modulate: bool = True) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(inputs, channels, 1), LayerNorm2d(channels))
        self.modulate = modulate
        if modulate:
            self.along = nn.Conv1d(channels, channels, strip, padding=strip // 2, groups=channels)
            self.across = nn.Sequential(
                LayerNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, (strip, 1), padding=(strip // 2, 0), groups=channels),
            )
            self.channel = nn.Sequential(
                nn.Conv2d(channels, channels, 1),
                LayerNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 1),
            )

    def forward(self, tap: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, C, h, w]."""
        features = self.project(tap)
        if not self.modulate:
            return features
        spatial = torch.sigmoid(self.across(self.strip_along_rows(features.mean(2), features.mean(3))))
        channel = torch.sigmoid(self.channel(features.mean((2, 3), keepdim=True)))
        return features * (1 + spatial + channel)

    def strip_along_rows(self, columns: Tensor, rows: Tensor) -> Tensor:
        """phi_1xk of F_s = columns + rows (broadcast), without making F_s: the strip sees a row's mean as a constant.

        Args:
            columns: mean over height, [B, C, w]. rows: mean over width, [B, C, h].

        Returns:
            [B, C, h, w].
        """
        inside = F.conv1d(
            columns.new_ones(1, *columns.shape[1:]),
            self.along.weight,
            None,
            1,
            self.along.padding,
            1,
            self.along.groups,
        )  # the strip's weights that lie on the image
        return self.along(columns)[:, :, None] + rows[..., None] * inside[:, :, None]
