"""Slices that nobody annotated: what a trained model answers there with confidence is learned too.

Self-training as in pseudo-labelling: one or several models segment the training volumes, voxels of which they are
unsure are marked `IGNORED`, and the loss does not look at them. Only training cases are ever segmented.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.postprocess import clean_up
from pgpsam.segmenter import Segmenter, Step
from pgpsam.slices import Preparation, frame_volume
from pgpsam.training.data import IGNORED, LoadedCase, Sample, make_samples
from pgpsam.volume import Volume

EVERY_MM = 10.0  # neighbouring slices show much the same
REFINED_EVERY_MM = 5.0  # but a volume refiner compares them
# From which share of the winning class an answer is believed. Models of few annotations rather miss than invent, so
# that "nothing here" needs more.
CONFIDENT_ORGAN, CONFIDENT_NOTHING = 0.6, 0.9


class Teacher:
    """Trained models that label slices together: what is learned is their mean answer.

    Args:
        segmenters: of the same organs in the same order.
    """

    def __init__(self, segmenters: Sequence[Segmenter]) -> None:
        self.segmenters = tuple(segmenters)
        self.label_set = segmenters[0].label_set
        self.compares_slices = any(one.make_refiner for one in segmenters)

    def answer(
        self, volume: Volume, progress: Callable[[Step], None] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Class indices, without stray pieces, and the shares of the winning classes, [z, y, x]."""
        index = np.zeros(256, np.uint8)
        index[list(self.label_set.ids)] = range(1, len(self.label_set) + 1)
        if len(self.segmenters) == 1:
            result = self.segmenters[0].segment(volume, progress=progress, looks=1)
            return index[result.labels], result.confidence
        y0, y1, x0, x1 = frame_volume(volume, self.segmenters[0].preparation).box
        mean = torch.zeros(len(volume.array), len(self.label_set) + 1, y1 - y0, x1 - x0, dtype=torch.float16)
        for one in self.segmenters:
            for z, shares in one.shares(volume, progress=progress):
                mean[z] += (shares / len(self.segmenters)).half().cpu()
        ids = np.zeros(volume.array.shape, np.uint8)
        confidence = np.ones(volume.array.shape, np.float32)  # air is air
        seen = mean.sum(1).amax((1, 2)) > 0
        best, winner = mean[seen].float().max(1)
        ids[seen.numpy(), y0:y1, x0:x1] = np.array([0, *self.label_set.ids], np.uint8)[winner.numpy()]
        confidence[seen.numpy(), y0:y1, x0:x1] = best.numpy()
        ids, confidence = clean_up(ids, confidence, self.label_set, volume.spacing)
        return index[ids], confidence


def load_teacher(models: Sequence[str], label_set: LabelSet, device: str = "auto") -> Teacher:
    """The models that label slices.

    Raises:
        UserError: no such model, or one of other organs.
    """
    segmenters = [Segmenter.load(model, device) for model in models]
    for model, one in zip(models, segmenters, strict=True):
        if one.label_set.names != label_set.names:
            raise UserError(f"{model} cannot label slices: its organs are {', '.join(one.label_set.names)}")
    return Teacher(segmenters)


def guessed_samples(
    teacher: Teacher,
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
    seen = spread(case.volume, REFINED_EVERY_MM if teacher.compares_slices else EVERY_MM)
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
    teacher: Teacher, volume: Volume, progress: Callable[[Step], None] | None = None
) -> NDArray[np.uint8]:
    """The teacher's class indices, uint8 [z, y, x], `IGNORED` where it is unsure."""
    labels, confidence = teacher.answer(volume, progress)
    needed = np.where(labels > 0, CONFIDENT_ORGAN, CONFIDENT_NOTHING)
    return np.where(confidence >= needed, labels, IGNORED).astype(np.uint8)
