"""The organs' figures as a table of the scene: volume, intensity, confidence and the slices to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import slicer
import vtk

from .nodes import TABLE, add_companion, companion

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
