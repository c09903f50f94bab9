"""Undo of whole runs: segments as the Segment Editor undoes them, and all nodes that came with them.

What the user has done since is never lost: edits, and names and checks of what the run wrote, forbid the undo; names,
colours and checks of the other segments outlast it.

This is the one thing that Python remembers rather than the scene: like the Segment Editor's, it ends with the
session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import slicer

from . import review, segments
from .grid import REFERENCE_GEOMETRY, fingerprint
from .nodes import COMPANIONS, CONFIDENCE, FIRST, POINTS, PROMPTS, TABLE, VOLUME, SceneError, companion, remove
from .overlay import overlay_confidence
from .prompts import remove_points, restore_points

DEPTH = 3  # each run keeps a copy of the segmentation


@dataclass(frozen=True)
class _Seen:
    """What the user may change of a segment: its voxels, as `fingerprint` tells, its name and its status."""

    voxels: str
    name: str
    status: int


@dataclass
class _Run:
    """The state of a segmentation before a run; `histories` is empty if the run made the segmentation.

    `places` is where it and its prompts lay if it was empty; others keep their place. `before` and `after` are what
    was in both, by node and segment ID.
    """

    node: Any
    histories: list[Any]
    copies: dict[str, Any]
    volume: str | None
    places: list[tuple[str | None, str | None, str]]
    review: str | None
    before: dict[Any, dict[str, _Seen]]
    after: dict[Any, dict[str, _Seen]]

    def spared(self, part: Any) -> set[str]:
        """IDs of the segments, of the segmentation or its prompts, that the run has left as they were."""
        before, after = self.before.get(part, {}), self.after.get(part, {})
        return {segment_id for segment_id, seen in after.items() if before.get(segment_id) == seen}


class RunHistory:
    """The latest runs, to be undone from the last one backwards."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    @property
    def can_undo(self) -> bool:
        self._runs = [run for run in self._runs if run.node.GetScene() is not None]
        return bool(self._runs)

    @property
    def last(self) -> Any:
        """The segmentation of the latest run.

        Raises:
            SceneError: nothing to undo.
        """
        if not self.can_undo:
            raise SceneError("there is no run to undo", "Segments can be removed by hand in the Segment Editor")
        return self._runs[-1].node

    def before(self, segmentationNode: Any) -> None:
        """Remembers a segmentation that a run is about to change."""
        histories = []
        for node in _parts(segmentationNode):
            history = slicer.vtkSegmentationHistory()
            history.SetSegmentation(node.GetSegmentation())
            history.SaveState()
            histories.append(history)
        copies = {role: _copy(companion(segmentationNode, role)) for role in (POINTS, CONFIDENCE, TABLE, FIRST)}
        copies[PROMPTS] = companion(segmentationNode, PROMPTS)
        listed = segmentationNode.GetAttribute(review.REVIEW_ATTRIBUTE)
        volume = segmentationNode.GetNodeReferenceID(VOLUME)
        empty = not segmentationNode.GetSegmentation().GetNumberOfSegments()
        places = [_place(part) for part in _parts(segmentationNode)] if empty else []
        before = _contents(segmentationNode)
        self._runs.append(_Run(segmentationNode, histories, copies, volume, places, listed, before, {}))

    def made(self, segmentationNode: Any) -> None:
        """Remembers that a run made this segmentation."""
        self._runs.append(_Run(segmentationNode, [], {}, None, [], None, {}, {}))

    def after(self, segmentationNode: Any) -> None:
        """Notes what the run left, to know at undo whether anybody has changed it since."""
        self._runs[-1].after = _contents(segmentationNode)
        self._runs = self._runs[-DEPTH:]  # only now: a run that fails costs no step

    def undo(self, force: bool = False) -> Any:
        """Takes back the latest run.

        Args:
            force: take back also what was edited or made by hand since.

        Returns:
            The segmentation, or None if the run had made it and nothing of the user's is in it.

        Raises:
            SceneError: nothing to undo, or segments were edited since, or what the run wrote was named or checked.
        """
        node, run = self.last, self._runs[-1]
        if run.histories and not force:
            _check_unchanged(run)
        self._runs.pop()
        if not run.histories and force:
            _remove(node, COMPANIONS)
            remove([node])
            return None
        if not run.histories:
            return remove_result(node)
        for part, place in zip(_parts(node), run.places, strict=False):  # prompts that the run made had no place
            _put_back(part, place)
        told = {part: _told(part, run.spared(part)) for part in _parts(node)}
        checked = {(item.segment, item.slice): item.checked for item in review.items(node)}
        for history in run.histories:
            history.RestorePreviousState()
        for part, segments_told in told.items():
            _tell(part, segments_told)
        for role, copy in run.copies.items():
            _restore(node, role, copy)
        node.SetNodeReferenceID(VOLUME, run.volume)
        if run.review is None:
            node.RemoveAttribute(review.REVIEW_ATTRIBUTE)
        else:
            node.SetAttribute(review.REVIEW_ATTRIBUTE, run.review)
        for item in review.items(node):
            now = checked.get((item.segment, item.slice), item.checked)
            if now != item.checked and item.segment in run.spared(node):
                review.mark(node, item, now)
        return node


