"""The files that hold an image: NIfTI and the formats that ITK knows, read and written.

An `Image` is what lies in a file, as Slicer would hold it: ``[k, j, i]`` in whatever orientation it was stored, with
an affine to RAS mm. Whether it is grey values or labels is for the caller to say. This module knows nothing of how
DICOM series or segments are put together, nor of the engine's axes.
"""

from __future__ import annotations

import gzip
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import NDArray

from .errors import UserError

_log = logging.getLogger(__name__)

MAX_VOXELS = 2**31  # a header that claims more is damaged, or the volume would not fit anyway
MAX_SHEAR = 0.01  # cosine between two axes (0.6 degrees): rounding stays far below, gantry tilt lies above
NIFTI = (".nii", ".nii.gz")
ITK_IN = (".nrrd", ".nhdr", ".mha", ".mhd")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NIFTI_UNITS = {1: "metres", 3: "micrometres"}  # 2 is mm; 0, not said, is taken as mm by every program
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    zlib.error,
    gzip.BadGzipFile,
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
)


@dataclass(frozen=True, eq=False)
class Image:
    """What a file holds: array ``[k, j, i]``, affine ``(i, j, k)`` to RAS mm, NIfTI header, NRRD fields."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any = None
    fields: Mapping[str, str] | None = None


def read_image(path: Path) -> Image:
    """Whatever the file holds; more than three axes are left for the caller to refuse.

    Raises:
        UserError: the path is missing or unreadable, the format is not one of these, or the header claims too much.
    """
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist", "Check the path")
    lower = path.name.lower()
    reader: Callable[[Path], Image]
    if lower.endswith(NIFTI):
        reader = _read_nifti
    elif lower.endswith(ITK_IN):
        reader = _read_itk
    else:
        raise UserError(
            f"{path} is not in a format that can be read",
            f"Give {', '.join(NIFTI + ITK_IN)} or a folder with one DICOM series",
        )
    try:
        return reader(path)
    except _READ_ERRORS as error:
        raise UserError(
            f"{path} can't be read: {first_line(error)}",
            "The file may be truncated, damaged or in another format than its name says",
        ) from error


def _read_nifti(path: Path) -> Image:
    image = nib.load(path, mmap=False)
    check_size(image.shape, path)
    header = image.header
    unit = _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is not None:
        raise UserError(f"{path}: its header is in {unit}", "Convert it to mm")
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        _log.warning("%s says nothing of its orientation: left and right can't be told from the file", path)
    proxy = image.dataobj
    if image.get_data_dtype().fields is not None:
        raise UserError(f"{path}: it is a colour image", "Give a grey-value image such as CT")
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0) and image.get_data_dtype().kind in "iuf"
    array = image.get_fdata(dtype=np.float32, caching="unchanged") if scaled else proxy.get_unscaled()
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    while array.ndim < 3:
        array = array[..., np.newaxis]
    spatial = array.transpose(2, 1, 0, *range(3, array.ndim))
    return Image(spatial, np.asarray(image.affine, dtype=np.float64), header)


def _read_itk(path: Path) -> Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with quiet_itk():
        reader.ReadImageInformation()
        check_size(reader.GetSize(), path)
        image = reader.Execute()
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    array = sitk.GetArrayFromImage(image)
    if image.GetDimension() != 3:
        array = np.moveaxis(array, 0, -1) if image.GetDimension() == 4 else array
        return Image(array, np.eye(4))  # refused by the caller for its axes
    return Image(array, itk_affine(image), fields=_segment_fields(image))


def _segment_fields(image: Any) -> dict[str, str]:
    """The NRRD fields that describe segments; bytes that are not UTF-8 are replaced."""
    keys = [key for key in image.GetMetaDataKeys() if key.startswith("Segment") and key.isascii()]
    return {key: image.GetMetaData(key).encode("utf-8", "replace").decode() for key in keys}


def check_size(shape: Sequence[int], path: Path) -> None:
    """Refuses a header that claims no voxels, or more than `MAX_VOXELS`."""
    if not shape or min(shape) < 1:
        raise UserError(f"{path}: it is empty ({' x '.join(map(str, shape))} voxels)")
    if np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise UserError(
            f"{path}: its header claims {' x '.join(map(str, shape))} voxels, more than can be worked on",
            "Check that the file is not damaged, or crop it",
        )


def itk_affine(image: Any) -> NDArray[np.float64]:
    """Index ``(i, j, k)`` to RAS mm, from an ITK image or file reader in LPS mm."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return _LPS_TO_RAS @ lps


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keeps ITK's warnings off standard error: what matters in them is checked and said here."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def first_line(error: BaseException) -> str:
    """The most telling line of a library's message, without its file and line numbers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.rsplit("): ", 1)[-1][:200].rstrip(". ")


def write_image(path: Path, extension: str, image: Image) -> None:
    """Writes an image in the format of an extension; the file appears whole or not at all.

    Raises:
        UserError: the file can't be written.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.part{extension}")
    try:
        if extension in NIFTI:
            nib.save(_to_nifti(image), partial)
        else:
            _write_itk(partial, image)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{path} can't be written: {reason}",
            "Check that the folder exists, may be written to and has room",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _to_nifti(image: Image) -> Any:
    data = image.array.transpose(2, 1, 0)
    if image.header is None:
        nifti = nib.Nifti1Image(data, image.affine)
        nifti.set_qform(image.affine, code="scanner")
        nifti.set_sform(image.affine, code="scanner")
        nifti.header.set_xyzt_units("mm")
        return nifti
    header = image.header.copy()
    header.set_data_dtype(image.array.dtype)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(data, image.affine, header)


def _write_itk(path: Path, image: Image) -> None:
    itk = sitk.GetImageFromArray(image.array)
    lps = _LPS_TO_RAS @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    itk.SetSpacing(spacing.tolist())
    itk.SetOrigin(lps[:3, 3].tolist())
    itk.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    for key, value in (image.fields or {}).items():
        itk.SetMetaData(key, value)
    with quiet_itk():
        sitk.WriteImage(itk, str(path), useCompression=True)
        # ITK does not always notice a disk that fills up, so read it back before it takes the name.
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if not np.array_equal(written, image.array, equal_nan=image.array.dtype.kind == "f"):
        raise OSError("the file does not hold what was written")
