"""A 2D U-Net from scratch, as nnU-Net builds them: the baseline that knows nothing but the annotated slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.network.base import Output, SegmentationNetwork, check_settings, upsample
from pgpsam.network.features import Features

WIDEST = 512


@dataclass(frozen=True)
class UNetSettings:
    """The U-Net.

    Attributes:
        width: channels at full resolution, doubled at every level up to 512; nnU-Net's are 32, which takes four times
            as long.
        levels: resolutions, each half of the one above.
    """

    width: int = 16
    levels: int = 6

    def __post_init__(self) -> None:
        limits = {"width": (self.width >= 1, "1 or more"), "levels": (2 <= self.levels <= 7, "2 to 7")}
        check_settings("unet", self, limits)


class UNet(SegmentationNetwork):
    """3x3 convolutions, instance normalisation, leaky ReLU; every resolution but the two lowest is supervised."""

    from_scratch = True
    neck_only = True

    def __init__(
        self, backbone: str, classes: int, settings: UNetSettings, published: Mapping[str, Tensor] | None
    ) -> None:
        super().__init__(backbone, classes, published)
        # Here, because MONAI takes seconds to import and no other method needs it.
        from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetUpBlock

        sizes = [min(WIDEST, settings.width * 2**level) for level in range(settings.levels)]
        manner = {
            "norm_name": ("INSTANCE", {"affine": True}),
            "act_name": ("leakyrelu", {"negative_slope": 0.01, "inplace": True}),
        }
        inputs, steps = (self.encoder.neck_channels, *sizes[:-1]), (1, *[2] * (settings.levels - 1))
        self.down = nn.ModuleList(
            [UnetBasicBlock(2, i, o, 3, step, **manner) for i, o, step in zip(inputs, sizes, steps, strict=True)]
        )
        self.up = nn.ModuleList(
            [UnetUpBlock(2, i, o, 3, 1, 2, **manner) for i, o in zip(sizes[:0:-1], sizes[-2::-1], strict=True)]
        )
        supervised = max(1, settings.levels - 2)
        self.heads = nn.ModuleList([UnetOutBlock(2, size, classes) for size in sizes[:supervised]])
        self.step = 2 ** (settings.levels - 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, a=0.01)

    def decode(self, features: Features, size: tuple[int, int]) -> Output:
        x = pad_to(features.neck, self.step)
        levels = []
        for block in self.down:
            x = block(x)
            levels.append(x)
        finer = levels[:-1]
        levels = [x]
        for block, skip in zip(self.up, finer[::-1], strict=True):
            x = block(x, skip)
            levels.append(x)
        logits = [head(level) for head, level in zip(self.heads, levels[::-1], strict=False)]  # finest first
        shapes = [(-(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(len(logits))]
        shown = [one[..., :height, :width] for one, (height, width) in zip(logits, shapes, strict=True)]
        return Output(upsample(shown[0], size), tuple(shown[1:]))


def pad_to(image: Tensor, multiple: int) -> Tensor:
    """[B, C, H, W] with zeros below and to the right, until both sides are multiples and at least twice as much.

    Instance normalisation needs more than one position at the lowest resolution.
    """
    height, width = (max(2, -(-side // multiple)) * multiple for side in image.shape[-2:])
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
