"""Cases to learn from, as the scene keeps them, and the engine's `finetune` request that they make.

A case is a segmentation that was marked for training: as drawn by hand, all slices that show an organ; as a
corrected result of ours, the slices that were corrected. Of a drawn one, what only the model says is left out: it is
no truth to learn from. The mark and the volume are saved with the scene.
"""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

from . import corrections, firstresult, segments
from .enginefolder import default_folder
from .grid import check_grid, check_volume, frame_of, frame_with, has_reference, ijk_to_world, voxels_of
from .nodes import PREFIX, SceneError, is_prompts

TRAIN = PREFIX + "train"
TRAIN_VOLUME = PREFIX + "trainVolume"
TRAIN_VOXELS = PREFIX + "trainVoxels"  # attribute: the volume's, as it was when the case was added
DRAWN, CORRECTED = "drawn", "corrected"
_RESERVED = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))"  # as in pgpsam/models/spec.py
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
        was removed. A SceneError says that there is nothing to learn from.
        """
        drawn = set(_segments(self.segmentation, self.corrected))
        return drawn | corrections.asked(self.segmentation) if self.corrected else drawn


@dataclass(frozen=True)
class Plan:
    """What a training makes of the model that it starts from.

    Attributes:
        ids: organ -> label id, in the new model's order: what the model knows keeps its id, what is new gets the
            smallest that the model leaves free.
        new: organs that the model does not know and has to learn from the cases alone.
        lost: organs of the model's that no case tells of, which the new model will not find.
        erased: organs that the model found in a corrected case and whose segments were removed there, which the new
            model learns as absent from its slices.
    """

    ids: dict[str, int]
    new: list[str]
    lost: list[str]
    erased: list[str]


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
    if is_prompts(segmentationNode):
        name = segmentationNode.GetName()
        raise SceneError(f"'{name}' holds prompts of a result, not organs", "Select the segmentation itself")
    _check(segmentationNode, volumeNode, corrected, voxels_of(volumeNode))
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


def marked() -> list[Case]:
    """The scene's cases, those whose volume was removed included: that one is None."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    found = [(node, node.GetNodeReference(TRAIN_VOLUME), node.GetAttribute(TRAIN)) for node in nodes]
    return [Case(node, volume, mark == CORRECTED) for node, volume, mark in found if mark]


def cases() -> list[Case]:
    """The scene's cases whose volume still is there."""
    return [case for case in marked() if case.volume is not None]


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


def plan(chosen: Sequence[Case], model: dict[str, Any]) -> Plan:
    """What would be learned from the cases by a training that starts from `model`, of the engine's list.

    Raises:
        SceneError: no cases, cases of different organs, or one that holds nothing to learn from.
    """
    if not chosen:
        raise SceneError("there is nothing to learn from", "Add a volume and its segmentation, or corrected slices")
    organs = _common_organs(chosen)
    known = {organ["name"]: int(organ["id"]) for organ in model["organs"]}
    names = {segments.spelled(name, known) for name in organs}
    new: list[str] = []
    for name in (name for case in chosen for name in _segments(case.segmentation, case.corrected)):
        if segments.spelled(name, [*known, *new]) not in (*known, *new):
            new.append(name)
    free = (number for number in itertools.count(1) if number not in known.values())
    ids = {name: number for name, number in known.items() if name in names}
    lost = [name for name in known if name not in names]
    return Plan(ids | dict(zip(new, free, strict=False)), new, lost, sorted(_erased(chosen)))


def _erased(chosen: Sequence[Case]) -> set[str]:
    found = set()
    for node in (case.segmentation for case in chosen if case.corrected):
        there = {segments.organ_of(node.GetSegmentation(), each) for each in segments.ids(node.GetSegmentation())}
        found |= {name for name in firstresult.organs(node) if segments.spelled(name, there) not in there}
    return found


