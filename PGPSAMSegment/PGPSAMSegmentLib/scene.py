"""The engine's results in the scene: the way in for the module's logic.

`export_volume` hands a volume out; `show_partial` shows finished slices while the engine works; `show_result` puts
a whole run into the scene as one change. Results go where the user finds them: beside the volume in its study,
under its transform, on its grid. What he made or corrected himself is never overwritten. Knows MRML and arrays;
knows nothing of processes or widgets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from . import firstresult, grid, review, segments
from .grid import (
    SENT,
    frame_of,
    full_labelmap,
    has_reference,
    ijk_to_ras,
    ijk_to_world,
    only,
    same_grid,
    save,
    shape_of,
    view,
    voxels_of,
)
from .nodes import (
    BINARY,
    COMPANIONS,
    FIRST,
    POINTS,
    PREFIX,
    PROMPTS,
    TABLE,
    VOLUME,
    SceneError,
    add_beside,
    batch,
    companion,
    is_confidence,
    is_prompts,
    remove,
)
from .overlay import overlay_confidence, put_confidence, take_off, withdraw
from .prompts import put_prompts, remove_points, show
from .table import put_table
from .undo import RunHistory, remove_result

__all__ = [
    "RunHistory",
    "SceneError",
    "check_target",
    "check_volume",
    "choose_output",
    "discard_partial",
    "export_volume",
    "kept",
    "output_at",
    "output_of",
    "overlay_confidence",
    "remove_result",
    "segmentation_of",
    "show",
    "show_partial",
    "show_result",
    "take_off",
    "volume_of",
    "withdraw",
]

_SENT_PLACES = "places.npy"  # beside the voxels that the engine gets: where they lay, see `_places`
# Of a volume: a reference to the segmentation that its results go to, or to itself where a new one was chosen. In
# earlier versions that was this attribute; a sequence's frames bring their own attributes.
_OUTPUT = PREFIX + "output"
_FRAME = PREFIX + "frame"  # attribute of a segmentation that was made on a sequence's frame: its number
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
    array = _load(labels, shape_of(volumeNode))
    chosen = _chosen(label_set, organs)
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


@grid.fingerprints_kept()
def show_result(
    volumeNode: Any,
    result: dict[str, Any],
    segmentationNode: Any = None,
    organs: Iterable[str] | None = None,
    *,
    folder: str | Path = "",
    overwrite: bool = False,
    replace: Iterable[str] = (),
    history: RunHistory | None = None,
) -> Any:
    """Puts a finished run into the scene: segments, prompts, confidence, table and the list of slices to check.

    Args:
        result: the worker's "done" event.
        segmentationNode: where the segments go; None for a new segmentation. Of the segments in it, only those
            that this module made for these organs on this volume, of a sequence on this frame, and that nobody edited
            or checked since, are replaced. The result for any other goes beside it, as "liver (2)".
        organs: names of those that were asked for; all of the label set for None.
        folder: where the event's file names lie, the request's "out"; not needed for full paths.
        overwrite: of these, also replace those that were edited or checked, but not those renamed.
        replace: IDs of segments of the user's own that may be replaced by the organ whose name they bear.
        history: remembers the run, so that it can be undone.

    Returns:
        The segmentation node.

    Raises:
        SceneError: the volume or the segmentation cannot take the result, or a file of it cannot be read. After this
            or any other error the scene is as it was, but for what came with earlier results, which has followed the
            volume's transform.
    """
    check_volume(volumeNode)
    check_target(segmentationNode, volumeNode)
    run = _Run(volumeNode, result, Path(folder), organs)
    history = history or RunHistory()
    with batch(volumeNode.GetScene()):
        discard_partial(volumeNode)
        if segmentationNode is None:
            frame, name = frame_of(volumeNode), volumeNode.GetName()
            name = f"{name} frame {frame} segmentation" if frame else f"{name} segmentation"
            segmentationNode = _add_segmentation(volumeNode, name)
            if frame:
                segmentationNode.SetAttribute(_FRAME, str(frame))
            history.made(segmentationNode)
        else:
            _follow_transform(segmentationNode, volumeNode)
            history.before(segmentationNode)
        try:
            with slicer.util.NodeModify(segmentationNode):
                _put(run, segmentationNode, volumeNode, overwrite, replace)
        except Exception:
            history.undo(force=True)
            raise
    history.after(segmentationNode)
    return segmentationNode


def _put(run: _Run, segmentationNode: Any, volumeNode: Any, overwrite: bool, replace: Iterable[str]) -> None:
    """Writes all of a run's result."""
    segmentation = segmentationNode.GetSegmentation()
    if not segmentation.GetNumberOfSegments() or segmentationNode.GetNodeReference(VOLUME) not in (None, volumeNode):
        _begin_anew(segmentationNode, volumeNode)
    _adopt_geometry(segmentationNode, volumeNode)
    segmentationNode.SetNodeReferenceID(VOLUME, volumeNode.GetID())
    affine = ijk_to_ras(volumeNode)
    voxels = _known_voxels(segmentationNode, volumeNode)
    written = segments.put_organs(segmentation, run.labels, affine, run.organs, run.model, voxels, overwrite, replace)
    put_prompts(segmentationNode, volumeNode, run.regions, run.points, run.organs)
    put_confidence(segmentationNode, volumeNode, run.confidence)
    firstresult.keep(segmentationNode, volumeNode, [organ["name"] for organ in run.organs], voxels[0])
    review.build(segmentationNode, written)
    to_check = review.slices_to_check(segmentationNode, written)
    put_table(segmentationNode, volumeNode, run.figures, to_check, written)


