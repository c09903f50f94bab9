"""Cases to learn from, as the scene keeps them, and the engine's `finetune` request that they make.

A case is a segmentation that was marked for training: as drawn by hand, all slices that show an organ; as a
corrected result of ours, the slices that were corrected. The mark and the volume are saved with the scene.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

from . import corrections, firstresult, segments, table
from .enginefolder import default_folder
from .grid import check_grid, check_volume, has_reference, voxels_of
from .nodes import PREFIX, SceneError, is_prompts

TRAIN = PREFIX + "train"
TRAIN_VOLUME = PREFIX + "trainVolume"
TRAIN_VOXELS = PREFIX + "trainVoxels"  # attribute: the volume's, as it was when the case was added
DRAWN, CORRECTED = "drawn", "corrected"
_RESERVED = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))"  # as in pgpsam/models/store.py
_NAME = re.compile(_RESERVED + r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")


@dataclass(frozen=True)
class Case:
    """A segmentation to learn from.

    Attributes:
        segmentation, volume: the nodes.
        corrected: only the slices that the user corrected count; otherwise all that show an organ.
    """

    segmentation: Any
    volume: Any
    corrected: bool

    @property
    def organs(self) -> set[str]:
        """Names of the organs that are known here, those that are known to be absent included.

        For an absent organ stands a segment without voxels, or its line in the table of our result; or our segment
        was removed.
        """
        drawn = set(_segments(self.segmentation))
        if not self.corrected:
            return drawn
        return drawn | set(table.rows(self.segmentation)) | firstresult.organs(self.segmentation)


def models_folder() -> Path:
    """Where new models go and the engine finds them by name: the user's models, as the command line has them."""
    return default_folder().parents[1] / "pgpsam" / "models"


def add(segmentationNode: Any, volumeNode: Any, corrected: bool = False) -> None:
    """Marks a segmentation as a case.

    Raises:
        SceneError: the two do not fit each other, or there is nothing to learn from.
    """
    check_volume(volumeNode)
    if segmentationNode is None:
        raise SceneError("no segmentation is selected", "Select the one that was drawn on this volume")
    name = segmentationNode.GetName()
    if not _segments(segmentationNode):
        raise SceneError(f"the segmentation '{name}' has no segments", "Draw the organs in a few slices first")
    if is_prompts(segmentationNode):
        raise SceneError(f"'{name}' holds prompts of a result, not organs", "Select the segmentation itself")
    _check(segmentationNode, volumeNode, corrected)
    if corrected and not corrections.corrected_slices(segmentationNode)[0]:
        raise SceneError(f"nothing was corrected in '{name}' yet", "Correct a few slices in the Segment Editor first")
    if not has_reference(segmentationNode.GetSegmentation()):  # made from a label map
        segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    segmentationNode.SetNodeReferenceID(TRAIN_VOLUME, volumeNode.GetID())
    segmentationNode.SetAttribute(TRAIN, CORRECTED if corrected else DRAWN)
    segmentationNode.SetAttribute(TRAIN_VOXELS, voxels_of(volumeNode))


def remove(segmentationNode: Any) -> None:
    """Takes the mark off."""
    segmentationNode.RemoveAttribute(TRAIN)
    segmentationNode.RemoveAttribute(TRAIN_VOXELS)
    segmentationNode.SetNodeReferenceID(TRAIN_VOLUME, None)


def cases() -> list[Case]:
    """The scene's cases whose volume still is there."""
    marked = [(node, node.GetAttribute(TRAIN)) for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]
    found = [(node, node.GetNodeReference(TRAIN_VOLUME), mark) for node, mark in marked if mark]
    return [Case(node, volume, mark == CORRECTED) for node, volume, mark in found if volume is not None]


def make_folder(name: str, models: Sequence[dict[str, Any]]) -> Path:
    """Makes the folder for a new model, which keeps the name for it.

    Args:
        models: those that the engine knows.

    Raises:
        SceneError: the name cannot be one, or is taken; or the system refuses.
    """
    if not _NAME.fullmatch(name):
        raise SceneError(
            f"'{name}' cannot name a model" if name else "the new model has no name",
            "Use letters, digits, dots, dashes and underscores, such as 'my-liver'",
        )
    folder = models_folder() / name
    if any(model["name"].lower() == name.lower() for model in models):
        raise SceneError(f"there is a model '{name}' already", "Choose another name")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise SceneError(f"a model '{name}' is being trained, or was not finished", "Choose another name") from error
    except OSError as error:
        raise SceneError(
            f"cannot make {folder}: {error.strerror or error}", "Check the disk and the permissions"
        ) from error
    return folder


