"""Which slices of which organ to look at first, which of them were looked at, and what the user changed there.

The list is made when a result is written and lives in an attribute of the segmentation, so it goes with the
scene. It comes from the model's own confidence, which each segment of ours carries in a tag.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import segments, views
from .grid import ijk_to_ras, reference_affine, same_grid, segment_box
from .nodes import PREFIX, VOLUME, SceneError
from .segments import OrganSegment

REVIEW_ATTRIBUTE = PREFIX + "review"
MIN_SCORE = 0.15  # a full-size slice of 85 % confidence or less
MAX_SLICES = 40  # nobody looks through more than this; the worst come first


@dataclass(frozen=True)
class Item:
    """Neighbouring slices of one organ that are likely wrong.

    Attributes:
        segment: the segment's ID.
        organ: the segment's name.
        axis: which axis of [k, j, i] the slices are counted along.
        slice: index of the worst slice.
        first: index of the first one.
        last: index of the last one.
        confidence: the model's mean confidence in the worst slice, 0..1.
        score: see `suspicion`; the larger, the more likely wrong.
        checked: the user has looked at it.
    """

    segment: str
    organ: str
    axis: int
    slice: int
    first: int
    last: int
    confidence: float
    score: float
    checked: bool = False

    @property
    def slices(self) -> str:
        """What people are told: counted from 1 at the file's first slice."""
        return str(self.first + 1) if self.first == self.last else f"{self.first + 1}-{self.last + 1}"


# --------------------------------------------------------------------------------------------- making the list


def suspicion(confidence: float, area: int, usual_area: float) -> float:
    """How likely a slice of an organ is wrong in a way that matters, 0..1.

    It is the share of the organ's voxels in that slice that the model doubts, weighted with the square root of
    the slice's area over the organ's median one, at most 1. Measured by the organ's own size, a small adrenal
    gland competes with the liver on equal terms, and the few voxels of an organ's last slice, which are always
    unsure because all of them are border, don't crowd out a doubtful slice through its middle.

    Args:
        confidence: mean over the organ's voxels in the slice, 0..1.
        area: the organ's voxels in the slice.
        usual_area: the median of that over the organ's slices.
    """
    return (1.0 - confidence) * float(np.sqrt(min(1.0, area / usual_area))) if usual_area > 0 else 0.0


def build(segmentationNode: Any, fresh: Sequence[str] = ()) -> list[Item]:
    """Makes the list anew from the segments' confidences and stores it, worst first.

    What was checked stays checked where slices of the same segment overlap.

    Args:
        fresh: IDs of segments with new content: nothing in them is checked.
    """
    segmentation = segmentationNode.GetSegmentation()
    scored = [entry for organ in segments.ours(segmentation) for entry in _scored(segmentation, organ)]
    worst = sorted((entry for entry in scored if entry[0] >= MIN_SCORE), key=lambda entry: -entry[0])[:MAX_SLICES]
    found = merge(worst)
    done = [item for item in items(segmentationNode) if item.checked and item.segment not in fresh]
    found = [replace(item, checked=any(_same_place(item, old) for old in done)) for item in found]
    _store(segmentationNode, found, None)
    return found


def _scored(segmentation: Any, organ: OrganSegment) -> list[tuple[float, OrganSegment, int, float]]:
    areas = segments.slice_areas(segmentation, organ)
    if not any(areas.values()):
        return []
    usual = float(np.median([area for area in areas.values() if area]))
    return [
        (suspicion(confidence, areas.get(index, 0), usual), organ, index, confidence)
        for index, confidence in organ.slice_confidence.items()
    ]


def merge(scored: Sequence[tuple[float, OrganSegment, int, float]]) -> list[Item]:
    """Neighbouring slices of one segment become one item, named after its worst slice; worst item first."""
    merged: list[Item] = []
    for score, organ, index, confidence in sorted(scored, key=lambda entry: (entry[1].segment_id, entry[2])):
        item = Item(organ.segment_id, organ.name, organ.axis, index, index, index, confidence, score)
        before = merged[-1] if merged else None
        if before is None or before.segment != item.segment or before.last + 1 < index:
            merged.append(item)
        else:
            worse = before if before.score >= score else item
            merged[-1] = replace(worse, first=before.first, last=index)
    return sorted(merged, key=lambda item: -item.score)


def _same_place(item: Item, other: Item) -> bool:
    return item.segment == other.segment and item.first <= other.last and other.first <= item.last


# ------------------------------------------------------------------------------------------ going through it


def items(segmentationNode: Any) -> list[Item]:
    """The list as it is now, worst first; empty where none was made.

    Segments bear their present names. Places in one that was removed are left out; they come back with it.
    """
    segmentation = segmentationNode.GetSegmentation()
    names = {segment_id: segmentation.GetSegment(segment_id).GetName() for segment_id in segments.ids(segmentation)}
    return [replace(item, organ=names[item.segment]) for item in _stored(segmentationNode) if item.segment in names]


def current(segmentationNode: Any) -> Item | None:
    """The item that was gone to last."""
    place = _load(segmentationNode)["current"]
    return next((item for item in items(segmentationNode) if [item.segment, item.slice] == place), None)


def step(segmentationNode: Any, by: int = 1) -> Item | None:
    """Goes to the next (``by=1``) or previous (``by=-1``) item that is not yet checked, round and round.

    Returns:
        The item, which now is the current one; None if all are checked.
    """
    listed = items(segmentationNode)
    here = current(segmentationNode)
    start = listed.index(here) if here else (-1 if by > 0 else len(listed))
    for away in range(1, len(listed) + 1):
        item = listed[(start + by * away) % len(listed)]
        if not item.checked:
            select(segmentationNode, item)
            return item
    return None