def check_volume(volumeNode: Any) -> None:
    """Says why a volume cannot be segmented.

    Raises:
        SceneError: as `grid.check_volume`, or it is the confidence map of a result.
    """
    grid.check_volume(volumeNode)
    if is_confidence(volumeNode):
        raise SceneError(f"'{volumeNode.GetName()}' is a confidence map, not an image", "Select the CT that it is of")


def export_volume(volumeNode: Any, folder: str | Path) -> dict[str, Any]:
    """As `grid.export_volume`; `check_unchanged` then knows what the engine got."""
    sent = grid.export_volume(volumeNode, folder)
    save(Path(folder) / _SENT_PLACES, _places(volumeNode))
    return sent


def _places(volumeNode: Any) -> NDArray[np.float64]:
    """[2, 4, 4]: (i, j, k) to RAS mm in the volume's own frame, and as the views show it."""
    return np.stack([ijk_to_ras(volumeNode), ijk_to_world(volumeNode)])


def check_unchanged(volumeNode: Any, folder: str | Path) -> None:
    """Says that a volume is no longer what `export_volume` wrote to this folder: another frame of a sequence, or with
    another spacing, say. A transform may have come, gone, or been hardened: results follow it.

    Raises:
        SceneError: it is not, or what was written cannot be read.
    """
    sent = _load(Path(folder) / SENT, shape_of(volumeNode))
    lay = _load(Path(folder) / _SENT_PLACES, (2, 4, 4))
    moved = not np.isclose(lay, _places(volumeNode)).all(axis=(1, 2)).any()
    if moved or not np.array_equal(sent, slicer.util.arrayFromVolume(volumeNode)):
        raise SceneError(
            f"the volume '{volumeNode.GetName()}' changed while it was segmented, and the result would not fit",
            "Segment again, and leave the volume, or the sequence's frame, as it is meanwhile",
        )


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
    voxels = _known_voxels(segmentationNode, volume) if volume is not None and volume.GetImageData() is not None else ()
    return segments.kept(segmentationNode.GetSegmentation(), organs, voxels)


def _known_voxels(segmentationNode: Any, volumeNode: Any) -> list[str]:
    """The volume's voxels, and as what else it was segmented here: other frames of a sequence are no earlier states."""
    other_frames = _of_a_frame(segmentationNode, volumeNode)
    return [voxels_of(volumeNode), *(() if other_frames else firstresult.volumes(segmentationNode))]


def _of_a_frame(segmentationNode: Any, volumeNode: Any) -> bool:
    """Whether a segmentation is for one frame of a sequence, which may be gone, and is not turned with the frames."""
    return bool(frame_of(volumeNode) or segmentationNode.GetAttribute(_FRAME)) and not frame_of(segmentationNode)


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


