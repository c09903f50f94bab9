"""The prompts made visible: from attention over tokens to regions and points on the volume's own voxels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pgpsam.labels import LabelSet
from pgpsam.segmentation import PromptPoint
from pgpsam.slices import Frame, box_scores

REGION_MASS = 0.5
POINTS_PER_ORGAN = 5
POINT_GAP_MM = 10.0


def attended_regions(attention: Tensor, mass: float = REGION_MASS) -> Tensor:
    """The smallest set of positions that holds `mass` of each attention map.

    Args:
        attention: logits over positions, [..., h, w].

    Returns:
        bool [..., h, w].
    """
    weights = attention.flatten(-2).float().softmax(-1)
    ordered, order = weights.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(weights, dtype=torch.bool).scatter(-1, order, before < mass).view(attention.shape)


def region_labels(attention: Tensor, present: Tensor, ids: Tensor, frame: Frame) -> Tensor:
    """One slice's attended regions as label ids on the body box's voxels.

    Args:
        attention: [N, h, w] logits over positions, an organ each.
        present: bool [N], the organs found in the slice; others attend to nothing worth showing.
        ids: [N] label ids.

    Returns:
        uint8 [y1 - y0, x1 - x0]; where regions overlap, the organ that attends there more strongly.
    """
    y0, y1, x0, x1 = frame.box
    if not present.any():
        return torch.zeros(y1 - y0, x1 - x0, dtype=torch.uint8)
    chosen = attention[present].float()
    weights = chosen.flatten(1).softmax(-1).view_as(chosen)
    weights = torch.where(attended_regions(chosen), weights / weights.amax((1, 2), keepdim=True), torch.zeros(()))
    canvas = F.interpolate(weights[None], frame.canvas, mode="bilinear", align_corners=False)
    strength, winner = box_scores(canvas, frame)[0].max(0)
    return torch.where(strength > 0.05, ids[present][winner], torch.zeros((), dtype=ids.dtype)).to(torch.uint8)


def attended_labels(
    attention: Mapping[int, Tensor], labels: NDArray[np.uint8], label_set: LabelSet, frame: Frame
) -> NDArray[np.uint8]:
    """The attended regions of all slices, ids [z, y, x]: in each those of the organs that were found there.

    Args:
        attention: canonical z -> logits [N, h, w], an organ each in the label set's order.
        labels: what was found, ids [z, y, x].
    """
    y0, y1, x0, x1 = frame.box
    ids = torch.tensor(label_set.ids)
    regions = np.zeros_like(labels)
    for z, one in attention.items():
        found = torch.from_numpy(np.isin(label_set.ids, labels[z]))
        regions[z, y0:y1, x0:x1] = region_labels(one, found, ids, frame).numpy()
    return regions


def peak_points(
    attention: Mapping[int, Tensor],
    labels: NDArray[np.uint8],
    label_set: LabelSet,
    frame: Frame,
    spacing_z: float,
) -> list[PromptPoint]:
    """Each organ's strongest peaks, one a slice and at least `POINT_GAP_MM` apart along z.

    Args:
        attention: canonical z -> logits [N, h, w], an organ each in the label set's order.
        labels: ids [z, y, x]; only slices where the organ was found count.
    """
    if not attention:
        return []
    some = next(iter(attention.values()))
    height, width = some.shape[-2:]
    points: list[PromptPoint] = []
    for n, label in enumerate(label_set):
        slices = [z for z in np.flatnonzero((labels == label.id).any((1, 2))).tolist() if z in attention]
        peaks = sorted((strongest(attention[z][n], z) for z in slices), reverse=True)
        kept: list[tuple[float, int, int, int]] = []
        for peak in peaks:
            if len(kept) < POINTS_PER_ORGAN and all(abs(peak[1] - k[1]) * spacing_z >= POINT_GAP_MM for k in kept):
                kept.append(peak)
        for value, z, row, column in kept:
            y, x = token_voxel(row, column, (height, width), frame)
            points.append(PromptPoint(label.id, z, y, x, value / peaks[0][0]))
    return points


def strongest(attention: Tensor, z: int) -> tuple[float, int, int, int]:
    """(weight, z, row, column) of the position with the largest share of one attention map, [h, w] logits."""
    value, place = attention.flatten().float().softmax(-1).max(0)
    row, column = divmod(int(place), attention.shape[-1])
    return float(value), z, row, column


def token_voxel(row: int, column: int, grid: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """A token's centre -> the voxel (y, x) of the canonical slice it lies in, inside the body box."""
    y0, y1, x0, x1 = frame.box
    top, left = frame.corner
    y = (row + 0.5) * frame.canvas[0] / grid[0] - top
    x = (column + 0.5) * frame.canvas[1] / grid[1] - left
    voxel_y = y0 + int(y * (y1 - y0) / frame.size[0])
    voxel_x = x0 + int(x * (x1 - x0) / frame.size[1])
    return min(max(voxel_y, y0), y1 - 1), min(max(voxel_x, x0), x1 - 1)
