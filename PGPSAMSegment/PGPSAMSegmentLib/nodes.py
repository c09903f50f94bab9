"""What the rooms of this package share about MRML: errors, names of attributes, references, subject hierarchy.

Everything that must survive saving and loading a scene lives in the scene: in node references from the
segmentation, in its attributes, and in the tags of its segments. No Python object remembers a node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import slicer

PREFIX = "PGPSAMSegment."

# Roles of the node references that a segmentation holds.
PROMPTS, POINTS, CONFIDENCE, TABLE, FIRST, VOLUME = (
    PREFIX + role for role in ("prompts", "points", "confidence", "table", "first", "volume")
)
COMPANIONS = (PROMPTS, POINTS, CONFIDENCE, TABLE, FIRST)
ROLE = PREFIX + "role"  # attribute of a companion, which outlives its segmentation: its role

BINARY = "Binary labelmap"


class SceneError(Exception):
    """Something in the scene that the user can mend.

    Args:
        message: one line: what is wrong and with which node.
        hint: one line: what to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


@contextmanager
def batch(scene: Any) -> Iterator[None]:
    """Views and widgets see all changes made inside as one."""
    scene.StartState(slicer.vtkMRMLScene.BatchProcessState)
    try:
        yield
    finally:
        scene.EndState(slicer.vtkMRMLScene.BatchProcessState)


def companion(segmentationNode: Any, role: str) -> Any:
    """The node that belongs to a segmentation in `role`, or None."""
    return segmentationNode.GetNodeReference(role)


def is_prompts(node: Any) -> bool:
    """Whether a segmentation holds the prompts of another one, which the next run writes anew."""
    return _has_role(node, PROMPTS)


def is_confidence(node: Any) -> bool:
    """Whether a volume is the confidence of a segmentation, and no image."""
    return _has_role(node, CONFIDENCE)


def _has_role(node: Any, role: str) -> bool:
    if node.GetAttribute(ROLE) == role:
        return True
    # In a scene of an earlier version only the segmentation knows it.
    results = slicer.util.getNodesByClass("vtkMRMLSegmentationNode", node.GetScene()) if node.GetScene() else []
    return any(companion(result, role) is node for result in results)


def add_companion(segmentationNode: Any, role: str, class_name: str, name: str, volumeNode: Any) -> Any:
    """The node in `role`, made under the volume's transform and in its study where there is none yet."""
    node = companion(segmentationNode, role)
    if node is None:
        node = add_beside(volumeNode, class_name, name)
        node.SetAttribute(ROLE, role)
        segmentationNode.SetNodeReferenceID(role, node.GetID())
    return node


def add_beside(volumeNode: Any, class_name: str, name: str, hidden: bool = False) -> Any:
    """Adds a node to the volume's scene, under its transform and in its study.

    Args:
        hidden: the data tree and the node selectors don't list it; it is saved all the same.
    """
    scene = volumeNode.GetScene()
    node = scene.CreateNodeByClass(class_name)
    node.UnRegister(None)  # CreateNodeByClass hands over its own reference
    node.SetName(scene.GenerateUniqueName(name))
    node.SetHideFromEditors(hidden)
    node = scene.AddNode(node)
    if node.IsA("vtkMRMLTransformableNode"):
        node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    if not hidden:
        join_study(node, volumeNode)
    return node


def add_segmentation(volumeNode: Any, name: str, hidden: bool = False) -> Any:
    """Adds an empty segmentation on the volume's grid; see `add_beside`."""
    node = add_beside(volumeNode, "vtkMRMLSegmentationNode", name, hidden)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    return node


def join_study(node: Any, volumeNode: Any) -> None:
    """Puts a node where the volume is in the subject hierarchy: DICOM export finds patient and study there."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volumeNode.GetScene())
    source = hierarchy.GetItemByDataNode(volumeNode)
    parent = hierarchy.GetItemParent(source) if source else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        item = hierarchy.CreateItem(parent, node)
    instances = volumeNode.GetAttribute("DICOM.instanceUIDs")
    if instances and node.IsA("vtkMRMLSegmentationNode"):
        name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMReferencedInstanceUIDsAttributeName()
        hierarchy.SetItemAttribute(item, name, instances)


def remove(nodes: Sequence[Any]) -> None:
    """Removes nodes with what shows and stores them, if they still are in a scene."""
    for node in nodes:
        scene = node.GetScene() if node is not None else None
        if scene is None:
            continue
        helpers = [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())] if _shows(node) else []
        if node.IsA("vtkMRMLStorableNode"):
            helpers += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
        scene.RemoveNode(node)
        for helper in helpers:
            if helper is not None:
                scene.RemoveNode(helper)


def _shows(node: Any) -> bool:
    return bool(node.IsA("vtkMRMLDisplayableNode"))
