"""The methods: each joins an encoder with its own way to masks, behind one interface.

`SegmentationNetwork.forward` gives an `Output`; training reads its losses' inputs there, inference the logits
and where the model looked. A method knows nothing of files, volumes or optimisers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.errors import UserError
from pgpsam.network.backbones import build_backbone
from pgpsam.network.backbones.tiny_vit import LayerNorm2d
from pgpsam.network.cfm import CFM
from pgpsam.network.context import Context
from pgpsam.network.decoder import MaskDecoder
from pgpsam.network.features import Features
from pgpsam.network.lora import add_lora
from pgpsam.network.ppg import PPG
from pgpsam.network.ppr import PPR
from pgpsam.network.prototypes import Prototypes


@dataclass(frozen=True)
class Output:
    """What a method says of a batch of slices.

    Attributes:
        logits: [B, K, H, W], float32, background at index 0.
        coarse: logits of earlier passes on the token grid, [B, K, h, w] each; all of them are supervised.
        attention: logits over positions of what the prompts attend to, [B, K, h, w], or None.
    """

    logits: Tensor
    coarse: tuple[Tensor, ...] = ()
    attention: Tensor | None = None


@dataclass(frozen=True)
class PGPSettings:
    """PGP-SAM. Defaults are what we ship; `published` gives the paper's values where they differ."""

    lora_rank: int = 4
    lora_alpha: float = 4.0
    lora_stages: str = r"stages\.3.*|blocks.*"
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
        for name, (good, expected) in limits.items():
            if not good:
                raise UserError(f"setting {name} of method pgp is {getattr(self, name)}", f"It must be {expected}.")


@dataclass(frozen=True)
class ProbeSettings:
    """A plain three-layer convolutional head on the frozen encoder: the baseline every method must beat."""

    hidden: int = 128


class SegmentationNetwork(nn.Module):
    """An encoder and a head.

    Args:
        backbone: an id of the registry in `backbones`.
        classes: K, background included.
        published: the backbone's published checkpoint, or None for random weights.
    """

    def __init__(self, backbone: str, classes: int, published: Mapping[str, Tensor] | None) -> None:
        super().__init__()
        self.encoder = build_backbone(backbone)
        if published is not None:
            self.encoder.load_published(published)
        self.classes = classes

    def forward(self, image: Tensor) -> Output:
        """image: [B, 3, H, W], 0..1, H and W multiples of `encoder.multiple`."""
        return self.decode(self.encoder(image), (image.shape[-2], image.shape[-1]))

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        """From an encoder's features to masks of `size`."""
        raise NotImplementedError

    def start_from_support(self, features: Tensor, labels: Tensor) -> None:
        """Start from annotated slices: neck features [n, C, h, w] and token labels [n, h, w]. Optional."""


class Probe(SegmentationNetwork):
    """Three convolutions on the neck of the frozen encoder."""

    def __init__(
        self, backbone: str, classes: int, settings: ProbeSettings, published: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__(backbone, classes, published)
        self.encoder.requires_grad_(False)
        hidden = settings.hidden
        self.head = nn.Sequential(
            nn.Conv2d(self.encoder.neck_channels, hidden, 3, padding=1),
            LayerNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2),
            LayerNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, classes, 1),
        )

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        return Output(upsample(self.head(features.neck), size))


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


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits to the canvas's size, once, in float32."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


METHODS: dict[str, tuple[type[SegmentationNetwork], type]] = {
    "pgp": (PGPSAM, PGPSettings),
    "probe": (Probe, ProbeSettings),
}


def make_settings(method: str, values: Mapping[str, Any]) -> Any:
    """The method's settings with `values` over the defaults.

    Raises:
        UserError: unknown method or setting, or a value of the wrong type.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'", f"Choose one of {', '.join(METHODS)}.")
    kind = METHODS[method][1]
    known = {f.name: f for f in fields(kind)}
    defaults = asdict(kind())
    for name, value in values.items():
        if name not in known:
            raise UserError(f"method {method} has no setting '{name}'", f"It has {', '.join(known)}.")
        if type(value) is not type(defaults[name]) and not (isinstance(defaults[name], float) and type(value) is int):
            raise UserError(f"setting {name} of method {method} is {value!r}, not a {type(defaults[name]).__name__}")
    return kind(**values)


def build_network(
    method: str,
    backbone: str,
    classes: int,
    settings: Mapping[str, Any],
    published: Mapping[str, Tensor] | None = None,
) -> SegmentationNetwork:
    """A network on its base weights (or on random ones, where `published` is None).

    Raises:
        UserError: unknown method, backbone or setting.
    """
    checked = make_settings(method, settings)
    return METHODS[method][0](backbone, classes, checked, published)  # type: ignore[call-arg]
