"""What the model gave for each segment, as the scene keeps it, so that later corrections can be told from it.

It is a text node beside the segmentation: voxels are packed and compressed, segment by segment, because segments of
several runs overlap and label ids of several models mean different organs. The data tree leaves it out; Slicer's
Save dialog, which passes over what is hidden from editors, does not.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from . import segments
from .grid import cut, placed, segment_box, shape_of
from .nodes import FIRST, SceneError, companion, remove


@dataclass(frozen=True)
class First:
    """The model's own result.

    Attributes:
        shape: (k, j, i) of the grid that it lies on.
        spacing: of i, j and k, mm.
        entries: as `key` names them: {"organ", "axis": of its slices, "voxels": of the volume, see `grid.voxels_of`,
            "start", "shape", "bits"}; those of segments that the user removed are among them.
        voxels: of the volume that the last run was on, which may have found nothing; '' for earlier versions.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    entries: dict[str, dict[str, Any]]
    voxels: str = ""

    def mask(self, key: str) -> NDArray[np.bool_]:
        """What the model gave for a segment, bool [k, j, i]."""
        entry = self.entries[key]
        packed = np.frombuffer(zlib.decompress(base64.b64decode(entry["bits"])), np.uint8)
        box = np.unpackbits(packed, count=int(np.prod(entry["shape"]))).astype(bool).reshape(entry["shape"])
        return placed(box, tuple(entry["start"]), self.shape)


def of(segmentationNode: Any) -> First:
    """The model's own result for a segmentation.

    Raises:
        SceneError: it is not in the scene.
    """
    found = _read(segmentationNode)
    if found is None:
        raise SceneError(
            f"the model's own result for '{segmentationNode.GetName()}' is not in this scene",
            "It is kept by this module and saved with the scene: segment again, or load that scene",
        )
    return found


def organs(segmentationNode: Any) -> set[str]:
    """Names of the organs that the model found; empty where its result is not in the scene."""
    found = _read(segmentationNode)
    return {entry["organ"] for entry in found.entries.values()} if found is not None else set()


def volumes(segmentationNode: Any) -> set[str]:
    """Which volumes' voxels the model's results are of, see `grid.voxels_of`; empty where this is not known."""
    found = _read(segmentationNode)
    if found is None:
        return set()
    made_on = [entry["voxels"] for entry in found.entries.values()] if found.entries else [found.voxels]
    return {voxels for voxels in made_on if voxels}


def keep(segmentationNode: Any, volumeNode: Any, names: Iterable[str], voxels: str) -> None:
    """Notes what a run has just written. What earlier runs gave for other segments stays, removed ones included.

    Args:
        names: of the organs of this run; what is no longer there of them is nobody's correction.
        voxels: the volume's, see `grid.voxels_of`.
    """
    segmentation, asked = segmentationNode.GetSegmentation(), set(names)
    ours = [(key(segmentation, organ.segment_id), organ) for organ in segments.ours(segmentation)]
    there = {name for name, _ in ours}
    shape, earlier = shape_of(volumeNode), _read(segmentationNode)
    entries = dict(earlier.entries) if earlier is not None and earlier.shape == shape else {}
    entries = {name: entry for name, entry in entries.items() if name in there or entry["organ"] not in asked}
    for name, organ in ours:
        made_on = segments.tag(segmentation.GetSegment(organ.segment_id), segments.VOXELS_TAG)
        fresh = organ.untouched and organ.organ in asked and made_on == voxels
        if fresh or (name not in entries and segments.as_written(segmentation, organ.segment_id)):
            entries[name] = _entry(segmentation, organ, voxels if fresh else "")
    node = companion(segmentationNode, FIRST)
    if node is None or not node.IsA("vtkMRMLTextNode"):
        remove([node])
        node = _add(segmentationNode)
    node.SetText(json.dumps({"shape": shape, "spacing": volumeNode.GetSpacing(), "entries": entries, "voxels": voxels}))


def key(segmentation: Any, segment_id: str) -> str:
    """Names a segment's entry: the same for a copy of the segment, and whatever becomes of its voxels."""
    segment = segmentation.GetSegment(segment_id)
    return f"{segments.tag(segment, segments.ORGAN_TAG)} {segments.tag(segment, segments.CONTENT_TAG)}"


def _entry(
    segmentation: Any,
    organ: segments.OrganSegment,
    voxels: str,
    found: tuple[NDArray[np.bool_], tuple[int, int, int]] | None = None,
) -> dict[str, Any]:
    """Args: found: a box of the organ's voxels and where it lies; None for the segment's own."""
    box, start = found or segment_box(segmentation, organ.segment_id) or cut(np.zeros((0, 0, 0), bool))
    bits = base64.b64encode(zlib.compress(np.packbits(box).tobytes(), 1)).decode()
    name = segments.tag(segmentation.GetSegment(organ.segment_id), segments.ORGAN_TAG)  # whatever it is called now
    return {"organ": name, "axis": organ.axis, "voxels": voxels, "start": start, "shape": box.shape, "bits": bits}


def _read(segmentationNode: Any) -> First | None:
    node = companion(segmentationNode, FIRST)
    if node is not None and node.IsA("vtkMRMLTextNode") and node.GetText():
        try:
            kept = json.loads(node.GetText())
        except ValueError:  # somebody else's text
            return None
        return First(tuple(kept["shape"]), tuple(kept["spacing"]), kept["entries"], kept.get("voxels", ""))
    if node is not None and node.IsA("vtkMRMLLabelMapVolumeNode") and node.GetImageData() is not None:
        return _of_label_map(segmentationNode, node)
    return None


def _of_label_map(segmentationNode: Any, node: Any) -> First:
    """What version 0.1.0 kept: one label map for all runs, where a later run's result stands for a kept segment's."""
    segmentation, labels, entries = segmentationNode.GetSegmentation(), slicer.util.arrayFromVolume(node), {}
    for organ in segments.ours(segmentation):
        found = None if segments.as_written(segmentation, organ.segment_id) else cut(labels == organ.label)
        entries[key(segmentation, organ.segment_id)] = _entry(segmentation, organ, "", found)
    return First(labels.shape, node.GetSpacing(), entries)


def _add(segmentationNode: Any) -> Any:
    scene = segmentationNode.GetScene()
    node = slicer.vtkMRMLTextNode()
    node.SetName(scene.GenerateUniqueName(f"{segmentationNode.GetName()} first result"))
    node.SetAttribute(slicer.vtkMRMLSubjectHierarchyConstants.GetSubjectHierarchyExcludeFromTreeAttributeName(), "1")
    node = scene.AddNode(node)
    segmentationNode.SetNodeReferenceID(FIRST, node.GetID())
    return node
