"""Progressive Prototype Refinement: prototypes take up what an image shows of them (PGP-SAM, eq. 3 to 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgpsam.network.attention import CosineLogits, to_tokens


class AxisProfile(nn.Module):
    """[B, inputs, h, w] -> a profile along one axis, [B, profiles, length] (zeta and phi of eq. 3).

    The published layer is fully connected from g*g to g values and so fixes the grid; here the other axis is
    pooled (mean and maximum) and the two are mixed, which works on any grid.

    Args:
        inputs: channels.
        profiles: how many profiles; the published number is 1.
        pool: the axis pooled away, 3 for a profile over rows, 2 for one over columns.
    """

    def __init__(self, inputs: int, profiles: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.point = nn.Conv2d(inputs, profiles, 1)
        self.mix = nn.Conv1d(2 * profiles, profiles, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(x)
        return self.mix(torch.cat((x.mean(self.pool), x.amax(self.pool)), 1))


class PPR(nn.Module):
    """Refine the prototypes with two attentions over the image.

    P_hat = [P_intra, its k most similar P_inter by cosine], K*(k+1) queries;
    W_c = softmax over positions of phi(F_I'' x F_M''), a row times a column profile           (eq. 3, 4)
    W_q = softmax over positions of P_hat F_hat^T, F_hat = phi([F_I, F_M])
    P_hat' = (a W_c + b W_q) F_hat, added to P_intra and, over K, to the chosen P_inter            (eq. 5)

    Args:
        classes: K, background included.
        channels: C.
        nearest: k.
        profiles: rank of the outer product in W_c (published: 1).
        temperature: of the cosine logits in W_q at the start.
    """

    def __init__(self, classes: int, channels: int, nearest: int, profiles: int, temperature: float) -> None:
        super().__init__()
        self.nearest = nearest
        self.rows = AxisProfile(channels, profiles, pool=3)
        self.columns = AxisProfile(classes, profiles, pool=2)
        self.spread = nn.Conv2d(profiles, classes * (nearest + 1), 1, bias=False)  # a softmax ignores a bias
        self.fuse = nn.Conv2d(channels + classes, channels, 1)
        self.logits = CosineLogits(temperature)
        # The prototypes stay where the annotated slices put them until there is something to add.
        self.class_weight = nn.Parameter(torch.tensor(0.0))
        self.query_weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, features: Tensor, class_map: Tensor, intra: Tensor, inter: Tensor) -> tuple[Tensor, Tensor]:
        """One refinement.

        Args:
            features: F_I, [B, C, h, w].
            class_map: F_M of the previous pass, class probabilities [B, K, h, w].
            intra: [B, K, C]. inter: [B, Q, C].

        Returns:
            Refined (intra, inter), same shapes.
        """
        batch, classes, channels = intra.shape
        similarity = F.normalize(intra.float(), dim=-1) @ F.normalize(inter.float(), dim=-1).transpose(1, 2)
        chosen = similarity.topk(self.nearest, dim=-1).indices.flatten(1)[..., None].expand(-1, -1, channels)
        picked = inter.gather(1, chosen).view(batch, classes, self.nearest, channels)
        queries = torch.cat((intra[:, :, None], picked), 2).flatten(1, 2)

        outer = self.rows(features)[:, :, :, None] * self.columns(class_map)[:, :, None, :]
        class_attention = self.spread(outer).flatten(2).float().softmax(-1)
        fused = to_tokens(self.fuse(torch.cat((features, class_map.to(features.dtype)), 1)))
        query_attention = self.logits(queries, fused).softmax(-1)
        weights = self.class_weight * class_attention + self.query_weight * query_attention
        update = (weights.to(fused.dtype) @ fused).view(batch, classes, self.nearest + 1, channels)
        refined = inter.scatter_add(1, chosen, update[:, :, 1:].flatten(1, 2).to(inter.dtype) / classes)
        return intra + update[:, :, 0], refined
