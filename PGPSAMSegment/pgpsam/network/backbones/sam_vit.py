"""SAM's ViT encoders (SAM's own weights, or MedSAM's) for canvases of any size.

The blocks are segment-anything's. Added here: q, k and v are three Linears, so that LoRA can address q and v;
the position tables follow the canvas; the taps that the methods stand on. This room knows nothing of prompts,
classes or training.

Pixels are fed as 0..1, as SAMed, PGP-SAM and MedSAM feed them, and not standardised with SAM's own mean and
deviation: an encoder adapted on one recipe must be run on the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import Tensor, nn

from pgpsam.network.features import Features

PATCH = 16  # pixels a token's side
NATIVE = 1024  # pixels of the canvas that the published position tables were trained for
WINDOW = 14  # tokens a window's side
PREFIX = "image_encoder."


class SplitQKV(nn.Module):
    """A fused projection to q, k and v, taken apart into three Linears and put together again.

    Args:
        fused: Linear from C to 3C whose rows are all of q, then all of k, then all of v.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        dim = fused.in_features
        # Without values of their own: making random ones only to replace them takes seconds in the larger encoders.
        self.q, self.k, self.v = (nn.Linear(dim, dim, device="meta") for _ in range(3))
        rows = split_rows(fused.state_dict())
        self.load_state_dict({name: value.clone() for name, value in rows.items()}, assign=True)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., 3C]."""
        return torch.cat((self.q(x), self.k(x), self.v(x)), -1)


def split_rows(fused: Mapping[str, Tensor], path: str = "") -> dict[str, Tensor]:
    """`{path}weight` [3C, C] and `{path}bias` [3C] -> the same rows as `{path}q.weight` [C, C] and so on."""
    return {
        f"{path}{name}.{part}": rows
        for part in ("weight", "bias")
        for name, rows in zip("qkv", fused[f"{path}{part}"].chunk(3), strict=True)
    }


class SamViT(ImageEncoderViT):
    """The encoder.

    Input [B, 3, H, W] in 0..1, H and W multiples of 16 (of 224 costs no window padding).
    Features: neck [B, 256, H/16, W/16]; taps after the first and the fourth global attention block,
    [B, C, H/16, W/16] each; no details.

    The published tables describe a grid of 64 x 64 tokens. For another one, h x w, the absolute embedding is
    resized here, and segment-anything's attention resizes the relative tables of the global blocks to 2h - 1
    and 2w - 1 rows; those of the windowed blocks do not depend on the grid.

    Args:
        dim: C. depth: number of blocks. heads: attention heads a block.
        global_blocks: 0-based indices of the four blocks whose attention sees the whole grid.
    """

    stride = PATCH
    multiple = PATCH
    reach = 32.0
    neck_channels = 256
    detail_channels: tuple[int, ...] = ()

    def __init__(self, dim: int, depth: int, heads: int, global_blocks: Sequence[int]) -> None:
        super().__init__(
            img_size=NATIVE,
            patch_size=PATCH,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            out_chans=self.neck_channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=WINDOW,
            global_attn_indexes=tuple(global_blocks),
        )
        self.tap_channels = (dim, dim)
        self.tapped = (global_blocks[0], global_blocks[3])
        for block in self.blocks:
            block.attn.qkv = SplitQKV(block.attn.qkv)

    def forward(self, image: Tensor) -> Features:
        """Features of a batch of slices.

        Raises:
            ValueError: a side is not a multiple of 16; the patches would silently leave its rest out.
        """
        height, width = image.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"the canvas is {height} x {width}; its sides must be multiples of {PATCH}")
        tokens = self.patch_embed(image)  # [B, h, w, C]
        tokens = tokens + resize_positions(self.pos_embed, height // PATCH, width // PATCH)
        taps = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.tapped:
                taps[index] = tokens.permute(0, 3, 1, 2)
        shallow, deep = (taps[index] for index in self.tapped)
        return Features(neck=self.neck(tokens.permute(0, 3, 1, 2)), taps=(shallow, deep))

    def lower(self, image: Tensor) -> tuple[Tensor, ...]:
        """LoRA begins at the first block, so nothing worth keeping lies below it: the image itself."""
        return (image,)

    def upper(self, parts: tuple[Tensor, ...]) -> Features:
        """From what `lower` gave to the features."""
        return self(parts[0])

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take over a published checkpoint (keys `image_encoder.*`), splitting every fused qkv.

        Raises:
            RuntimeError: the checkpoint lacks a tensor, or a tensor's shape differs.
        """
        own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
        for path in [key.removesuffix("weight") for key in own if key.endswith(".qkv.weight")]:
            own |= split_rows(own, path)
            del own[f"{path}weight"], own[f"{path}bias"]
        self.load_state_dict(own)


def resize_positions(table: Tensor, height: int, width: int) -> Tensor:
    """An absolute position embedding [1, g, g, C] -> [1, height, width, C], bilinear between tokens' centres.

    Not antialiased: what the published adaptations of SAM to smaller canvases do.
    """
    if table.shape[1:3] == (height, width):
        return table
    resized = F.interpolate(table.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def vit_b() -> SamViT:
    """ViT-B, also MedSAM's architecture: 90 million parameters."""
    return SamViT(dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))


def vit_l() -> SamViT:
    """ViT-L: 308 million parameters."""
    return SamViT(dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))


def vit_h() -> SamViT:
    """ViT-H: 637 million parameters."""
    return SamViT(dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
