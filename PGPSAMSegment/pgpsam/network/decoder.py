"""SAM's mask decoder for a batch of slices and all classes in one pass.

segment-anything's own decoder takes one image with many prompts; this one takes [batch x class]: K mask
tokens and K sparse prompts go through the published two-way transformer together, one hypernetwork a class,
no IoU head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor, nn

from pgpsam.network.backbones.tiny_vit import LayerNorm2d


class PositionEncoding(nn.Module):
    """SAM's random Fourier features of a token's place, measured from the canvas's centre.

    A canvas of any size puts its centre at 0.5, and `reach` tokens span 0..1, so that the same anatomy gets
    the same code whatever the canvas's size.
    """

    def __init__(self, channels: int, reach: float) -> None:
        super().__init__()
        self.reach = reach
        self.register_buffer("gaussian", torch.randn(2, channels // 2))
        self.gaussian: Tensor

    def forward(self, height: int, width: int) -> Tensor:
        """Of every token of a grid: [1, C, height, width]."""
        device = self.gaussian.device
        rows = torch.arange(height, device=device) + 0.5 - height / 2
        columns = torch.arange(width, device=device) + 0.5 - width / 2
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        return self.encode(grid).permute(2, 0, 1)[None]

    def encode(self, points: Tensor) -> Tensor:
        """Of any points: (x, y) in tokens from the canvas's centre, [..., 2] -> [..., C]."""
        with torch.autocast(points.device.type, enabled=False):  # angles of many turns lose their place in bfloat16
            angles = 2 * torch.pi * ((points / self.reach * 2) @ self.gaussian.float())
        return torch.cat((angles.sin(), angles.cos()), -1)


