"""LiteMedSAM's TinyViT encoder, for canvases of any size.

The same function as the packaged implementation (a test holds the two together), written for speed on CPUs
and for adaptation: batch normalisation is folded into the convolutions (the encoder is frozen), attention is
the fused kernel on GPUs, tensors stay channels-last, and q, k and v are three Linears so that LoRA can
address q and v. This room knows nothing of prompts, classes or training.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.network.features import Features

DIMS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEADS = (2, 4, 5, 10)
WINDOWS = (7, 7, 14, 7)


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (over stride), with a bias that holds the folded normalisation."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)


class MBConv(nn.Module):
    """Inverted bottleneck: 1x1 to four times the channels, depthwise 3x3, 1x1 back, residual, GELU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = conv(dim, 4 * dim)
        self.conv2 = conv(4 * dim, 4 * dim, 3, groups=4 * dim)
        self.conv3 = conv(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """From one stage to the next: [B, C, H, W] -> [B, C', H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs)
        self.conv2 = conv(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows of w x w tokens with a learned bias per offset."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(dim)
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))  # as many |offsets| as tokens
        self.register_buffer("index", offset_index(window), persistent=False)
        self.index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]; H and W are padded with zeros to whole windows."""
        windows = self.partition(x)
        q, k, v = (self.split_heads(layer(windows)) for layer in (self.q, self.k, self.v))
        seen = attend(q, k, v, self.attention_biases[:, self.index].to(q.dtype))
        return self.unpartition(self.proj(seen.transpose(1, 2).flatten(2)), *x.shape[1:3])

    def partition(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> normalised tokens by window, [n, w * w, C]."""
        batch, height, width, dim = x.shape
        w = self.window
        rows, columns = -(-height // w), -(-width // w)
        x = F.pad(x, (0, 0, 0, columns * w - width, 0, rows * w - height))
        return self.norm(x.view(batch, rows, w, columns, w, dim).transpose(2, 3).reshape(-1, w * w, dim))

    def unpartition(self, windows: Tensor, height: int, width: int) -> Tensor:
        """The inverse, without the padding: [n, w * w, C] -> [B, height, width, C]."""
        w, dim = self.window, windows.shape[-1]
        rows, columns = -(-height // w), -(-width // w)
        x = windows.view(-1, rows, columns, w, w, dim).transpose(2, 3).reshape(-1, rows * w, columns * w, dim)
        return x[:, :height, :width]

    def split_heads(self, x: Tensor) -> Tensor:
        """[n, tokens, C] -> [n, heads, tokens, C / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, with q, k, v [n, heads, t, d] and bias [heads, t, t].

    On CPUs the fused kernel takes two (forward) to five times (backward) as long for windows this small.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1) @ v


def offset_index(window: int) -> Tensor:
    """[w*w, w*w]: which learned bias belongs to a pair of tokens; pairs with equal |offset| share one."""
    points = list(itertools.product(range(window), range(window)))
    known: dict[tuple[int, int], int] = {}
    index = [known.setdefault((abs(a - c), abs(b - d)), len(known)) for a, b in points for c, d in points]
    return torch.tensor(index).view(window**2, window**2)


class Mlp(nn.Module):
    """LayerNorm, Linear to four times the channels, GELU, Linear back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Window attention, depthwise 3x3, MLP. [B, C, H, W] channels-last in and out."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = conv(dim, dim, 3, groups=dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1)
        x = self.local_conv((tokens + self.attn(tokens)).permute(0, 3, 1, 2))
        tokens = x.permute(0, 2, 3, 1)
        return (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """The encoder.

    Input [B, 3, H, W] in 0..1, H and W multiples of 4 (of 56 costs no window padding).
    Features: neck [B, 256, H/4, W/4]; taps from the ends of stages 1 and 3, [B, 160, H/4, W/4] and
    [B, 320, H/4, W/4]; details from the ends of stages 0 and 1 at full and half resolution,
    [B, 64, H, W] and [B, 128, H/2, W/2].
    """

    stride = 4
    multiple = 4
    reach = 64.0
    neck_channels = 256
    tap_channels = (DIMS[2], DIMS[3])
    detail_channels = (DIMS[0], DIMS[1])

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(conv(3, DIMS[0] // 2), nn.GELU(), conv(DIMS[0] // 2, DIMS[0]))
        self.stages = nn.ModuleList([nn.Sequential(*(MBConv(DIMS[0]) for _ in range(DEPTHS[0])))])
        for dim, depth, heads, window in zip(DIMS[1:], DEPTHS[1:], HEADS[1:], WINDOWS[1:], strict=True):
            self.stages.append(nn.Sequential(*(Block(dim, heads, window) for _ in range(depth))))
        self.merges = nn.ModuleList(
            [
                PatchMerging(DIMS[0], DIMS[1], 2),
                PatchMerging(DIMS[1], DIMS[2], 2),
                PatchMerging(DIMS[2], DIMS[3], 1),
            ]
        )
        self.neck = nn.Sequential(
            nn.Conv2d(DIMS[3], 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, image: Tensor) -> Features:
        return self.upper(self.lower(image))

    def lower(self, image: Tensor) -> tuple[Tensor, ...]:
        """All that lies below the last stage; the image itself, where LoRA adapts something there."""
        below = (self.patch_embed, *self.stages[:3], *self.merges[:2])
        if any(value.requires_grad for module in below for value in module.parameters()):
            return (image,)
        return self.below(image)

    def upper(self, parts: tuple[Tensor, ...]) -> Features:
        """From what `lower` gave to the features."""
        full, half, shallow, middle = parts if len(parts) > 1 else self.below(parts[0])
        deep = self.stages[3](self.merges[2](middle))
        return Features(neck=self.neck(deep), taps=(shallow, deep), details=(full, half))

    def below(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The ends of stages 0 and 1, stage 1 merged to a quarter of the resolution, and the end of stage 2."""
        full, half, shallow = self.early(image.contiguous(memory_format=torch.channels_last))
        return full, half, shallow, self.stages[2](shallow)

    def early(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The ends of stages 0 and 1, and stage 1 merged to a quarter of the resolution.

        Slice by slice on CPUs: a batch's full-resolution features would not stay in the cache.
        """
        if not image.is_cuda and len(image) > 1:
            single = [self.early(one) for one in image.split(1)]
            return (
                torch.cat([s[0] for s in single]),
                torch.cat([s[1] for s in single]),
                torch.cat([s[2] for s in single]),
            )
        full = self.stages[0](self.patch_embed(image))
        half = self.stages[1](self.merges[0](full))
        return full, half, self.merges[1](half)

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take over the published checkpoint (keys `image_encoder.*`), folding every batch normalisation.

        Raises:
            KeyError: the checkpoint lacks a tensor.
            RuntimeError: a tensor's shape differs.
        """
        source = {key.removeprefix("image_encoder."): value for key, value in state.items()}
        self.load_state_dict(translate(source))


def translate(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names and layouts -> ours: convolutions folded, fused qkv split per head."""
    target: dict[str, Tensor] = {}

    def fold(old: str, new: str) -> None:
        scale = source[f"{old}.bn.weight"] / (source[f"{old}.bn.running_var"] + 1e-5).sqrt()
        target[f"{new}.weight"] = source[f"{old}.c.weight"] * scale[:, None, None, None]
        target[f"{new}.bias"] = source[f"{old}.bn.bias"] - source[f"{old}.bn.running_mean"] * scale

    def copy(old: str, new: str, *names: str) -> None:
        for name in names:
            target[f"{new}.{name}"] = source[f"{old}.{name}"]

    fold("patch_embed.seq.0", "patch_embed.0")
    fold("patch_embed.seq.2", "patch_embed.2")
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            old, new = f"layers.{stage}.blocks.{block}", f"stages.{stage}.{block}"
            if stage == 0:
                for name in ("conv1", "conv2", "conv3"):
                    fold(f"{old}.{name}", f"{new}.{name}")
                continue
            fold(f"{old}.local_conv", f"{new}.local_conv")
            copy(
                f"{old}.attn",
                f"{new}.attn",
                "norm.weight",
                "norm.bias",
                "proj.weight",
                "proj.bias",
                "attention_biases",
            )
            copy(
                f"{old}.mlp",
                f"{new}.mlp",
                *(f"{n}.{p}" for n in ("norm", "fc1", "fc2") for p in ("weight", "bias")),
            )
            for part in ("weight", "bias"):
                fused = source[f"{old}.attn.qkv.{part}"]
                # Rows are ordered head by head, each head's q, k and v together.
                split = fused.view(HEADS[stage], 3, DIMS[stage] // HEADS[stage], *fused.shape[1:])
                for i, name in enumerate("qkv"):
                    target[f"{new}.attn.{name}.{part}"] = split[:, i].reshape(DIMS[stage], *fused.shape[1:])
    for stage in range(3):
        for name in ("conv1", "conv2", "conv3"):
            fold(f"layers.{stage}.downsample.{name}", f"merges.{stage}.{name}")
    copy("neck", "neck", "0.weight", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias")
    return target
