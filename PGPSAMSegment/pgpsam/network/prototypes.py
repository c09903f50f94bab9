"""The learned prototypes and their start: at random, or from the features of the annotated slices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """P_intra [K, C], one a class, and P_inter [alpha*K, C], shared between the classes.

    Args:
        classes: K, background included.
        channels: C.
        alpha: inter-class prototypes per class (published: 8).
    """

    def __init__(self, classes: int, channels: int, alpha: int) -> None:
        super().__init__()
        self.intra = nn.Parameter(torch.randn(classes, channels))
        self.inter = nn.Parameter(torch.randn(alpha * classes, channels))

    def forward(self, batch: int) -> tuple[Tensor, Tensor]:
        """(P_intra [B, K, C], P_inter [B, Q, C]) for a batch."""
        return self.intra.expand(batch, -1, -1), self.inter.expand(batch, -1, -1)

    @torch.no_grad()
    def start_from(self, features: Tensor, labels: Tensor, noise: float = 0.05) -> None:
        """Take class means and samples of the support set as the start.

        Args:
            features: [n, C, h, w] of annotated slices.
            labels: [n, h, w], class index 0..K-1 a token.
            noise: standard deviation added to the samples, in units of the features' own.
        """
        tokens = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1]).float()
        flat = labels.reshape(-1)
        classes, share = len(self.intra), len(self.inter) // len(self.intra)
        for index in range(classes):
            mine = tokens[flat == index]
            if not len(mine):
                continue
            self.intra[index] = mine.mean(0)
            picked = mine[torch.randint(len(mine), (share,))]
            self.inter[index * share : (index + 1) * share] = picked + noise * mine.std() * torch.randn_like(picked)


def coarse_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """[B, H, W] class indices -> [B, height, width] by nearest neighbour."""
    return F.interpolate(labels[:, None].float(), (height, width), mode="nearest-exact")[:, 0].long()