class ClassHypernetworks(nn.Module):
    """K three-layer perceptrons side by side: [B, K, C] -> [B, K, outputs]."""

    def __init__(self, classes: int, channels: int, outputs: int) -> None:
        super().__init__()
        sizes = ((channels, channels), (channels, channels), (outputs, channels))
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(classes, *s)) for s in sizes])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(classes, s[0])) for s in sizes])
        for weight in self.weights:
            for one in weight:
                nn.init.kaiming_uniform_(one, a=5**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tokens = torch.einsum("bki,koi->bko", tokens, weight) + bias
            if i < 2:
                tokens = F.relu(tokens)
        return tokens


class Detail(nn.Module):
    """Add an encoder's finer features to the decoder's upscaled ones, then mix with a 3x3 convolution.

    x + ReLU(conv(x + W detail)). Nothing else: at full resolution every operation is as slow as the convolution.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, channels, 1)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, detail: Tensor) -> Tensor:
        detail = self.project(detail)
        if detail.shape[-2:] != x.shape[-2:]:
            detail = F.interpolate(detail, x.shape[-2:], mode="bilinear", align_corners=False)
        return x + F.relu(self.mix(x + detail))


class MaskDecoder(nn.Module):
    """Tokens and image to masks.

    Args:
        classes: K, background included.
        detail_channels: channels of the encoder's finer features, finest first; () for the published decoder.
        channels: C.
        reach: how many of the encoder's tokens span the side of the images that SAM's position code was learned on.
    """

    def __init__(
        self, classes: int, detail_channels: tuple[int, ...] = (), channels: int = 256, reach: float = 64.0
    ) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=2048, num_heads=8)
        for name, value in self.transformer.named_parameters():
            value.requires_grad_(not name.endswith("k_proj.bias"))  # shifts all of a query's logits alike
        self.position = PositionEncoding(channels, reach)
        self.mask_tokens = nn.Parameter(torch.randn(classes, channels))
        self.up1 = nn.ConvTranspose2d(channels, channels // 4, 2, 2)
        self.up1_norm = LayerNorm2d(channels // 4)
        self.up2 = nn.ConvTranspose2d(channels // 4, channels // 8, 2, 2)
        self.hypernetworks = ClassHypernetworks(classes, channels, channels // 8)
        self.class_scale = nn.Parameter(torch.tensor(channels**-0.5))
        # What a class looks like in any image, beside what its token says of this one; a plain linear classifier,
        # which learns at once what the attention needs hundreds of steps for.
        self.coarse_classes = nn.Parameter(torch.zeros(classes, channels))
        self.coarse_bias = nn.Parameter(torch.zeros(classes))
        self.mask_classes = nn.Parameter(torch.zeros(classes, channels // 8))
        self.mask_bias = nn.Parameter(torch.zeros(classes))
        self.full_detail, self.half_detail = None, None
        if detail_channels:
            self.full_detail = Detail(detail_channels[0], channels // 8)
            self.half_detail = Detail(detail_channels[1], channels // 4)

    def tokens(self, image: Tensor, dense: Tensor | None, sparse: Tensor | None) -> tuple[Tensor, Tensor]:
        """The two-way transformer.

        Args:
            image: F0, [B, C, h, w]. dense: [B, C, h, w] added to it, or None. sparse: [B, n, C] or None.

        Returns:
            (class tokens [B, K, C], image tokens [B, C, h, w]).
        """
        height, width = image.shape[-2:]
        source = image if dense is None else image + dense
        queries = self.mask_tokens.expand(len(image), -1, -1)
        if sparse is not None:
            queries = torch.cat((queries, sparse.to(queries.dtype)), 1)
        position = self.position(height, width).to(source.dtype).expand_as(source)
        queries, image_tokens = self.transformer(source, position, queries)
        return queries[:, : len(self.mask_tokens)], image_tokens.transpose(1, 2).unflatten(2, (height, width))

    def class_map(self, class_tokens: Tensor, image_tokens: Tensor) -> Tensor:
        """F_M: class tokens times image tokens, coarse logits [B, K, h, w] in float32."""
        vectors = self.class_scale * class_tokens.float() + self.coarse_classes
        logits = torch.einsum("bkc,bchw->bkhw", vectors, image_tokens.float())
        return logits + self.coarse_bias[:, None, None]

    def masks(self, class_tokens: Tensor, image_tokens: Tensor, details: tuple[Tensor, ...] = ()) -> Tensor:
        """Logits [B, K, 4h, 4w]."""
        return self.classify(class_tokens, self.upscale(image_tokens, details))

    def upscale(self, image_tokens: Tensor, details: tuple[Tensor, ...] = ()) -> Tensor:
        """Image tokens [B, C, h, w] -> the features that masks are made of, [B, C / 8, 4h, 4w]."""
        x = F.gelu(self.up1_norm(self.up1(image_tokens)))
        if self.half_detail is not None:
            x = self.half_detail(x, details[1])
        x = F.gelu(self.up2(x))
        if self.full_detail is not None:
            x = self.full_detail(x, details[0])
        return x

    def classify(self, class_tokens: Tensor, upscaled: Tensor, only: Tensor | None = None) -> Tensor:
        """Class tokens [B, K, C] times upscaled features [B, C / 8, H, W]: logits [B, K, H, W].

        Args:
            only: the one class that is wanted of each item, [B]; then the logits are [B, 1, H, W].
        """
        vectors, bias = self.hypernetworks(class_tokens) + self.mask_classes, self.mask_bias.expand(len(upscaled), -1)
        if only is not None:
            items = torch.arange(len(only), device=only.device)
            vectors, bias = vectors[items, only][:, None], bias[items, only][:, None]
        return torch.einsum("bkc,bchw->bkhw", vectors.to(upscaled.dtype), upscaled) + bias[..., None, None]

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Start from SAM's own decoder: every class from the single-mask token and its hypernetwork.

        Args:
            state: a SAM checkpoint, keys `mask_decoder.*` and `prompt_encoder.*`.
        """
        own = {k.removeprefix("mask_decoder."): v for k, v in state.items() if k.startswith("mask_decoder.")}
        self.transformer.load_state_dict(
            {k.removeprefix("transformer."): v for k, v in own.items() if k.startswith("transformer.")}
        )
        with torch.no_grad():
            self.position.gaussian.copy_(state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
            # Classes must differ at the start, or the shared parts would give them the same gradients.
            self.mask_tokens.copy_(own["mask_tokens.weight"][0] + 0.1 * torch.randn_like(self.mask_tokens))
            for module, name in ((self.up1, "0"), (self.up1_norm, "1"), (self.up2, "3")):
                for part in ("weight", "bias"):
                    getattr(module, part).copy_(own[f"output_upscaling.{name}.{part}"])
            for i, (weight, bias) in enumerate(zip(self.hypernetworks.weights, self.hypernetworks.biases, strict=True)):
                weight.copy_(own[f"output_hypernetworks_mlps.0.layers.{i}.weight"].expand_as(weight))
                bias.copy_(own[f"output_hypernetworks_mlps.0.layers.{i}.bias"].expand_as(bias))
