"""Volumes from files into the scene: NIfTI, NRRD, MHA, or a DICOM series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CT_WINDOW, CT_LEVEL = 400.0, 40.0  # what radiologists look at the abdomen with
FORMATS = "NIfTI, NRRD, MHA or a folder with one DICOM series"


class LoadError(Exception):
    """A file that is no volume; its text is the one line that says so."""


def load_volume(slicer_app: Any, path: Path) -> Any:
    """Loads the largest volume of a file or DICOM folder, and returns its node.

    Args:
        slicer_app: trame-slicer's SlicerApp.

    Raises:
        LoadError: nothing there, or nothing that is a volume.
    """
    if not path.exists():
        raise LoadError(f"{path}: there is no such file or folder")
    files = sorted(str(file) for file in path.rglob("*") if file.is_file()) if path.is_dir() else [str(path)]
    return load_files(slicer_app, files, path.name)


def load_files(slicer_app: Any, files: list[str], name: str) -> Any:
    """The same for files, which may be those of one DICOM series.

    Args:
        name: how the user knows them.

    Raises:
        LoadError: none of them is a volume.
    """
    nodes = slicer_app.io_manager.load_volumes(files) if files else []
    nodes = [node for node in nodes if node.IsA("vtkMRMLScalarVolumeNode") and node.GetImageData() is not None]
    if not nodes:
        raise LoadError(f"{name} cannot be read as a volume: it must be {FORMATS}")
    largest = max(nodes, key=lambda node: node.GetImageData().GetNumberOfPoints())
    for node in nodes:
        if node is not largest:
            slicer_app.scene.RemoveNode(node)
    largest.SetName(_stem(largest.GetName()))
    _set_window(largest)
    return largest


def describe(volume: Any) -> str:
    """Size and spacing as a line, such as "122 × 101 × 112 voxels of 3.0 × 3.0 × 3.0 mm"."""
    size = " × ".join(str(n) for n in volume.GetImageData().GetDimensions())
    spacing = " × ".join(f"{mm:.3g}" for mm in volume.GetSpacing())
    return f"{size} voxels of {spacing} mm"


def _stem(name: str) -> str:
    for ending in (".gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"):
        name = name.removesuffix(ending)
    return name


def _set_window(volume: Any) -> None:
    low, _ = volume.GetImageData().GetScalarRange()
    display = volume.GetDisplayNode()
    if display is not None and low < -100:  # Hounsfield units: air or fat is in it
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(CT_WINDOW, CT_LEVEL)
