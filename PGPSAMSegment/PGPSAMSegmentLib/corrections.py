"""What the user made of the model's result: how much changed, and corrected slices as cases to learn from.

A segment counts for the organ that its name says: of one that was renamed, both organs were corrected. So was an organ
that the model had been asked for and not found, if a segment of its name was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import firstresult, segments, table, terminology
from .firstresult import First
from .grid import export_volume, frame_of, has_reference, lattice, save, segment_mask, shape_of, voxels_of
from .nodes import VOLUME, SceneError


@dataclass(frozen=True)
class Change:
    """How one organ differs from the model's own result.

    Attributes:
        segment: the segment's ID; '' for one that was removed or renamed to another organ.
        organ: the segment's name; the organ's where there is none.
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


@dataclass(frozen=True)
class _Compared:
    """A segment of an organ that the model was asked for, and what it gave.

    Attributes:
        segment: its ID; '' where the organ has none any more.
        name: the segment's, else the organ's.
        organ: which organ it is now.
        given: the key of what the model gave for it, '' for nothing.
        same: it is that still.
    """

    segment: str
    name: str
    organ: str
    given: str
    same: bool


def asked(segmentationNode: Any) -> set[str]:
    """Names of the organs that the model was asked for, as far as the scene tells."""
    return table.organs(segmentationNode) | firstresult.organs(segmentationNode)


def changes(segmentationNode: Any) -> list[Change]:
    """Every segment of an organ that the model was asked for against what it gave; a removed one counts as erased.

    What the scene does not keep the model's result of, such as a segment loaded from a file, is left out.

    Raises:
        SceneError: the scene keeps none at all, or that of another frame, or the segmentation's grid was changed since.
    """
    first, found = _first(segmentationNode), []
    for each in _compared(segmentationNode, first):
        if each.same:
            found.append(Change(each.segment, each.name, 0, 0, 1.0))
            continue
        now, then = _masks(segmentationNode, each, first)
        both, total = int((now & then).sum()), int(now.sum() + then.sum())
        added, removed = int(now.sum()) - both, int(then.sum()) - both
        found.append(Change(each.segment, each.name, added, removed, 2 * both / total if total else 1.0))
    return found


def corrected_slices(segmentationNode: Any) -> tuple[list[int], int]:
    """The slices that the user corrected, sorted, and which axis of [k, j, i] they are counted along.

    A slice counts as corrected if any organ that the model was asked for differs there from its own result; all
    organs in it are then taken as right. Where an organ has two segments, the one that the user worked on counts.
    Where the model found nothing at all, the axis is not known, and is said to be 0.

    Raises:
        SceneError: as `changes`.
    """
    first = _first(segmentationNode)
    axis = next((int(entry["axis"]) for entry in first.entries.values()), 0)
    others = tuple(other for other in range(3) if other != axis)
    touched = np.zeros(first.shape[axis], bool)
    for each in _that_count(segmentationNode, first):
        if not each.same:
            now, then = _masks(segmentationNode, each, first)
            touched |= (now != then).any(axis=others)
    return np.flatnonzero(touched).tolist(), axis


def volumes(segmentationNode: Any) -> set[str]:
    """Which volumes' voxels the result is of that was corrected, see `grid.voxels_of`, as far as this is known.

    Raises:
        SceneError: as `changes`.
    """
    first = _first(segmentationNode)
    segmentation, found = segmentationNode.GetSegmentation(), set()
    for each in _that_count(segmentationNode, first):
        own = segments.tag(segmentation.GetSegment(each.segment), segments.VOXELS_TAG) if each.segment else ""
        found.add(own or (first.entries[each.given]["voxels"] if each.given else ""))
    return found - {""}


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
    organs = {label: _organ(segmentation, segment_id, label) for segment_id, label in labels.items()}
    return {
        "name": volumeNode.GetName(),
        **case,
        "labels": str(path),
        "slices": sorted(int(index) for index in slices),
        "slices_axis": axis,
        "organs": list(organs.values()),
    }


def _organ(segmentation: Any, segment_id: str, label: int) -> dict[str, Any]:
    segment, name = segmentation.GetSegment(segment_id), segments.organ_of(segmentation, segment_id)
    renamed = segments.tag(segment, segments.ORGAN_TAG) not in ("", name)  # its codes are the other organ's
    entry = "" if renamed else segments.tag(segment, segment.GetTerminologyEntryTagName())
    return {
        "id": label,
        "name": name,
        "color": [round(255 * channel) for channel in segment.GetColor()],
        "snomed": terminology.codes_of(entry),
    }


def _first(segmentationNode: Any) -> First:
    """The model's own result, which lies on the segmentation's grid, and is of the frame that it shows."""
    first, segmentation = firstresult.of(segmentationNode), segmentationNode.GetSegmentation()
    shape, spacing = lattice(segmentation) if has_reference(segmentation) else (first.shape, first.spacing)
    if shape != first.shape or not np.allclose(spacing, first.spacing, rtol=1e-4):
        raise SceneError(
            f"the voxel grid of '{segmentationNode.GetName()}' was changed since the result came",
            "In the Segment Editor, set the source volume's geometry again (the button beside it), or segment again",
        )
    volume = segmentationNode.GetNodeReference(VOLUME) if frame_of(segmentationNode) else None
    if volume is not None and first.voxels not in ("", voxels_of(volume)):
        raise SceneError(
            f"the model's own result that is kept with '{segmentationNode.GetName()}' is of another frame",
            "A segmentation that is turned with the frames keeps only the latest run's: segment this frame again, into"
            " a new segmentation, and correct that result",
        )
    return first


def _compared(segmentationNode: Any, first: First) -> list[_Compared]:
    """The segments of the organs that the model was asked for; organs that have none any more come last."""
    segmentation = segmentationNode.GetSegmentation()
    latest = {entry["organ"]: key for key, entry in first.entries.items()}
    wanted, found = asked(segmentationNode), []
    for segment_id in segments.ids(segmentation):
        segment = segmentation.GetSegment(segment_id)
        organ = segments.spelled(segments.organ_of(segmentation, segment_id), wanted)
        key = firstresult.key(segmentation, segment_id)
        own = key in first.entries and first.entries[key]["organ"] == organ
        given = key if own else latest.get(organ, "")
        ours = segments.tag(segment, segments.ORGAN_TAG) == organ
        if given or (organ in wanted and not ours):  # not a result of ours that came without its entry
            # An earlier run's, brought back by the Segment Editor's undo, has no entry any more.
            same = ours and segments.as_written(segmentation, segment_id)
            found.append(_Compared(segment_id, segment.GetName(), organ, given, same))
    there = {each.organ for each in found}
    return found + [_Compared("", organ, organ, key, False) for organ, key in latest.items() if organ not in there]


def _that_count(segmentationNode: Any, first: First) -> list[_Compared]:
    """The same, but of several segments of an organ the one that the user worked on."""
    segmentation = segmentationNode.GetSegmentation()
    chosen = segments.by_organ(segmentation, segments.ids(segmentation), asked(segmentationNode))
    return [each for each in _compared(segmentationNode, first) if each.segment == chosen.get(each.organ, "")]


def _masks(segmentationNode: Any, each: _Compared, first: First) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What a segment is and what the model gave for it, bool [k, j, i]; nothing is an empty mask."""
    nothing = np.zeros(first.shape, bool)
    now = segment_mask(segmentationNode, each.segment, first.shape) if each.segment else nothing
    return now, first.mask(each.given) if each.given else nothing
