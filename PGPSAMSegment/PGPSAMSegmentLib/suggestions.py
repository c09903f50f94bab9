"""Which slices of a volume to annotate, as the engine has suggested: kept for the volume, saved with the scene.

A hidden text node that refers to the volume has them: an attribute of the volume would be lost with the frame of a
sequence, which brings its own ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import slicer

from . import views
from .grid import ijk_to_ras, shape_of, to_world
from .nodes import PREFIX, add_beside

# Of the text node: its reference to the volume. In earlier versions that was an attribute of the volume.
SUGGESTED = PREFIX + "suggested"


@dataclass(frozen=True)
class Place:
    """A slice to annotate.

    Attributes:
        axis: which axis of [k, j, i] the slice is counted along.
        slice: its index there.
    """

    axis: int
    slice: int


def keep(volumeNode: Any, event: Mapping[str, Any]) -> list[Place]:
    """Stores what the engine's "done" event suggests, the most useful first, in place of what was there."""
    places = {
        "axis": int(event["slices_axis"]),
        "slices": [int(index) for index in event["slices"]],
        "grid": _grid(volumeNode),
    }
    node = _node(volumeNode)
    if node is None:
        node = add_beside(volumeNode, "vtkMRMLTextNode", f"{volumeNode.GetName()} suggested slices", hidden=True)
        node.SetForceCreateStorageNode(node.CreateStorageNodeNever)  # the scene's own file has it
        node.SetNodeReferenceID(SUGGESTED, volumeNode.GetID())
    node.SetText(json.dumps(places))
    return of(volumeNode)


def of(volumeNode: Any) -> list[Place]:
    """The suggestions for a volume; none for None, or where it was cropped or resampled in place since."""
    if volumeNode is None or volumeNode.GetImageData() is None:
        return []
    node = _node(volumeNode)
    stored = node.GetText() if node is not None else volumeNode.GetAttribute(SUGGESTED)
    if not stored:
        return []
    places = json.loads(stored)
    if places.get("grid") != _grid(volumeNode):
        return []
    return [Place(places["axis"], index) for index in places["slices"]]


def withdraw(volumeNode: Any) -> list[Any]:
    """A volume is about to be removed: gives what keeps its suggestions, to be removed after it."""
    node = _node(volumeNode)
    return [] if node is None else [node]


def _node(volumeNode: Any) -> Any:
    texts = slicer.util.getNodesByClass("vtkMRMLTextNode", volumeNode.GetScene())
    return next((each for each in texts if each.GetNodeReference(SUGGESTED) is volumeNode), None)


def _grid(volumeNode: Any) -> list[Any]:
    """What tells the volume's voxels from those of another grid."""
    return [list(shape_of(volumeNode)), ijk_to_ras(volumeNode).round(3).tolist()]


def jump(volumeNode: Any, place: Place) -> None:
    """Centres all slice views on the middle of the slice, and sees to it that they show the volume."""
    index = [(length - 1) / 2 for length in shape_of(volumeNode)]
    index[place.axis] = place.slice
    world = to_world(volumeNode) @ ijk_to_ras(volumeNode) @ [*index[::-1], 1.0]
    views.show_place(volumeNode.GetScene(), world[:3].tolist(), volumeNode)
