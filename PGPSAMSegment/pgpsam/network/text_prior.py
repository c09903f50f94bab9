"""Organs as vectors of their descriptions, brought into the space of the image's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgpsam.network.attention import CosineLogits
from pgpsam.network.descriptions import WIDTH

RIDGE = 0.1  # of the first alignment, beside text vectors whose values have a mean square of 1


class TextPrior(nn.Module):
    """From texts to prototypes, and from prototypes to where they are found and to prompts.

    prototypes P = W text; attention A = cosine logits of P over the positions; seen = MLP(softmax(A) features);
    gate g = sigmoid(G text); prompt = g * seen + (1 - g) * P.

    All that tells the classes apart here is their text, but for one bias each: when two descriptions change places,
    so do their classes' attention and prompts. The vectors are fine-tuned, as the published ones are, and so a
    trained model carries its own.

    Args:
        classes: K, background included.
        channels: C.
        temperature: of the cosine logits at the start.
    """

    def __init__(self, classes: int, channels: int, temperature: float) -> None:
        super().__init__()
        self.text = nn.Parameter(torch.randn(classes, WIDTH))
        self.project = nn.Linear(WIDTH, channels, bias=False)
        self.gate = nn.Linear(WIDTH, channels)
        self.logits = CosineLogits(temperature)
        self.class_bias = nn.Parameter(torch.zeros(classes, 1))
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens [B, n, C] -> (attention logits [B, K, n] in float32, prompts [B, K, C])."""
        prototypes = self.project(self.text).expand(len(tokens), -1, -1)
        gate = self.gate(self.text).sigmoid()
        attention = self.logits(prototypes, tokens) + self.class_bias
        seen = self.mlp(attention.softmax(-1).to(tokens.dtype) @ tokens)
        return attention, gate * seen + (1 - gate) * prototypes

    @torch.no_grad()
    def start_from_texts(self, vectors: Tensor) -> None:
        """Take the descriptions' vectors, [K, WIDTH], less what they share: that they all speak of organs on CT."""
        different = vectors - vectors.mean(0)
        self.text.copy_(different / different.square().mean().sqrt().clamp_min(1e-6))

    @torch.no_grad()
    def align(self, features: Tensor, labels: Tensor) -> None:
        """Choose W by ridge regression, so that the texts' prototypes begin at the classes' own mean features.

        Args:
            features: [n, C, h, w] of annotated slices. labels: [n, h, w], class index 0..K-1 a token.
        """
        tokens, flat = features.movedim(1, -1).flatten(0, 2).float(), labels.flatten()
        shown = flat.unique()
        means = torch.stack([tokens[flat == index].mean(0) for index in shown])  # [m, C]
        texts = self.text[shown].float()  # [m, WIDTH]
        alike = texts @ texts.T / WIDTH
        weights = torch.linalg.solve(alike + RIDGE * torch.eye(len(shown), device=alike.device), means) / WIDTH
        self.project.weight.copy_(weights.T @ texts)
