"""Prototype attention with a learned temperature: the one place where prototypes meet positions.

The published logits are bounded to about 0.25, which leaves a softmax over a thousand positions flat. Here
they are cosine similarities times a learned, positive temperature, so that attention can become as sharp as
it needs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineLogits(nn.Module):
    """logits[b, p, n] = exp(t) * cos(prototypes[b, p], features[b, n]), each minus the mean of its channels.

    Centred vectors make the cosine a plain layer normalisation and product, several times faster on a CPU than
    dividing by norms, and a shift that all channels share says nothing of an organ.

    Args:
        temperature: exp(t) at the start.
    """

    def __init__(self, temperature: float = 10.0) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, prototypes: Tensor, features: Tensor) -> Tensor:
        """prototypes [B, P, C] and features [B, n, C] -> [B, P, n], in float32."""
        channels = (features.shape[-1],)
        cosine = F.layer_norm(features, channels) @ F.layer_norm(prototypes, channels).transpose(1, 2) / channels[0]
        return self.log_temperature.exp() * cosine.float().transpose(1, 2)


def to_tokens(features: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h*w, C]."""
    return features.flatten(2).transpose(1, 2)
