"""The organs' figures as a table of the scene: volume, intensity, confidence and the slices to look at."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import slicer
import vtk

from . import firstresult, nodes, review, segments
from .grid import frame_of, reference_affine, same_grid, segment_box, segment_mask, shape_of, to_world, voxels_of
from .nodes import TABLE, add_companion, companion
from .segments import as_written

ORGAN = "organ"
VOLUME = "volume (mL)"
INTENSITY = "mean HU"
CONFIDENCE = "confidence"
SLICES = "slices to check"
COLUMNS = (ORGAN, VOLUME, INTENSITY, CONFIDENCE, SLICES)
FIGURES = ("volume_ml", "mean_hu", "confidence")
DIGITS = (3, 1, 2)  # of volume, intensity and confidence; a voxel of 1 mm is 0.001 mL, and no boundary is that sure


def rows(segmentationNode: Any) -> dict[str, tuple[float, float, float, str]]:
    """(volume in mL, mean HU, mean confidence, slices to check) of each organ, as the scene's table says; {} without.

    An organ of two segments has two rows, "liver" and "liver (2)".
    """
    node = companion(segmentationNode, TABLE)
    if node is None or node.GetTable().GetNumberOfColumns() != len(COLUMNS):
        return {}
    table = node.GetTable()
    found = {}
    for row in range(table.GetNumberOfRows()):
        organ, *figures, slices = (table.GetValueByName(row, column) for column in COLUMNS)
        numbers = [math.nan if figure.ToString() == "" else figure.ToDouble() for figure in figures]
        found[organ.ToString()] = (numbers[0], numbers[1], numbers[2], slices.ToString())
    return found


def organs(segmentationNode: Any) -> set[str]:
    """Names of the organs that the table has rows of, found or not."""
    return set(_organs_of(segmentationNode, rows(segmentationNode)).values())


def put_table(
    segmentationNode: Any,
    volumeNode: Any,
    organs: Sequence[dict[str, Any]],
    to_check: dict[str, str],
    written: Iterable[str],
) -> None:
    """Writes a row for each organ of a run; other rows stay.

    Args:
        organs: {"name", "volume_ml", "mean_hu", "confidence"} each; a figure may be None.
        to_check: organ -> its slices to look at, counted from 1, such as "40-43, 57".
        written: IDs of the segments of those that were found.
    """
    lines, segmentation = rows(segmentationNode), segmentationNode.GetSegmentation()
    fresh = [segments.describe(segmentation, segment_id) for segment_id in written]
    names = {organ.organ: _row(organ) for organ in fresh}
    there = {_row(segments.describe(segmentation, segment_id)) for segment_id in segments.ids(segmentation)}
    for organ in organs:
        if organ["name"] not in names and organ["name"] in there:  # not found this time, and the row is another's
            continue
        figures = [math.nan if organ[key] is None else float(organ[key]) for key in FIGURES]
        figures = [round(figure, digits) for figure, digits in zip(figures, DIGITS, strict=True)]
        row = names.get(organ["name"], organ["name"])
        lines[row] = (figures[0], figures[1], figures[2], to_check.get(organ["name"], ""))
    node = add_companion(
        segmentationNode, TABLE, "vtkMRMLTableNode", f"{segmentationNode.GetName()} organs", volumeNode
    )
    _write(node, lines)


def stamp(segmentationNode: Any) -> Any:
    """Changes when `measure` may have something to do.

    What the volume shows counts only while a mean is missing: other frames of a sequence take none away.
    """
    missing = any(millilitres > 0 and math.isnan(mean) for millilitres, mean, *_ in rows(segmentationNode).values())
    volume = segmentationNode.GetNodeReference(nodes.VOLUME) if missing else None
    image = volume.GetImageData() if volume is not None else None
    return segments.stamp(segmentationNode.GetSegmentation()), image.GetMTime() if image is not None else None


def measure(segmentationNode: Any) -> None:
    """Brings the figures up to date with what the user did to the segments.

    One that he edited is measured anew, as is one that he drew, or gave this name, where the model found none; nothing
    is said of the model's confidence then. It comes back with the voxels. The row of a segment that is gone goes.
    """
    lines, segmentation = rows(segmentationNode), segmentationNode.GetSegmentation()
    known = firstresult.organs(segmentationNode)
    organ_of, before = _organs_of(segmentationNode, lines), repr(lines)  # nan is not equal to itself
    if frame_of(segmentationNode):  # it is turned with the frames, and the table is another one's
        lines = dict.fromkeys(lines, (0.0, math.nan, math.nan, ""))

    def rank(organ: segments.OrganSegment) -> tuple[bool, bool]:
        return organ.untouched, not as_written(segmentation, organ.segment_id)

    def found(organ: segments.OrganSegment) -> bool:
        return segments.tag(segmentation.GetSegment(organ.segment_id), segments.ORGAN_TAG) == organ.organ

    every = [segments.describe(segmentation, segment_id) for segment_id in segments.ids(segmentation)]
    every = [replace(organ, organ=segments.spelled(organ.organ, [*organ_of.values(), *known])) for organ in every]
    asked = [organ for organ in every if found(organ) or organ.organ in {*organ_of.values(), *known}]
    there = {_row(organ): organ for organ in sorted(asked, key=rank)}
    shown = {organ.organ for organ in asked}

    def is_left(row: str) -> bool:
        """Organs that were not found stay, and those that only the table still knows (version 0.1.0)."""
        return organ_of[row] not in shown and (not lines[row][0] > 0 or organ_of[row] not in known)

    now = {row: line for row, line in lines.items() if row in there or is_left(row)}
    drawn = [name for name, line in now.items() if name not in there and line[0] > 0 and math.isnan(line[2])]
    now |= dict.fromkeys(drawn, (0.0, math.nan, math.nan, ""))  # and are removed: not found again
    volume = _shown(segmentationNode)
    for name, organ in there.items():
        line = now.get(name)
        left = (organ.untouched or as_written(segmentation, organ.segment_id)) and found(organ)
        if not left or line is None or any(map(math.isnan, line[:3])):  # an earlier call measured it, or left it out
            figures = _figures(segmentationNode, volume(organ.segment_id), organ.segment_id)
            confidence = _confidence(segmentation, organ) if left else math.nan
            listed = review.slices_to_check(segmentationNode, [organ.segment_id])
            slices = (line[3] if line else "") or listed.get(organ.organ, "")
            now[name] = (*figures, confidence, slices if found(organ) else "")
    organ_of = _organs_of(segmentationNode, now)
    order = list(dict.fromkeys(organ_of.values()))  # an organ's rows one below the other
    now = dict(sorted(now.items(), key=lambda line: order.index(organ_of[line[0]])))
    if repr(now) != before:
        _write(companion(segmentationNode, TABLE), now)


def cut_off(segmentationNode: Any) -> set[str]:
    """The rows of organs that reach the volume's first or last slice, so that a part may lie outside the scan."""
    segmentation, volume = segmentationNode.GetSegmentation(), segmentationNode.GetNodeReference(nodes.VOLUME)
    if volume is None or volume.GetImageData() is None or not same_grid(segmentationNode, volume):
        return set()
    found = set()
    for organ in segments.ours(segmentation):
        voxels, start = segment_box(segmentation, organ.segment_id) or (np.empty((0, 0, 0)), (0, 0, 0))
        first, depth = start[organ.axis], shape_of(volume)[organ.axis]
        if voxels.size and depth > 1 and (first == 0 or first + voxels.shape[organ.axis] == depth):
            found.add(_row(organ))
    return found


