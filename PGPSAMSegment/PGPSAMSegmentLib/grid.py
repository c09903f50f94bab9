"""Between arrays ``[k, j, i]`` and MRML's images: export of a volume, labelmaps, a segment's voxels.

Nothing is turned here: arrays and matrices go as Slicer holds them, and the engine does all orientation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from .nodes import BINARY, SceneError

SENT = "v.npy"  # the voxels that the engine gets

REFERENCE_GEOMETRY = "Reference image geometry"
_SAME = 0.01  # voxels: how far a grid may lie off another one anywhere and still count as the same


# ------------------------------------------------------------------------------------------- volume -> engine


def check_volume(volumeNode: Any) -> None:
    """Says what a volume that cannot be segmented lacks.

    Raises:
        SceneError: no volume, not in a scene, a sequence, a label map, colours or several components, no voxels,
            a non-linear transform.
    """
    if volumeNode is None:
        raise SceneError("no volume is selected", "Load a CT and select it as the input volume")
    name = f"'{volumeNode.GetName()}'"
    if volumeNode.GetScene() is None:
        raise SceneError(f"the volume {name} is no longer in the scene", "Select another volume")
    if volumeNode.IsA("vtkMRMLSequenceNode"):
        raise SceneError(
            f"{name} is a sequence, not one volume", "Add it to a sequence browser and select its proxy volume"
        )
    if not volumeNode.IsA("vtkMRMLScalarVolumeNode"):
        raise SceneError(f"{name} is not an image volume", "Select a scalar volume, such as a CT")
    if volumeNode.IsA("vtkMRMLLabelMapVolumeNode"):
        raise SceneError(f"{name} is a label map, not an image", "Select the CT that it was drawn on")
    image = volumeNode.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or image.GetNumberOfPoints() == 0:
        raise SceneError(f"the volume {name} has no voxels", "Load its image file again")
    if volumeNode.IsA("vtkMRMLTensorVolumeNode") or image.GetNumberOfScalarComponents() != 1:
        raise SceneError(
            f"the volume {name} has {image.GetNumberOfScalarComponents()} values a voxel (colours or time points)",
            "Select a scalar volume: Vector to Scalar Volume, or one frame of it as a sequence",
        )
    transform = volumeNode.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        raise SceneError(
            f"the volume {name} is under the non-linear transform '{transform.GetName()}'",
            "Harden the transform (Data module, right-click on the volume's transform), or take it off",
        )


def export_volume(volumeNode: Any, folder: str | Path) -> dict[str, Any]:
    """Writes a volume's voxels for the engine, as they are and in their own number type.

    A linear transform that the volume is under goes into the affine, so that the engine sees the patient as the
    views show him. A sequence's proxy volume gives the frame that it shows.

    Returns:
        {"volume": path of ``v.npy`` [k, j, i], "affine": [4, 4] nested lists, (i, j, k) to RAS mm}.

    Raises:
        SceneError: as `check_volume`, or the file cannot be written.
    """
    check_volume(volumeNode)
    path = Path(folder) / SENT
    save(path, slicer.util.arrayFromVolume(volumeNode))
    return {"volume": str(path), "affine": ijk_to_world(volumeNode).tolist()}


def save(path: Path, array: NDArray[Any]) -> None:
    """Writes an array for the engine; half a file does not stay.

    Raises:
        SceneError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)
    except OSError as error:
        if path.is_file():
            path.unlink()
        why = error.strerror or "the disk is full"  # numpy only counts the bytes of a write that was cut short
        raise SceneError(
            f"nothing could be handed to the engine: {why} ({path})",
            "Make room on that disk, or choose another temporary folder in Edit > Application Settings",
        ) from error


