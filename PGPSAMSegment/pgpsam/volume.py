"""Volumes in and out of files, and every turn between a source's axes and the engine's.

Two axis orders, and no others:

* *source*: ``[k, j, i]``, the array as Slicer holds it, in whatever orientation it was stored; an affine maps
  the index ``(i, j, k)`` to RAS mm.
* *canonical*: ``[z, y, x]``, z towards superior, y towards posterior, x towards the patient's left; an affine
  maps the index ``(x, y, z)`` to RAS mm.

Between the two there are only permutations and flips, so nothing is ever resampled. An oblique source keeps
its own axes, each named after the nearest anatomical direction. This module knows nothing of networks or of
torch.
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
from typing import TYPE_CHECKING, Any, Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from numpy.typing import NDArray

from .errors import UserError

if TYPE_CHECKING:
    from .labels import Label, LabelSet

_log = logging.getLogger(__name__)

MIN_SIDE = 8  # voxels: a smaller slice holds no anatomy to find
MAX_VOXELS = 2**31  # a header that claims more is damaged, or the volume would not fit anyway
MAX_SHEAR = 0.01  # cosine between two axes (0.6 degrees): rounding stays far below, gantry tilt lies above
SAME_GRID = 0.01  # voxels: the largest distance between the corners of two grids that count as one
MAX_UNEVEN = 0.1  # slice distances: how far a slice may lie from its place in an even stack (rounded positions)
MAX_LOCALIZER = 3  # a DICOM series of so few images is a scout, not the scan

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NIFTI = (".nii", ".nii.gz")
_NIFTI_UNITS = {1: "metres", 3: "micrometres"}  # 2 is mm; 0, not said, is taken as mm by every program
_ITK_IN = (".nrrd", ".nhdr", ".mha", ".mhd")
_OUT = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
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


# --------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True, eq=False)
class Grid:
    """A source's voxel grid, and the way from it to the canonical axes.

    Attributes:
        shape: source array shape, ``(k, j, i)``.
        affine: ``[4, 4]`` float64, source index ``(i, j, k)`` to RAS mm, bit for bit as it was given.
        order: for each canonical array axis ``z, y, x`` the source array axis it comes from.
        flips: for each canonical array axis ``z, y, x`` whether it runs against that source axis.
        header: the NIfTI header of a NIfTI source, whose sform and qform an output of that format repeats.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    header: Any = None

    @classmethod
    def from_source(cls, shape: Sequence[int], affine: NDArray[Any], name: str = "volume", header: Any = None) -> Grid:
        """Works out the permutation and flips that bring a source nearest to the canonical axes.

        Args:
            shape: ``(k, j, i)``.
            affine: ``[4, 4]``, index ``(i, j, k)`` to RAS mm.
            name: what error messages call the source.
            header: the NIfTI header, where the source is one.

        Raises:
            UserError: the affine is not finite, not invertible or sheared.
        """
        affine = _checked_affine(affine, name)
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(("L", "P", "S")))
        order, flips = [0, 0, 0], [False, False, False]
        for index_axis, (canonical_axis, sign) in enumerate(turn):
            order[2 - int(canonical_axis)] = 2 - index_axis
            flips[2 - int(canonical_axis)] = bool(sign < 0)
        z, y, x = (int(n) for n in shape)
        return cls((z, y, x), affine, (order[0], order[1], order[2]), (flips[0], flips[1], flips[2]), header)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Shape of a canonical array on this grid, ``(z, y, x)``."""
        z, y, x = (self.shape[axis] for axis in self.order)
        return z, y, x

    @property
    def canonical_affine(self) -> NDArray[np.float64]:
        """``[4, 4]`` float64: canonical index ``(x, y, z)`` to RAS mm."""
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1.0
        for array_axis, (source_axis, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            row, column = 2 - source_axis, 2 - array_axis
            to_source[row, column] = -1.0 if flip else 1.0
            to_source[row, 3] = self.shape[source_axis] - 1 if flip else 0.0
        return self.affine @ to_source + 0.0  # turns -0.0 into 0.0

    def to_canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of a source array ``[..., k, j, i]`` of any dtype as ``[..., z, y, x]``.

        Raises:
            ValueError: the array does not lie on this grid.
        """
        self._check(array, self.shape)
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.order))
        return np.flip(turned, self._flipped(lead))

    def to_source(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of a canonical array ``[..., z, y, x]`` as ``[..., k, j, i]``: undoes `to_canonical`.

        Raises:
            ValueError: the array does not lie on this grid.
        """
        self._check(array, self.canonical_shape)
        lead = array.ndim - 3
        back = np.argsort(self.order)
        return np.flip(array, self._flipped(lead)).transpose(*range(lead), *(lead + int(a) for a in back))

    @property
    def axial_axis(self) -> int:
        """The axis of the source array ``[k, j, i]`` along which its axial slices are stacked."""
        return self.order[0]

    def axial_index(self, z: int) -> int:
        """A canonical slice's index along the source's axial axis; the very same turn leads back."""
        return self.shape[self.axial_axis] - 1 - z if self.flips[0] else z

    def source_index(self, z: int, y: int, x: int) -> tuple[int, int, int]:
        """The source index ``(i, j, k)`` of a canonical voxel."""
        kji = [0, 0, 0]
        for index, axis, flip in zip((z, y, x), self.order, self.flips, strict=True):
            kji[axis] = self.shape[axis] - 1 - index if flip else index
        k, j, i = kji
        return i, j, k

    def _flipped(self, lead: int) -> tuple[int, ...]:
        return tuple(lead + axis for axis, flip in enumerate(self.flips) if flip)

    @staticmethod
    def _check(array: NDArray[Any], shape: tuple[int, int, int]) -> None:
        if array.shape[-3:] != shape:
            raise ValueError(f"an array of shape {array.shape} does not lie on a grid of {shape}")


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in the canonical axes, which remembers the grid that it came from.

    Attributes:
        array: float32 ``[z, y, x]`` in the source's own units (HU for CT), contiguous, finite.
        affine: ``[4, 4]`` float64, canonical index ``(x, y, z)`` to RAS mm.
        grid: the source grid.
        name: what messages and reports call it.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    grid: Grid
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(z, y, x)`` in voxels."""
        return self.grid.canonical_shape

    @property
    def spacing(self) -> tuple[float, float, float]:
        """``(dx, dy, dz)`` in mm."""
        dx, dy, dz = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(dx), float(dy), float(dz)

    @property
    def voxel_ml(self) -> float:
        """The volume of one voxel in mL."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @classmethod
    def from_kji(cls, array: NDArray[Any], affine: NDArray[Any], name: str = "volume") -> Volume:
        """Takes an image as Slicer holds it.

        Args:
            array: ``[k, j, i]``, any real number type and orientation. It is shared, not copied, where it
                already is contiguous canonical float32.
            affine: ``[4, 4]``, index ``(i, j, k)`` to RAS mm.
            name: what messages call it.

        Raises:
            UserError: not three axes, empty, not real numbers, not finite, constant, under `MIN_SIDE` voxels
                in an axial slice, or a geometry that `Grid.from_source` refuses.
        """
        return _volume(_Image(np.asarray(array), np.asarray(affine)), name)

    def restore(self, canonical_array: NDArray[Any]) -> NDArray[Any]:
        """Turns ``[..., z, y, x]`` back into the source's ``[..., k, j, i]``, contiguous, dtype kept.

        Raises:
            ValueError: the array does not lie on this volume's grid.
        """
        return np.ascontiguousarray(self.grid.to_source(canonical_array))


@dataclass(frozen=True, eq=False)
class _Image:
    """What a file held: array ``[k, j, i]``, affine ``(i, j, k)`` to RAS mm, NIfTI header, NRRD fields."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    header: Any = None
    fields: Mapping[str, str] | None = None


def _volume(image: _Image, name: str) -> Volume:
    array = image.array
    _check_axes(array.shape, name)
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"{name}: its voxels are of type {array.dtype}, not real numbers",
            "Give a grey-value image such as CT",
        )
    grid = Grid.from_source(array.shape, image.affine, name, image.header)
    _, rows, columns = grid.canonical_shape
    if min(rows, columns) < MIN_SIDE:
        raise UserError(
            f"{name}: its axial slices are {columns} x {rows} voxels, too small to segment",
            f"Each side of a slice needs at least {MIN_SIDE} voxels",
        )
    with np.errstate(over="ignore"):
        canonical = np.ascontiguousarray(grid.to_canonical(array), dtype=np.float32)
    _check_values(canonical, grid, name)
    return Volume(canonical, grid.canonical_affine, grid, name)