class _Run:
    """A "done" event with its files read and checked, before anything in the scene is touched.

    Attributes:
        labels: uint8 [k, j, i], only organs that were asked for.
        confidence: float32 [k, j, i].
        regions: uint8 [k, j, i].
        points: list of {"organ", "id", "weight", "ijk", "ras"}.
        organs: {"id", "name", "color", "snomed", "axis", "slice_confidence"} of those asked for.
        figures: the event's own list for these organs: {"name", "volume_ml", "mean_hu", "confidence", ...}.
    """

    def __init__(self, volumeNode: Any, result: dict[str, Any], folder: Path, organs: Iterable[str] | None) -> None:
        shape = shape_of(volumeNode)
        chosen = _chosen(result["label_set"], organs)
        ids = [organ["id"] for organ in chosen]
        measured = {organ["id"]: organ for organ in result["organs"]}
        self.model = str(result["model"])
        self.labels = only(_load(folder / result["labels"], shape), ids)
        self.confidence = _load(folder / result["confidence"], shape)
        self.regions = only(_load(folder / result["regions"], shape), ids)
        self.points = [point for point in _load_points(folder / result["points"]) if point["id"] in ids]
        self.figures = [measured[i] for i in ids if i in measured]
        self.organs = [
            {
                **organ,
                "axis": measured.get(organ["id"], {}).get("slices_axis", 0),
                "slice_confidence": measured.get(organ["id"], {}).get("slice_confidence", {}),
            }
            for organ in chosen
        ]


def _chosen(label_set: Sequence[dict[str, Any]], organs: Iterable[str] | None) -> list[dict[str, Any]]:
    wanted = None if organs is None else set(organs)
    return [organ for organ in label_set if wanted is None or organ["name"] in wanted]


def _load(path: str | Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array that was exchanged with the engine; one of voxels, [k, j, i], must lie on the volume's grid."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SceneError(f"the engine's result cannot be read: {path} ({error})", "Segment again") from error
    if array.shape != shape:
        raise SceneError(
            f"the result has {array.shape} voxels and the volume {shape}: the volume changed while it was segmented",
            "Segment again",
        )
    return array


def _load_points(path: Path) -> list[dict[str, Any]]:
    try:
        points: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SceneError(f"the engine's result cannot be read: {path} ({error})", "Segment again") from error
    return points


def _add_segmentation(volumeNode: Any, name: str, hidden: bool = False) -> Any:
    node = add_beside(volumeNode, "vtkMRMLSegmentationNode", name, hidden)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    return node


def _adopt_geometry(segmentationNode: Any, volumeNode: Any) -> None:
    """Gives a segmentation that knows no place yet the volume's; others have it already, as `check_target` saw."""
    segmentation = segmentationNode.GetSegmentation()
    empty = not segmentation.GetNumberOfSegments()
    if empty:
        segmentationNode.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    if empty or not has_reference(segmentation):
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    if segmentationNode.GetDisplayNode() is None:
        segmentationNode.CreateDefaultDisplayNodes()


def _follow_transform(segmentationNode: Any, volumeNode: Any) -> None:
    """Puts all that comes with a result under the volume's transform, which may be another one since the last run."""
    prompts, transform = companion(segmentationNode, PROMPTS), volumeNode.GetTransformNodeID()
    # Where they lie right under a transform that the volume lacks, it was hardened into the volume.
    hardened = transform is None and prompts is not None and same_grid(prompts, volumeNode)
    for role in COMPANIONS:
        node = companion(segmentationNode, role)
        if node is None or not node.IsA("vtkMRMLTransformableNode") or node.GetTransformNodeID() == transform:
            continue
        if hardened:
            node.HardenTransform()
        node.SetAndObserveTransformNodeID(transform)


def _begin_anew(segmentationNode: Any, volumeNode: Any) -> None:
    """Empties what came with earlier results: they have gone, or were those of another volume."""
    prompts, points, figures = (companion(segmentationNode, role) for role in (PROMPTS, POINTS, TABLE))
    if prompts is not None:
        segments.remove_untouched(prompts.GetSegmentation())
        prompts.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    if points is not None:
        remove_points(points)
    if figures is not None:
        figures.RemoveAllColumns()
    remove([companion(segmentationNode, FIRST)])


def _add_preview(volumeNode: Any, organs: Sequence[dict[str, Any]]) -> Any:
    # Hidden: nobody shall choose as the output what is gone in a moment.
    node = _add_segmentation(volumeNode, f"{volumeNode.GetName()} (segmenting)", hidden=True)
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
