"""The files that hold an image: NIfTI and the formats that ITK knows, read and written.

An `Image` is what lies in a file, as Slicer would hold it: ``[k, j, i]`` in whatever orientation it was stored, with
an affine to RAS mm. Whether it is grey values or labels is for the caller to say. This module knows nothing of how
DICOM series or segments are put together, nor of the engine's axes.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
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
BLOCK = 2**16  # bytes of a compressed file that are looked at together
MAX_SHEAR = 0.01  # cosine between two axes (0.6 degrees): rounding stays far below, gantry tilt lies above
NIFTI = (".nii", ".nii.gz")
ITK_IN = (".nrrd", ".nhdr", ".mha", ".mhd")

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NIFTI_UNITS = {1: "metres", 3: "micrometres"}  # 2 is mm; 0, not said, is taken as mm by every program
_MM = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "", "?")
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
        with open(path, "rb"):
            pass
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return reader(path)
    except _READ_ERRORS as error:
        raise UserError(
            f"{path} can't be read: {first_line(error)}",
            "The file may be truncated, damaged or in another format than its name says",
        ) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """What to say where the system does not let a file or folder be read."""
    hint = "Check its permissions, and that its drive is connected"
    return UserError(f"{path} can't be read: {error.strerror}", hint)


def _read_nifti(path: Path) -> Image:
    image = nib.load(path, mmap=False)
    check_size(image.shape, path)
    header = image.header
    if int(header["sform_code"]) == 0 and not _as_written(image)["pixdim"][1:4].all():
        _warn_of_spacing(path)
    unit = _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is not None:
        raise UserError(f"{path}: its header is in {unit}", "Convert it to mm")
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        _log.warning(
            "%s says nothing of its orientation: left and right can't be told from the file, nor anterior and "
            "posterior, which Slicer takes the other way round",
            path,
        )
    elif int(header["sizeof_hdr"]) == 348:  # ITK does not read NIfTI-2
        _check_forms(image, path)
    if image.get_data_dtype().fields is not None:
        raise UserError(f"{path}: it is a colour image", "Give a grey-value image such as CT")
    array = _nifti_voxels(image, path)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    while array.ndim < 3:
        array = array[..., np.newaxis]
    spatial = array.transpose(2, 1, 0, *range(3, array.ndim))
    return Image(spatial, np.asarray(image.affine, dtype=np.float64), header)


def _as_written(image: Any) -> Any:
    """The header as it lies in the file: nibabel has mended it where a spacing is 0."""
    with image.file_map["image"].get_prepare_fileobj(mode="rb") as stream:
        return type(image.header).from_fileobj(stream, check=False)


def _check_forms(image: Any, path: Path) -> None:
    """Refuses a file that ITK, and so Slicer, puts elsewhere: its sform, its qform and its spacing disagree."""
    try:
        str(path).encode()
        reader = _information(path, "NiftiImageIO")
    except (UnicodeEncodeError, RuntimeError):  # ITK can't say: it reads no such name, or no such axes
        return
    if reader.GetDimension() != 3:
        return
    apart = corner_distances(image.shape[:3], image.affine, itk_affine(reader)).max()
    if apart > np.linalg.norm(image.affine[:3, :3], axis=0).min():
        raise UserError(
            f"{path}: its header gives two places (sform, and qform or spacing), up to {apart:.3g} mm apart",
            "Load it in Slicer, check left and right and the size there, and save it as NRRD",
        )


def _nifti_voxels(image: Any, path: Path) -> NDArray[Any]:
    """The voxels, scaled where the header says so; a compressed file is read to its end, where its checksum lies."""
    if not path.name.lower().endswith(".gz"):
        return _scaled(image)
    with gzip.open(path) as stream:
        array = _scaled(image.from_file_map(image.make_file_map({"image": stream}), mmap=False))
        while stream.read(BLOCK):
            pass
    return array


def _scaled(image: Any) -> NDArray[Any]:
    proxy = image.dataobj
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0) and image.get_data_dtype().kind in "iuf"
    array: NDArray[Any] = image.get_fdata(dtype=np.float32, caching="unchanged") if scaled else proxy.get_unscaled()
    return array


def _information(path: Path, image_io: str = "") -> Any:
    """ITK's file reader, which has read the header only."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(path))
    with quiet_itk():
        reader.ReadImageInformation()
    return reader


