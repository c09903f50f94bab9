"""A DICOM series from its folder: choosing it among others, checking its slices and stacking them.

A stack that has gaps, is uneven or leans is refused, never mended. This module knows nothing of other formats, of
labels, or of the engine's axes.
"""

from __future__ import annotations

import filecmp
import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from .errors import UserError
from .image import MAX_SHEAR, Image, check_name, check_size, first_line, itk_affine, quiet_itk, unreadable

_log = logging.getLogger(__name__)

MAX_UNEVEN = 0.1  # slice distances: how far a slice may lie from its place in an even stack (rounded positions)
MAX_LOCALIZER = 3  # a DICOM series of so few images is a scout, not the scan

Series = tuple[str, ...]  # its files


@dataclass(frozen=True, eq=False)
class _Slice:
    """One DICOM image: ``affine`` maps its index ``(i, j, 0)`` to RAS mm; ``size`` is ``(columns, rows)``."""

    file: str
    size: tuple[int, int]
    affine: NDArray[np.float64]
    thickness: float

    @property
    def position(self) -> NDArray[np.float64]:
        return self.affine[:3, 3]

    @property
    def normal(self) -> NDArray[np.float64]:
        normal: NDArray[np.float64] = np.cross(self.affine[:3, 0], self.affine[:3, 1])
        return normal / np.linalg.norm(normal)


def read_series(folder: Path) -> Image:
    """The one scan in a folder, or in the folders right below it, as float32.

    Raises:
        UserError: no series or several, unreadable images, or slices that make no regular stack.
    """
    try:
        scan, others = _choose_series(folder)
        for other in others:
            _tell_left_out(other, scan, folder)
        slices = _read_stack(scan, folder)
        affine = _stack_affine(slices, folder)
        columns, rows = slices[0].size
        check_size((columns, rows, len(slices)), folder)
        array = np.empty((len(slices), rows, columns), dtype=np.float32)
        for k, each in enumerate(slices):
            with quiet_itk():
                image = sitk.ReadImage(each.file, sitk.sitkFloat32, imageIO="GDCMImageIO")
            array[k] = sitk.GetArrayViewFromImage(image)[0]
    except PermissionError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder} can't be read: {first_line(error)}", "Export the DICOM series again, uncompressed"
        ) from error
    return Image(array, affine)


def _choose_series(folder: Path) -> tuple[Series, list[Series]]:
    """The one scan in a folder, or in the folders right below it where it holds localizers at most; the other series.

    Raises:
        UserError: there is none, or it is not clear which one is meant.
    """
    found = _series_in(folder)
    if all(len(files) <= MAX_LOCALIZER for files in found):
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found += [series for path in below for series in _series_in(path)]
    if not found:
        raise UserError(
            f"{folder} holds no DICOM images",
            "Give the folder that the series' files lie in; name files of other formats one by one",
        )
    scans = [files for files in found if len(files) > MAX_LOCALIZER]
    if len(found) > 1 and len(scans) != 1:
        listed = ", ".join(map(_description, found[:10]))
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise UserError(
            f"{folder} holds {len(found)} DICOM series: {listed}{more}",
            "Put the one to segment into a folder of its own",
        )
    scan = found[0] if len(found) == 1 else scans[0]
    return scan, [files for files in found if files is not scan]


def _tell_left_out(other: Series, scan: Series, folder: Path) -> None:
    """Says which series is not taken, and whether its images would make one stack with the scan's."""
    try:
        _stack_affine(_read_stack((*scan, *other), folder), folder)
        what = "though it continues the stack: the scan may be cut short"
    except (UserError, RuntimeError, ValueError):
        what = "as it is no part of that stack"
    _log.warning("%s: %s is taken, and %s is left out, %s", folder, _description(scan), _description(other), what)


def _series_in(folder: Path) -> list[Series]:
    for each in (folder, *(file for file in folder.iterdir() if file.is_file())):
        check_name(each)
    with quiet_itk():
        names = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        found = [sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name) for name in names]
    taken = {Path(file).name for files in found for file in files}
    left_out = [file.name for file in sorted(folder.iterdir()) if file.name not in taken and _is_dicom(file)]
    if left_out:
        _log.warning("%s: %d DICOM files hold no readable image: %s", folder, len(left_out), left_out[:10])
    return found


