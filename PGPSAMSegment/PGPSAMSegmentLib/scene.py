"""A run's way out of the scene and back: the volume that the engine gets, and its result as one change.

Results go where the user finds them: beside the volume in its study, under its transform, on its grid. What he made
or corrected himself is never overwritten. Knows MRML and arrays; knows nothing of processes or widgets.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from . import firstresult, grid, review, segments
from .grid import SENT, frame_of, has_reference, ijk_to_ras, ijk_to_world, same_grid, save, shape_of
from .nodes import (
    COMPANIONS,
    FIRST,
    POINTS,
    PROMPTS,
    TABLE,
    VOLUME,
    SceneError,
    add_segmentation,
    batch,
    companion,
    remove,
)
from .output import FRAME, check_target, check_volume, known_voxels
from .overlay import put_confidence
from .preview import discard_partial
from .prompts import put_prompts, remove_points
from .received import Received, load
from .table import put_table
from .undo import RunHistory

_SENT_PLACES = "places.npy"  # beside the voxels that the engine gets: where they lay, see `_places`


@grid.fingerprints_kept()
def show_result(
    volumeNode: Any,
    result: dict[str, Any],
    segmentationNode: Any = None,
    organs: Iterable[str] | None = None,
    *,
    folder: str | Path = "",
    overwrite: bool = False,
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
    run = Received(volumeNode, result, Path(folder), organs)
    history = history or RunHistory()
    with batch(volumeNode.GetScene()):
        discard_partial(volumeNode)
        if segmentationNode is None:
            frame, name = frame_of(volumeNode), volumeNode.GetName()
            name = f"{name} frame {frame} segmentation" if frame else f"{name} segmentation"
            segmentationNode = add_segmentation(volumeNode, name)
            if frame:
                segmentationNode.SetAttribute(FRAME, str(frame))
            history.made(segmentationNode)
        else:
            _follow_transform(segmentationNode, volumeNode)
            history.before(segmentationNode)
        try:
            with slicer.util.NodeModify(segmentationNode):
                _put(run, segmentationNode, volumeNode, overwrite)
        except Exception:
            history.undo(force=True)
            raise
    history.after(segmentationNode)
    return segmentationNode


def _put(run: Received, segmentationNode: Any, volumeNode: Any, overwrite: bool) -> None:
    """Writes all of a run's result."""
    segmentation = segmentationNode.GetSegmentation()
    if not segmentation.GetNumberOfSegments() or segmentationNode.GetNodeReference(VOLUME) not in (None, volumeNode):
        _begin_anew(segmentationNode, volumeNode)
    _adopt_geometry(segmentationNode, volumeNode)
    segmentationNode.SetNodeReferenceID(VOLUME, volumeNode.GetID())
    affine = ijk_to_ras(volumeNode)
    voxels = known_voxels(segmentationNode, volumeNode)
    written = segments.put_organs(segmentation, run.labels, affine, run.organs, run.model, voxels, overwrite)
    put_prompts(segmentationNode, volumeNode, run.regions, run.points, run.organs)
    put_confidence(segmentationNode, volumeNode, run.confidence)
    firstresult.keep(segmentationNode, volumeNode, [organ["name"] for organ in run.organs], voxels[0])
    review.build(segmentationNode, written)
    to_check = review.slices_to_check(segmentationNode, written)
    put_table(segmentationNode, volumeNode, run.figures, to_check, written)


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
    sent = load(Path(folder) / SENT, shape_of(volumeNode))
    lay = load(Path(folder) / _SENT_PLACES, (2, 4, 4))
    moved = not np.isclose(lay, _places(volumeNode)).all(axis=(1, 2)).any()
    if moved or not np.array_equal(sent, slicer.util.arrayFromVolume(volumeNode)):
        raise SceneError(
            f"the volume '{volumeNode.GetName()}' changed while it was segmented, and the result would not fit",
            "Segment again, and leave the volume, or the sequence's frame, as it is meanwhile",
        )


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
