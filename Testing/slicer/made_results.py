"""Volumes and results made by hand: what the worker would write, without a worker."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

STRUCTURE = ["SCT", "123037004", "Anatomical Structure"]
LIVER = {
    "id": 6,
    "name": "liver",
    "color": [221, 130, 101],
    "snomed": {"category": STRUCTURE, "type": ["SCT", "10200004", "Liver"], "modifier": None},
}
KIDNEY = {
    "id": 2,
    "name": "right kidney",
    "color": [185, 102, 83],
    "snomed": {
        "category": STRUCTURE,
        "type": ["SCT", "64033007", "Kidney"],
        "modifier": ["SCT", "24028007", "Right"],
    },
}
CAVA = {
    "id": 9,
    "name": "inferior vena cava",
    "color": [0, 151, 206],
    "snomed": {"category": STRUCTURE, "type": ["SCT", "64131007", "Inferior vena cava"], "modifier": None},
}
OWN = {"id": 200, "name": "my lesion", "color": [10, 20, 30], "snomed": None}
LABEL_SET = [LIVER, KIDNEY, CAVA]

SHAPE = (9, 12, 15)
# Spacings 0.7, 1.3 and 2 mm along axes that are turned about two of RAS.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.array([[0.8, -0.36, 0.48], [0.6, 0.48, -0.64], [0.0, 0.8, 0.6]]) * (0.7, 1.3, 2.0)
OBLIQUE[:3, 3] = (11.0, -7.5, 300.25)


def orientations() -> list[NDArray[np.float64]]:
    """All 48 ways to lay i, j, k along the axes of RAS, with three different spacings and an odd origin."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0.0
            for column, (axis, sign, step) in enumerate(zip(order, signs, (0.7, 1.3, 2.5), strict=True)):
                affine[axis, column] = sign * step
            affine[:3, 3] = (12.5, -80.0, 33.3)
            found.append(affine)
    return found


def add_volume(
    host: Any, affine: NDArray[np.float64] | None = None, shape: tuple[int, int, int] = SHAPE, name: str = "CT"
) -> Any:
    """An int16 volume of distinct voxel values in the host's scene."""
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    affine = np.diag([0.7, 1.3, 2.5, 1.0]) if affine is None else affine
    return slicer.util.addVolumeFromArray(array, slicer.util.vtkMatrixFromArray(affine), name)


def add_sequence(host: Any, frames: int = 2, name: str = "4D CT") -> tuple[Any, Callable[[int], None]]:
    """A sequence of volumes whose voxels are the frame's number, from 0.

    Returns:
        Its proxy volume, which shows frame 0, and what shows another one.
    """
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    for frame in range(frames):
        still = add_volume(host, name=f"still {frame}")
        slicer.util.arrayFromVolume(still)[:] = frame
        sequence.SetDataNodeAtValue(still, str(frame))
        slicer.mrmlScene.RemoveNode(still)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{name} browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())

    def show(frame: int) -> None:
        browser.SetSelectedItemNumber(frame)
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)

    show(0)
    return browser.GetProxyNode(sequence), show


def labels_of(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Three organs of different sizes in different corners: any mix-up of axes moves voxels."""
    labels = np.zeros(shape, np.uint8)
    labels[1:7, 2:9, 3:11] = LIVER["id"]
    labels[2:4, 9:12, 12:15] = KIDNEY["id"]
    labels[0:9, 0:1, 0:2] = CAVA["id"]
    labels[8, 11, 0] = CAVA["id"]
    return labels


def write_result(
    folder: Path,
    labels: NDArray[np.uint8],
    label_set: list[dict[str, Any]] = LABEL_SET,
    axis: int = 0,
    slice_confidence: dict[str, dict[int, float]] | None = None,
) -> dict[str, Any]:
    """A "done" event, with full paths, and its files in `folder`, as the worker's protocol has it."""
    folder.mkdir(parents=True, exist_ok=True)
    regions = np.roll(labels, 1, axis=2)
    confidence = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "confidence.npy", confidence)
    np.save(folder / "regions.npy", regions)
    points, organs = [], []
    others = tuple(other for other in range(3) if other != axis)
    for organ in label_set:
        voxels = np.argwhere(labels == organ["id"])
        if not len(voxels):
            continue
        k, j, i = (int(n) for n in voxels[len(voxels) // 2])
        points.append({"organ": organ["name"], "id": organ["id"], "weight": 0.75, "ijk": [i, j, k], "ras": [0, 0, 0]})
        given = (slice_confidence or {}).get(organ["name"])
        present = np.flatnonzero((labels == organ["id"]).any(axis=others)).tolist()
        organs.append(
            {
                "id": organ["id"],
                "name": organ["name"],
                "volume_ml": len(voxels) / 1000,
                "mean_hu": 55.5,
                "confidence": 0.91,
                "slices_axis": axis,
                "slice_confidence": {str(n): v for n, v in (given or dict.fromkeys(present, 0.95)).items()},
            }
        )
    (folder / "points.json").write_text(json.dumps(points))
    return {
        "id": 1,
        "event": "done",
        "labels": str(folder / "labels.npy"),
        "confidence": str(folder / "confidence.npy"),
        "regions": str(folder / "regions.npy"),
        "points": str(folder / "points.json"),
        "seconds": {"total": 1.0},
        "device": "cpu",
        "model": "abdomen-ct",
        "label_set": label_set,
        "organs": organs,
    }


def mask_of(segmentation_node: Any, name: str, volume_node: Any) -> NDArray[np.bool_]:
    """A segment's voxels on the volume's grid, as Slicer itself resamples them: not with the module's own code."""
    segment_id = segmentation_node.GetSegmentation().GetSegmentIdBySegmentName(name)
    array = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation_node, segment_id, volume_node)
    return np.asarray(array).astype(bool).copy()


def names(segmentation_node: Any) -> list[str]:
    segmentation = segmentation_node.GetSegmentation()
    return [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]


def paint(segmentation_node: Any, name: str, volume_node: Any, mask: NDArray[np.bool_]) -> None:
    """Gives a segment these voxels the way Slicer's own scripts do; a new segment if there is none of that name."""
    segmentation = segmentation_node.GetSegmentation()
    segment_id = segmentation.GetSegmentIdBySegmentName(name) or segmentation.AddEmptySegment("", name)
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), segmentation_node, segment_id, volume_node)


def edited(node: Any, volume: Any, name: str = "liver", k: int = 4) -> np.ndarray:
    """One voxel of a segment erased in slice `k`."""
    mask = mask_of(node, name, volume)
    mask[tuple(np.argwhere(mask & (np.arange(len(mask)) == k)[:, None, None])[0])] = False
    paint(node, name, volume, mask)
    return mask


# ------------------------------------------------------------------------------------ several runs and models