def ijk_to_ras(volumeNode: Any) -> NDArray[np.float64]:
    """[4, 4]: (i, j, k) to RAS mm in the volume's own frame, without any transform it is under."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def ijk_to_world(volumeNode: Any) -> NDArray[np.float64]:
    """[4, 4]: (i, j, k) to RAS mm as the views show it, linear transforms included."""
    return to_world(volumeNode) @ ijk_to_ras(volumeNode)


def to_world(node: Any) -> NDArray[np.float64]:
    """[4, 4]: a node's own frame to the world, through the linear transforms that it is under.

    A non-linear one has no matrix and is left out: `TransformPointToWorld` of the node knows both kinds.
    """
    matrix, transform = vtk.vtkMatrix4x4(), node.GetParentTransformNode()
    if transform is not None and transform.IsTransformToWorldLinear():
        transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def shape_of(volumeNode: Any) -> tuple[int, int, int]:
    """``(k, j, i)``."""
    i, j, k = volumeNode.GetImageData().GetDimensions()
    return k, j, i


def frame_of(node: Any) -> int:
    """Which item of a sequence a node shows, counted from 1; 0 for a node that shows none.

    Of several browsers of one volume, that counts whose item has the voxels that are shown.
    """
    browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode", node.GetScene())
    browsers = [each for each in browsers if each.IsProxyNodeID(node.GetID())]
    if len(browsers) > 1 and _has_voxels(node):
        shown = voxels_of(node)
        browsers.sort(key=lambda each: _selected_voxels(each, node) != shown)
    return browsers[0].GetSelectedItemNumber() + 1 if browsers else 0


def _selected_voxels(browser: Any, volumeNode: Any) -> str:
    """Those of the item that a browser would have its proxy volume show, '' for none."""
    value = browser.GetMasterSequenceNode().GetNthIndexValue(browser.GetSelectedItemNumber())
    item = browser.GetSequenceNode(volumeNode).GetDataNodeAtValue(value, False)
    return voxels_of(item) if _has_voxels(item) else ""


def _has_voxels(node: Any) -> bool:
    return node is not None and node.IsA("vtkMRMLScalarVolumeNode") and node.GetImageData() is not None


def frame_with(volumeNode: Any, voxels: str | None) -> Any:
    """The volume itself; or the item of the sequence that it shows one of, which has these voxels.

    The item is under no transform and in no scene of the user's.

    Args:
        voxels: see `voxels_of`. None, or where no item has them: the volume itself.
    """
    if voxels in (None, voxels_of(volumeNode)):
        return volumeNode
    for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode", volumeNode.GetScene()):
        sequence = browser.GetSequenceNode(volumeNode)
        items = range(sequence.GetNumberOfDataNodes()) if sequence is not None else ()
        for item in (sequence.GetNthDataNode(n) for n in items):
            if _has_voxels(item) and voxels_of(item) == voxels:
                return item
    return volumeNode


def voxels_of(volumeNode: Any) -> str:
    """Changes with the volume's voxels: with the frame that a sequence shows, for one."""
    return hashlib.blake2b(np.ascontiguousarray(slicer.util.arrayFromVolume(volumeNode)), digest_size=8).hexdigest()


# -------------------------------------------------------------------------------------- arrays -> MRML images


def labelmap(array: NDArray[np.uint8], affine: NDArray[np.float64]) -> Any:
    """A labelmap layer that several segments may share: the box of the non-zero voxels, at its place on the grid.

    Args:
        array: uint8 [k, j, i] on the volume's grid.
        affine: [4, 4], (i, j, k) to RAS mm.

    Returns:
        vtkOrientedImageData, a copy; an array of zeros gives one empty voxel, as Slicer cannot hold none.
    """
    (k0, k1), (j0, j1), (i0, i1) = (_range(array, axis) for axis in range(3))
    image = slicer.vtkOrientedImageData()
    image.SetExtent(i0, i1 - 1, j0, j1 - 1, k0, k1 - 1)
    box = np.ascontiguousarray(array[k0:k1, j0:j1, i0:i1])
    image.GetPointData().SetScalars(numpy_to_vtk(box.ravel(), deep=True, array_type=vtk.VTK_UNSIGNED_CHAR))
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
    return image


