"""SAM-SP: SAM prompts itself. A first pass without prompts gives each organ's box, a second pass uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.network.base import Distillation, LoraSettings, Output, SegmentationNetwork, check_settings, upsample
from pgpsam.network.decoder import MaskDecoder
from pgpsam.network.features import Features
from pgpsam.network.lora import add_lora


@dataclass(frozen=True)
class SAMSPSettings(LoraSettings):
    """SAM-SP.

    Attributes:
        distil_weight, distil_temperature: lambda and T with which the second pass teaches the first; unpublished.
    """

    distil_weight: float = 0.5
    distil_temperature: float = 2.0

    def __post_init__(self) -> None:
        limits = {
            "lora_rank": (self.lora_rank >= 0, "0 or more"),
            "distil_weight": (self.distil_weight >= 0, "0 or more"),
            "distil_temperature": (self.distil_temperature > 0, "positive"),
        }
        check_settings("samsp", self, limits)


class PromptEncoder(nn.Module):
    """What SAM's prompt encoder knows of boxes: a learned vector for either corner, one for "no mask"."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.corners = nn.Parameter(torch.randn(2, channels))  # top left, bottom right
        self.no_mask = nn.Parameter(torch.randn(channels))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take over a SAM checkpoint's `prompt_encoder.*`."""
        with torch.no_grad():
            for corner, key in zip(self.corners, ("2", "3"), strict=True):
                corner.copy_(state[f"prompt_encoder.point_embeddings.{key}.weight"][0])
            self.no_mask.copy_(state["prompt_encoder.no_mask_embed.weight"][0])


class SAMSP(SegmentationNetwork):
    """LoRA encoder -> decoder without a prompt -> a box around each organ's mask -> the same decoder with that box.

    The first pass decodes all classes at once; the second one each organ that the first found by itself, with its
    own box. An organ that the first pass did not find has no box and keeps its first logits, as has the background.
    """

    neck_only = True

    def __init__(
        self, backbone: str, classes: int, settings: SAMSPSettings, published: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__(backbone, classes, published)
        self.settings = settings
        channels = self.encoder.neck_channels
        self.prompt_encoder = PromptEncoder(channels)
        self.decoder = MaskDecoder(classes, (), channels, self.encoder.reach)
        for value in (self.decoder.class_scale, self.decoder.coarse_classes, self.decoder.coarse_bias):
            value.requires_grad_(False)  # of the coarse class maps, which this method does not use
        if published is not None:
            self.prompt_encoder.load_published(published)
            self.decoder.load_published(published)
        add_lora(self.encoder, settings.lora_rank, settings.lora_alpha, settings.lora_stages)

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        image = features.neck + self.prompt_encoder.no_mask[:, None, None]
        class_tokens, image_tokens = self.decoder.tokens(image, None, None)
        first = last = self.decoder.masks(class_tokens, image_tokens).float()
        boxes, found = mask_boxes(first)
        items, classes = found.nonzero(as_tuple=True)
        if len(items):
            corners = self.corner_tokens(boxes[items, classes], image)
            class_tokens, image_tokens = self.decoder.tokens(image[items], None, corners)
            masks = self.decoder.classify(class_tokens, self.decoder.upscale(image_tokens), classes)
            last = first.index_put((items, classes), masks[:, 0].float())
        weight, temperature = self.settings.distil_weight, self.settings.distil_temperature
        return Output(
            upsample(last, size),
            (first,),
            attention_of(boxes, found, first, (image.shape[-2], image.shape[-1])),
            Distillation(first, last, weight, temperature) if weight else None,
        )

    def corner_tokens(self, boxes: Tensor, image: Tensor) -> Tensor:
        """Boxes as shares of the canvas, [n, 4] -> the two corners' tokens, [n, 2, C]."""
        height, width = image.shape[-2:]
        grid = torch.tensor((width, height), dtype=boxes.dtype, device=boxes.device)
        points = (boxes.view(-1, 2, 2) - 0.5) * grid
        return self.decoder.position.encode(points) + self.prompt_encoder.corners


@torch.no_grad()
def mask_boxes(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes around the organs' masks.

    Args:
        logits: [B, K, H, W], background at index 0; a mask is where its class wins.

    Returns:
        (boxes [B, K, 4] as (x0, y0, x1, y1), shares of the canvas, from the first pixel's outer edge to the last
        one's, so that a single pixel has a box of its size; which classes have one, bool [B, K], never the background).
    """
    classes, height, width = logits.shape[1:]
    masks = F.one_hot(logits.argmax(1), classes).movedim(-1, 1).bool()
    ends = []
    for lines, length in ((masks.any(2), width), (masks.any(3), height)):  # [B, K, length]
        lines = lines.to(logits.dtype)
        ends.append((lines.argmax(-1) / length, 1 - lines.flip(-1).argmax(-1) / length))
    (x0, x1), (y0, y1) = ends
    found = masks.any(3).any(2)
    found[:, 0] = False
    return torch.stack((x0, y0, x1, y1), -1).to(logits.dtype), found


@torch.no_grad()
def attention_of(boxes: Tensor, found: Tensor, logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Boxes as logits over positions, so that they can be shown as the attention of other methods is.

    Highest in the box's centre, and such that half of the softmax lies inside the box. A class without a box gets
    its mask's logits.

    Args:
        boxes: [B, K, 4], shares of the canvas. found: which of them count, [B, K].
        logits: of the masks, [B, K, H, W].
        grid: (h, w) in tokens.

    Returns:
        [B, K, h, w].
    """
    height, width = grid
    y = ((torch.arange(height, device=boxes.device) + 0.5) / height).to(boxes.dtype)
    x = ((torch.arange(width, device=boxes.device) + 0.5) / width).to(boxes.dtype)
    x0, y0, x1, y1 = boxes[..., None].unbind(2)  # [B, K, 1] each
    across = (2 * x - x0 - x1).abs() / (x1 - x0).clamp_min(1 / width)  # 1 at the edges; no box is less than a token
    down = (2 * y - y0 - y1).abs() / (y1 - y0).clamp_min(1 / height)
    distance = torch.maximum(down[..., :, None], across[..., None, :])
    centred = -0.2275 * distance**4  # of exp(-c d^4) over a plane, half lies within d = 1 where erf(sqrt(c)) = 1/2
    return torch.where(found[..., None, None], centred, F.adaptive_avg_pool2d(logits, grid))
