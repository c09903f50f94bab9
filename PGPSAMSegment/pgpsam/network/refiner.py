"""Iterative residual refinement of masks, each class by itself and all with the same few weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Refiner(nn.Module):
    """logit_k + conv3x3(ReLU(conv3x3([logit_k, features]))), several times over; nothing at the start.

    The first convolution is split in two, so that its part over the features is computed once for all classes and
    rounds: 9,825 parameters at 32 features.

    Args:
        features: channels of the features beside the logits.
        hidden: channels inside.
    """

    def __init__(self, features: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.see = nn.Conv2d(features, hidden, 3, padding=1)
        self.mask = nn.Conv2d(1, hidden, 3, padding=1, bias=False)
        self.change = nn.Conv2d(hidden, 1, 3, padding=1)
        for value in self.change.parameters():
            nn.init.zeros_(value)

    def forward(self, logits: Tensor, features: Tensor, rounds: int) -> Tensor:
        """logits [B, K, H, W] and features [B, features, H, W] -> refined logits."""
        seen = self.see(features)[:, None]
        batch, classes = logits.shape[:2]
        for _ in range(rounds):
            hidden = F.relu(self.mask(logits.flatten(0, 1)[:, None]).unflatten(0, (batch, classes)) + seen)
            logits = logits + self.change(hidden.flatten(0, 1)).view_as(logits).to(logits.dtype)
        return logits