def full_labelmap(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Any:
    """A labelmap layer of zeros over the whole grid, to be written to in place."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(shape[2], shape[1], shape[0])
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
    view(image)[:] = 0
    return image


def view(image: Any) -> NDArray[Any]:
    """An image's own voxels [k, j, i], not a copy: call ``image.Modified()`` after writing."""
    i, j, k = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(k, j, i)


def only(labels: NDArray[Any], ids: Any) -> NDArray[np.uint8]:
    """A copy of labels [k, j, i] with every id but `ids` set to 0."""
    kept = np.zeros(256, np.uint8)
    kept[list(ids)] = list(ids)
    return kept[labels]


def _range(array: NDArray[Any], axis: int) -> tuple[int, int]:
    others = tuple(other for other in range(array.ndim) if other != axis)
    used = np.flatnonzero(array.any(axis=others))
    return (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)


# ----------------------------------------------------------------------------------------- segments -> arrays


def segment_box(segmentation: Any, segment_id: str) -> tuple[NDArray[np.bool_], tuple[int, int, int]] | None:
    """A segment's voxels, cut to the box that holds them, and where that box lies on the segmentation's grid.

    Args:
        segmentation: vtkSegmentation with its reference geometry set.

    Returns:
        bool [k, j, i] and the box's first (k, j, i); an empty array at (0, 0, 0) for a segment without voxels;
        None where the segment has no voxels of its own on that grid (a surface, or another grid).
    """
    segment = segmentation.GetSegment(segment_id)
    image = segment.GetRepresentation(BINARY) if segment is not None else None
    reference = _reference(segmentation)
    if image is None or reference is None:
        return None
    box, start = _own_box(image, segment.GetLabelValue())
    if not box.size:
        return box, start
    step = np.linalg.solve(_image_to_world(reference), _image_to_world(image))
    offset = np.rint(step[:3, 3])
    sides = np.array(reference.GetDimensions())
    drift = np.abs(step[:3, :3] - np.eye(3)) @ sides + np.abs(step[:3, 3] - offset)
    if drift.max() > _SAME:
        return None
    i, j, k = np.array(start[::-1]) + offset.astype(int) - np.array(reference.GetExtent()[::2])
    return box, (int(k), int(j), int(i))


def segment_mask(segmentationNode: Any, segment_id: str, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """A segment's voxels on the grid of the segmentation's reference volume, bool ``[k, j, i]`` of `shape`.

    What was painted outside the volume is cut off.

    Raises:
        SceneError: the segment lies on another grid.
    """
    segmentation = segmentationNode.GetSegmentation()
    found = segment_box(segmentation, segment_id)
    if found is None:
        name = segmentation.GetSegment(segment_id).GetName()
        raise SceneError(
            f"the segment '{name}' has no voxels on the grid of its volume",
            "In the Segment Editor, set the source volume's geometry (the button beside it)",
        )
    return placed(*found, shape)


def placed(box: NDArray[np.bool_], start: tuple[int, int, int], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """A box of voxels whose first one is at `start` on a grid of `shape`; what lies outside the grid is cut off."""
    mask = np.zeros(shape, bool)
    low = [max(at, 0) for at in start]
    high = [
        max(min(at + side, length), least) for at, side, length, least in zip(start, box.shape, shape, low, strict=True)
    ]
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    mask[inside] = box[tuple(slice(a - at, b - at) for a, b, at in zip(low, high, start, strict=True))]
    return mask


def cut(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
    """The box of a mask [k, j, i] that holds its voxels, and its first (k, j, i); an empty array where it has none."""
    k0, k1 = _range(mask, 0)
    if not mask[k0:k1].any():
        return np.zeros((0, 0, 0), bool), (0, 0, 0)
    j0, j1 = _range(mask[k0:k1], 1)
    i0, i1 = _range(mask[k0:k1, j0:j1], 2)
    return np.ascontiguousarray(mask[k0:k1, j0:j1, i0:i1]), (k0, j0, i0)


def fingerprint(segmentation: Any, segment_id: str) -> str:
    """Changes with the segment's voxels and nothing else: not with names, padding, saving or loading.

    Off the segmentation's reference grid the voxels count on a grid of their own, which a file may not keep.
    """
    segment = segmentation.GetSegment(segment_id)
    image = segment.GetRepresentation(BINARY)
    if image is None:
        return "no voxels"
    if _taken is None:
        return _fingerprint(segmentation, segment_id)
    # VTK gives each time of modification once, but two images may have that of voxels that they share.
    state = image.GetMTime(), image.GetExtent(), segment.GetLabelValue(), _image_to_world(image).tobytes()
    key = (*state, segmentation.GetConversionParameter(REFERENCE_GEOMETRY))
    if key not in _taken:
        _taken[key] = _fingerprint(segmentation, segment_id)
    return _taken[key]


_taken: dict[Any, str] | None = None


@contextmanager
def fingerprints_kept() -> Iterator[None]:
    """Inside, the fingerprint of a segment is taken once, as long as its layer is not modified.

    Not for longer: a script of the user's may write into a layer and not tell VTK.
    """
    global _taken
    before, _taken = _taken, {}
    try:
        yield
    finally:
        _taken = before


def _fingerprint(segmentation: Any, segment_id: str) -> str:
    segment, grid = segmentation.GetSegment(segment_id), b""
    found = segment_box(segmentation, segment_id)
    if found is None:
        image = segment.GetRepresentation(BINARY)
        found, grid = _own_box(image, segment.GetLabelValue()), _image_to_world(image).tobytes()
    box, start = found
    digest = hashlib.sha256(repr((box.shape, start)).encode())
    digest.update(np.packbits(box).tobytes() + grid)
    return digest.hexdigest()


def has_reference(segmentation: Any) -> bool:
    """Whether a segmentation knows the grid that it lies on; one made from a label map does not."""
    return _reference(segmentation) is not None


def same_grid(segmentationNode: Any, volumeNode: Any) -> bool:
    """Whether the segmentation's reference grid is the volume's, as both lie in the world, or it has none yet."""
    reference = _reference(segmentationNode.GetSegmentation())
    if reference is None:
        return True
    grid = to_world(segmentationNode) @ _image_to_world(reference)
    step = np.linalg.solve(grid, ijk_to_world(volumeNode))
    sides = np.array(volumeNode.GetImageData().GetDimensions())
    drift = np.abs(step[:3, :3] - np.eye(3)) @ sides + np.abs(step[:3, 3] - np.array(reference.GetExtent()[::2]))
    return tuple(reference.GetDimensions()) == tuple(sides) and drift.max() <= _SAME


def check_grid(segmentationNode: Any, volumeNode: Any) -> None:
    """Says that a segmentation lies elsewhere than a volume, or on finer or coarser voxels.

    Raises:
        SceneError: it does.
    """
    if not same_grid(segmentationNode, volumeNode):
        raise SceneError(
            f"the segmentation '{segmentationNode.GetName()}' does not lie on the voxels of the volume"
            f" '{volumeNode.GetName()}'",
            "Select the volume that it was drawn on, and put both under the same transform; or give the segmentation"
            " that volume's geometry again in the Segment Editor",
        )


def lattice(segmentation: Any) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """(k, j, i) and the spacing (of i, j and k, mm) of the grid that a segmentation knows, wherever it lies."""
    reference = _reference(segmentation)
    i, j, k = reference.GetDimensions()
    return (k, j, i), reference.GetSpacing()


def reference_affine(segmentation: Any) -> NDArray[np.float64]:
    """[4, 4]: (i, j, k) on the segmentation's reference grid, counted from 0, to its own RAS mm."""
    reference = _reference(segmentation)
    start = np.eye(4)
    start[:3, 3] = reference.GetExtent()[::2]
    return _image_to_world(reference) @ start


def _own_box(image: Any, label: int) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
    """A label's voxels in an image, cut to the box that holds them, and the box's first (k, j, i) in its extent."""
    if image.GetPointData().GetScalars() is None or image.GetNumberOfPoints() == 0:
        return np.zeros((0, 0, 0), bool), (0, 0, 0)
    box, (k, j, i) = cut(view(image) == label)
    extent = image.GetExtent()
    return (box, (k + extent[4], j + extent[2], i + extent[0])) if box.size else (box, (0, 0, 0))


def _reference(segmentation: Any) -> Any:
    """The segmentation's reference geometry as an image without voxels, or None."""
    text = segmentation.GetConversionParameter(REFERENCE_GEOMETRY)
    image = slicer.vtkOrientedImageData()
    if not text or not slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image, False):
        return None
    return image


def _image_to_world(image: Any) -> NDArray[np.float64]:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)
