"""The organs' figures as a table of the scene: volume, intensity, confidence and the slices to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
import vtk

from . import firstresult, nodes, segments
from .firstresult import as_written
from .grid import reference_affine, same_grid, segment_box, segment_mask, shape_of, to_world, voxels_of
from .nodes import BINARY, TABLE, add_companion, companion

ORGAN = "organ"
VOLUME = "volume (mL)"
INTENSITY = "mean HU"
CONFIDENCE = "confidence"
SLICES = "slices to check"
COLUMNS = (ORGAN, VOLUME, INTENSITY, CONFIDENCE, SLICES)
FIGURES = ("volume_ml", "mean_hu", "confidence")
DIGITS = (2, 1, 2)  # of volume, intensity and confidence; a voxel of 1 mm is 0.001 mL, and no boundary is that sure


def rows(segmentationNode: Any) -> dict[str, tuple[float, float, float, str]]:
    """Organ -> (volume in mL, mean HU, mean confidence, slices to check), as the scene's table says; {} without."""
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


def put_table(
    segmentationNode: Any, volumeNode: Any, organs: Sequence[dict[str, Any]], to_check: dict[str, str]
) -> None:
    """Writes a row for each organ of a run; rows of other organs stay.

    Args:
        organs: {"name", "volume_ml", "mean_hu", "confidence"} each; a figure may be None.
        to_check: organ -> its slices to look at, such as "40-43, 57".
    """
    lines = rows(segmentationNode)
    for organ in organs:
        figures = [math.nan if organ[key] is None else float(organ[key]) for key in FIGURES]
        figures = [round(figure, digits) for figure, digits in zip(figures, DIGITS, strict=True)]
        lines[organ["name"]] = (figures[0], figures[1], figures[2], to_check.get(organ["name"], ""))
    node = add_companion(
        segmentationNode, TABLE, "vtkMRMLTableNode", f"{segmentationNode.GetName()} organs", volumeNode
    )
    _write(node, lines)


def stamp(segmentationNode: Any) -> Any:
    """Changes when `measure` may have something to do."""
    segmentation = segmentationNode.GetSegmentation()
    images = {i: segmentation.GetSegment(i).GetRepresentation(BINARY) for i in segments.ids(segmentation)}
    return {i: image.GetMTime() for i, image in images.items() if image is not None}


def measure(segmentationNode: Any) -> None:
    """Brings the figures up to date with what the user did to the segments.

    One that he edited is measured anew, and nothing is said of the model's confidence; the row of an organ whose
    segment he removed goes. Of two segments of an organ, the row is the latest result's.
    """
    lines, segmentation = rows(segmentationNode), segmentationNode.GetSegmentation()
    ours = {organ.organ: organ for organ in sorted(segments.ours(segmentation), key=lambda organ: organ.untouched)}
    now = {name: line for name, line in lines.items() if name in ours or not line[0] > 0}  # others were not found
    for name in now.keys() & ours.keys():
        segment_id = ours[name].segment_id
        if not ours[name].untouched and not as_written(segmentation, segment_id):
            now[name] = (*_figures(segmentationNode, segment_id), math.nan, lines[name][3])
    if repr(now) != repr(lines):  # nan is not equal to itself
        _write(companion(segmentationNode, TABLE), now)


def _figures(segmentationNode: Any, segment_id: str) -> tuple[float, float]:
    """A segment's volume in mL and mean HU; nan for what cannot be told."""
    segmentation, volume = segmentationNode.GetSegmentation(), segmentationNode.GetNodeReference(nodes.VOLUME)
    found = segment_box(segmentation, segment_id)
    if found is None:
        return math.nan, math.nan
    voxel = abs(np.linalg.det((to_world(segmentationNode) @ reference_affine(segmentation))[:3, :3])) / 1000
    millilitres = round(float(found[0].sum() * voxel), DIGITS[0])
    if volume is None or volume.GetImageData() is None or not same_grid(segmentationNode, volume):
        return millilitres, math.nan
    if firstresult.volumes(segmentationNode) - {voxels_of(volume)}:  # another frame of a sequence
        return millilitres, math.nan
    values = slicer.util.arrayFromVolume(volume)[segment_mask(segmentationNode, segment_id, shape_of(volume))]
    return millilitres, round(float(values.mean()), DIGITS[1]) if len(values) else math.nan


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
