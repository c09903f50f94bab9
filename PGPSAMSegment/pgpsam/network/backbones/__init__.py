"""Encoders behind one interface, by id.

Each has `stride`, `multiple` (a canvas's sides are multiples of it), `neck_channels`, `tap_channels`,
`detail_channels`, `reach` (how many tokens span SAM's position code), `forward(image [B, 3, H, W]) -> Features`,
`lower` and `upper` (its two parts, cut below the first adapted layer), and `load_published(state)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgpsam.errors import UserError
from pgpsam.models.weights import FROM_SCRATCH
from pgpsam.network.backbones.no_encoder import NoEncoder
from pgpsam.network.backbones.sam_vit import SamViT, vit_b, vit_h, vit_l
from pgpsam.network.backbones.tiny_vit import TinyViT

BACKBONES: dict[str, Callable[[], Any]] = {
    "lite_medsam": TinyViT,
    "vit_b": vit_b,
    "vit_l": vit_l,
    "vit_h": vit_h,
    "medsam": vit_b,  # the same architecture, other weights
    FROM_SCRATCH: NoEncoder,
}


def build_backbone(name: str) -> Any:
    """An encoder with random weights.

    Raises:
        UserError: unknown id.
    """
    return _builder(name)()


def canvas_multiple(name: str) -> int:
    """What a canvas's sides must be multiples of, in pixels, without making the encoder.

    Raises:
        UserError: unknown id.
    """
    build = _builder(name)
    kind = build if build in (TinyViT, NoEncoder) else SamViT
    return int(kind.multiple)


def _builder(name: str) -> Callable[[], Any]:
    if name not in BACKBONES:
        raise UserError(f"unknown backbone '{name}'", f"Choose one of {', '.join(BACKBONES)}.")
    return BACKBONES[name]
