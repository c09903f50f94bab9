"""Organs into a segmentation: our own segments, marked by tags, and never anybody else's.

A segment is *ours* if it carries our organ tag, and *untouched* while voxels and name are those that we wrote and
nobody has set its status. Only segments of ours are ever replaced, and edited ones only where that is asked for. All
organs of one run share one labelmap layer of their own, so that no other layer is rewritten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from . import terminology
from .grid import fingerprint, labelmap, segment_box, view
from .nodes import BINARY, PREFIX, SceneError

ORGAN_TAG = PREFIX + "organ"
LABEL_TAG = PREFIX + "label"
MODEL_TAG = PREFIX + "model"
CONTENT_TAG = PREFIX + "content"
SIGN_TAG = PREFIX + "sign"
SLICES_TAG = PREFIX + "slices"
VOXELS_TAG = PREFIX + "voxels"  # of the volume that the result is of, see `grid.voxels_of`; earlier versions have none
_NOT_KEPT = re.compile(r'["|\x00-\x1f]')  # what tags and tables lose when Slicer saves and loads them


@dataclass(frozen=True)
class OrganSegment:
    """A segment that this module made.

    Attributes:
        segment_id: its ID in the segmentation.
        name: what the user reads, such as "liver" or "liver (2)".
        organ: which organ it shows, see `organ_of`.
        label: the model's id of it.
        untouched: voxels, name and status are as we left them.
        axis: which axis of [k, j, i] is the axial one.
        slice_confidence: index along that axis -> mean confidence, 0..1.
    """

    segment_id: str
    name: str
    organ: str
    label: int
    untouched: bool
    axis: int
    slice_confidence: dict[int, float]


def check_names(organs: Iterable[str]) -> None:
    """Says that an organ's name would not be the same after saving and loading a scene.

    Raises:
        SceneError: it would not.
    """
    for organ in organs:
        if _NOT_KEPT.search(organ):
            raise SceneError(
                f"a saved scene does not keep the organ name {organ!r}",
                'Rename the segment without double quotes, "|", tabs and line breaks',
            )


def tag(segment: Any, name: str) -> str:
    """A segment's tag, '' where it has none."""
    text = vtk.reference("")
    return str(text) if segment.GetTag(name, text) else ""


def ids(segmentation: Any) -> list[str]:
    return [segmentation.GetNthSegmentID(n) for n in range(segmentation.GetNumberOfSegments())]


def stamp(segmentation: Any) -> Any:
    """Changes when a segment comes, goes, or gets other voxels or another name."""
    there = {segment_id: segmentation.GetSegment(segment_id) for segment_id in ids(segmentation)}
    images = {segment_id: segment.GetRepresentation(BINARY) for segment_id, segment in there.items()}
    return {i: (there[i].GetName(), image.GetMTime()) for i, image in images.items() if image is not None}


def ours(segmentation: Any) -> list[OrganSegment]:
    """The segments that this module made, in the segmentation's order."""
    return [describe(segmentation, i) for i in ids(segmentation) if tag(segmentation.GetSegment(i), ORGAN_TAG)]


def describe(segmentation: Any, segment_id: str) -> OrganSegment:
    segment = segmentation.GetSegment(segment_id)
    slices = json.loads(tag(segment, SLICES_TAG) or '{"axis": 0, "confidence": {}}')
    return OrganSegment(
        segment_id,
        segment.GetName(),
        organ_of(segmentation, segment_id),
        int(tag(segment, LABEL_TAG) or 0),
        is_untouched(segmentation, segment_id),
        int(slices["axis"]),
        {int(index): float(value) for index, value in slices["confidence"].items()},
    )


def slice_areas(segmentation: Any, organ: OrganSegment) -> dict[int, int]:
    """Index along the segment's axis -> the voxels that it has in that slice; slices outside its box are left out."""
    box, start = segment_box(segmentation, organ.segment_id) or (np.zeros((0, 0, 0), bool), (0, 0, 0))
    areas = box.sum(axis=tuple(axis for axis in range(3) if axis != organ.axis))
    return {start[organ.axis] + n: int(area) for n, area in enumerate(areas)}


