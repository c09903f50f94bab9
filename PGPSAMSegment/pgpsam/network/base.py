"""What every method is: an encoder and a head, behind one interface.

A method knows nothing of files, volumes or optimisers. Each lives in a file of its own; `methods` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.errors import UserError
from pgpsam.network.backbones import build_backbone
from pgpsam.network.features import Features


@dataclass(frozen=True)
class Distillation:
    """One pass that teaches another: weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)).

    Attributes:
        student, teacher: logits [B, K, h, w]; only the student learns.
        weight: lambda. temperature: T.
    """

    student: Tensor
    teacher: Tensor
    weight: float
    temperature: float


@dataclass(frozen=True)
class Output:
    """What a method says of a batch of slices.

    Attributes:
        logits: [B, K, H, W], float32, background at index 0.
        coarse: logits of earlier passes or coarser levels, [B, K, h, w], each of its own size between the token grid
            and the canvas; all of them are supervised.
        attention: logits over positions of what the prompts attend to, [B, K, h, w], or None.
        distillation: what an earlier pass learns from a later one, or None.
    """

    logits: Tensor
    coarse: tuple[Tensor, ...] = ()
    attention: Tensor | None = None
    distillation: Distillation | None = None


@dataclass(frozen=True)
class LoraSettings:
    """The settings of every method that adapts its encoder."""

    lora_rank: int = 4
    lora_alpha: float = 4.0
    lora_stages: str = r"stages\.[123].*|blocks.*"  # every attention of either kind of encoder


def check_settings(method: str, settings: Any, limits: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse settings that cannot work.

    Args:
        limits: a setting's name -> (whether its value is good, what it must be).

    Raises:
        UserError: naming the first setting that is not good.
    """
    for name, (good, expected) in limits.items():
        if not good:
            value = getattr(settings, name)
            raise UserError(f"setting {name} of method {method} is {value}", f"It must be {expected}.")


class SegmentationNetwork(nn.Module):
    """An encoder and a head.

    Args:
        backbone: an id of the registry in `backbones`.
        classes: K, background included.
        published: the backbone's published checkpoint, or None for random weights.

    Attributes:
        from_scratch: the method stands on no backbone: its `encoder` hands the image on.
        neck_only: `decode` reads nothing of the features but the neck.
    """

    from_scratch = False
    neck_only = False

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

    def compared(self, features: Features) -> Tensor:
        """What the prototypes, where there are any, are first compared with: [B, C, h, w]."""
        return features.neck

    def start_from_names(self, names: Sequence[str]) -> None:
        """Start from what the organs 1..K-1 are called. Optional."""

    def start_from_support(self, features: Tensor, labels: Tensor) -> None:
        """Start from what `compared` gives of annotated slices, [n, C, h, w], and token labels [n, h, w]. Optional."""


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits to the canvas's size, once, in float32."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
