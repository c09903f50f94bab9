"""Prototype-based Prompt Generator: from prototypes to prompts for SAM's decoder (PGP-SAM, eq. 6 and 7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgpsam.network.attention import CosineLogits, to_tokens


class PPG(nn.Module):
    """Dense and sparse prompts for a batch of slices.

    P^_inter = FC([P_inter, P_inter P_intra^T / sqrt(C)]);
    D = MLP(softmax over prototypes(F_I P^_inter^T) P^_inter)             dense, one vector a position (eq. 6)
    S = MLP(softmax over positions(P_intra F_I^T) F_I)                    sparse, one token a class    (eq. 7)

    Args:
        classes: K, background included.
        channels: C.
        temperature: of both cosine logits at the start.
    """

    def __init__(self, classes: int, channels: int, temperature: float) -> None:
        super().__init__()
        self.relate = nn.Linear(channels + classes, channels)
        self.dense_logits = CosineLogits(temperature)
        self.dense = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.Conv2d(channels, channels, 1))
        for value in self.dense[-1].parameters():  # SAM's decoder first sees the image as it knows it
            nn.init.zeros_(value)
        self.sparse_logits = CosineLogits(temperature)
        # Tells classes apart when the attention is supervised; over positions it is constant and changes nothing.
        self.class_bias = nn.Parameter(torch.zeros(classes, 1))
        self.sparse = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, features: Tensor, intra: Tensor, inter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts from one set of features.

        Args:
            features: F_I, [B, C, h, w].
            intra: [B, K, C]. inter: [B, Q, C].

        Returns:
            (dense [B, C, h, w], sparse [B, K, C], logits of the sparse attention [B, K, h, w], whose softmax
            over positions is where the model looked for each class).
        """
        height, width = features.shape[-2:]
        tokens = to_tokens(features)
        related = self.relate(torch.cat((inter, inter @ intra.transpose(1, 2) / inter.shape[-1] ** 0.5), -1))
        mixture = self.dense_logits(related, tokens).softmax(1).to(tokens.dtype)
        dense = (mixture.transpose(1, 2) @ related).transpose(1, 2).unflatten(2, (height, width))
        where = self.sparse_logits(intra, tokens) + self.class_bias
        seen = where.softmax(-1).to(tokens.dtype) @ tokens
        return self.dense(dense), self.sparse(seen), where.unflatten(2, (height, width))
