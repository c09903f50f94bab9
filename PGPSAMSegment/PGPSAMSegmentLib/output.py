"""Where a volume's results go, and which volumes and segmentations can have results at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import slicer

from . import firstresult, grid, segments
from .grid import frame_of, same_grid, voxels_of
from .nodes import BINARY, FIRST, PREFIX, VOLUME, SceneError, companion, is_confidence, is_prompts

# Of a volume: a reference to the segmentation that its results go to, or to itself where a new one was chosen. In
# earlier versions that was this attribute; a sequence's frames bring their own attributes.
_OUTPUT = PREFIX + "output"
FRAME = PREFIX + "frame"  # attribute of a segmentation that was made on a sequence's frame: its number


def check_volume(volumeNode: Any) -> None:
    """Says why a volume cannot be segmented.

    Raises:
        SceneError: as `grid.check_volume`, or it is the confidence map of a result.
    """
    grid.check_volume(volumeNode)
    if is_confidence(volumeNode):
        raise SceneError(f"'{volumeNode.GetName()}' is a confidence map, not an image", "Select the CT that it is of")


def check_target(segmentationNode: Any, volumeNode: Any) -> None:
    """Says why a segmentation cannot take results of this volume; None, for a new one, always can.

    Raises:
        SceneError: it is not in the scene, holds prompts, surfaces or contours, lies elsewhere than the volume, or
            holds results of another volume.
    """
    if segmentationNode is None:
        return
    name = f"the segmentation '{segmentationNode.GetName()}'"
    if segmentationNode.GetScene() is None:
        raise SceneError(f"{name} is no longer in the scene", "Select another one, or a new one")
    if is_prompts(segmentationNode):
        raise SceneError(f"{name} holds the prompts of another segmentation", "Select that segmentation, or a new one")
    segmentation = segmentationNode.GetSegmentation()
    if not segmentation.GetNumberOfSegments():
        return
    if segmentation.GetSourceRepresentationName() != BINARY:
        raise SceneError(
            f"{name} holds surfaces or contours, not voxels",
            "Select a new segmentation, or make 'Binary labelmap' its source representation (Segmentations module)",
        )
    if segmentationNode.GetTransformNodeID() != volumeNode.GetTransformNodeID():
        raise SceneError(
            f"{name} and the volume '{volumeNode.GetName()}' are under different transforms",
            "Put both under the same transform, or select a new segmentation",
        )
    if not same_grid(segmentationNode, volumeNode):
        raise SceneError(
            f"{name} has another voxel grid than the volume '{volumeNode.GetName()}'",
            "Select a new segmentation, or the volume that this one was drawn on",
        )
    other = segmentationNode.GetNodeReference(VOLUME)
    if other is not None and other is not volumeNode and segments.ours(segmentation):
        raise SceneError(
            f"{name} holds results of another volume, '{other.GetName()}'",
            "Select a new segmentation, or that volume",
        )


def segmentation_of(volumeNode: Any) -> Any:
    """The latest segmentation that holds results of a volume, or None."""
    return next(reversed(_segmentations_of(volumeNode)), None) if volumeNode is not None else None


def _segmentations_of(volumeNode: Any) -> list[Any]:
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    found = [node for node in nodes if node.GetNodeReference(VOLUME) is volumeNode]
    firsts = [companion(node, FIRST) for node in found]
    return [node for n, node in enumerate(found) if firsts[n] is None or firsts[n] not in firsts[:n]]  # no clones


def kept(segmentationNode: Any, organs: Iterable[str]) -> list[tuple[str, str]]:
    """The segments that another run of `organs` on the same volume would put its own result beside: (ID, name)."""
    volume = segmentationNode.GetNodeReference(VOLUME)
    voxels = known_voxels(segmentationNode, volume) if volume is not None and volume.GetImageData() is not None else ()
    return segments.kept(segmentationNode.GetSegmentation(), organs, voxels)


def known_voxels(segmentationNode: Any, volumeNode: Any) -> list[str]:
    """The volume's voxels, and as what else it was segmented here: other frames of a sequence are no earlier states."""
    other_frames = _of_a_frame(segmentationNode, volumeNode)
    return [voxels_of(volumeNode), *(() if other_frames else firstresult.volumes(segmentationNode))]


def _of_a_frame(segmentationNode: Any, volumeNode: Any) -> bool:
    """Whether a segmentation is for one frame of a sequence, which may be gone, and is not turned with the frames."""
    return bool(frame_of(volumeNode) or segmentationNode.GetAttribute(FRAME)) and not frame_of(segmentationNode)


def output_of(volumeNode: Any) -> Any:
    """Where a volume's results go: what was chosen for it, else the latest that holds some; None for a new one."""
    chosen = volumeNode.GetNodeReference(_OUTPUT) if volumeNode is not None else None
    if volumeNode is None or chosen is volumeNode or volumeNode.GetAttribute(_OUTPUT):
        return None
    if chosen is None or not chosen.IsA("vtkMRMLSegmentationNode"):  # a volume's clone refers to the volume
        fits = False
    else:
        fits = chosen.GetNodeReference(VOLUME) in (None, volumeNode)
    return output_at(volumeNode, chosen if fits else segmentation_of(volumeNode))


def output_at(volumeNode: Any, segmentationNode: Any) -> Any:
    """Where a result goes that was meant for this segmentation, so that every frame of a sequence has its own.

    Returns:
        The segmentation itself, unless its results are of other frames than the one that is shown: then the latest
        with results of that one, or None for a new one.
    """
    if segmentationNode is None or volumeNode.GetImageData() is None or not _of_a_frame(segmentationNode, volumeNode):
        return segmentationNode
    shown, made_on = voxels_of(volumeNode), firstresult.volumes(segmentationNode)
    if not made_on or shown in made_on:
        return segmentationNode
    nodes = reversed(_segmentations_of(volumeNode))
    return next((node for node in nodes if shown in firstresult.volumes(node)), None)


def choose_output(volumeNode: Any, segmentationNode: Any) -> None:
    """Keeps with a volume where its results go.

    Args:
        segmentationNode: None for a new one.
    """
    volumeNode.RemoveAttribute(_OUTPUT)  # earlier versions
    volumeNode.SetNodeReferenceID(_OUTPUT, (volumeNode if segmentationNode is None else segmentationNode).GetID())


def volume_of(segmentationNode: Any, volumeNode: Any) -> Any:
    """The volume that a result is of.

    Args:
        volumeNode: takes the place of one that is gone, if it is the same: loaded again, say.

    Raises:
        SceneError: it is gone, and this one is not the same.
    """
    volume = segmentationNode.GetNodeReference(VOLUME)
    if volume is not None:
        return volume
    name = segmentationNode.GetName()
    firstresult.of(segmentationNode)
    if volumeNode is None:
        raise SceneError(
            f"the volume of '{name}' is not in the scene", "Load it again, and select it as the input volume"
        )
    check_volume(volumeNode)
    if not same_grid(segmentationNode, volumeNode) or firstresult.volumes(segmentationNode) - {voxels_of(volumeNode)}:
        raise SceneError(
            f"the volume '{volumeNode.GetName()}' is not the one that '{name}' was made on",
            "Select that one as the input volume; load it again if it is not in the scene",
        )
    segmentationNode.SetNodeReferenceID(VOLUME, volumeNode.GetID())
    return volumeNode
