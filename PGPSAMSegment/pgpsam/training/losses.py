"""The training loss: cross-entropy and Dice on the last pass's masks and, more lightly, on every earlier pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pgpsam.network.base import Distillation, Output
from pgpsam.network.prototypes import coarse_labels
from pgpsam.training.data import IGNORED


def class_weights(counts: Tensor, power: float) -> Tensor:
    """Weights of the cross-entropy from how many pixels each class has: frequency to the power -p, [K] -> [K].

    Unweighted, the classes of few pixels are not learned at all within a few hundred steps; with p = 1/2 to the end,
    organs come out a voxel or two too thick. The weights' mean over the pixels is 1; a class without pixels gets the
    largest of the others.
    """
    share = counts.float() / counts.sum()
    weights = torch.where(counts > 0, share.clamp_min(1e-9) ** -power, torch.zeros(()))
    weights = torch.where(counts > 0, weights, weights.max())
    return weights / (weights * share).sum()


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - mean soft Dice over the batch of the classes that are in it, background aside; 0 where there is none.

    A class that no slice of the batch shows would only be told to vanish, and rare organs would.

    Args:
        logits: [B, K, H, W]. labels: class indices [B, H, W]; `IGNORED` pixels count nowhere.
    """
    classes = logits.shape[1]
    known = labels != IGNORED
    shares = (logits.softmax(1) * known[:, None]).transpose(0, 1).flatten(1)
    truth = (F.one_hot(labels * known, classes) * known[..., None]).movedim(-1, 0).flatten(1).to(shares.dtype)
    sizes = truth.sum(1)
    present = (sizes > 0) & (torch.arange(classes, device=labels.device) > 0)
    dice = (2 * (shares * truth).sum(1) + 1) / (shares.sum(1) + sizes + 1)
    return ((1 - dice) * present).sum() / present.sum().clamp_min(1)


def segmentation_loss(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, dice_weight: float = 0.5
) -> Tensor:
    """(1 - w) CE + w Dice; Dice over the batch, without background.

    Args:
        logits: [B, K, H, W]. labels: class indices [B, H, W]; where all are `IGNORED`, there is nothing to learn: 0.
        weights: [K], of the cross-entropy's classes; None for equal ones.
        dice_weight: w; published 0.8.
    """
    logits = logits.float()
    if (labels == IGNORED).all():
        return logits.sum() * 0  # the mean over no pixel is no number
    entropy = F.cross_entropy(logits, labels, weights, ignore_index=IGNORED)
    return (1 - dice_weight) * entropy + dice_weight * dice_loss(logits, labels)


def total_loss(
    output: Output, labels: Tensor, final_weight: float, weights: Tensor | None = None, dice_weight: float = 0.5
) -> Tensor:
    """final_weight times the masks' loss + (1 - final_weight) times the mean loss of the coarse passes.

    What an earlier pass learns from a later one weighs as much as what it learns from the labels.
    """
    final = segmentation_loss(output.logits, labels, weights, dice_weight)
    if not output.coarse:
        return final
    sizes = {logits.shape[-2:] for logits in output.coarse}
    small = {size: coarse_labels(labels, *size) for size in sizes}
    coarse = torch.stack(
        [segmentation_loss(logits, small[logits.shape[-2:]], weights, dice_weight) for logits in output.coarse]
    ).mean()
    if output.distillation is not None:
        coarse = coarse + distillation_loss(output.distillation)
    return final_weight * final + (1 - final_weight) * coarse


def distillation_loss(distillation: Distillation) -> Tensor:
    """lambda T^2 KL(teacher || student) of the softened shares, mean over positions; the teacher gets no gradient."""
    temperature = distillation.temperature
    student = F.log_softmax(distillation.student.float() / temperature, 1)
    teacher = F.log_softmax(distillation.teacher.detach().float() / temperature, 1)
    divergence = (teacher.exp() * (teacher - student)).sum(1).mean()
    return distillation.weight * temperature**2 * divergence
