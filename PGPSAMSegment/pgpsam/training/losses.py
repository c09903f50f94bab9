"""The training loss: cross-entropy and Dice on the last pass's masks and, more lightly, on every earlier pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor

from pgpsam.network.methods import Output
from pgpsam.network.prototypes import coarse_labels

_dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)


def class_weights(counts: Tensor) -> Tensor:
    """Weights of the cross-entropy from how many pixels each class has: frequency to the power -1/2, [K] -> [K].

    Unweighted, the classes of few pixels are not learned at all within a few hundred steps. The weights' mean over
    the pixels is 1; a class without pixels gets the largest of the others.
    """
    share = counts.float() / counts.sum()
    weights = torch.where(counts > 0, share.clamp_min(1e-9) ** -0.5, torch.zeros(()))
    weights = torch.where(counts > 0, weights, weights.max())
    return weights / (weights * share).sum()


def segmentation_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, dice_weight: float = 0.5
) -> Tensor:
    """(1 - w) CE + w Dice; Dice over the batch, without background.

    Args:
        logits: [B, K, H, W]. labels: class indices [B, H, W].
        weights: [K], of the cross-entropy's classes; None for equal ones.
        dice_weight: w; published 0.8.
    """
    logits = logits.float()
    entropy = F.cross_entropy(logits, labels, weights)
    return (1 - dice_weight) * entropy + dice_weight * _dice(logits, labels[:, None])


def total_loss(output: Output, labels: Tensor, final_weight: float, weights: Tensor | None = None) -> Tensor:
    """final_weight times the masks' loss + (1 - final_weight) times the mean loss of the coarse passes."""
    final = segmentation_loss(output.logits, labels, weights)
    if not output.coarse:
        return final
    small = coarse_labels(labels, *output.coarse[0].shape[-2:])
    coarse = torch.stack([segmentation_loss(logits, small, weights) for logits in output.coarse]).mean()
    return final_weight * final + (1 - final_weight) * coarse
