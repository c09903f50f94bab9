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
from .grid import fingerprint
from .nodes import COMPANIONS, CONFIDENCE, FIRST, POINTS, PROMPTS, TABLE, VOLUME, SceneError, companion, remove
from .overlay import overlay_confidence
from .review import REVIEW_ATTRIBUTE

DEPTH = 3  # each run keeps a copy of the segmentation


@dataclass
class _Run:
    """The state of a segmentation before a run; `histories` is empty if the run made the segmentation."""

    node: Any
    histories: list[Any]
    copies: dict[str, Any]
    volume: str | None
    review: str | None
    after: dict[str, str]


class RunHistory:
    """The latest runs, to be undone from the last one backwards."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    @property
    def can_undo(self) -> bool:
        self._runs = [run for run in self._runs if run.node.GetScene() is not None]
        return bool(self._runs)

    def before(self, segmentationNode: Any) -> None:
        """Remembers a segmentation that a run is about to change."""
        histories = []
        for node in (segmentationNode, companion(segmentationNode, PROMPTS)):
            if node is not None:
                history = slicer.vtkSegmentationHistory()
                history.SetSegmentation(node.GetSegmentation())
                history.SaveState()
                histories.append(history)
        copies = {role: _copy(companion(segmentationNode, role)) for role in (POINTS, CONFIDENCE, TABLE, FIRST)}
        copies[PROMPTS] = companion(segmentationNode, PROMPTS)
        review = segmentationNode.GetAttribute(REVIEW_ATTRIBUTE)
        volume = segmentationNode.GetNodeReferenceID(VOLUME)
        self._push(_Run(segmentationNode, histories, copies, volume, review, {}))

    def made(self, segmentationNode: Any) -> None:
        """Remembers that a run made this segmentation."""
        self._push(_Run(segmentationNode, [], {}, None, None, {}))

    def after(self, segmentationNode: Any) -> None:
        """Notes what the run left, to know at undo whether anybody has changed it since."""
        self._runs[-1].after = _contents(segmentationNode)

    def undo(self, force: bool = False) -> Any:
        """Takes back the latest run.

        Args:
            force: take back also what was edited by hand since.

        Returns:
            The segmentation, or None if the run had made it and nothing of the user's is in it.

        Raises:
            SceneError: nothing to undo, or segments were edited since.
        """
        if not self.can_undo:
            raise SceneError("there is no run to undo", "Segments can be removed by hand in the Segment Editor")
        run = self._runs[-1]
        if run.histories and not force and _contents(run.node) != run.after:
            raise SceneError(
                f"'{run.node.GetName()}' was edited after the run, and undoing the run would lose that",
                "Undo the edits in the Segment Editor first, or remove single segments by hand",
            )
        self._runs.pop()
        if not run.histories:
            return remove_result(run.node)
        for history in run.histories:
            history.RestorePreviousState()
        for role, copy in run.copies.items():
            _restore(run.node, role, copy)
        run.node.SetNodeReferenceID(VOLUME, run.volume)
        if run.review is None:
            run.node.RemoveAttribute(REVIEW_ATTRIBUTE)
        else:
            run.node.SetAttribute(REVIEW_ATTRIBUTE, run.review)
        return run.node

    def _push(self, run: _Run) -> None:
        self._runs = [*self._runs[1 - DEPTH :], run]


def remove_result(segmentationNode: Any) -> Any:
    """Removes what this module put into a segmentation and beside it; segments that the user edited or made stay.

    Returns:
        The segmentation, or None if nothing was left in it and it was removed as well.
    """
    _remove(segmentationNode, COMPANIONS)
    segmentation = segmentationNode.GetSegmentation()
    for organ in segments.ours(segmentation):
        if organ.untouched:
            segmentation.RemoveSegment(organ.segment_id)
    segmentationNode.RemoveAttribute(REVIEW_ATTRIBUTE)
    if segmentation.GetNumberOfSegments():
        return segmentationNode
    remove([segmentationNode])
    return None


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
    return copy


def _restore(segmentationNode: Any, role: str, copy: Any) -> None:
    node = companion(segmentationNode, role)
    if copy is None:
        _remove(segmentationNode, [role])
    elif node is not None and node is not copy:
        node.CopyContent(copy, not node.IsA("vtkMRMLVolumeNode"))


def _remove(segmentationNode: Any, roles: Sequence[str]) -> None:
    """Removes companions. An overlay goes first, as only it knows what the slice views showed before."""
    if CONFIDENCE in roles and companion(segmentationNode, CONFIDENCE) is not None:
        overlay_confidence(segmentationNode, False)
    remove([companion(segmentationNode, role) for role in roles])
