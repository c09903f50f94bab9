"""PGP-SAM: prototypes find each organ in the image and prompt SAM's decoder, in two stages of refinement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pgpsam.network.base import LoraSettings, Output, SegmentationNetwork, check_settings, upsample
from pgpsam.network.cfm import CFM
from pgpsam.network.context import Context
from pgpsam.network.decoder import MaskDecoder
from pgpsam.network.features import Features
from pgpsam.network.lora import add_lora
from pgpsam.network.ppg import PPG
from pgpsam.network.ppr import PPR
from pgpsam.network.prototypes import Prototypes


@dataclass(frozen=True)
class PGPSettings(LoraSettings):
    """PGP-SAM. Defaults are what we ship."""

    alpha: int = 8
    nearest: int = 4
    strip: int = 5
    profiles: int = 16
    temperature: float = 16.0
    cfm: bool = True
    ppr: bool = True
    ppg: bool = True
    details: bool = True
    fuse: bool = True
    prior: bool = True

    def __post_init__(self) -> None:
        limits = {
            "lora_rank": (self.lora_rank >= 0, "0 or more"),
            "alpha": (self.alpha >= 1, "1 or more"),
            "nearest": (1 <= self.nearest <= self.alpha, "1 to alpha"),
            "strip": (self.strip >= 1 and self.strip % 2 == 1, "an odd number"),
            "profiles": (self.profiles >= 1, "1 or more"),
            "temperature": (self.temperature > 0, "positive"),
            "fuse": (self.fuse or self.ppg, "true where ppg is false, or the taps would reach nothing"),
        }
        check_settings("pgp", self, limits)


class PGPSAM(SegmentationNetwork):
    """PGP-SAM: encoder with LoRA -> first pass without masks -> two stages of (CFM -> PPR -> PPG -> decoder).

    Stages run deep to shallow. The first pass prompts with PPG on the neck feature and gives the class
    feature F_M (class tokens times image tokens); each stage refines the prototypes with the previous pass's
    F_M and prompts the shared decoder again. Only the last pass is upscaled to masks; F_M of every earlier
    pass is supervised, and so are the logits of every prompt's attention.
    """

    def __init__(
        self, backbone: str, classes: int, settings: PGPSettings, published: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__(backbone, classes, published)
        self.settings = settings
        channels = self.encoder.neck_channels
        self.prototypes = Prototypes(classes, channels, settings.alpha) if settings.ppg else None
        taps = self.encoder.tap_channels[::-1]
        self.cfm = nn.ModuleList([CFM(n, channels, settings.strip, settings.cfm) for n in taps])
        if settings.ppg:
            self.ppg = nn.ModuleList([PPG(classes, channels, settings.temperature) for _ in range(3)])
            if settings.ppr:
                self.ppr = nn.ModuleList(
                    [PPR(classes, channels, settings.nearest, settings.profiles, settings.temperature) for _ in taps]
                )
        self.fuse = nn.ModuleList([Context(channels) for _ in taps]) if settings.fuse else None
        self.decoder = MaskDecoder(
            classes, self.encoder.detail_channels if settings.details else (), channels, self.encoder.reach
        )
        if published is not None:
            self.decoder.load_published(published)
        add_lora(self.encoder, settings.lora_rank, settings.lora_alpha, settings.lora_stages)

    def start_from_support(self, features: Tensor, labels: Tensor) -> None:
        if self.prototypes is not None:
            self.prototypes.start_from(features, labels)

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        image = features.neck
        coarse, attention = [], None
        dense, sparse = None, None
        intra = inter = None
        if self.prototypes is not None:
            intra, inter = self.prototypes(len(image))
            dense, sparse, attention = self.ppg[0](image, intra, inter)
            coarse.append(attention)
        class_tokens, image_tokens = self.decoder.tokens(image, dense, sparse)
        for stage, tap in enumerate(features.taps[::-1]):
            class_map = self.decoder.class_map(class_tokens, image_tokens)
            if attention is not None and self.settings.prior:
                class_map = class_map + attention
            coarse.append(class_map)
            context = self.cfm[stage](tap)
            if self.fuse is not None:
                image = context = image + self.fuse[stage](image + context)
            if intra is not None and inter is not None:
                if self.settings.ppr:
                    intra, inter = self.ppr[stage](context, class_map.softmax(1), intra, inter)
                dense, sparse, attention = self.ppg[stage + 1](context, intra, inter)
                coarse.append(attention)
            class_tokens, image_tokens = self.decoder.tokens(image, dense, sparse)
        logits = upsample(self.decoder.masks(class_tokens, image_tokens, features.details), size)
        if attention is not None and self.settings.prior:
            logits = logits + upsample(attention, size)
        return Output(logits, tuple(coarse), attention)
