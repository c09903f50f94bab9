"""PTSAM: SAM frozen whole, with a few learned tokens in the place of a user's prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgpsam.network.base import Output, SegmentationNetwork, check_settings, upsample
from pgpsam.network.encoder_tokens import add_tokens
from pgpsam.network.features import Features
from pgpsam.network.sam_decoder import SamDecoder


@dataclass(frozen=True)
class PTSAMSettings:
    """PTSAM.

    Attributes:
        tokens: learned prompt tokens an organ.
        encoder_tokens: learned tokens in every attention layer of the encoder; 0 leaves it as it is, published 8.
    """

    tokens: int = 8
    encoder_tokens: int = 0

    def __post_init__(self) -> None:
        limits = {
            "tokens": (self.tokens >= 1, "1 or more"),
            "encoder_tokens": (self.encoder_tokens >= 0, "0 or more"),
        }
        check_settings("ptsam", self, limits)


class PTSAM(SegmentationNetwork):
    """8 tokens of 256 values an organ, decoded by SAM's own decoder, each organ by itself; background is logit 0."""

    neck_only = True

    def __init__(
        self, backbone: str, classes: int, settings: PTSAMSettings, published: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__(backbone, classes, published)
        self.encoder.requires_grad_(False)
        add_tokens(self.encoder, settings.encoder_tokens)
        channels = self.encoder.neck_channels
        self.decoder = SamDecoder(channels, self.encoder.reach)
        if published is not None:
            self.decoder.load_published(published)
        self.prompts = nn.Parameter(torch.randn(classes - 1, settings.tokens, channels))

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        masks = self.decoder(features.neck, self.prompts)
        return Output(upsample(torch.cat((torch.zeros_like(masks[:, :1]), masks), 1), size))