def organ_of(segmentation: Any, segment_id: str) -> str:
    """Which organ a segment shows: what the model took it for, while it has our name or one like "liver (2)".

    Otherwise the name says it: a spleen that the model took for the liver was renamed.
    """
    segment = segmentation.GetSegment(segment_id)
    organ, name = tag(segment, ORGAN_TAG), str(segment.GetName())
    numbered = re.fullmatch(rf"{re.escape(organ)}( \(\d+\))?", name, re.IGNORECASE)
    return organ if organ and (numbered or not _is_renamed(segmentation, segment_id)) else name


def spelled(name: str, known: Iterable[str]) -> str:
    """An organ's name as `known` spells it, in which case, spaces and underscores may differ; else as it is."""
    return next((each for each in known if spelled_plainly(each) == spelled_plainly(name)), name)


def spelled_plainly(name: str) -> str:
    """The same for all spellings that the engine takes for one organ's name."""
    return " ".join(name.replace("_", " ").casefold().split())


def by_organ(segmentation: Any, among: Iterable[str], known: Iterable[str] = ()) -> dict[str, str]:
    """Organ -> the ID of its segment; of several, of the one that the user worked on most, else of the last.

    Args:
        among: IDs of the segments that count. known: organs whose spelling counts.
    """
    found: dict[str, str] = {}
    for segment_id in among:
        organ = spelled(organ_of(segmentation, segment_id), [*known, *found])
        before = worked_on(segmentation, found[organ]) if organ in found else 0
        if not before or worked_on(segmentation, segment_id) > before:
            found[organ] = segment_id
    return found


def is_untouched(segmentation: Any, segment_id: str) -> bool:
    """Whether a segment is as we wrote it: not edited, renamed or a copy, not in progress, checked or flagged."""
    segment = segmentation.GetSegment(segment_id)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if logic.GetSegmentStatus(segment) != logic.NotStarted:
        return False
    if not tag(segment, CONTENT_TAG):
        return bool(tag(segment, ORGAN_TAG))  # prompts of version 0.1.0 have no other tag
    return not _is_renamed(segmentation, segment_id) and as_written(segmentation, segment_id)


def as_written(segmentation: Any, segment_id: str) -> bool:
    """Whether a segment's voxels are those that we wrote, whatever its name and status."""
    return tag(segmentation.GetSegment(segment_id), CONTENT_TAG) == fingerprint(segmentation, segment_id)


def is_accepted(segmentation: Any, segment_id: str) -> bool:
    """Whether a segment is what the user means: drawn, edited, renamed or copied by him, or marked as completed.

    What he has flagged, or checked in part, still is only what the model says.
    """
    segment = segmentation.GetSegment(segment_id)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not tag(segment, ORGAN_TAG) or logic.GetSegmentStatus(segment) == logic.Completed:
        return True
    return _is_renamed(segmentation, segment_id) or not as_written(segmentation, segment_id)


def worked_on(segmentation: Any, segment_id: str) -> int:
    """2 for a segment with other voxels than we wrote, 1 for one renamed, copied or with a status, 0 for untouched."""
    return (not as_written(segmentation, segment_id)) + (not is_untouched(segmentation, segment_id))


def remove_untouched(segmentation: Any) -> None:
    """Removes all of our segments that are as we wrote them."""
    for organ in ours(segmentation):
        if organ.untouched:
            segmentation.RemoveSegment(organ.segment_id)


def kept(segmentation: Any, organs: Iterable[str], voxels: Collection[str]) -> list[tuple[str, str]]:
    """What a run of `organs` would leave as it is and put its own result beside: (segment ID, name).

    Args:
        voxels: as for `put_organs`.
    """
    wanted = {organ.lower() for organ in organs}
    found = []
    for segment_id in ids(segmentation):
        segment = segmentation.GetSegment(segment_id)
        organ = tag(segment, ORGAN_TAG)
        if (organ or segment.GetName()).lower() in wanted and not _may_go(segmentation, segment_id, voxels):
            found.append((segment_id, segment.GetName()))
    return found


