"""Slices that nobody annotated: what a trained model answers there with confidence is learned too.

Self-training as in pseudo-labelling: a teacher segments the training volumes, its unsure voxels are marked `IGNORED`,
and the loss does not look at them. Only training cases are ever segmented.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.segmenter import Segmenter, Step
from pgpsam.slices import Preparation
from pgpsam.training.data import IGNORED, LoadedCase, Sample, make_samples
from pgpsam.volume import Volume

EVERY_MM = 10.0  # neighbouring slices show much the same
REFINED_EVERY_MM = 5.0  # but a volume refiner compares them
# From which share of the winning class an answer is believed. Models of few annotations rather miss than invent, so
# that "nothing here" needs more.
CONFIDENT_ORGAN, CONFIDENT_NOTHING = 0.6, 0.9


def load_teacher(model: str, label_set: LabelSet, device: str = "auto") -> Segmenter:
    """The model that labels slices.

    Raises:
        UserError: no such model, or one of other organs.
    """
    teacher = Segmenter.load(model, device)
    if teacher.label_set.names != label_set.names:
        raise UserError(f"{model} cannot label slices: its organs are {', '.join(teacher.label_set.names)}")
    return teacher


def guessed_samples(
    teacher: Segmenter,
    case: LoadedCase,
    annotated: Collection[int],
    preparation: Preparation,
    progress: Callable[[Step], None] | None = None,
) -> list[Sample]:
    """Slices of a case with the teacher's labels.

    Args:
        teacher: with the organs of the case's labels, in the same order.
        annotated: canonical z of the slices that are known; they are left out.
        preparation: of the samples; the teacher's may be another.

    Returns:
        A sample about every `EVERY_MM`, or `REFINED_EVERY_MM` of a teacher with a refiner, marked as guessed.
    """
    seen = spread(case.volume, REFINED_EVERY_MM if teacher.make_refiner else EVERY_MM)
    indices = [z for z in seen if z not in annotated]
    if not indices:
        return []
    labels = np.full(case.labels.shape, IGNORED, np.uint8)
    labels[seen] = confident_labels(teacher, thinned(case.volume, seen), progress)
    return make_samples(LoadedCase(case.name, case.volume, labels), indices, preparation, guessed=True)


def spread(volume: Volume, every_mm: float) -> range:
    """Canonical z of slices about so far apart."""
    return range(0, volume.shape[0], max(1, round(every_mm / volume.spacing[2])))


def thinned(volume: Volume, chosen: range) -> Volume:
    """Only those slices, as a volume of thicker ones."""
    return Volume.from_kji(volume.array[chosen], volume.affine @ np.diag([1.0, 1.0, chosen.step, 1.0]), volume.name)


def confident_labels(
    teacher: Segmenter, volume: Volume, progress: Callable[[Step], None] | None = None
) -> NDArray[np.uint8]:
    """The teacher's class indices, uint8 [z, y, x], `IGNORED` where it is unsure."""
    result = teacher.segment(volume, progress=progress)
    index = np.zeros(256, np.uint8)
    index[list(teacher.label_set.ids)] = range(1, len(teacher.label_set) + 1)
    needed = np.where(result.labels > 0, CONFIDENT_ORGAN, CONFIDENT_NOTHING)
    return np.where(result.confidence >= needed, index[result.labels], IGNORED).astype(np.uint8)