def _is_dicom(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _description(series: Series) -> str:
    """What a series calls itself, and how many images it has."""
    try:
        text = _tag(_dicom_header(series[0]), "0008|103e").encode("utf-8", "surrogateescape")
    except RuntimeError:
        text = b"unreadable"
    try:
        name = text.decode() or "no description"
    except UnicodeDecodeError:
        name = text.decode("latin-1")
    return f"{name!r} ({len(series)} images)"


def _dicom_header(file: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    with quiet_itk():
        reader.ReadImageInformation()
    return reader


def _tag(reader: Any, key: str) -> str:
    return str(reader.GetMetaData(key)).strip() if reader.HasMetaDataKey(key) else ""


def _read_slice_header(file: str, folder: Path) -> _Slice:
    reader = _dicom_header(file)
    short = Path(file).name
    if reader.GetDimension() != 3 or reader.GetSize()[2] != 1:
        raise UserError(f"{folder}: {short} holds several frames in one file", "Convert it to NIfTI or NRRD first")
    if reader.GetNumberOfComponents() != 1:
        raise UserError(f"{folder}: {short} is a colour image", "Give the folder of the original CT series")
    if not _tag(reader, "0020|0032") or not _tag(reader, "0020|0037"):
        raise UserError(
            f"{folder}: {short} says nothing of its position in the patient",
            "Give the original axial series, not screenshots or reports",
        )
    if (modality := _tag(reader, "0008|0060")) not in ("CT", "OT", ""):  # OT is what ITK writes where nobody said
        raise UserError(f"{folder}: its modality is {modality}, not CT", "Give the folder of a CT series")
    if not _tag(reader, "0028|0030"):
        raise UserError(f"{folder}: {short} says nothing of its pixel spacing", "Export the original CT series again")
    thickness = _tag(reader, "0018|0088") or _tag(reader, "0018|0050")
    columns, rows, _ = reader.GetSize()
    return _Slice(file, (columns, rows), itk_affine(reader), abs(float(thickness or 1.0)) or 1.0)


def _read_stack(series: Series, folder: Path) -> list[_Slice]:
    """The slices' headers, along the first one's normal."""
    slices = [_read_slice_header(file, folder) for file in series]
    return sorted(slices, key=lambda each: float(each.position @ slices[0].normal))


def _stack_affine(slices: list[_Slice], folder: Path) -> NDArray[np.float64]:
    """Affine of the sorted slices as one stack, index ``(i, j, k)`` to RAS mm; refuses an irregular one."""
    first, count = slices[0], len(slices)
    _check_twice(slices, folder)
    sizes = sorted({each.size for each in slices})
    if len(sizes) > 1:
        listed = ", ".join(f"{columns} x {rows}" for columns, rows in sizes)
        raise UserError(f"{folder}: its images have different sizes ({listed})", "Give one series only")
    axes = np.stack([each.affine[:3, :2] for each in slices])
    if np.abs(axes - axes[0]).max() > 1e-3 * np.linalg.norm(axes[0, :, 0]):
        raise UserError(f"{folder}: its images differ in orientation or pixel spacing", "Give one axial series only")
    affine = first.affine.copy()
    affine[:3, 2] = first.normal * first.thickness
    if count == 1:
        return affine
    affine[:3, 2] = step = (slices[-1].position - first.position) / (count - 1)
    positions = np.stack([each.position for each in slices])
    _check_gaps(positions @ first.normal, folder)
    along = float(step @ first.normal) / float(np.linalg.norm(step))
    if np.sqrt(max(0.0, 1.0 - along**2)) > MAX_SHEAR:
        tilt = np.degrees(np.arccos(min(along, 1.0)))
        raise UserError(
            f"{folder}: its slices are tilted by {tilt:.1f} degrees (gantry tilt)",
            "Load it in Slicer, harden the acquisition transform and save it as NRRD or NIfTI",
        )
    apart = np.linalg.norm(positions - (first.position + np.arange(count)[:, None] * step), axis=1)
    if apart.max() > MAX_UNEVEN * np.linalg.norm(step):
        raise UserError(f"{folder}: slice {int(apart.argmax()) + 1} is shifted sideways", "Export it again")
    return affine


def _check_twice(slices: list[_Slice], folder: Path) -> None:
    for one, other in pairwise(slices):
        if np.array_equal(one.position, other.position) and filecmp.cmp(one.file, other.file, shallow=False):
            raise UserError(
                f"{folder}: {Path(one.file).name} and {Path(other.file).name} are the same image",
                "Remove one of them",
            )


def _check_gaps(heights: NDArray[np.float64], folder: Path) -> None:
    """Refuses doubled, missing and unevenly spaced slices.

    Args:
        heights: ``[slice]`` ascending positions along the stack in mm.
        folder: the folder, for the message.
    """
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        where = heights[int(gaps.argmin())]
        raise UserError(
            f"{folder}: several images lie at one position ({where:.2f} mm along the stack)",
            "Give one phase or reconstruction only",
        )
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() <= MAX_UNEVEN * usual:
        return
    worst = int(np.abs(gaps - usual).argmax())
    ratio = float(gaps[worst]) / usual
    where_to = f"between {heights[worst]:.2f} and {heights[worst + 1]:.2f} mm"
    if ratio > 1.5 and abs(ratio - round(ratio)) < 0.1:
        raise UserError(
            f"{folder}: {round(ratio) - 1} slice(s) are missing {where_to} along the stack",
            "Export the whole series again",
        )
    raise UserError(
        f"{folder}: its slices are unevenly spaced ({usual:g} mm as a rule, {gaps[worst]:g} mm {where_to})",
        "Resample it to an even spacing, in Slicer with Resample Scalar Volume",
    )
