"""The model's prompts as layers of the scene: attended regions as a second segmentation, peaks as points."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from .grid import ijk_to_ras
from .nodes import POINTS, PROMPTS, SceneError, add_companion, companion
from .segments import put_regions

MASKS, BOTH, PROMPTS_ONLY = "masks", "both", "prompts"
_WEIGHT = "weight "  # how the description of a point of the model's begins; the user's own points have none


def put_prompts(
    segmentationNode: Any,
    volumeNode: Any,
    regions: NDArray[np.uint8],
    points: Sequence[dict[str, Any]],
    organs: Sequence[dict[str, Any]],
) -> None:
    """Writes the prompts of these organs; those of other organs stay.

    Args:
        regions: uint8 [k, j, i], the id of the organ whose prompt attended there.
        points: {"organ", "id", "weight", "ijk"} each; "ijk" is an index of the volume.
    """
    name = segmentationNode.GetName()
    node = add_companion(segmentationNode, PROMPTS, "vtkMRMLSegmentationNode", f"{name} prompts", volumeNode)
    fresh = node.GetDisplayNode() is None
    if fresh:
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        display = node.GetDisplayNode()
        display.SetOpacity2DFill(0.25)
        display.SetVisibility(False)
    with slicer.util.NodeModify(node):
        put_regions(node.GetSegmentation(), regions, ijk_to_ras(volumeNode), organs)
    _put_points(segmentationNode, volumeNode, points, {organ["name"] for organ in organs})


def _put_points(segmentationNode: Any, volumeNode: Any, points: Sequence[dict[str, Any]], organs: set[str]) -> None:
    name = f"{segmentationNode.GetName()} prompt points"
    node = add_companion(segmentationNode, POINTS, "vtkMRMLMarkupsFiducialNode", name, volumeNode)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        node.SetDisplayVisibility(False)
        node.GetDisplayNode().SetVisibility3D(False)  # there the names of all slices' points are one unreadable heap
    affine = ijk_to_ras(volumeNode)
    with slicer.util.NodeModify(node):
        remove_points(node, organs)
        for point in points:
            # The node is under the volume's transform, so its own frame is the volume's.
            place = affine @ [*point["ijk"], 1]
            _add_point(node, place[:3].tolist(), point["organ"], f"{_WEIGHT}{point['weight']:.2f}")


def remove_points(node: Any, organs: Container[str] | None = None) -> None:
    """Takes the model's points out of a list; those that the user has added stay.

    Args:
        organs: whose points go; None for all.
    """
    for n in reversed(range(node.GetNumberOfControlPoints())):
        if _is_models(node, n) and (organs is None or node.GetNthControlPointLabel(n) in organs):
            node.RemoveNthControlPoint(n)


def restore_points(node: Any, earlier: Any) -> None:
    """Gives a list the model's points of an earlier copy of it; those that the user has added stay."""
    with slicer.util.NodeModify(node):
        remove_points(node)
        for n in range(earlier.GetNumberOfControlPoints()):
            if _is_models(earlier, n):
                place, label = earlier.GetNthControlPointPosition(n), earlier.GetNthControlPointLabel(n)
                _add_point(node, place, label, earlier.GetNthControlPointDescription(n))


def _is_models(node: Any, n: int) -> bool:
    return bool(node.GetNthControlPointDescription(n).startswith(_WEIGHT))


def _add_point(node: Any, place: Sequence[float], label: str, description: str) -> None:
    n = node.AddControlPoint(place)
    node.SetNthControlPointLabel(n, label)
    node.SetNthControlPointDescription(n, description)


def show(segmentationNode: Any, what: str) -> None:
    """Shows the organs' masks, the prompts that led to them, or both.

    Args:
        what: "masks", "prompts" or "both".

    Raises:
        SceneError: another word, or prompts asked for where there are none.
    """
    if what not in (MASKS, PROMPTS_ONLY, BOTH):
        raise SceneError(f"cannot show {what!r}", f"Choose {MASKS}, {PROMPTS_ONLY} or {BOTH}")
    layers = [companion(segmentationNode, PROMPTS), companion(segmentationNode, POINTS)]
    if what != MASKS and layers[0] is None:
        raise SceneError(
            f"'{segmentationNode.GetName()}' has no prompts", "Segment once with this module: its prompts come along"
        )
    segmentationNode.SetDisplayVisibility(what != PROMPTS_ONLY)
    for node in layers:
        if node is not None:
            node.SetDisplayVisibility(what != MASKS)
