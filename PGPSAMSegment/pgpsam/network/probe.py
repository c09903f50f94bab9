"""The probe: a plain convolutional head on the frozen encoder, the baseline that every method must beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from pgpsam.network.backbones.tiny_vit import LayerNorm2d
from pgpsam.network.base import Output, SegmentationNetwork, check_settings, upsample
from pgpsam.network.features import Features


@dataclass(frozen=True)
class ProbeSettings:
    """The baseline."""

    hidden: int = 128

    def __post_init__(self) -> None:
        check_settings("probe", self, {"hidden": (self.hidden >= 1, "1 or more")})


class Probe(SegmentationNetwork):
    """Three convolutions on the neck of the frozen encoder."""

    neck_only = True

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