def request(chosen: Sequence[Case], folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Writes the cases' files and returns the part of a `finetune` request that is about them.

    With the very organs of `model`, training goes on from it; with others it begins at the base network.

    Args:
        folder: for the files, one folder a case.
        model: of the engine's list.

    Returns:
        {"cases": [...], "labels": [...]}, and if it goes on from a model, its "method" and "start_from": its name.
        Otherwise the engine chooses the method.

    Raises:
        SceneError: no cases, cases of different organs, or nothing corrected.
    """
    if not chosen:
        raise SceneError("there is nothing to learn from", "Add a volume and its segmentation, or corrected slices")
    organs = _common_organs(chosen)
    known = {organ["name"]: organ for organ in model["organs"]}
    goes_on = organs == set(known)
    names = known if goes_on else dict.fromkeys(name for case in chosen for name in _segments(case.segmentation))
    ids = {name: known[name]["id"] if goes_on else number for number, name in enumerate(names, 1)}
    try:
        written = [_write(case, folder / str(number), ids) for number, case in enumerate(chosen)]
    except SceneError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    drawn = {organ["id"]: organ for case in written for organ in case.pop("organs")}
    labels = list(known.values()) if goes_on else [drawn[number] for number in sorted(drawn)]
    start = {"start_from": model["name"], "method": model["method"]} if goes_on else {}
    return {"cases": written, "labels": labels, **start}


def _common_organs(chosen: Sequence[Case]) -> set[str]:
    """The organs of every case: one that a case lacks would be learnt as being absent there."""
    organs = set().union(*(case.organs for case in chosen))
    for case in chosen:
        lacking = sorted(organs - case.organs)
        if lacking:
            raise SceneError(
                f"'{case.segmentation.GetName()}' has no segment '{lacking[0]}', and another case has",
                "Draw it; or add an empty segment of that name if the organ is absent; or remove one of the cases",
            )
    return organs


def _write(case: Case, folder: Path, ids: dict[str, int]) -> dict[str, Any]:
    _check(case.segmentation, case.volume, case.corrected, case.segmentation.GetAttribute(TRAIN_VOXELS))
    slices, axis = corrections.corrected_slices(case.segmentation) if case.corrected else ([], 0)
    if case.corrected and not slices:
        name = case.segmentation.GetName()
        raise SceneError(f"nothing was corrected in '{name}'", "Correct a few slices, or remove it from the cases")
    labels = {segment_id: ids[name] for name, segment_id in _segments(case.segmentation).items()}
    written = corrections.training_case(case.segmentation, case.volume, labels, slices, axis, folder)
    if not case.corrected:
        del written["slices"]  # the engine then takes those that show an organ
    return written


def _check(segmentationNode: Any, volumeNode: Any, corrected: bool, voxels: str | None = None) -> None:
    """That a segmentation still lies on its volume's voxels, and that these are the ones that it was made on.

    Args:
        voxels: of the volume as it was when the case was added; None in scenes of earlier versions.
    """
    check_volume(volumeNode)
    check_grid(segmentationNode, volumeNode)
    made_on = firstresult.volumes(segmentationNode) if corrected else set()
    if (made_on | ({voxels} if voxels else set())) - {voxels_of(volumeNode)}:
        raise SceneError(
            f"the volume '{volumeNode.GetName()}' does not show what '{segmentationNode.GetName()}' was made on",
            "Show the same frame of the sequence again; or segment this one, and correct that result",
        )


def _segments(segmentationNode: Any) -> dict[str, str]:
    """Organ -> segment ID; of several segments of an organ, the one that the user worked on most, else the last."""
    segmentation = segmentationNode.GetSegmentation()
    found: dict[str, str] = {}
    for segment_id in segments.ids(segmentation):
        segment = segmentation.GetSegment(segment_id)
        organ = segments.tag(segment, segments.ORGAN_TAG) or segment.GetName()
        before = segments.worked_on(segmentation, found[organ]) if organ in found else 0
        if not before or segments.worked_on(segmentation, segment_id) > before:
            found[organ] = segment_id
    return found