def put_organs(
    segmentation: Any,
    labels: NDArray[np.uint8],
    affine: NDArray[np.float64],
    organs: Sequence[dict[str, Any]],
    model: str,
    voxels: Sequence[str],
    overwrite: bool = False,
) -> list[str]:
    """Writes the organs of a run, and returns the IDs of their segments.

    Args:
        labels: uint8 [k, j, i], ids of `organs` and 0.
        affine: [4, 4], (i, j, k) to the segmentation's own RAS mm.
        organs: {"id", "name", "color", "snomed", "axis", "slice_confidence"} each. An organ without voxels gets
            no segment; an untouched one of an earlier run is removed.
        voxels: of the volume, and then of those whose results are replaced, too; a copy of another's result stays.
        overwrite: our own segments of these voxels are replaced even if they were edited, but not if they were renamed.
    """
    layer = labelmap(labels, affine)
    found = _present(layer)
    slots = {organ["name"]: _slots(segmentation, organ["name"], voxels, overwrite) for organ in organs}
    leaving = {segment_id for slot in slots.values() for segment_id in slot}
    derived = _derived(segmentation)
    for segment_id in leaving:
        _empty(segmentation, segment_id, leaving)
    written = []
    for organ in organs:
        slot = slots[organ["name"]]
        if organ["id"] in found:
            written.append(_write(segmentation, layer, organ, slot.pop(0) if slot else None))
        for segment_id in slot:
            _remove(segmentation, segment_id)
    for segment_id, organ in zip(written, [o for o in organs if o["id"] in found], strict=True):
        _mark(segmentation, segment_id, organ, model, voxels[0])
    for name in derived:
        segmentation.CreateRepresentation(name, False)  # for the segments that lack it, no others
    return written


def put_regions(
    segmentation: Any,
    regions: NDArray[np.uint8],
    affine: NDArray[np.float64],
    organs: Sequence[dict[str, Any]],
) -> None:
    """Writes one segment per organ with the region its prompt attended to; untouched ones of these organs go."""
    layer = labelmap(regions, affine)
    found = _present(layer)
    leaving = {segment_id for organ in organs for segment_id in _slots(segmentation, organ["name"], (), False)}
    for segment_id in leaving:
        _empty(segmentation, segment_id, leaving)
    for segment_id in leaving:
        _remove(segmentation, segment_id)
    written = {}
    for organ in organs:
        if organ["id"] in found:
            # An attended region is no anatomy, so it does not claim the organ's codes.
            written[_write(segmentation, layer, {**organ, "snomed": None}, None)] = organ["name"]
    for segment_id, name in written.items():
        segmentation.GetSegment(segment_id).SetTag(ORGAN_TAG, name)
        _sign(segmentation, segment_id)


def new_segment(layer: Any, organ: dict[str, Any]) -> Any:
    """A segment that shares `layer`, with the organ's name, colour and terminology."""
    segment = slicer.vtkSegment()
    segment.SetName(organ["name"])
    segment.SetNameAutoGenerated(False)
    segment.SetColor([channel / 255 for channel in organ["color"]])
    segment.SetColorAutoGenerated(False)
    segment.SetTag(segment.GetTerminologyEntryTagName(), terminology.entry_for(organ.get("snomed")))
    segment.AddRepresentation(BINARY, layer)
    segment.SetLabelValue(organ["id"])
    return segment


def add(segmentation: Any, segment: Any, name: str) -> str:
    """Adds a segment under an ID made from `name`, and returns the ID.

    The ID is plain, as Slicer writes it unescaped into the scene's file: a scene with "&" in one is never read again.
    """
    segment_id = str(segmentation.GenerateUniqueSegmentID(re.sub(r"[^A-Za-z0-9_.-]", "_", name)))
    segmentation.AddSegment(segment, segment_id)
    segment.Modified()  # AddSegment alone does not observe the layer of the last segment that was added
    return segment_id


def _present(layer: Any) -> set[int]:
    """The label values in a layer, counted plane by plane: a whole one would be copied to larger numbers first."""
    return set(np.flatnonzero(sum(np.bincount(plane.ravel(), minlength=256) for plane in view(layer))).tolist())


def _may_go(segmentation: Any, segment_id: str, voxels: Collection[str], overwrite: bool = False) -> bool:
    """Whether a segment is the result of a run on one of these volumes' voxels, as far as is known, and untouched.

    Args:
        overwrite: only its name counts for that.
    """
    made_on = tag(segmentation.GetSegment(segment_id), VOXELS_TAG)
    free = is_untouched(segmentation, segment_id) or (overwrite and not _is_renamed(segmentation, segment_id))
    return made_on in ("", *voxels) and free


