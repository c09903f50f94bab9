"""Undo of whole runs: segments as the Segment Editor undoes them, and all nodes that came with them.

This is the one thing that Python remembers rather than the scene: like the Segment Editor's, it ends with the
session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import slicer

from . import segments
from .grid import REFERENCE_GEOMETRY, fingerprint
from .nodes import COMPANIONS, CONFIDENCE, FIRST, POINTS, PROMPTS, TABLE, VOLUME, SceneError, companion, remove
from .overlay import overlay_confidence
from .review import REVIEW_ATTRIBUTE

DEPTH = 3  # each run keeps a copy of the segmentation


@dataclass
class _Run:
    """The state of a segmentation before a run; `histories` is empty if the run made the segmentation.

    `places` is where it and its prompts lay if it was empty; others keep their place.
    """

    node: Any
    histories: list[Any]
    copies: dict[str, Any]
    volume: str | None
    places: list[tuple[str | None, str | None, str]]
    review: str | None
    after: list[dict[str, str]]


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
        review = segmentationNode.GetAttribute(REVIEW_ATTRIBUTE)
        volume = segmentationNode.GetNodeReferenceID(VOLUME)
        empty = not segmentationNode.GetSegmentation().GetNumberOfSegments()
        places = [_place(part) for part in _parts(segmentationNode)] if empty else []
        self._runs.append(_Run(segmentationNode, histories, copies, volume, places, review, []))

    def made(self, segmentationNode: Any) -> None:
        """Remembers that a run made this segmentation."""
        self._runs.append(_Run(segmentationNode, [], {}, None, [], None, []))

    def after(self, segmentationNode: Any) -> None:
        """Notes what the run left, to know at undo whether anybody has changed it since."""
        self._runs[-1].after = [_contents(node) for node in _parts(segmentationNode)]
        self._runs = self._runs[-DEPTH:]  # only now: a run that fails costs no step

    def undo(self, force: bool = False) -> Any:
        """Takes back the latest run.

        Args:
            force: take back also what was edited or made by hand since.

        Returns:
            The segmentation, or None if the run had made it and nothing of the user's is in it.

        Raises:
            SceneError: nothing to undo, or segments were edited since.
        """
        node, run = self.last, self._runs[-1]
        now = zip(_parts(node), run.after, strict=False)  # the prompts may have been removed by hand
        edited = [part.GetName() for part, left in now if _contents(part) != left]
        if run.histories and not force and edited:
            raise SceneError(
                f"'{edited[0]}' was edited after the run, and undoing the run would lose that",
                "Undo the edits in the Segment Editor first, or remove single segments by hand",
            )
        self._runs.pop()
        if not run.histories and force:
            _remove(node, COMPANIONS)
            remove([node])
            return None
        if not run.histories:
            return remove_result(node)
        for part, place in zip(_parts(node), run.places, strict=False):  # prompts that the run made had no place
            _put_back(part, place)
        for history in run.histories:
            history.RestorePreviousState()
        for role, copy in run.copies.items():
            _restore(node, role, copy)
        node.SetNodeReferenceID(VOLUME, run.volume)
        if run.review is None:
            node.RemoveAttribute(REVIEW_ATTRIBUTE)
        else:
            node.SetAttribute(REVIEW_ATTRIBUTE, run.review)
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
    segmentationNode.RemoveAttribute(REVIEW_ATTRIBUTE)
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


def _contents(segmentationNode: Any) -> dict[str, str]:
    segmentation = segmentationNode.GetSegmentation()
    return {segment_id: fingerprint(segmentation, segment_id) for segment_id in segments.ids(segmentation)}


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
    elif node is not copy:
        node.CopyContent(copy, not node.IsA("vtkMRMLVolumeNode"))


def _remove(segmentationNode: Any, roles: Sequence[str]) -> None:
    """Removes companions. An overlay goes first, as only it knows what the slice views showed before."""
    if CONFIDENCE in roles and companion(segmentationNode, CONFIDENCE) is not None:
        overlay_confidence(segmentationNode, False)
    remove([companion(segmentationNode, role) for role in roles])
