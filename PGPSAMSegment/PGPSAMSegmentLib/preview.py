"""Finished slices of a run while the engine works on the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import slicer

from . import segments
from .grid import full_labelmap, ijk_to_ras, only, shape_of, view
from .nodes import BINARY, PREFIX, add_segmentation, remove
from .output import check_volume
from .received import asked_for, load

_PREVIEW = PREFIX + "preview"  # attribute: ID of the volume whose finished slices a segmentation shows


def show_partial(
    volumeNode: Any,
    labels: str | Path,
    label_set: Sequence[dict[str, Any]],
    organs: Iterable[str] | None = None,
) -> Any:
    """Shows the slices that are finished so far, in a segmentation of their own that is never saved and in no list.

    The user's segmentation is not touched before the run is done, so a cancelled run has nothing to take back.
    Every call after the first writes into the same voxels.

    Args:
        labels: labels.npy, uint8 [k, j, i] on the volume's grid.
        label_set: the organs {"id", "name", "color", "snomed"} as the engine tells them.
        organs: names of those to show; all for None.

    Returns:
        The segmentation node; `show_result` and `discard_partial` remove it.

    Raises:
        SceneError: the file does not fit the volume or cannot be read.
    """
    check_volume(volumeNode)
    array = load(labels, shape_of(volumeNode))
    chosen = asked_for(label_set, organs)
    node = _preview(volumeNode)
    if node is None:  # not in a batch: slice views never draw a segmentation that was added in one
        node = _add_preview(volumeNode, chosen)
    layer = node.GetSegmentation().GetNthSegment(0).GetRepresentation(BINARY)
    view(layer)[:] = only(array, [organ["id"] for organ in chosen])
    layer.Modified()
    return node


def discard_partial(volumeNode: Any) -> None:
    """Removes what `show_partial` shows: at the end of a run, when it was cancelled, and when it failed.

    The volume may have been removed from the scene in the meantime.
    """
    remove([_preview(volumeNode)])


def _add_preview(volumeNode: Any, organs: Sequence[dict[str, Any]]) -> Any:
    # Hidden: nobody shall choose as the output what is gone in a moment.
    node = add_segmentation(volumeNode, f"{volumeNode.GetName()} (segmenting)", hidden=True)
    for each in (node, node.GetDisplayNode()):
        each.SetSaveWithScene(False)
    node.SetAttribute(_PREVIEW, volumeNode.GetID())
    layer = full_labelmap(shape_of(volumeNode), ijk_to_ras(volumeNode))
    for organ in organs:
        segments.add(node.GetSegmentation(), segments.new_segment(layer, organ), organ["name"])
    return node


def _preview(volumeNode: Any) -> Any:
    scene = volumeNode.GetScene() or slicer.mrmlScene
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", scene)
    return next((node for node in nodes if node.GetAttribute(_PREVIEW) == volumeNode.GetID()), None)
