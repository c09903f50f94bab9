"""What lies around a token: dilated convolutions on the token grid, the cheapest way to see 100 mm far."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.network.backbones.tiny_vit import LayerNorm2d


class Context(nn.Module):
    """What the surroundings add to the image embedding, nothing at the start: [B, C, h, w] -> [B, C, h, w].

    x = GELU(LN(conv3x3(F))), then x + GELU(LN(conv3x3 with dilation d)) for every d, then a 1x1 convolution that
    starts at zero. With it the prompts attend to the embedding enriched by its context, in the space where the
    prototypes began.

    Args:
        channels: C.
        width: channels inside.
        dilations: d, in tokens.
    """

    def __init__(self, channels: int, width: int = 128, dilations: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 3, padding=1)
        self.around = nn.ModuleList([nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in dilations])
        self.norms = nn.ModuleList([LayerNorm2d(width) for _ in range(len(dilations) + 1)])
        self.expand = nn.Conv2d(width, channels, 1)
        for value in self.expand.parameters():
            nn.init.zeros_(value)

    def forward(self, features: Tensor) -> Tensor:
        x = F.gelu(self.norms[0](self.reduce(features)))
        for conv, norm in zip(self.around, self.norms[1:], strict=True):
            x = x + F.gelu(norm(conv(x)))
        return self.expand(x)
