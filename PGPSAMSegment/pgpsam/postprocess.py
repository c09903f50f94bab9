"""What anatomy says of a finished label volume: a liver is one piece, so its stray pieces are noise.

Arrays in, arrays out; it knows nothing of networks or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .labels import ABDOMEN, LabelSet

MIN_ML = 0.03  # about one voxel of 3 mm: no organ is that small, and one that is cut off there is not missed
LIVER = ABDOMEN.by_name("liver").type.value
NECK_MM = 16.0  # what hangs on the liver by less is no part of it ...
HANGING = (0.03, 0.15)  # ... if it is of this share of its size: below, liver itself; above, perhaps its left lobe
COARSE_MM = 2.0  # a neck is measured on voxels of about this size
AORTA = ABDOMEN.by_name("aorta").type.value  # its ascending and descending part meet only in the arch
MIN_SHARE = 0.3  # of the largest piece: one of that size is no noise ...
GAP_MM = 20.0  # ... if it lies so near to another that stays: three slices of 5 mm were missed between them, no more
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)  # pieces that touch by a corner are one piece


def keep_components(
    labels: NDArray[np.uint8],
    label_set: LabelSet,
    spacing: Sequence[float],
    min_ml: float = MIN_ML,
) -> NDArray[np.uint8]:
    """Leaves of every organ that is anatomically one piece its largest connected piece, and what belongs to it.

    From the liver, a thick piece that hangs on by a thin neck, or by nothing, goes first (`hanging`): fluid in the
    colon beneath, an arm beside.

    Two exceptions. A piece of at least `MIN_SHARE` of the largest stays where no more than `GAP_MM` part it from one
    that stays: the head and the tail of a pancreas whose middle was missed. Of the aorta it stays at any distance, for
    where the arch was missed, its ascending and descending part are two. And where the largest piece reaches the first
    or last slice, others that reach the same slice stay too, for they may join it outside the scan: the two parts of
    the aorta in a scan that ends below the arch, and the lobes of a liver in a thin slab.

    What is removed becomes background, never another organ; no voxel is added. Organs that may have several
    pieces (``single=False``) and ids that are not in the label set stay exactly as they are. Of two pieces
    of one size the one nearer to the origin counts as the larger.

    Args:
        labels: uint8 ``[z, y, x]``, ids; not changed.
        label_set: says which organs are one piece.
        spacing: ``(dx, dy, dz)`` in mm.
        min_ml: a piece smaller than this is noise, even the largest.

    Returns:
        uint8 ``[z, y, x]``, a new array.
    """
    kept = labels.copy()
    boxes = ndimage.find_objects(labels)  # by id from 1 up; None for an id that is absent
    min_voxels = min_ml * 1000.0 / float(np.prod(spacing))
    for label in label_set:
        box = boxes[label.id - 1] if label.id <= len(boxes) else None
        if label.single and box is not None:
            box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)  # with the background around it
            organ = labels[box] == label.id
            stays = organ & ~hanging(organ, spacing) if label.type.value == LIVER else organ.copy()
            ends = (box[0].start == 0, box[0].stop >= len(labels))
            gap_mm = np.inf if label.type.value == AORTA else GAP_MM
            stays[stays] = _of_organ(stays, spacing, ends, min_voxels, gap_mm)
            kept[box][organ & ~stays] = 0
    return kept


def clean_up(
    labels: NDArray[np.uint8], confidence: NDArray[np.float32], label_set: LabelSet, spacing: Sequence[float]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """`keep_components` of the labels, and the confidence that fits: of what was taken away, 1 - confidence.

    Args:
        labels, confidence: ``[z, y, x]``, the confidence 0..1; not changed.
        label_set, spacing: as for `keep_components`.
    """
    kept = keep_components(labels, label_set, spacing)
    changed = kept != labels
    fitting = confidence.copy()
    fitting[changed] = 1 - fitting[changed]
    return kept, fitting


def _of_organ(
    organ: NDArray[np.bool_], spacing: Sequence[float], ends: tuple[bool, bool], min_voxels: float, gap_mm: float
) -> NDArray[np.bool_]:
    """Which voxels of a mask belong to its largest piece, to a large one near it, or to one that may join it outside.

    Args:
        organ: ``[z, y, x]``, not empty.
        spacing: ``(dx, dy, dz)`` in mm.
        ends: whether the array's first and last slice are the scan's.
        min_voxels: smaller pieces are left out.
        gap_mm: how far from one that stays a piece of `MIN_SHARE` of the largest may lie, from voxel to voxel; inf for
            anywhere.

    Returns:
        ``[voxel]``, for the mask's voxels in the order of ``array[organ]``.
    """
    pieces, count = ndimage.label(organ, _NEIGHBOURS)
    piece = pieces[organ]
    sizes = np.bincount(piece, minlength=count + 1)
    largest = int(sizes.argmax())
    stays = np.arange(count + 1) == largest
    candidates = np.flatnonzero((sizes >= MIN_SHARE * sizes[largest]) & ~stays)
    stays[candidates[_linked(pieces, largest, candidates, spacing, gap_mm)]] = True
    for is_end, end in zip(ends, (pieces[0], pieces[-1]), strict=True):
        if is_end and (end == largest).any():
            stays[end] = True  # the background too, which has no voxels here
    return (stays & (sizes >= min_voxels))[piece]


def _linked(
    pieces: NDArray[np.int32], largest: int, candidates: NDArray[np.intp], spacing: Sequence[float], gap_mm: float
) -> NDArray[np.bool_]:
    """Which of the candidates lie within a gap of the largest piece, or of another candidate that does, and so on."""
    linked = np.full(len(candidates), not np.isfinite(gap_mm))
    sizes_mm = tuple(reversed(spacing))
    reached = pieces == largest
    while not linked.all():
        around = _around(reached, [math.ceil(gap_mm / mm) for mm in sizes_mm])  # the whole scan would take gigabytes
        distance = ndimage.distance_transform_edt(~reached[around], sizes_mm)
        near = np.isin(candidates, pieces[around][distance <= gap_mm])
        if not (near & ~linked).any():
            break
        linked |= near
        reached |= np.isin(pieces, candidates[linked])
    return linked


def _around(mask: NDArray[np.bool_], margins: Sequence[int]) -> tuple[slice, ...]:
    """The box of a mask that is not empty, and so many voxels more on every side of it."""
    box = ndimage.find_objects(mask.view(np.uint8))[0]
    return tuple(slice(max(0, side.start - more), side.stop + more) for side, more in zip(box, margins, strict=True))


def hanging(organ: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """Pieces that are thicker than `NECK_MM` and joined to a larger one by something thinner, or not at all.

    The parts deeper inside the organ than half of `NECK_MM` are its cores; every voxel belongs to the nearest one. A
    core's share is dropped where `HANGING` says so. Of the 18 livers that people drew in the training data, whatever
    hangs like that has at most 0.016 of the liver; the colon's fluid in the demo's CT has 0.05 to 0.09.

    Args:
        organ: ``[z, y, x]``, with the background around it; it is taken to go on beyond the array's edges.
        spacing: ``(dx, dy, dz)`` in mm.

    Returns:
        bool ``[z, y, x]``, part of `organ`.
    """
    sizes_mm = tuple(reversed(spacing))
    steps = [max(1, int(COARSE_MM / mm)) for mm in sizes_mm]
    coarse = organ[:: steps[0], :: steps[1], :: steps[2]]
    sampling = [mm * step for mm, step in zip(sizes_mm, steps, strict=True)]
    core, count = ndimage.label(ndimage.distance_transform_edt(coarse, sampling) > NECK_MM / 2)
    if count < 2:
        return np.zeros_like(organ)
    nearest = ndimage.distance_transform_edt(core == 0, sampling, return_distances=False, return_indices=True)
    owner = np.where(coarse, core[tuple(nearest)], 0)
    share = np.bincount(owner.ravel(), minlength=count + 1).astype(float)
    share[0] = 0.0
    share /= share.max()
    dropped = ((share >= HANGING[0]) & (share <= HANGING[1]))[owner]
    places = [np.arange(n) // step for n, step in zip(organ.shape, steps, strict=True)]
    return dropped[np.ix_(*places)] & organ
