"""What anatomy says of a finished label volume: a liver is one piece, so its stray pieces are noise.

Arrays in, arrays out; it knows nothing of networks or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .labels import LabelSet

MIN_ML = 0.03  # about one voxel of 3 mm: no organ is that small, and one that is cut off there is not missed
AORTA = "15825003"  # SNOMED CT; its ascending and descending part meet only in the arch
MIN_SHARE = 0.3  # of the larger of the two: a piece of that size is no noise
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)  # pieces that touch by a corner are one piece


def keep_components(
    labels: NDArray[np.uint8],
    label_set: LabelSet,
    spacing: Sequence[float],
    min_ml: float = MIN_ML,
) -> NDArray[np.uint8]:
    """Leaves of every organ that is anatomically one piece its largest connected piece.

    Two exceptions. The aorta's pieces of at least `MIN_SHARE` of the largest stay, for where the arch was missed, its
    ascending and descending part are two. And where the largest piece reaches the first or last slice, others that
    reach the same slice stay too, for they may join it outside the scan: the two parts of the aorta in a scan that
    ends below the arch, and the lobes of a liver in a thin slab.

    What is removed becomes background, never another organ; no voxel is added. Organs that may have several
    pieces (``single=False``) and ids that are not in the label set stay exactly as they are.

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
            organ = labels[box] == label.id
            ends = (box[0].start == 0, box[0].stop == len(labels))
            share = MIN_SHARE if label.type.value == AORTA else 1.0
            kept[box][organ] = np.where(_of_organ(organ, ends, min_voxels, share), label.id, 0)
    return kept


def _of_organ(
    organ: NDArray[np.bool_], ends: tuple[bool, bool], min_voxels: float, min_share: float
) -> NDArray[np.bool_]:
    """Which voxels of a mask belong to its largest piece, to one not much smaller, or to one that may join it outside.

    Args:
        organ: ``[z, y, x]``, not empty, cropped to what it holds.
        ends: whether its first and its last slice are the scan's.
        min_voxels: smaller pieces are left out. min_share: of the largest piece's size, from which another stays.

    Returns:
        ``[voxel]``, for the mask's voxels in the order of ``array[organ]``.
    """
    pieces, count = ndimage.label(organ, _NEIGHBOURS)
    piece = pieces[organ]
    sizes = np.bincount(piece, minlength=count + 1)
    largest = int(sizes.argmax())
    stays = sizes >= min_share * sizes[largest]
    for is_end, end in zip(ends, (pieces[0], pieces[-1]), strict=True):
        if is_end and (end == largest).any():
            stays[end] = True  # the background too, which has no voxels here
    return (stays & (sizes >= min_voxels))[piece]