def _slots(segmentation: Any, organ: str, voxels: Collection[str], overwrite: bool) -> list[str]:
    """The segments that this organ's new result may take the place of."""
    return [
        segment_id
        for segment_id in ids(segmentation)
        if tag(segmentation.GetSegment(segment_id), ORGAN_TAG) == organ
        and _may_go(segmentation, segment_id, voxels, overwrite)
    ]


def _empty(segmentation: Any, segment_id: str, leaving: set[str]) -> None:
    """Clears a segment's voxels where its layer stays: RemoveSegment alone would leave them in it for good."""
    sharing: list[str] = []
    segmentation.GetSegmentIDsSharingBinaryLabelmapRepresentation(segment_id, sharing, False)
    if not set(sharing) <= leaving:
        segmentation.ClearSegment(segment_id)


def _remove(segmentation: Any, segment_id: str) -> None:
    """Removes a segment; with its voxels, which others may share, RemoveSegment alone is slow."""
    segmentation.GetSegment(segment_id).RemoveAllRepresentations()
    segmentation.RemoveSegment(segment_id)


def _write(segmentation: Any, layer: Any, organ: dict[str, Any], slot: str | None) -> str:
    """Puts one organ into a new segment, or into one that exists, whose name, colour and visibility stay.

    The terminology of one of ours stays as well, as the user may have chosen another.
    """
    if slot is None:
        segment = new_segment(layer, organ)
        segment.SetName(_free_name(segmentation, organ["name"]))
        return add(segmentation, segment, organ["name"])
    segment = segmentation.GetSegment(slot)
    segment.RemoveAllRepresentations()
    segment.AddRepresentation(BINARY, layer)
    segment.SetLabelValue(organ["id"])
    if not tag(segment, ORGAN_TAG):
        segment.SetTag(segment.GetTerminologyEntryTagName(), terminology.entry_for(organ.get("snomed")))
    segment.RemoveTag(slicer.vtkSlicerSegmentationsModuleLogic.GetStatusTagName())
    return slot


def _mark(segmentation: Any, segment_id: str, organ: dict[str, Any], model: str, voxels: str) -> None:
    segment = segmentation.GetSegment(segment_id)
    confidence = {str(index): round(float(value), 4) for index, value in organ["slice_confidence"].items()}
    segment.SetTag(ORGAN_TAG, organ["name"])
    segment.SetTag(LABEL_TAG, str(organ["id"]))
    segment.SetTag(MODEL_TAG, model)
    segment.SetTag(VOXELS_TAG, voxels)
    segment.SetTag(SLICES_TAG, json.dumps({"axis": organ["axis"], "confidence": confidence}, separators=(",", ":")))
    _sign(segmentation, segment_id)


def _sign(segmentation: Any, segment_id: str) -> None:
    """Notes what is left to the user, to know later whether it is still that."""
    segment = segmentation.GetSegment(segment_id)
    segment.SetTag(CONTENT_TAG, fingerprint(segmentation, segment_id))
    segment.SetTag(SIGN_TAG, _signature(segment, segment_id))


def _signature(segment: Any, segment_id: str) -> str:
    return quote(f"{segment_id} {segment.GetName()}")  # a tag of a saved segment cannot hold "|"


def _is_renamed(segmentation: Any, segment_id: str) -> bool:
    """Whether a segment of ours has another name than we gave it, or is a copy: then the user means to keep it."""
    segment = segmentation.GetSegment(segment_id)
    sign = tag(segment, SIGN_TAG)  # earlier versions have written none
    return bool(sign) and sign != _signature(segment, segment_id)


def _free_name(segmentation: Any, name: str) -> str:
    taken = {segmentation.GetSegment(segment_id).GetName().lower() for segment_id in ids(segmentation)}
    names = [name, *(f"{name} ({n})" for n in range(2, len(taken) + 3))]
    return next(free for free in names if free.lower() not in taken)


def _derived(segmentation: Any) -> list[str]:
    """What Slicer derives from the voxels for this segmentation, such as the surfaces of the 3D view."""
    names: list[str] = []
    segmentation.GetContainedRepresentationNames(names)
    return [name for name in names if name != BINARY]
