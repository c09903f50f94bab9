"""Small networks and slices for the tests of the methods."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pgpsam.models.weights import FROM_SCRATCH
from pgpsam.network.backbones.sam_vit import SamViT
from pgpsam.network.methods import METHODS, Output, SegmentationNetwork, build_network
from pgpsam.network.prototypes import coarse_labels

CLASSES = 3
CANVASES = {"lite_medsam": (56, 112), "small_vit": (112, 224), FROM_SCRATCH: (64, 112)}
"""A canvas of 14 x 28 tokens, and one of 7 x 14, by backbone; and one for a network without tokens."""

ON_BACKBONES = [
    (method, backbone)
    for method, (kind, _) in METHODS.items()
    for backbone in CANVASES
    if kind.from_scratch == (backbone == FROM_SCRATCH)
]
"""Every method on every backbone that it can stand on."""


def small_vit() -> SamViT:
    """SAM's ViT in small."""
    return SamViT(64, 5, 2, (0, 1, 3, 4))


def quickest(method: str) -> str:
    """The backbone of published weights that a method is tested on, where one is enough."""
    return FROM_SCRATCH if METHODS[method][0].from_scratch else "lite_medsam"


def build(
    method: str,
    backbone: str,
    published: dict[str, Tensor],
    *,
    seed: int = 0,
    classes: int = CLASSES,
    **settings: Any,
) -> SegmentationNetwork:
    """A network on LiteMedSAM's weights, or on random ones of the small ViT; what is new in it is random."""
    torch.manual_seed(seed)
    return build_network(method, backbone, classes, settings, published if backbone == "lite_medsam" else None)


def nudge(network: SegmentationNetwork, size: float) -> None:
    """Move every trainable parameter a little, so that none stands where it was put (LoRA's B at 0, say)."""
    with torch.no_grad():
        for value in network.parameters():
            if value.requires_grad:
                value.add_(size * torch.randn_like(value))


def slices(batch: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] of CLASSES - 1 bright discs on noise, and their labels [B, H, W]."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = torch.zeros(batch, height, width, dtype=torch.long)
    for index in range(batch):
        for label in range(1, CLASSES):
            centre = (0.5 + 0.1 * index) * height, label * width / CLASSES
            labels[index][(rows - centre[0]).hypot(columns - centre[1]) < height / 4] = label
    noise = 0.2 * torch.rand(batch, 3, height, width, generator=generator)
    return noise + 0.8 * labels[:, None] / CLASSES, labels


def loss_of(output: Output, labels: Tensor) -> Tensor:
    """Cross-entropy on the masks and on every coarse pass."""
    total = F.cross_entropy(output.logits, labels)
    for logits in output.coarse:
        total = total + F.cross_entropy(logits, coarse_labels(labels, *logits.shape[-2:]))
    return total


def unlearning(network: SegmentationNetwork, canvas: tuple[int, int]) -> set[str]:
    """Names of the trainable parameters without a gradient."""
    nudge(network, 0.02)
    image, labels = slices(2, *canvas)
    loss_of(network(image.to(torch.float64)), labels).backward()
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return {n for n, value in trained.items() if value.grad is None or value.grad.norm() < 1e-13}
