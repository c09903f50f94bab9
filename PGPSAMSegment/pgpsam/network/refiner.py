"""Iterative residual refinement of masks, each class by itself and all with the same few weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IN_PLAY = 0.01  # without training, a class below this share everywhere in a batch is left as it is


class Refiner(nn.Module):
    """logit_k + conv3x3(ReLU(conv3x3([logit_k, features]))), several times over; nothing at the start.

    The first convolution is split in two, so that its part over the features is computed once for all classes and
    rounds: 9,825 parameters at 32 features. What is left for a class has one channel at one of its ends; as a product
    of pixels with the nine weights around them, and one class after the other, it stays in the cache.

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
        seen = self.see(features).permute(0, 2, 3, 1).flatten(0, 2)
        planes = list(logits.unbind(1))
        for index in range(len(planes)) if self.training else in_play(logits):
            for _ in range(rounds):
                planes[index] = planes[index] + self.residual(planes[index], seen).to(logits.dtype)
        return torch.stack(planes, 1)

    def residual(self, plane: Tensor, seen: Tensor) -> Tensor:
        """What is added to a class's logits [B, H, W].

        Args:
            seen: the first convolution's part over the features, [B * H * W, hidden].
        """
        mask, (change, bias) = self.mask.weight, self.change.parameters()
        hidden = F.relu(torch.addmm(seen, surroundings(plane.to(seen.dtype)), mask.flatten(1).t()))
        return gather(hidden @ change[0].flatten(1), plane.shape) + bias


def in_play(logits: Tensor) -> list[int]:
    """The classes that may win somewhere in a batch, [B, K, H, W]."""
    found: list[int] = (logits.softmax(1).amax((0, 2, 3)) >= IN_PLAY).nonzero().flatten().tolist()
    return found


def surroundings(plane: Tensor) -> Tensor:
    """The 3 x 3 values around every pixel, zeros outside: [B, H, W] -> [B * H * W, 9], row by row."""
    height, width = plane.shape[1:]
    padded = F.pad(plane, (1, 1, 1, 1))
    around = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(around, -1).flatten(0, 2)


def gather(parts: Tensor, shape: torch.Size) -> Tensor:
    """Sums up what every pixel gives to the 3 x 3 around it, seen from the receiver: [B * H * W, 9] -> [B, H, W]."""
    batch, height, width = shape
    padded = F.pad(parts.view(batch, height, width, 9), (0, 0, 1, 1, 1, 1))
    given = [padded[:, y : y + height, x : x + width, 3 * y + x] for y in range(3) for x in range(3)]
    return torch.stack(given).sum(0)