def _check_axes(shape: tuple[int, ...], name: str) -> None:
    if len(shape) == 4:
        raise UserError(
            f"{name}: it has {len(shape)} axes, with {shape[-1]} frames or components in each voxel",
            "Choose one of them and save it as a volume of its own",
        )
    if len(shape) != 3:
        raise UserError(f"{name}: it has {len(shape)} axes, but a volume has 3", "Give a 3D image")
    if min(shape) < 1:
        raise UserError(f"{name}: it is empty ({shape[2]} x {shape[1]} x {shape[0]} voxels)")


def _check_values(canonical: NDArray[np.float32], grid: Grid, name: str) -> None:
    low, high = float(canonical.min()), float(canonical.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = ~np.isfinite(grid.to_source(canonical))
        k, j, i = np.unravel_index(int(bad.argmax()), bad.shape)
        raise UserError(
            f"{name}: {int(bad.sum())} of {bad.size} voxels are NaN or infinite, "
            f"the first at (i, j, k) = ({i}, {j}, {k})",
            "Replace them, for a CT with -1024, and try again",
        )
    if low == high:
        raise UserError(f"{name}: every voxel is {low:g}: not an image", "Check the file and how it was exported")


def _checked_affine(affine: NDArray[Any], name: str) -> NDArray[np.float64]:
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise UserError(f"{name}: its affine has shape {matrix.shape}, but must be 4 x 4")
    if not np.isfinite(matrix).all():
        raise UserError(f"{name}: its affine has values that are not finite", "Repair the image's orientation")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() <= 0 or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise UserError(
            f"{name}: its affine can't be inverted (spacing {' x '.join(f'{n:g}' for n in lengths)} mm)",
            "Repair the image's spacing and orientation",
        )
    cosines = matrix[:3, :3].T @ matrix[:3, :3] / np.outer(lengths, lengths)
    if abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise UserError(f"{name}: its affine can't be inverted", "Repair the image's orientation")
    shear = float(np.abs(cosines - np.eye(3)).max())
    if shear > MAX_SHEAR:
        angle = np.degrees(np.arccos(min(shear, 1.0)))
        raise UserError(
            f"{name}: its axes are sheared ({angle:.1f} degrees between two of them, not 90)",
            "Resample it to a grid with perpendicular axes first, as for a tilted gantry",
        )
    return matrix


# ---------------------------------------------------------------------------------------------------- reading


def read_volume(path: str | os.PathLike[str]) -> Volume:
    """Reads a grey-value image: NIfTI, NRRD, MHA/MHD or a folder that holds a DICOM series.

    A DICOM folder may hold its series one level deeper. Of several series, one is taken only if every other
    has at most `MAX_LOCALIZER` images.

    Raises:
        UserError: the path is missing or unreadable, the format is not one of these, the DICOM series is
            ambiguous, incomplete, uneven or tilted, or `Volume.from_kji` refuses the image.
    """
    path = Path(path)
    if path.name.lower().endswith(".seg.nrrd"):
        raise UserError(f"{path} is a segmentation, not an image", "Give the CT volume it was drawn on")
    image = _read(path)
    return _volume(image, volume_name(path))


def read_labels(
    path: str | os.PathLike[str],
) -> tuple[NDArray[Any], NDArray[np.float64], dict[int, str]]:
    """Reads a label map: NIfTI, NRRD, MHA/MHD, or Slicer's ``.seg.nrrd``, whose segment names come along.

    Segments in several layers are flattened to one where none overlap; if two layers use one value, segments
    are numbered anew in their order.

    Returns:
        labels ``[k, j, i]`` uint8, or uint16 where an id is over 255; the affine, ``(i, j, k)`` to RAS mm;
        the names by id, empty unless the file carries them.

    Raises:
        UserError: unreadable, not three axes, values that are not whole numbers in 0..65535, or overlapping
            segments.
    """
    image, names = _read_labels(Path(path))
    return image.array, image.affine, names


def read_labels_on(volume: Volume, path: str | os.PathLike[str]) -> NDArray[Any]:
    """Reads a label map that lies on a volume's grid, whatever order of axes it was stored in.

    Returns:
        labels ``[z, y, x]``, canonical, uint8 or uint16.

    Raises:
        UserError: as `read_labels`, or the grids differ; the message says in what.
    """
    image, _ = _read_labels(Path(path))
    grid = Grid.from_source(image.array.shape, image.affine, str(path))
    _check_same_grid(volume, grid, str(path))
    return np.ascontiguousarray(grid.to_canonical(image.array))


def _check_same_grid(volume: Volume, grid: Grid, name: str) -> None:
    hint = f"Give labels that were drawn on {volume.name}, on its own grid"
    if grid.canonical_shape != volume.shape:
        theirs, ours = (" x ".join(map(str, shape[::-1])) for shape in (grid.canonical_shape, volume.shape))
        raise UserError(f"{name}: it has {theirs} voxels, but {volume.name} has {ours}", hint)
    ends = np.array([[0.0, n - 1.0] for n in volume.shape[::-1]])
    corners = np.stack([*np.meshgrid(*ends, indexing="ij"), np.ones((2, 2, 2))]).reshape(4, 8)
    apart = np.linalg.norm(((grid.canonical_affine - volume.affine) @ corners)[:3], axis=0)
    if apart.max() <= SAME_GRID * min(volume.spacing):
        return
    spacing = np.linalg.norm(grid.canonical_affine[:3, :3], axis=0)
    if not np.allclose(spacing, volume.spacing, rtol=1e-3):
        theirs, ours = (" x ".join(f"{mm:.4g}" for mm in each) for each in (spacing, volume.spacing))
        raise UserError(f"{name}: its spacing is {theirs} mm, but {volume.name} has {ours} mm", hint)
    what = "origin" if np.ptp(apart) < 1e-3 * float(apart.max()) + 1e-6 else "orientation"
    raise UserError(
        f"{name}: its {what} differs from that of {volume.name}: the corners lie {apart.max():.3g} mm apart",
        hint,
    )


def _read(path: Path) -> _Image:
    """Whatever the path holds; more than three axes are left for the caller to refuse."""
    if os.path.isdir(path):
        return _read_dicom(path)
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist", "Check the path")
    lower = path.name.lower()
    reader: Callable[[Path], _Image]
    if lower.endswith(_NIFTI):
        reader = _read_nifti
    elif lower.endswith(_ITK_IN):
        reader = _read_itk
    else:
        raise UserError(
            f"{path} is not in a format that can be read",
            f"Give {', '.join(_NIFTI + _ITK_IN)} or a folder with one DICOM series",
        )
    try:
        return reader(path)
    except _READ_ERRORS as error:
        raise UserError(
            f"{path} can't be read: {_first_line(error)}",
            "The file may be truncated, damaged or in another format than its name says",
        ) from error


def _read_nifti(path: Path) -> _Image:
    image = nib.load(path, mmap=False)
    _check_size(image.shape, path)
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
    return _Image(spatial, np.asarray(image.affine, dtype=np.float64), header)


def _read_itk(path: Path) -> _Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _quiet_itk():
        reader.ReadImageInformation()
        _check_size(reader.GetSize(), path)
        image = reader.Execute()
    while image.GetDimension() > 3 and image.GetSize()[-1] == 1:
        image = image[(slice(None),) * (image.GetDimension() - 1) + (0,)]
    array = sitk.GetArrayFromImage(image)
    if image.GetDimension() != 3:
        array = np.moveaxis(array, 0, -1) if image.GetDimension() == 4 else array
        return _Image(array, np.eye(4))  # refused by the caller for its axes
    return _Image(array, _itk_affine(image), fields=_segment_fields(image))


def _segment_fields(image: Any) -> dict[str, str]:
    """The NRRD fields that describe segments; bytes that are not UTF-8 are replaced."""
    keys = [key for key in image.GetMetaDataKeys() if key.startswith("Segment") and key.isascii()]
    return {key: image.GetMetaData(key).encode("utf-8", "replace").decode() for key in keys}


def _check_size(shape: Sequence[int], path: Path) -> None:
    if not shape or min(shape) < 1:
        raise UserError(f"{path}: it is empty ({' x '.join(map(str, shape))} voxels)")
    if np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise UserError(
            f"{path}: its header claims {' x '.join(map(str, shape))} voxels, more than can be worked on",
            "Check that the file is not damaged, or crop it",
        )


def _itk_affine(image: Any) -> NDArray[np.float64]:
    """Index ``(i, j, k)`` to RAS mm, from an ITK image or file reader in LPS mm."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return _LPS_TO_RAS @ lps


@contextmanager
def _quiet_itk() -> Iterator[None]:
    """Keeps ITK's warnings off standard error: what matters in them is checked and said here."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _first_line(error: BaseException) -> str:
    """The most telling line of a library's message, without its file and line numbers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.rsplit("): ", 1)[-1][:200].rstrip(". ")


def volume_name(path: Path) -> str:
    """What a volume is called: its file without folder and extension, or its DICOM folder."""
    name = path.name if path.name not in ("", "..") else path.resolve().name  # a link is called as it is called here
    for extension in (*_NIFTI, ".seg.nrrd", *_ITK_IN):
        if name.lower().endswith(extension) and not path.is_dir():
            return name[: -len(extension)]
    return name


# ------------------------------------------------------------------------------------------------------ DICOM


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


def _read_dicom(folder: Path) -> _Image:
    try:
        slices = [_read_slice_header(file, folder) for file in _choose_series(folder)]
        slices = sorted(slices, key=lambda each: float(each.position @ slices[0].normal))
        affine = _stack_affine(slices, folder)
        columns, rows = slices[0].size
        _check_size((columns, rows, len(slices)), folder)
        array = np.empty((len(slices), rows, columns), dtype=np.float32)
        for k, each in enumerate(slices):
            with _quiet_itk():
                image = sitk.ReadImage(each.file, sitk.sitkFloat32, imageIO="GDCMImageIO")
            array[k] = sitk.GetArrayViewFromImage(image)[0]
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder} can't be read: {_first_line(error)}", "Export the DICOM series again, uncompressed"
        ) from error
    return _Image(array, affine)


def _choose_series(folder: Path) -> tuple[str, ...]:
    """The files of the one scan in a folder, or in the folders right below it."""
    found = _series_in(folder)
    if not found:
        found = [series for below in sorted(folder.iterdir()) if below.is_dir() for series in _series_in(below)]
    if not found:
        raise UserError(f"{folder} holds no DICOM images", "Give the folder that the series' files lie in")
    scans = [files for files in found if len(files) > MAX_LOCALIZER]
    if len(found) > 1 and len(scans) != 1:
        listed = ", ".join(f"{_description(files[0])!r} ({len(files)} images)" for files in found[:10])
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise UserError(
            f"{folder} holds {len(found)} DICOM series: {listed}{more}",
            "Put the one to segment into a folder of its own",
        )
    return found[0] if len(found) == 1 else scans[0]


def _series_in(folder: Path) -> list[tuple[str, ...]]:
    with _quiet_itk():
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


def _description(file: str) -> str:
    try:
        return _tag(_dicom_header(file), "0008|103e") or "no description"
    except RuntimeError:
        return "unreadable"


def _dicom_header(file: str) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    with _quiet_itk():
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
    thickness = _tag(reader, "0018|0088") or _tag(reader, "0018|0050")
    columns, rows, _ = reader.GetSize()
    return _Slice(file, (columns, rows), _itk_affine(reader), abs(float(thickness or 1.0)) or 1.0)


def _stack_affine(slices: list[_Slice], folder: Path) -> NDArray[np.float64]:
    """Affine of the sorted slices as one stack, index ``(i, j, k)`` to RAS mm; refuses an irregular one."""
    first, count = slices[0], len(slices)
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


# ----------------------------------------------------------------------------------------------------- labels


def _read_labels(path: Path) -> tuple[_Image, dict[int, str]]:
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, not a file of labels", "Give NIfTI, NRRD or MHA labels")
    image = _read(path)
    array = image.array
    names: dict[int, str] = {}
    if any(key.startswith("Segment0_") for key in image.fields or {}):
        array, names = _flatten_segments(array, image.fields or {}, path)
    _check_axes(array.shape, str(path))
    whole = _whole_numbers(array, str(path))
    return _Image(np.ascontiguousarray(whole), image.affine, image.header), names


def _whole_numbers(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Labels of any number type as uint8, or uint16 where an id is over 255."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name}: its voxels are of type {array.dtype}, not labels")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 65535):
        raise UserError(f"{name}: its values run from {low:g} to {high:g}, but labels lie in 0 to 65535")
    labels = array.astype(np.uint8 if high <= 255 else np.uint16)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        raise UserError(f"{name}: its values are not whole numbers, so it is not a label map")
    return labels


def _flatten_segments(
    array: NDArray[Any], fields: Mapping[str, str], path: Path
) -> tuple[NDArray[Any], dict[int, str]]:
    """One label map ``[k, j, i]`` and its names, from layers ``[k, j, i]`` or ``[k, j, i, layer]``."""
    layers = array[..., np.newaxis] if array.ndim == 3 else array
    segments = []
    number = 0
    while (name := fields.get(f"Segment{number}_Name", fields.get(f"Segment{number}_ID"))) is not None:
        value = _whole_field(fields, f"Segment{number}_LabelValue", 1 if layers.shape[-1] > 1 else number + 1, path)
        layer = _whole_field(fields, f"Segment{number}_Layer", number if layers.shape[-1] > 1 else 0, path)
        if not 0 <= layer < layers.shape[-1]:
            raise UserError(f"{path}: segment {name!r} lies in layer {layer}, which the file does not have")
        segments.append((name, value, layer))
        number += 1
    if layers.shape[-1] == 1:
        return layers[..., 0], {value: name for name, value, _ in segments}

    values = [value for _, value, _ in segments]
    ids = values if len(set(values)) == len(values) else list(range(1, len(values) + 1))
    flat = np.zeros(layers.shape[:3], dtype=np.uint16)
    for segment_id, (name, value, layer) in zip(ids, segments, strict=True):
        inside = layers[..., layer] == value
        if flat[inside].any():
            other = segments[ids.index(int(flat[inside].max()))][0]
            raise UserError(
                f"{path}: segments {other!r} and {name!r} overlap",
                "In Slicer's Segment Editor turn overlap off, or export the segments as one label map",
            )
        flat[inside] = segment_id
    return flat, dict(zip(ids, (name for name, _, _ in segments), strict=True))


def _whole_field(fields: Mapping[str, str], key: str, default: int, path: Path) -> int:
    text = fields.get(key, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{path}: its field {key} is {text!r}, not a whole number") from error


# ---------------------------------------------------------------------------------------------------- writing


def write_array(
    path: str | os.PathLike[str],
    canonical_array: NDArray[Any],
    volume: Volume,
    kind: Literal["labels", "confidence"],
    label_set: LabelSet | None = None,
) -> None:
    """Writes a result on its volume's own grid; the file appears whole or not at all.

    A NIfTI result of a NIfTI source repeats the source's sform and qform bit for bit.

    Args:
        path: ends in .nii.gz, .nii, .nrrd, .mha, or for labels also .seg.nrrd.
        canonical_array: ``[z, y, x]``: ids, written as uint8 (uint16 over 255), or confidence, written as
            float32.
        volume: the volume the result belongs to.
        kind: what the array holds.
        label_set: names, colours and codes for a .seg.nrrd's segments.

    Raises:
        UserError: another extension, or the file can't be written.
        ValueError: the array does not lie on the volume's grid, or labels that are no ids.
    """
    path = Path(path)
    extension = output_extension(path)
    if extension == ".seg.nrrd" and kind != "labels":
        raise UserError(f"{path}: .seg.nrrd holds segments, not {kind}", "Use .nrrd or .nii.gz")
    array = volume.restore(_label_dtype(canonical_array) if kind == "labels" else canonical_array.astype(np.float32))
    partial = path.with_name(f".{uuid.uuid4().hex}.part{extension}")
    try:
        if extension in _NIFTI:
            nib.save(_nifti(array, volume.grid), partial)
        else:
            _write_itk(partial, array, volume.grid, extension, label_set)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise UserError(
            f"{path} can't be written: {reason}",
            "Check that the folder exists, may be written to and has room",
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def output_extension(path: str | os.PathLike[str]) -> str:
    """The extension that decides the format a result is written in: one of those that `write_array` knows.

    Raises:
        UserError: another extension; the hint lists the known ones.
    """
    lower = Path(path).name.lower()
    matches = [extension for extension in _OUT if lower.endswith(extension)]
    if not matches:
        raise UserError(f"{path}: results can't be written in that format", f"Use {', '.join(_OUT)}")
    return max(matches, key=len)


def _label_dtype(labels: NDArray[Any]) -> NDArray[Any]:
    try:
        return _whole_numbers(labels, "labels")
    except UserError as error:
        raise ValueError(error.message) from error


def _nifti(array: NDArray[Any], grid: Grid) -> Any:
    """A NIfTI image of a source array ``[k, j, i]``."""
    data = array.transpose(2, 1, 0)
    if grid.header is None:
        image = nib.Nifti1Image(data, grid.affine)
        image.set_qform(grid.affine, code="scanner")
        image.set_sform(grid.affine, code="scanner")
        image.header.set_xyzt_units("mm")
        return image
    header = grid.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(data, grid.affine, header)


def _write_itk(path: Path, array: NDArray[Any], grid: Grid, extension: str, label_set: LabelSet | None) -> None:
    image = sitk.GetImageFromArray(array)
    lps = _LPS_TO_RAS @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    if extension == ".seg.nrrd":
        for key, value in _fields_of_segments(array, label_set).items():
            image.SetMetaData(key, value)
    with _quiet_itk():
        sitk.WriteImage(image, str(path), useCompression=True)
        # ITK does not always notice a disk that fills up, so read it back before it takes the name.
        written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if not np.array_equal(written, array, equal_nan=array.dtype.kind == "f"):
        raise OSError("the file does not hold what was written")


def _fields_of_segments(array: NDArray[Any], label_set: LabelSet | None) -> dict[str, str]:
    """Slicer's NRRD fields for the ids that a label map ``[k, j, i]`` holds."""
    known: dict[int, Label] = {label.id: label for label in label_set or ()}
    fields = {
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    ids = [int(value) for value in np.unique(array) if value]
    for number, value in enumerate(ids):
        inside = np.nonzero(array == value)
        extent = " ".join(f"{axis.min()} {axis.max()}" for axis in reversed(inside))
        segment = {"ID": f"Segment_{value}", "LabelValue": str(value), "Layer": "0", "Extent": extent}
        segment |= {"Name": f"label {value}", "NameAutoGenerated": "0", "ColorAutoGenerated": "0"}
        if value in known:
            label = known[value]
            segment["Name"] = label.name
            segment["Color"] = " ".join(f"{channel / 255:.6f}" for channel in label.color)
            segment["Tags"] = f"TerminologyEntry:{label.terminology}|"
        fields |= {f"Segment{number}_{key}": text for key, text in segment.items()}
    return fields
