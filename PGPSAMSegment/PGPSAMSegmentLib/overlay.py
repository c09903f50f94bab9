"""The model's confidence as a volume of the scene, and as a coloured overlay on the slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from .grid import ijk_to_ras
from .nodes import CONFIDENCE, FIRST, PREFIX, SceneError, add_companion, companion

OPACITY = 0.4
_BEFORE = PREFIX + "foreground"  # a slice view remembers what its foreground was
_COLORS = ("vtkMRMLColorTableNodeFileViridis.txt", "vtkMRMLColorTableNodeRainbow")


def put_confidence(segmentationNode: Any, volumeNode: Any, confidence: NDArray[np.float32]) -> None:
    """Shows in the confidence volume what the latest run was sure of; no view displays it until asked to.

    Args:
        confidence: float32 [k, j, i] in 0..1.
    """
    name = f"{segmentationNode.GetName()} confidence"
    node = add_companion(segmentationNode, CONFIDENCE, "vtkMRMLScalarVolumeNode", name, volumeNode)
    with slicer.util.NodeModify(node):
        _fill(node, volumeNode, confidence)
        if node.GetDisplayNode() is None:
            _add_display(node)


def _add_display(node: Any) -> None:
    """Adds what shows the confidence: Slicer's default would look through all voxels for a window of its own."""
    scene = node.GetScene()
    display = scene.CreateNodeByClass("vtkMRMLScalarVolumeDisplayNode")
    display.UnRegister(None)
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0.0, 1.0)
    known = [i for i in _COLORS if scene.GetNodeByID(i) is not None]
    if known:
        display.SetAndObserveColorNodeID(known[0])
    node.SetAndObserveDisplayNodeID(scene.AddNode(display).GetID())


def overlay_confidence(segmentationNode: Any, on: bool) -> None:
    """Lays the confidence over the slices of all views, or takes it off and brings back what was there.

    Raises:
        SceneError: it is to be laid over them, and the segmentation has none.
    """
    node = companion(segmentationNode, CONFIDENCE)
    if node is None and not on:
        return
    if node is None:
        raise SceneError(
            f"'{segmentationNode.GetName()}' has no confidence map", "Segment once with this module: it comes along"
        )
    if not on:
        take_off(node)
        return
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", node.GetScene()):
        if composite.GetForegroundVolumeID() != node.GetID():
            with slicer.util.NodeModify(composite):
                before = f"{composite.GetForegroundVolumeID() or ''} {composite.GetForegroundOpacity()}"
                composite.SetAttribute(_BEFORE, before)
                composite.SetForegroundVolumeID(node.GetID())
                composite.SetForegroundOpacity(OPACITY)


def take_off(confidenceNode: Any) -> None:
    """Takes a confidence volume off the slices, as it is about to be removed, say: they show again what was there."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", confidenceNode.GetScene()):
        if composite.GetForegroundVolumeID() == confidenceNode.GetID():
            with slicer.util.NodeModify(composite):
                volume, opacity = (composite.GetAttribute(_BEFORE) or " 0").split(" ")
                composite.RemoveAttribute(_BEFORE)
                composite.SetForegroundVolumeID(volume or None)
                composite.SetForegroundOpacity(float(opacity))


def withdraw(segmentationNode: Any) -> list[Any]:
    """A segmentation is about to be removed: its confidence goes off the slices, which show again what was there.

    Returns:
        What belongs to it and is in no list, to be removed after it.
    """
    if _own(segmentationNode, CONFIDENCE) is not None:
        overlay_confidence(segmentationNode, False)
    first = _own(segmentationNode, FIRST)
    return [] if first is None else [first]


def _own(segmentationNode: Any, role: str) -> Any:
    """The node in a role, or None where there is none or another segmentation, made as a copy, has it too."""
    mine = companion(segmentationNode, role)
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", segmentationNode.GetScene())
    return mine if sum(companion(node, role) is mine for node in nodes) == 1 else None


def _fill(node: Any, volumeNode: Any, array: NDArray[np.float32]) -> None:
    """Gives a node its own voxels on the volume's grid, in a new image: one event, and the old image stays whole."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[::-1])
    image.AllocateScalars(vtk.VTK_FLOAT, 1)
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = array.ravel()
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ijk_to_ras(volumeNode)))
    node.SetAndObserveImageData(image)