def remove_result(segmentationNode: Any) -> Any:
    """Removes what this module put into a segmentation and beside it; what the user edited, named or made stays.

    Returns:
        The segmentation, or None if nothing was left in it and it was removed as well.
    """
    for node in _parts(segmentationNode):
        segments.remove_untouched(node.GetSegmentation())
    prompts = companion(segmentationNode, PROMPTS)
    worked_on = prompts is not None and prompts.GetSegmentation().GetNumberOfSegments()
    _remove(segmentationNode, [role for role in COMPANIONS if role != PROMPTS or not worked_on])
    segmentationNode.RemoveAttribute(review.REVIEW_ATTRIBUTE)
    if segmentationNode.GetSegmentation().GetNumberOfSegments():
        return segmentationNode
    remove([segmentationNode])
    return None


def _parts(segmentationNode: Any) -> list[Any]:
    """The segmentation, and that of its prompts."""
    return [node for node in (segmentationNode, companion(segmentationNode, PROMPTS)) if node is not None]


def _place(segmentationNode: Any) -> tuple[str | None, str | None, str]:
    """Where a segmentation lies: IDs of its transform and of its reference volume, and its reference geometry."""
    volume = segmentationNode.GetNodeReferenceID(segmentationNode.GetReferenceImageGeometryReferenceRole())
    geometry = segmentationNode.GetSegmentation().GetConversionParameter(REFERENCE_GEOMETRY)
    return segmentationNode.GetTransformNodeID(), volume, geometry


def _put_back(segmentationNode: Any, place: tuple[str | None, str | None, str]) -> None:
    transform, volume, geometry = place
    segmentationNode.SetAndObserveTransformNodeID(transform)
    segmentationNode.SetNodeReferenceID(segmentationNode.GetReferenceImageGeometryReferenceRole(), volume)
    segmentationNode.GetSegmentation().SetConversionParameter(REFERENCE_GEOMETRY, geometry)


def _contents(segmentationNode: Any) -> dict[Any, dict[str, _Seen]]:
    """What is in a segmentation and in its prompts, by node and segment ID."""
    return {part: _seen(part.GetSegmentation()) for part in _parts(segmentationNode)}


def _seen(segmentation: Any) -> dict[str, _Seen]:
    status = slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus
    there = {segment_id: segmentation.GetSegment(segment_id) for segment_id in segments.ids(segmentation)}
    return {i: _Seen(fingerprint(segmentation, i), segment.GetName(), status(segment)) for i, segment in there.items()}


def _check_unchanged(run: _Run) -> None:
    """Says that an undo would lose what the user has made of the segments since.

    Raises:
        SceneError: it would.
    """
    for part, now in _contents(run.node).items():
        left, spared = run.after.get(part, {}), run.spared(part)
        if {i: seen.voxels for i, seen in now.items()} != {i: seen.voxels for i, seen in left.items()}:
            raise SceneError(
                f"'{part.GetName()}' was edited after the run, and undoing the run would lose that",
                "Undo the edits in the Segment Editor first, or remove single segments by hand",
            )
        told = [seen.name for i, seen in now.items() if seen != left[i] and i not in spared]
        if told:
            raise SceneError(
                f"'{told[0]}' was renamed or checked after the run, and undoing the run would lose that",
                "Take the name or the check back first, or remove single segments by hand",
            )


def _told(segmentationNode: Any, ids: Iterable[str]) -> dict[str, Any]:
    """Segment ID -> all but its voxels: name, colour, terminology, status."""
    copies = {segment_id: slicer.vtkSegment() for segment_id in ids}
    for segment_id, copy in copies.items():
        copy.DeepCopyMetadata(segmentationNode.GetSegmentation().GetSegment(segment_id))
    return copies


def _tell(segmentationNode: Any, told: Mapping[str, Any]) -> None:
    """Gives that back to the segments."""
    for segment_id, copy in told.items():
        segment = segmentationNode.GetSegmentation().GetSegment(segment_id)
        copy.SetLabelValue(segment.GetLabelValue())  # it belongs to the voxels
        segment.DeepCopyMetadata(copy)


def _copy(node: Any) -> Any:
    """A copy outside the scene, or None. Voxels may be shared: a run gives a volume a new image."""
    if node is None:
        return None
    copy = node.CreateNodeInstance()
    copy.UnRegister(None)
    copy.CopyContent(node, not node.IsA("vtkMRMLVolumeNode"))
    copy.SetName(node.GetName())
    copy.SetHideFromEditors(node.GetHideFromEditors())
    return copy


def _restore(segmentationNode: Any, role: str, copy: Any) -> None:
    node = companion(segmentationNode, role)
    if copy is None:
        _remove(segmentationNode, [role])
    elif node is None or node.GetClassName() != copy.GetClassName():  # an earlier version kept another kind of node
        remove([node])
        added = segmentationNode.GetScene().AddNode(copy)
        if added.IsA("vtkMRMLDisplayableNode"):
            added.CreateDefaultDisplayNodes()
        segmentationNode.SetNodeReferenceID(role, added.GetID())
    elif role == POINTS:
        restore_points(node, copy)
    elif node is not copy:
        node.CopyContent(copy, not node.IsA("vtkMRMLVolumeNode"))


def _remove(segmentationNode: Any, roles: Sequence[str]) -> None:
    """Removes companions, but for points that the user has added.

    An overlay goes first, as only it knows what the slice views showed before.
    """
    if CONFIDENCE in roles and companion(segmentationNode, CONFIDENCE) is not None:
        overlay_confidence(segmentationNode, False)
    points = companion(segmentationNode, POINTS)
    if POINTS in roles and points is not None:
        remove_points(points)
        roles = [role for role in roles if role != POINTS or not points.GetNumberOfControlPoints()]
    remove([companion(segmentationNode, role) for role in roles])