def select(segmentationNode: Any, item: Item) -> None:
    """Makes any item of the list the current one, a checked one too."""
    _store(segmentationNode, _stored(segmentationNode), item)


def mark(segmentationNode: Any, item: Item, checked: bool = True) -> None:
    """Notes that an item was looked at, or not.

    The segment's status in Slicer follows: in progress once one of its items is checked, completed when all are, not
    started when none is. "Flagged", and "completed" without any item checked, are the user's own words and stay. A
    segment with a status is the user's, and later runs don't replace it.
    """
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    segment = segmentationNode.GetSegmentation().GetSegment(item.segment)
    known = _stored(segmentationNode)
    begun = any(other.checked for other in known if other.segment == item.segment)
    theirs = {logic.Flagged} if begun else {logic.Flagged, logic.Completed}
    listed = [
        replace(other, checked=checked) if (other.segment, other.slice) == (item.segment, item.slice) else other
        for other in known
    ]
    _store(segmentationNode, listed, current(segmentationNode))
    if logic.GetSegmentStatus(segment) in theirs:
        return
    states = [other.checked for other in listed if other.segment == item.segment]
    status = logic.Completed if all(states) else logic.InProgress if any(states) else logic.NotStarted
    logic.SetSegmentStatus(segment, status)


def progress(segmentationNode: Any) -> str:
    """One line for the user."""
    listed = items(segmentationNode)
    if not listed and not segments.ours(segmentationNode.GetSegmentation()):
        return _("No organ was found, so there is no slice to check.")
    if not listed:
        return _("No slice needs a check: the model was sure of all of them.")
    left = [item for item in listed if not item.checked]
    done = _("{n} of {total} places checked").format(n=len(listed) - len(left), total=len(listed))
    if not left:
        return _("{done}; all done.").format(done=done)
    return _("{done}; next: {organ}, slice {slices}").format(done=done, organ=left[0].organ, slices=left[0].slices)


def slices_to_check(segmentationNode: Any, chosen: Sequence[str]) -> dict[str, str]:
    """Organ -> its slices on the list in their order, counted from 1, such as "40-43, 57".

    Args:
        chosen: IDs of the segments to tell of, at most one of each organ.
    """
    segmentation = segmentationNode.GetSegmentation()
    text: dict[str, str] = {}
    for item in sorted(items(segmentationNode), key=lambda item: item.first):
        if item.segment in chosen:
            organ = segments.tag(segmentation.GetSegment(item.segment), segments.ORGAN_TAG) or item.organ
            text[organ] = f"{text[organ]}, {item.slices}" if organ in text else item.slices
    return text


def jump(segmentationNode: Any, item: Item) -> str:
    """Centres all slice views on the organ in the item's worst slice, and sees to it that they show its volume.

    Returns:
        The ID of the segment to select in the Segment Editor.

    Raises:
        SceneError: the segment is gone.
    """
    place = position(segmentationNode, item)
    views.show_place(segmentationNode.GetScene(), place, segmentationNode.GetNodeReference(VOLUME))
    return item.segment


def position(segmentationNode: Any, item: Item) -> tuple[float, float, float]:
    """The centre of the organ in the item's worst slice, RAS mm as the views show it.

    If the organ was erased from that slice, the centre of its box; the slice is the item's in any case.
    """
    segmentation = segmentationNode.GetSegmentation()
    segment = segmentation.GetSegment(item.segment)
    box = segment_box(segmentation, item.segment) if segment is not None else None
    if box is None:
        raise SceneError(f"the segment of '{item.organ}' is no longer there", "Go on with the next one")
    voxels, start = box
    volume = segmentationNode.GetNodeReference(VOLUME)
    # The slices are the volume's; the user may have given the segmentation finer voxels since.
    same = volume is None or volume.GetImageData() is None or same_grid(segmentationNode, volume)
    at = item.slice - start[item.axis] if same else -1
    inside = np.argwhere(np.take(voxels, [at], item.axis)) if 0 <= at < voxels.shape[item.axis] else np.empty((0, 3))
    centre = inside.mean(axis=0) if len(inside) else (np.array(voxels.shape) - 1) / 2
    own = reference_affine(segmentation)
    affine = own if same else ijk_to_ras(volume)
    ijk = np.linalg.solve(affine, own @ [*(centre + start)[::-1], 1.0])
    ijk[2 - item.axis] = item.slice
    world = [0.0, 0.0, 0.0]
    segmentationNode.TransformPointToWorld((affine @ ijk)[:3].tolist(), world)  # through non-linear transforms, too
    return world[0], world[1], world[2]


def _load(segmentationNode: Any) -> dict[str, Any]:
    return json.loads(segmentationNode.GetAttribute(REVIEW_ATTRIBUTE) or '{"items": [], "current": null}')


def _stored(segmentationNode: Any) -> list[Item]:
    """All places, also those in segments that were removed since."""
    return [Item(**entry) for entry in _load(segmentationNode)["items"]]


def _store(segmentationNode: Any, listed: Sequence[Item], here: Item | None) -> None:
    entries = [
        {**asdict(item), "confidence": round(item.confidence, 4), "score": round(item.score, 4)} for item in listed
    ]
    place = [here.segment, here.slice] if here else None
    segmentationNode.SetAttribute(REVIEW_ATTRIBUTE, json.dumps({"items": entries, "current": place}))
