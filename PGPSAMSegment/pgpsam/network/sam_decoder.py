"""SAM's own mask decoder, unchanged and frozen, for a batch of slices times a set of prompts.

segment-anything's `predict_masks` takes one image with many prompts; here every image meets every prompt.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor, nn

from pgpsam.network.decoder import PositionEncoding


class SamDecoder(nn.Module):
    """The published decoder: prompts in, one mask each out.

    Args:
        channels: C.
        reach: how many of the encoder's tokens span the side of the images that SAM's position code was learned on.
    """

    def __init__(self, channels: int, reach: float) -> None:
        super().__init__()
        transformer = TwoWayTransformer(depth=2, embedding_dim=channels, num_heads=8, mlp_dim=2048)
        self.sam = MaskDecoder(transformer_dim=channels, transformer=transformer)
        self.position = PositionEncoding(channels, reach)
        # What SAM adds to an image that comes without a mask prompt; its decoder has hardly seen another.
        self.no_mask = nn.Parameter(torch.zeros(channels))
        self.requires_grad_(False)

    def forward(self, image: Tensor, prompts: Tensor) -> Tensor:
        """SAM's single mask of every slice for every prompt.

        Args:
            image: neck features [B, C, h, w].
            prompts: P sets of n tokens, [P, n, C].

        Returns:
            Mask logits [B, P, 4h, 4w].
        """
        batch, _, height, width = image.shape
        count = len(prompts)
        own = torch.cat((self.sam.iou_token.weight, self.sam.mask_tokens.weight))
        queries = torch.cat((own.expand(count, -1, -1), prompts), 1).repeat(batch, 1, 1)  # [B * P, 5 + n, C]
        source = (image + self.no_mask[:, None, None]).repeat_interleave(count, 0)  # [B * P, C, h, w]
        position = self.position(height, width).to(source.dtype).expand_as(source)
        tokens, source = self.sam.transformer(source, position, queries)
        upscaled = self.sam.output_upscaling(source.transpose(1, 2).unflatten(2, (height, width)))
        vector = self.sam.output_hypernetworks_mlps[0](tokens[:, 1])  # after the token of the quality comes the mask's
        return torch.einsum("bc,bchw->bhw", vector.to(upscaled.dtype), upscaled).unflatten(0, (batch, count))

    def load_published(self, state: Mapping[str, Tensor]) -> None:
        """Take over a SAM checkpoint (keys `mask_decoder.*` and `prompt_encoder.*`).

        Raises:
            KeyError, RuntimeError: the checkpoint lacks a tensor, or a tensor's shape differs.
        """
        prefix = "mask_decoder."
        self.sam.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self.no_mask.copy_(state["prompt_encoder.no_mask_embed.weight"][0])
        self.position.gaussian.copy_(state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
