"""Volumes in and out of files, and every turn between a source's axes and the engine's.

Two axis orders, and no others:

* *source*: ``[k, j, i]``, the array as Slicer holds it, in whatever orientation it was stored; an affine maps
  the index ``(i, j, k)`` to RAS mm.
* *canonical*: ``[z, y, x]``, z towards superior, y towards posterior, x towards the patient's left; an affine
  maps the index ``(x, y, z)`` to RAS mm.

Between the two there are only permutations and flips, so nothing is ever resampled. An oblique source keeps
its own axes, each named after the nearest anatomical direction. This module knows nothing of how a format or a
DICOM series is laid out, of networks or of torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from .dicom import read_series
from .errors import UserError
from .image import ITK_IN, MAX_SHEAR, NIFTI, Image, corner_distances, read_image, write_image
from .segnrrd import fields_of_segments, flatten_segments

if TYPE_CHECKING:
    from .labels import LabelSet

_log = logging.getLogger(__name__)

LOWEST_HU = -1024.0  # what is lower is padding around the field of view
STORED_HU = 1500.0  # no air and values beyond: as they lie in a DICOM file, before the rescale intercept of -1024
GREY_LEVELS = 255.0  # no air and no values beyond: a picture of a window, or labels
MIN_SIDE = 8  # voxels: a smaller slice holds no anatomy to find
SAME_GRID = 0.01  # voxels: the largest distance between the corners of two grids that count as one

OUTPUTS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")


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
        return _volume(Image(np.asarray(array), np.asarray(affine)), name)

    def restore(self, canonical_array: NDArray[Any]) -> NDArray[Any]:
        """Turns ``[..., z, y, x]`` back into the source's ``[..., k, j, i]``, contiguous, dtype kept.

        Raises:
            ValueError: the array does not lie on this volume's grid.
        """
        return np.ascontiguousarray(self.grid.to_source(canonical_array))


def _volume(image: Image, name: str) -> Volume:
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
    if low < LOWEST_HU:
        low = float(canonical.min(where=canonical > low, initial=high))
    if low >= 0 and (high > STORED_HU or high <= GREY_LEVELS):
        what = "stored values" if high > STORED_HU else "grey levels or labels"
        _log.warning("%s: its values run from %g to %g: they look like %s, not HU", name, low, high, what)


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
    has at most `dicom.MAX_LOCALIZER` images.

    Raises:
        UserError: the path is missing or unreadable, the format is not one of these, the DICOM series is
            ambiguous, incomplete, uneven or tilted, or `Volume.from_kji` refuses the image.
    """
    path = Path(path)
    if path.name.lower().endswith(".seg.nrrd"):
        raise UserError(f"{path} is a segmentation, not an image", "Give the CT volume it was drawn on")
    image = read_series(path) if os.path.isdir(path) else read_image(path)
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

    A ``.seg.nrrd``, which Slicer may crop to its segments, need only lie inside the volume, on its voxels.

    Returns:
        labels ``[z, y, x]``, canonical, uint8 or uint16.

    Raises:
        UserError: as `read_labels`, or the grids differ; the message says in what.
    """
    image, _ = _read_labels(Path(path))
    grid = Grid.from_source(image.array.shape, image.affine, str(path))
    labels = grid.to_canonical(image.array)
    if str(path).lower().endswith(".seg.nrrd") and (place := _place_inside(volume, grid)):
        whole = np.zeros(volume.shape, labels.dtype)
        whole[place] = labels
        return whole
    _check_same_grid(volume, grid, str(path))
    return np.ascontiguousarray(labels)


def _place_inside(volume: Volume, grid: Grid) -> tuple[slice, ...] | None:
    """Which voxels ``[z, y, x]`` of a volume a smaller grid's are; None if they are none of the volume's."""
    first = np.eye(4)
    first[:3, 3] = np.rint((np.linalg.inv(volume.affine) @ grid.canonical_affine)[:3, 3])
    apart = corner_distances(grid.canonical_shape[::-1], grid.canonical_affine, volume.affine @ first)
    starts = first[2::-1, 3].astype(int).tolist()
    place = tuple(slice(start, start + n) for start, n in zip(starts, grid.canonical_shape, strict=True))
    outside = any(one.start < 0 or one.stop > n for one, n in zip(place, volume.shape, strict=True))
    return None if outside or apart.max() > SAME_GRID * min(volume.spacing) else place


def _check_same_grid(volume: Volume, grid: Grid, name: str) -> None:
    hint = f"Give labels that were drawn on {volume.name}, on its own grid"
    if grid.canonical_shape != volume.shape:
        theirs, ours = (" x ".join(map(str, shape[::-1])) for shape in (grid.canonical_shape, volume.shape))
        raise UserError(f"{name}: it has {theirs} voxels, but {volume.name} has {ours}", hint)
    apart = corner_distances(volume.shape[::-1], grid.canonical_affine, volume.affine)
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


def volume_name(path: Path) -> str:
    """What a volume is called: its file without folder and extension, or its DICOM folder."""
    name = path.name if path.name not in ("", "..") else path.resolve().name  # a link is called as it is called here
    for extension in (*NIFTI, ".seg.nrrd", *ITK_IN):
        if name.lower().endswith(extension) and not path.is_dir():
            return name[: -len(extension)]
    return name


# ----------------------------------------------------------------------------------------------------- labels


def _read_labels(path: Path) -> tuple[Image, dict[int, str]]:
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, not a file of labels", "Give NIfTI, NRRD or MHA labels")
    image = read_image(path)
    array = image.array
    names: dict[int, str] = {}
    if any(key.startswith("Segment0_") for key in image.fields or {}):
        array, names = flatten_segments(array, image.fields or {}, path)
    _check_axes(array.shape, str(path))
    whole = _whole_numbers(array, str(path))
    return Image(np.ascontiguousarray(whole), image.affine, image.header), names


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
    fields = fields_of_segments(array, label_set) if extension == ".seg.nrrd" else None
    write_image(path, extension, Image(array, volume.grid.affine, volume.grid.header, fields))


def output_extension(path: str | os.PathLike[str]) -> str:
    """The extension that decides the format a result is written in: one of those that `write_array` knows.

    Raises:
        UserError: another extension; the hint lists the known ones.
    """
    lower = Path(path).name.lower()
    matches = [extension for extension in OUTPUTS if lower.endswith(extension)]
    if not matches:
        raise UserError(f"{path}: results can't be written in that format", f"Use {', '.join(OUTPUTS)}")
    return max(matches, key=len)


def _label_dtype(labels: NDArray[Any]) -> NDArray[Any]:
    try:
        return _whole_numbers(labels, "labels")
    except UserError as error:
        raise ValueError(error.message) from error
