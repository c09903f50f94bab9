"""What the user made of the model's result: how much changed, and corrected slices as cases to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from . import segments, terminology
from .grid import export_volume, save, segment_mask, shape_of
from .nodes import FIRST, SceneError, companion
from .segments import OrganSegment


@dataclass(frozen=True)
class Change:
    """How one organ differs from the model's own result.

    Attributes:
        segment: the segment's ID.
        organ: the segment's name.
        added: voxels that the user added.
        removed: voxels that the user removed.
        dice: of the segment with the model's own result; 1 where both are empty.
    """

    segment: str
    organ: str
    added: int
    removed: int
    dice: float

    @property
    def changed(self) -> int:
        return self.added + self.removed


def changes(segmentationNode: Any, first_result: NDArray[np.uint8] | None = None) -> list[Change]:
    """Every segment of ours against what the model gave for that organ.

    Args:
        first_result: uint8 [k, j, i] label ids; None takes the copy that the scene keeps.

    Raises:
        SceneError: the scene keeps none, or a segment lies on another grid.
    """
    first = _first(segmentationNode) if first_result is None else first_result
    found = []
    for organ in segments.ours(segmentationNode.GetSegmentation()):
        now, then = segment_mask(segmentationNode, organ.segment_id, first.shape), first == organ.label
        both, total = int((now & then).sum()), int(now.sum() + then.sum())
        added, removed = int(now.sum()) - both, int(then.sum()) - both
        dice = 2 * both / total if total else 1.0
        found.append(Change(organ.segment_id, organ.name, added, removed, dice))
    return found


def corrected_slices(segmentationNode: Any, volumeNode: Any, folder: str | Path) -> list[dict[str, Any]]:
    """The slices that the user corrected, as the ``cases`` of a `finetune` request.

    A slice counts as corrected if any organ of ours differs there from the model's own result; all organs in it
    are then taken as right. Where an organ has two segments, the one that the user worked on counts.

    Returns:
        No case, or one: {"name", "volume": path of v.npy [k, j, i], "affine": [4, 4], "labels": path of uint8
        [k, j, i], "slices": sorted indices along "slices_axis" of [k, j, i], "organs": [{"id", "name", "color",
        "snomed"}], which is what the request's "labels" take}.

    Raises:
        SceneError: as `changes` and `export_volume`.
    """
    chosen = _by_organ(segments.ours(segmentationNode.GetSegmentation()))
    first = _first(segmentationNode)
    if not chosen:
        return []
    axis = chosen[0].axis
    others = tuple(other for other in range(3) if other != axis)
    touched = np.zeros(first.shape[axis], bool)
    for organ in chosen:
        mask = segment_mask(segmentationNode, organ.segment_id, first.shape)
        touched |= (mask != (first == organ.label)).any(axis=others)
    slices = np.flatnonzero(touched).tolist()
    if not slices:
        return []
    return [training_case(segmentationNode, volumeNode, {o.segment_id: o.label for o in chosen}, slices, axis, folder)]


def training_case(
    segmentationNode: Any,
    volumeNode: Any,
    labels: dict[str, int],
    slices: Sequence[int],
    axis: int,
    folder: str | Path,
) -> dict[str, Any]:
    """Any segments, the user's own too, as one case of a `finetune` request.

    Args:
        labels: segment ID -> label id, 1..255; where segments overlap, the last one counts.
        slices: the annotated slices, indices along `axis` of [k, j, i].

    Returns:
        As one case of `corrected_slices`.

    Raises:
        SceneError: a segment lies on another grid, or as `export_volume`.
    """
    case = export_volume(volumeNode, folder)
    shape = shape_of(volumeNode)
    array = np.zeros(shape, np.uint8)
    for segment_id, label in labels.items():
        array[segment_mask(segmentationNode, segment_id, shape)] = label
    path = Path(folder) / "labels.npy"
    save(path, array)
    segmentation = segmentationNode.GetSegmentation()
    organs = {label: _organ(segmentation.GetSegment(segment_id), label) for segment_id, label in labels.items()}
    return {
        "name": volumeNode.GetName(),
        **case,
        "labels": str(path),
        "slices": sorted(int(index) for index in slices),
        "slices_axis": axis,
        "organs": list(organs.values()),
    }


def _organ(segment: Any, label: int) -> dict[str, Any]:
    entry = segments.tag(segment, segment.GetTerminologyEntryTagName())
    return {
        "id": label,
        "name": segments.tag(segment, segments.ORGAN_TAG) or segment.GetName(),
        "color": [round(255 * channel) for channel in segment.GetColor()],
        "snomed": terminology.codes_of(entry),
    }


def _by_organ(found: Sequence[OrganSegment]) -> list[OrganSegment]:
    """One segment per organ: the one that the user worked on, else the last."""
    chosen: dict[str, OrganSegment] = {}
    for organ in found:
        if organ.organ not in chosen or chosen[organ.organ].untouched:
            chosen[organ.organ] = organ
    return list(chosen.values())


def _first(segmentationNode: Any) -> NDArray[np.uint8]:
    node = companion(segmentationNode, FIRST)
    if node is None or node.GetImageData() is None:
        raise SceneError(
            f"the model's own result for '{segmentationNode.GetName()}' is not in this scene",
            "It is kept by this module and saved with the scene: segment again, or load that scene",
        )
    return slicer.util.arrayFromVolume(node)