def request(chosen: Sequence[Case], folder: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Writes the cases' files and returns the part of a `finetune` request that is about them.

    Training goes on from `model`, whatever the organs: what the model knows of them, and of any, is taken over.

    Args:
        folder: for the files, one folder a case.
        model: of the engine's list.

    Returns:
        {"cases": [...], "labels": [...], "start_from": the model's name, "method": its method}.

    Raises:
        SceneError: as `plan`, or a case does not fit its volume any more.
    """
    ids = plan(chosen, model).ids
    try:
        written = [_write(case, folder / str(number), ids) for number, case in enumerate(chosen)]
    except SceneError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    labels = {organ["id"]: organ for case in written for organ in case.pop("organs")}
    labels |= {organ["id"]: organ for organ in model["organs"]}
    start = {"start_from": model["name"], "method": model["method"]}
    return {"cases": written, "labels": [{**labels[number], "name": name} for name, number in ids.items()], **start}


def _common_organs(chosen: Sequence[Case]) -> set[str]:
    """The organs of every case: one that a case lacks would be learnt as being absent there."""
    organs = set().union(*(case.organs for case in chosen))
    for case in chosen:
        own = case.organs
        lacking = sorted(name for name in organs if segments.spelled(name, own) not in own)
        if lacking:
            raise SceneError(
                f"'{case.segmentation.GetName()}' has no segment '{lacking[0]}', and another case has",
                "Draw it; or add an empty segment of that name if the organ is absent; or remove one of the cases",
            )
    return organs


def _write(case: Case, folder: Path, ids: dict[str, int]) -> dict[str, Any]:
    node, added = case.segmentation, case.segmentation.GetAttribute(TRAIN_VOXELS)
    check_volume(case.volume)
    frame = frame_with(case.volume, added)  # of a sequence another one may be shown now
    slices, axis = _check(node, case.volume, case.corrected, voxels_of(frame), added)
    drawn = _segments(node, case.corrected)
    labels = {segment_id: ids[segments.spelled(name, ids)] for name, segment_id in drawn.items()}
    segmentation = node.GetSegmentation()
    labels = dict(sorted(labels.items(), key=lambda each: _precedence(segmentation, each[0])))
    written = corrections.training_case(node, frame, labels, slices, axis, folder)
    written |= {"name": case.volume.GetName(), "affine": ijk_to_world(case.volume).tolist()}
    if not case.corrected or not firstresult.organs(node):  # the user drew all that there is
        del written["slices"]  # the engine then takes those that show an organ
    return written


def _precedence(segmentation: Any, segment_id: str) -> tuple[bool, bool]:
    """Where segments overlap, what is drawn counts above what the model gave, and that above what nobody touched."""
    ours = bool(segments.tag(segmentation.GetSegment(segment_id), segments.ORGAN_TAG))
    return not ours, segments.is_accepted(segmentation, segment_id)


def _check(
    segmentationNode: Any, volumeNode: Any, corrected: bool, voxels: str, added: str | None = None
) -> tuple[list[int], int]:
    """That a segmentation lies on its volume's voxels, that it was made on these, and that there is something to learn.

    Args:
        voxels: of the volume, see `grid.voxels_of`.
        added: these, as they were when the case was added; None in scenes of earlier versions.

    Returns:
        As `corrections.corrected_slices`; of a drawn case no slices.
    """
    check_volume(volumeNode)
    check_grid(segmentationNode, volumeNode)
    chosen = _segments(segmentationNode, corrected)  # there are some
    made_on = corrections.volumes(segmentationNode) if corrected else set()
    if not corrected and frame_of(volumeNode):  # results that the user has accepted, perhaps of another frame
        segmentation = segmentationNode.GetSegmentation()
        made_on = {segments.tag(segmentation.GetSegment(each), segments.VOXELS_TAG) for each in chosen.values()} - {""}
    if len(made_on) > 1:
        raise SceneError(
            f"'{segmentationNode.GetName()}' holds results of several frames, or of a volume before and after a change",
            "Remove the segments of all but one; or segment each into a new segmentation, and correct that result",
        )
    if (made_on | ({added} if added else set())) - {voxels}:
        raise SceneError(
            f"the volume '{volumeNode.GetName()}' does not show what '{segmentationNode.GetName()}' was made on",
            "Show the same frame of the sequence again; or segment this one, and correct that result",
        )
    slices, axis = corrections.corrected_slices(segmentationNode) if corrected else ([], 0)
    if corrected and not slices:
        raise SceneError(
            f"nothing was corrected in '{segmentationNode.GetName()}'",
            "Correct a few slices in the Segment Editor first, or leave it out of the cases",
        )
    return slices, axis


def _segments(segmentationNode: Any, corrected: bool) -> dict[str, str]:
    """Organ -> ID of the segment to learn from; of several segments of an organ, see `segments.by_organ`.

    Of a corrected result all are taken as right, but for one that was only renamed, to be kept beside a later result
    of its organ. Of a drawn case, those that the user has accepted.

    Raises:
        SceneError: there is none.
    """
    segmentation, name = segmentationNode.GetSegmentation(), segmentationNode.GetName()
    every = segments.ids(segmentation)
    if not every:
        raise SceneError(f"the segmentation '{name}' has no segments", "Draw the organs in a few slices first")
    accepted = [each for each in every if corrected or segments.is_accepted(segmentation, each)]
    if not accepted:
        raise SceneError(
            f"'{name}' holds only the model's own result",
            "Correct slices and press 'Use corrected slices for training'; what is right as it is counts once its "
            "status is 'Completed'",
        )
    if not corrected:
        return segments.by_organ(segmentation, accepted)
    known, there = corrections.asked(segmentationNode), {segments.organ_of(segmentation, each) for each in every}

    def is_keepsake(segment_id: str) -> bool:
        first = segments.tag(segmentation.GetSegment(segment_id), segments.ORGAN_TAG)
        strange = segments.spelled(segments.organ_of(segmentation, segment_id), known) not in known
        return strange and first in there and segments.as_written(segmentation, segment_id)

    return segments.by_organ(segmentation, [each for each in every if not is_keepsake(each)], known)
