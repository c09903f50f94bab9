"""The training loss: cross-entropy and Dice on the last pass's masks and, more lightly, on every earlier pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from pgpsam.network.methods import Output
from pgpsam.network.prototypes import coarse_labels

_dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)


def segmentation_loss(logits: Tensor, labels: Tensor, dice_weight: float = 0.8) -> Tensor:
    """(1 - w) CE + w Dice, as published with w = 0.8; Dice over the batch, without background.

    Args:
        logits: [B, K, H, W]. labels: class indices [B, H, W].
    """
    logits = logits.float()
    return (1 - dice_weight) * F.cross_entropy(logits, labels) + dice_weight * _dice(logits, labels[:, None])


def total_loss(output: Output, labels: Tensor, final_weight: float) -> Tensor:
    """final_weight times the masks' loss + (1 - final_weight) times the mean loss of the coarse passes."""
    final = segmentation_loss(output.logits, labels)
    if not output.coarse:
        return final
    small = coarse_labels(labels, *output.coarse[0].shape[-2:])
    coarse = torch.stack([segmentation_loss(logits, small) for logits in output.coarse]).mean()
    return final_weight * final + (1 - final_weight) * coarse
