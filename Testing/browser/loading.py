"""Volumes from files into the scene, read by the engine itself: the page opens and refuses what the shell does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import slicer
from pydicom import dcmread
from pydicom.misc import is_dicom

from pgpsam.volume import read_volume

CT_WINDOW, CT_LEVEL = 400.0, 40.0  # what radiologists look at the abdomen with


def open_volume(path: Path, name: str = "") -> Any:
    """Adds the volume of a file or DICOM folder to the scene, and returns its node.

    Args:
        name: what it is called; "" for the name of the file or folder.

    Raises:
        UserError: as `pgpsam.volume.read_volume`.
    """
    volume = read_volume(path)
    unique = slicer.mrmlScene.GenerateUniqueName(name or volume.name)
    array, affine = volume.restore(volume.array), volume.grid.affine
    node = slicer.util.addVolumeFromArray(array, slicer.util.vtkMatrixFromArray(affine), unique)
    if array.min() < -100:  # Hounsfield units: air or fat is in it
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevel(CT_WINDOW, CT_LEVEL)
    return node


def series_name(files: Sequence[Path]) -> str:
    """What DICOM files say that they are, or the first one's name where they say nothing, or this and that."""
    headers = [dcmread(file, specific_tags=["SeriesDescription"]) for file in files if is_dicom(file)]
    said = {str(header.get("SeriesDescription", "")) for header in headers}
    return (said.pop() if len(said) == 1 else "") or files[0].stem


def describe(volume: Any) -> str:
    """Size and spacing as a line, such as "122 × 101 × 112 voxels of 3.0 × 3.0 × 3.0 mm"."""
    size = " × ".join(str(n) for n in volume.GetImageData().GetDimensions())
    spacing = " × ".join(f"{mm:.3g}" for mm in volume.GetSpacing())
    return f"{size} voxels of {spacing} mm"
