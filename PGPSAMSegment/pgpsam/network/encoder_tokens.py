"""Learned tokens inside a frozen encoder: each attention layer sees a few keys and values beside the image's.

As in deep prompt tuning, every layer has tokens of its own and forgets what became of them, so that they matter
only as keys and values. Windowed attention shows them to every window. They have no place: the tables of
relative positions, and TinyViT's biases of offsets, do not apply to them. They join behind the layer's normalisation.

    ViT-B: 12 layers x n x 768. TinyViT: 10 layers, n x (2 x 128 + 6 x 160 + 2 x 320); its first stage is convolutional.
"""

from __future__ import annotations

import torch
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos
from torch import Tensor, nn

from pgpsam.network.backbones.tiny_vit import WindowAttention, attend

SCALE = 0.02  # of the tokens at the start, as of most published embeddings


def add_tokens(encoder: nn.Module, tokens: int) -> None:
    """Put `tokens` learned tokens into every attention layer of a frozen encoder, in place; 0 changes nothing.

    Raises:
        TypeError: the encoder has no attention that this room knows.
    """
    if tokens == 0:
        return
    kinds: dict[type, type[nn.Module]] = {Attention: PromptedAttention, WindowAttention: PromptedWindows}
    found = [(name, module) for name, module in encoder.named_modules() if type(module) in kinds]
    if not found:
        raise TypeError(f"{type(encoder).__name__} has no attention to put tokens into")
    for name, module in found:
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, kinds[type(module)](module, tokens))


class PromptedAttention(nn.Module):
    """Attention of SAM's ViT, over a window or the whole grid, and over learned tokens."""

    def __init__(self, attention: Attention, tokens: int) -> None:
        super().__init__()
        self.attention = attention
        self.tokens = nn.Parameter(SCALE * torch.randn(tokens, attention.proj.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        own, (batch, height, width, _) = self.attention, x.shape
        q, k, v = (part.flatten(1, 2) for part in own.qkv(x).chunk(3, -1))
        _, more_k, more_v = own.qkv(self.tokens).chunk(3, -1)
        q, k, v, more_k, more_v = (
            part.unflatten(-1, (own.num_heads, -1)).transpose(-2, -3) for part in (q, k, v, more_k, more_v)
        )  # [B, heads, H * W, d], and [heads, tokens, d] of the learned ones
        logits = (q * own.scale) @ k.transpose(-2, -1)
        grid = (height, width)
        logits = add_decomposed_rel_pos(
            logits.flatten(0, 1), q.flatten(0, 1), own.rel_pos_h, own.rel_pos_w, grid, grid
        ).view_as(logits)
        weights = torch.cat((logits, (q * own.scale) @ more_k.transpose(-2, -1)), -1).softmax(-1)
        seen = weights @ torch.cat((v, more_v.expand(batch, -1, -1, -1)), -2)
        return own.proj(seen.transpose(1, 2).flatten(2)).unflatten(1, grid)


class PromptedWindows(nn.Module):
    """TinyViT's attention in windows, with learned tokens in every window."""

    def __init__(self, attention: WindowAttention, tokens: int) -> None:
        super().__init__()
        self.attention = attention
        self.tokens = nn.Parameter(SCALE * torch.randn(tokens, attention.proj.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, H, W, C]."""
        own, (height, width) = self.attention, x.shape[1:3]
        windows = own.partition(x)  # [n, w * w, C]
        everything = torch.cat((windows, self.tokens.to(windows.dtype).expand(len(windows), -1, -1)), 1)
        q, k, v = (own.split_heads(x) for x in (own.q(windows), own.k(everything), own.v(everything)))
        bias = own.attention_biases[:, own.index].to(q.dtype)
        seen = attend(q, k, v, nn.functional.pad(bias, (0, len(self.tokens))))
        return own.unpartition(own.proj(seen.transpose(1, 2).flatten(2)), height, width)
