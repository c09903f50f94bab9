"""What a run gives back: the organs, how sure the model was of them, and the prompts that led there.

Plain data in the canonical axes of `Volume`. It knows nothing of networks, files or pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .labels import Label, LabelSet


@dataclass(frozen=True)
class PromptPoint:
    """A voxel that an organ's prompt attended to most in its slice.

    Attributes:
        label_id: the organ, an id of the segmentation's label set.
        z: canonical index towards superior.
        y: canonical index towards posterior.
        x: canonical index towards the patient's left.
        weight: how strongly it was attended to, 0..1.
    """

    label_id: int
    z: int
    y: int
    x: int
    weight: float


@dataclass(frozen=True, eq=False)
class Prompt:
    """Where a model looked for one organ.

    Attributes:
        organ: what was looked for.
        points: the peaks, strongest first; none where it was looked for in vain.
        regions: the segmentation's, which all organs share.
    """

    organ: Label
    points: tuple[PromptPoint, ...]
    regions: NDArray[np.uint8]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The attended region, ``[z, y, x]``; where two organs' regions overlap, the stronger one has the voxel."""
        return self.regions == self.organ.id


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of one volume, on that volume's canonical grid.

    Attributes:
        labels: uint8 ``[z, y, x]``, ids of `label_set`, 0 for background.
        confidence: float32 ``[z, y, x]`` in 0..1, of whatever `labels` says there, background included; where the
            clean-up took an organ away, what was left for everything else.
        regions: uint8 ``[z, y, x]``, the id of the organ whose prompt attended there, 0 for none.
        points: the peaks of the prompts, in any order.
        seconds: wall-clock time by stage, in the order of the stages.
        device: where the network ran, such as "cpu" or "cuda:0".
        model: the model's name.
        label_set: the organs that were looked for; not all of them need be there.
    """

    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    regions: NDArray[np.uint8]
    points: list[PromptPoint]
    seconds: dict[str, float]
    device: str
    model: str
    label_set: LabelSet

    def __post_init__(self) -> None:
        shape = self.labels.shape
        if len(shape) != 3 or self.confidence.shape != shape or self.regions.shape != shape:
            raise ValueError(
                f"labels {shape}, confidence {self.confidence.shape} and regions {self.regions.shape} "
                "must lie on one grid [z, y, x]"
            )

    @property
    def prompts(self) -> dict[str, Prompt]:
        """Where the model looked for each organ, by the organ's name."""
        peaks = sorted(self.points, key=lambda point: -point.weight)
        return {
            label.name: Prompt(label, tuple(point for point in peaks if point.label_id == label.id), self.regions)
            for label in self.label_set
        }

    def organs(self) -> Iterator[tuple[Label, tuple[slice, slice, slice], NDArray[np.bool_]]]:
        """The organs that were found, in the order of the label set.

        Yields:
            The organ, its bounding box ``(z, y, x)``, and its mask ``[z, y, x]`` within that box.
        """
        boxes = ndimage.find_objects(self.labels)  # by id from 1 up; None for an id that is absent
        for label in self.label_set:
            box = boxes[label.id - 1] if label.id <= len(boxes) else None
            if box is not None:
                yield label, box, self.labels[box] == label.id

    def confidence_by_slice(self, box: tuple[slice, slice, slice], organ: NDArray[np.bool_]) -> NDArray[np.float64]:
        """An organ's mean confidence in each slice of its box, ``[z]``; nan in slices without it.

        Args:
            box: as `organs` gives it.
            organ: the mask ``[z, y, x]`` within the box.
        """
        count = organ.sum(axis=(1, 2))
        total = np.where(organ, self.confidence[box], 0.0).sum(axis=(1, 2), dtype=np.float64)
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