def _read_itk(path: Path) -> Image:
    check_name(path)
    reader = _information(path)
    check_size(reader.GetSize(), path)
    header = _read_nrrd_header if path.name.lower().endswith((".nrrd", ".nhdr")) else _read_meta_header
    header(path)
    with quiet_itk():
        image = reader.Execute()
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    array = sitk.GetArrayFromImage(image)
    if image.GetDimension() != 3:
        array = np.moveaxis(array, 0, -1) if image.GetDimension() == 4 else array
        return Image(array, np.eye(4))  # refused by the caller for its axes
    return Image(array, itk_affine(image), fields=_segment_fields(image))


def _read_nrrd_header(path: Path) -> None:
    """Checks what ITK does not: the unit and the compressed data; warns of what the header does not say."""
    fields, end = _header_fields(path, b":")
    for unit in re.findall(r'"([^"]*)"', fields.get("spaceunits", "") + fields.get("units", "")):
        _check_unit(unit, path)
    directions = fields.get("spacedirections", "")
    _warn_of_unsaid(path, spacing=directions + fields.get("spacings", ""), orientation=directions)
    if fields.get("encoding", "").lower() in ("gz", "gzip") and "lineskip" not in fields:
        _check_compressed(path, fields.get("datafile", ""), end)


def _read_meta_header(path: Path) -> None:
    """The same for .mha and .mhd."""
    fields, end = _header_fields(path, b"=")
    _check_unit(fields.get("distanceunits", ""), path)
    turn = "".join(fields.get(key, "") for key in ("transformmatrix", "rotation", "orientation"))
    _warn_of_unsaid(path, spacing=fields.get("elementspacing", ""), orientation=turn)
    if fields.get("compresseddata", "").lower() == "true" and "headersize" not in fields:
        data = fields.get("elementdatafile", "")
        _check_compressed(path, "" if data.upper() == "LOCAL" else data, end)


def _header_fields(path: Path, colon: bytes) -> tuple[dict[str, str], int]:
    """A text header's fields, their names in small letters without spaces, and the byte that it ends at."""
    fields = {}
    with path.open("rb") as stream:
        for line in stream:
            name, _, value = (part.strip().decode("utf-8", "surrogateescape") for part in line.partition(colon))
            key = name.lower().replace(" ", "")
            if not value.startswith("="):  # not NRRD's own "key:=value"
                fields[key] = value
            if key == "elementdatafile" or (colon == b":" and not name):
                break
        return fields, stream.tell()


def _check_unit(unit: str, path: Path) -> None:
    if unit.lower() not in _MM:
        raise UserError(f"{path}: its header is in {unit}", "Convert it to mm")


def _warn_of_unsaid(path: Path, spacing: str, orientation: str) -> None:
    if not re.search(r"\d", spacing):
        _warn_of_spacing(path)
    if not re.search(r"\d", orientation):
        _log.warning("%s says nothing of its orientation: left and right can't be told from the file", path)


def _warn_of_spacing(path: Path) -> None:
    _log.warning("%s says nothing of its voxel spacing: it is taken as 1 mm", path)


def _check_compressed(path: Path, data_file: str, start: int) -> None:
    """Runs compressed data through zlib up to its checksum: ITK says nothing where it is damaged.

    Args:
        path: the header's file.
        data_file: the name of the data's file, "" if it follows the header.
        start: the byte at which the header ends.
    """
    data = path.parent / data_file if data_file else path
    if not data.is_file():
        return  # a list or pattern of several files; ITK tells of one that is missing
    inflate = zlib.decompressobj(wbits=47)  # with zlib's own header or gzip's
    with data.open("rb") as stream:
        stream.seek(0 if data_file else start)
        while not inflate.eof:
            block = stream.read(BLOCK)
            if not block:
                raise EOFError("its compressed data ends too early")
            inflate.decompress(block)


def check_name(path: Path) -> None:
    """Refuses a name that is not UTF-8, such as one from an old CD: SimpleITK would end the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "replace")
        raise UserError(f"{shown} has a name in another encoding than UTF-8", "Rename it") from error


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


def corner_distances(size: Sequence[int], one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """mm between the corner voxels ``[8]`` that two affines give to an image of ``(i, j, k)`` voxels."""
    ends = [[0.0, n - 1.0] for n in (*size, 1, 1)[:3]]
    corners = np.stack([*np.meshgrid(*ends, indexing="ij"), np.ones((2, 2, 2))]).reshape(4, 8)
    distances: NDArray[np.float64] = np.linalg.norm(((one - other) @ corners)[:3], axis=0)
    return distances


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
    if extension not in NIFTI:
        check_name(path)
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
