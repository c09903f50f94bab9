"""PG-SAM: what is known of an organ in words guides where it is looked for in the image.

Text prior -> attention and prompts -> SAM's decoder on features of several levels -> iterative refinement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgpsam.network.attention import to_tokens
from pgpsam.network.backbones.tiny_vit import LayerNorm2d
from pgpsam.network.base import LoraSettings, Output, SegmentationNetwork, check_settings, upsample
from pgpsam.network.context import Context
from pgpsam.network.decoder import MaskDecoder
from pgpsam.network.descriptions import BACKGROUND, text_vectors
from pgpsam.network.features import Features
from pgpsam.network.lora import add_lora
from pgpsam.network.refiner import Refiner
from pgpsam.network.text_prior import TextPrior


@dataclass(frozen=True)
class PGSAMSettings(LoraSettings):
    """PG-SAM.

    Attributes:
        temperature: of the text's attention at the start.
        refinements: how often the masks are refined.
    """

    temperature: float = 16.0
    refinements: int = 2

    def __post_init__(self) -> None:
        limits = {
            "lora_rank": (self.lora_rank >= 0, "0 or more"),
            "temperature": (self.temperature > 0, "positive"),
            "refinements": (self.refinements >= 1, "1 or more"),
        }
        check_settings("pgsam", self, limits)


class PGSAM(SegmentationNetwork):
    """LoRA encoder -> neck and taps fused -> text prior -> decoder -> masks, refined.

    The text's attention over the positions is a first, coarse answer: it is supervised, added to the masks' logits and
    shown to the user; what it gathers prompts the decoder. At the start the masks follow it.
    """

    def __init__(
        self, backbone: str, classes: int, settings: PGSAMSettings, published: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__(backbone, classes, published)
        self.settings = settings
        channels = self.encoder.neck_channels
        self.prototypes = TextPrior(classes, channels, settings.temperature)
        self.levels = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(n, channels, 1), LayerNorm2d(channels)) for n in self.encoder.tap_channels]
        )
        self.fuse = Context(channels)
        self.decoder = MaskDecoder(classes, self.encoder.detail_channels, channels, self.encoder.reach)
        self.refiner = Refiner(channels // 8)
        if published is not None:
            self.decoder.load_published(published)
        add_lora(self.encoder, settings.lora_rank, settings.lora_alpha, settings.lora_stages)

    def start_from_names(self, names: Sequence[str]) -> None:
        self.prototypes.start_from_texts(text_vectors([BACKGROUND, *names]))

    def start_from_support(self, features: Tensor, labels: Tensor) -> None:
        self.prototypes.align(features, labels)

    def compared(self, features: Features) -> Tensor:
        """The neck, enriched by its context on several levels."""
        levels = torch.stack([level(tap) for level, tap in zip(self.levels, features.taps, strict=True)]).sum(0)
        return features.neck + self.fuse(features.neck + levels)

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        image = self.compared(features)
        attention, prompts = self.prototypes(to_tokens(image))
        attention = attention.unflatten(2, image.shape[-2:])
        class_tokens, image_tokens = self.decoder.tokens(image, None, prompts)
        coarse = self.decoder.class_map(class_tokens, image_tokens) + attention
        upscaled = self.decoder.upscale(image_tokens, features.details)
        masks = self.decoder.classify(class_tokens, upscaled).float()
        masks = masks + upsample(attention, (masks.shape[-2], masks.shape[-1]))
        refined = self.refiner(masks, upscaled, self.settings.refinements)
        return Output(upsample(refined, size), (attention, coarse), attention)
