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
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)  # pieces that touch by a corner are one piece


def keep_components(
    labels: NDArray[np.uint8],
    label_set: LabelSet,
    spacing: Sequence[float],
    min_ml: float = MIN_ML,
) -> NDArray[np.uint8]:
    """Leaves of every organ that is anatomically one piece its largest connected piece.

    What is removed becomes background, never another organ; no voxel is added. Organs that may have several
    pieces (``single=False``) and ids that are not in the label set stay exactly as they are. Of two pieces
    of one size the one nearer to the origin stays.

    Args:
        labels: uint8 ``[z, y, x]``, ids; not changed.
        label_set: says which organs are one piece.
        spacing: ``(dx, dy, dz)`` in mm.
        min_ml: a largest piece smaller than this is noise too, and removed.

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
            kept[box][organ & ~_largest(organ, min_voxels)] = 0
    return kept


def _largest(organ: NDArray[np.bool_], min_voxels: float) -> NDArray[np.bool_]:
    """The largest piece of a mask ``[z, y, x]`` that is not empty; nothing if that is too small."""
    pieces, count = ndimage.label(organ, _NEIGHBOURS)
    sizes = np.bincount(pieces[organ], minlength=count + 1)
    largest = int(sizes.argmax())
    if sizes[largest] < min_voxels:
        return np.zeros_like(organ)
    return pieces == largest