def _row(organ: segments.OrganSegment) -> str:
    """The name of a segment's row: the organ's, but "liver (2)" for a second one."""
    same = segments.spelled_plainly(organ.name) == segments.spelled_plainly(organ.organ)
    return organ.organ if same else organ.name


def _organs_of(segmentationNode: Any, lines: Mapping[str, tuple[float, float, float, str]]) -> dict[str, str]:
    """Row -> its organ, as its segment says; "liver (2)" is of the liver, too, when it has none any more."""
    known, segmentation = firstresult.organs(segmentationNode), segmentationNode.GetSegmentation()
    every = [segments.describe(segmentation, segment_id) for segment_id in segments.ids(segmentation)]
    there = {_row(organ): organ.organ for organ in every}
    found = {}
    for row, line in lines.items():
        numbered = re.fullmatch(r"(.+) \(\d+\)", row)
        first = numbered[1] if numbered and row not in known and line[0] > 0 else row
        found[row] = there.get(row) or (first if first in known else row)
    return {row: segments.spelled(organ, known) for row, organ in found.items()}


def _shown(segmentationNode: Any) -> Callable[[str], Any]:
    """Gives the volume that a segment is of, or None where it is gone or shows something else; found out once."""

    @cache
    def found() -> tuple[Any, str]:
        volume = segmentationNode.GetNodeReference(nodes.VOLUME)
        if volume is None or volume.GetImageData() is None or not same_grid(segmentationNode, volume):
            return None, ""
        return volume, voxels_of(volume)

    def shown(segment_id: str) -> Any:
        made_on = segments.tag(segmentationNode.GetSegmentation().GetSegment(segment_id), segments.VOXELS_TAG)
        volume, voxels = found()
        here = {made_on} if made_on else firstresult.volumes(segmentationNode)
        return None if here - {voxels} else volume  # another frame

    return shown


def _figures(segmentationNode: Any, volume: Any, segment_id: str) -> tuple[float, float]:
    """A segment's volume in mL and mean HU; nan for what cannot be told."""
    segmentation = segmentationNode.GetSegmentation()
    found = segment_box(segmentation, segment_id)
    if found is None:
        return math.nan, math.nan
    voxel = abs(np.linalg.det((to_world(segmentationNode) @ reference_affine(segmentation))[:3, :3])) / 1000
    millilitres = round(float(found[0].sum() * voxel), DIGITS[0])
    if volume is None:
        return millilitres, math.nan
    values = slicer.util.arrayFromVolume(volume)[segment_mask(segmentationNode, segment_id, shape_of(volume))]
    return millilitres, round(float(values.mean()), DIGITS[1]) if len(values) else math.nan


def _confidence(segmentation: Any, organ: segments.OrganSegment) -> float:
    """The model's mean over a segment that is as it was written; nan for one without voxels."""
    areas = segments.slice_areas(segmentation, organ)
    weights = [areas.get(index, 0) for index in organ.slice_confidence]
    if not any(weights):
        return math.nan
    return round(float(np.average(list(organ.slice_confidence.values()), weights=weights)), DIGITS[2])


def _write(node: Any, lines: dict[str, tuple[float, float, float, str]]) -> None:
    table = vtk.vtkTable()
    columns: list[Any] = [vtk.vtkStringArray(), *(vtk.vtkDoubleArray() for _ in range(3)), vtk.vtkStringArray()]
    for column, name in zip(columns, COLUMNS, strict=True):
        column.SetName(name)
        table.AddColumn(column)
    for organ_name, line in lines.items():
        for column, value in zip(columns, (organ_name, *line), strict=True):
            column.InsertNextValue(value)
    with slicer.util.NodeModify(node):
        node.SetUseColumnTitleAsColumnHeader(True)
        node.SetAndObserveTable(table)
        node.SetLocked(True)
