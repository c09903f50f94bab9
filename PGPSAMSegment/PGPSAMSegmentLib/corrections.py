"""What the user made of the model's result: how much changed, and corrected slices as cases to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import firstresult, segments, terminology
from .firstresult import First
from .grid import export_volume, has_reference, lattice, save, segment_mask, shape_of
from .nodes import SceneError
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


def changes(segmentationNode: Any) -> list[Change]:
    """Every segment of ours against what the model gave for it; one that was removed counts as erased.

    What the scene does not keep the model's result of, such as a segment loaded from a file, is left out.

    Raises:
        SceneError: the scene keeps none at all, or the segmentation's grid was changed since.
    """
    first, found = _first(segmentationNode), []
    for key, organ in _organs(segmentationNode, first):
        if organ.untouched:
            found.append(Change(organ.segment_id, organ.name, 0, 0, 1.0))
            continue
        now, then = _now(segmentationNode, organ, first), first.mask(key)
        both, total = int((now & then).sum()), int(now.sum() + then.sum())
        added, removed = int(now.sum()) - both, int(then.sum()) - both
        found.append(Change(organ.segment_id, organ.name, added, removed, 2 * both / total if total else 1.0))
    return found


def corrected_slices(segmentationNode: Any) -> tuple[list[int], int]:
    """The slices that the user corrected, sorted, and which axis of [k, j, i] they are counted along.

    A slice counts as corrected if any organ of ours differs there from the model's own result; all organs in it
    are then taken as right. Where an organ has two segments, the one that the user worked on counts.

    Raises:
        SceneError: as `changes`.
    """
    first = _first(segmentationNode)
    organs = _organs(segmentationNode, first)
    chosen = _by_organ(segmentationNode.GetSegmentation(), [organ for _, organ in organs])
    axis = chosen[0].axis if chosen else 0
    others = tuple(other for other in range(3) if other != axis)
    touched = np.zeros(first.shape[axis], bool)
    for key, organ in organs:
        if organ in chosen and not organ.untouched:
            touched |= (_now(segmentationNode, organ, first) != first.mask(key)).any(axis=others)
    return np.flatnonzero(touched).tolist(), axis


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
        {"name", "volume": path of v.npy [k, j, i], "affine": [4, 4], "labels": path of uint8 [k, j, i], "slices":
        sorted indices along "slices_axis" of [k, j, i], "organs": [{"id", "name", "color", "snomed"}], which is what
        the request's "labels" take}.

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


def _first(segmentationNode: Any) -> First:
    """The model's own result, which lies on the segmentation's grid."""
    first, segmentation = firstresult.of(segmentationNode), segmentationNode.GetSegmentation()
    shape, spacing = lattice(segmentation) if has_reference(segmentation) else (first.shape, first.spacing)
    if shape != first.shape or not np.allclose(spacing, first.spacing, rtol=1e-4):
        raise SceneError(
            f"the voxel grid of '{segmentationNode.GetName()}' was changed since the result came",
            "In the Segment Editor, set the source volume's geometry again (the button beside it), or segment again",
        )
    return first


def _organs(segmentationNode: Any, first: First) -> list[tuple[str, OrganSegment]]:
    """Our segments with the keys of what the model gave for them; organs that have none any more come last."""
    segmentation = segmentationNode.GetSegmentation()
    there = [(firstresult.key(segmentation, organ.segment_id), organ) for organ in segments.ours(segmentation)]
    names = {organ.organ for _, organ in there}
    gone = {key: entry for key, entry in first.entries.items() if entry["organ"] not in names}
    lost = [(key, OrganSegment("", e["organ"], e["organ"], 0, False, e["axis"], {})) for key, e in gone.items()]
    return [(key, organ) for key, organ in there if key in first.entries] + lost


def _now(segmentationNode: Any, organ: OrganSegment, first: First) -> NDArray[np.bool_]:
    """A segment's voxels; of one that was removed, those of the user's own segment of its name, if he drew one."""
    segmentation = segmentationNode.GetSegmentation()
    segment_id = organ.segment_id or segmentation.GetSegmentIdBySegmentName(organ.organ)
    return segment_mask(segmentationNode, segment_id, first.shape) if segment_id else np.zeros(first.shape, bool)


def _by_organ(segmentation: Any, found: Sequence[OrganSegment]) -> list[OrganSegment]:
    """One segment per organ: the one that the user worked on most, a removed one among them, else the last."""

    def worked_on(organ: OrganSegment) -> int:
        return segments.worked_on(segmentation, organ.segment_id) if organ.segment_id else 2

    chosen: dict[str, OrganSegment] = {}
    for organ in found:
        before = worked_on(chosen[organ.organ]) if organ.organ in chosen else 0
        if not before or worked_on(organ) > before:
            chosen[organ.organ] = organ
    return list(chosen.values())
