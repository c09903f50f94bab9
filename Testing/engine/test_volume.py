"""Geometry and files: from any orientation to the canonical axes and back, and to disk and back."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from pgpsam.errors import UserError
from pgpsam.labels import ABDOMEN
from pgpsam.volume import Grid, Volume, read_labels, read_labels_on, read_volume, write_array

# The specification's volume: 11 x 9 x 8 voxels of 1 x 2 x 3 mm in canonical (x, y, z). Index (0, 0, 0) lies
# at RAS (20, 30, -40); x steps to the left (-R), y to the back (-A), z up (+S). The bright voxel at (2, 5, 6)
# therefore lies at RAS (20 - 2*1, 30 - 5*2, -40 + 6*3) = (18, 20, -22).
CANONICAL_AFFINE = np.array([[-1, 0, 0, 20], [0, -2, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1]], dtype=np.float64)
MARK_ZYX = (6, 5, 2)
MARK_RAS = (18.0, 20.0, -22.0)
ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(["LR", "AP", "IS"]) for codes in itertools.product(*order)
]
EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")


def canonical_array() -> NDArray[np.int16]:
    """``[z, y, x]``: no two voxels alike, so that no permutation or flip goes unseen."""
    array = np.arange(8 * 9 * 11, dtype=np.int16).reshape(8, 9, 11)
    array[MARK_ZYX] = 3000
    return array


def in_orientation(codes: str) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The same image along other axes: ``[k, j, i]`` and the affine of ``(i, j, k)``, turned by nibabel."""
    image = nib.Nifti1Image(canonical_array().transpose(2, 1, 0), CANONICAL_AFFINE)
    start = nib.orientations.axcodes2ornt("LPS")
    turned = image.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(codes)))
    return np.asarray(turned.dataobj).transpose(2, 1, 0), turned.affine


def rotation(degrees: float) -> NDArray[np.float64]:
    """About the patient's left-right axis, as a tilted table would."""
    turn = np.eye(4)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[1:3, 1:3] = [[cosine, -sine], [sine, cosine]]
    return turn


def volume(codes: str = "LPS") -> Volume:
    return Volume.from_kji(*in_orientation(codes), name="spec")


def labels_of(image: Volume) -> NDArray[np.uint8]:
    """A liver and a spleen ``[z, y, x]``."""
    labels = np.zeros(image.shape, dtype=np.uint8)
    labels[1:3, 2:5, 1:4] = 6
    labels[2:4, 5:8, 7:9] = 1
    return labels


# ------------------------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_comes_to_the_same_canonical_volume_and_back(codes: str) -> None:
    array, affine = in_orientation(codes)
    image = Volume.from_kji(array, affine)
    assert image.array.dtype == np.float32
    assert image.array.flags.c_contiguous
    np.testing.assert_array_equal(image.array, canonical_array())
    np.testing.assert_array_equal(image.affine, CANONICAL_AFFINE)
    z, y, x = np.unravel_index(int(image.array.argmax()), image.shape)
    assert (z, y, x) == MARK_ZYX
    assert tuple((image.affine @ [x, y, z, 1])[:3]) == MARK_RAS
    np.testing.assert_array_equal(image.restore(image.array), array)
    np.testing.assert_array_equal(image.grid.to_source(image.grid.to_canonical(array)), array)


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


def test_spacing_shape_and_voxel_volume_are_canonical() -> None:
    image = volume("SAR")
    assert image.grid.shape == (11, 9, 8)  # a sagittal stack: k runs along x
    assert image.shape == (8, 9, 11)
    assert image.spacing == (1.0, 2.0, 3.0)
    assert image.voxel_ml == pytest.approx(0.006)


def test_an_oblique_volume_keeps_its_own_voxels_along_the_nearest_axes() -> None:
    array, affine = in_orientation("RSA")  # coronal, then tilted by 20 degrees
    tilted = rotation(20) @ affine
    image = Volume.from_kji(array, tilted)
    np.testing.assert_array_equal(image.array, canonical_array())
    np.testing.assert_allclose(image.affine, rotation(20) @ CANONICAL_AFFINE, atol=1e-12)
    np.testing.assert_allclose((image.affine @ [2, 5, 6, 1])[:3], (rotation(20) @ [*MARK_RAS, 1])[:3])
    np.testing.assert_array_equal(image.grid.affine, tilted)
    assert image.spacing == pytest.approx((1.0, 2.0, 3.0))


def test_a_tilt_over_45_degrees_changes_which_stack_is_the_axial_one() -> None:
    image = Volume.from_kji(canonical_array(), rotation(60) @ CANONICAL_AFFINE)
    assert image.shape == (9, 8, 11)


def test_a_single_slice_is_a_volume() -> None:
    image = Volume.from_kji(canonical_array()[:1], CANONICAL_AFFINE)
    assert image.shape == (1, 9, 11)
    np.testing.assert_array_equal(image.restore(image.array), canonical_array()[:1])


def test_restore_keeps_the_dtype_and_any_leading_axis() -> None:
    array, affine = in_orientation("PIR")
    image = Volume.from_kji(array, affine)
    organs = np.stack([image.array > 100, image.array > 200])
    restored = image.restore(organs)
    assert restored.dtype == bool
    np.testing.assert_array_equal(restored, np.stack([array > 100, array > 200]))


def test_an_array_of_another_grid_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="does not lie on a grid"):
        volume().restore(np.zeros((8, 9, 10)))
    with pytest.raises(ValueError, match="does not lie on a grid"):
        volume().grid.to_canonical(np.zeros((9, 8, 11)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.float64])
def test_any_real_number_type_is_taken(dtype: type) -> None:
    array = (canonical_array() % 100).astype(dtype)
    np.testing.assert_array_equal(Volume.from_kji(array, CANONICAL_AFFINE).array, array)


# --------------------------------------------------------------------------------- arrays that are no volumes


def _with(value: float, count: int = 1) -> NDArray[np.float32]:
    array = canonical_array().astype(np.float32)
    array[2, 3, 4 : 4 + count] = value
    return array


def _affine(**changes: Any) -> NDArray[np.float64]:
    affine = CANONICAL_AFFINE.copy()
    for place, value in changes.items():
        affine[int(place[1]), int(place[2])] = value
    return affine


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 9, 11, 3)), "3 frames or components"),
        (np.zeros((9, 11)), "2 axes"),
        (np.zeros((0, 9, 11)), r"empty \(11 x 9 x 0 voxels\)"),
        (_with(np.nan, 3), r"3 of 792 voxels .* \(i, j, k\) = \(4, 3, 2\)"),
        (_with(-np.inf), r"1 of 792 voxels"),
        (np.where(_with(0) > 0, 1e300, 0.0), "infinite"),
        (np.full((8, 9, 11), -1024), "every voxel is -1024: not an image"),
        (canonical_array()[:, :, :7], r"axial slices are 7 x 9 voxels, too small .* at least 8"),
        (canonical_array() > 5, "type bool, not real numbers"),
        (canonical_array() * 1j, "type complex128"),
        (canonical_array().astype(str), "not real numbers"),
    ],
)
def test_an_array_that_is_no_volume_is_refused_in_one_line(array: NDArray[Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Volume.from_kji(array, CANONICAL_AFFINE, "scan 7")
    assert str(caught.value).startswith("scan 7: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), r"shape \(3, 3\)"),
        (_affine(a00=np.nan), "not finite"),
        (_affine(a22=0), "can't be inverted .*1 x 2 x 0 mm"),
        (_affine(a01=-2, a11=0), "can't be inverted"),
        (_affine(a33=2), "can't be inverted"),
        (_affine(a12=0.5), r"sheared \(80.5 degrees"),
    ],
)
def test_a_faulty_affine_is_refused_in_one_line(affine: NDArray[np.float64], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Volume.from_kji(canonical_array(), affine)


# -------------------------------------------------------------------------------------- files, there and back


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAR"])
def test_labels_come_back_on_the_same_grid(tmp_path: Path, extension: str, codes: str) -> None:
    image = volume(codes)
    labels = labels_of(image)
    write_array(tmp_path / f"out{extension}", labels, image, "labels", ABDOMEN)
    array, affine, _ = read_labels(tmp_path / f"out{extension}")
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, image.restore(labels))
    np.testing.assert_allclose(affine, image.grid.affine, atol=1e-5)
    np.testing.assert_array_equal(read_labels_on(image, tmp_path / f"out{extension}"), labels)
    assert [file.name for file in tmp_path.iterdir()] == [f"out{extension}"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_oblique_grid_survives_every_format(tmp_path: Path, extension: str) -> None:
    array, affine = in_orientation("ASL")
    image = Volume.from_kji(array, rotation(-17) @ affine)
    write_array(tmp_path / f"out{extension}", labels_of(image), image, "labels")
    np.testing.assert_array_equal(read_labels_on(image, tmp_path / f"out{extension}"), labels_of(image))


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_confidence_is_written_as_float32_and_reads_as_a_volume(tmp_path: Path, extension: str) -> None:
    image = volume("PIR")
    confidence = np.linspace(0, 1, 8 * 9 * 11).reshape(image.shape)
    write_array(tmp_path / f"out{extension}", confidence, image, "confidence")
    back = read_volume(tmp_path / f"out{extension}")
    assert back.name == "out"
    assert back.grid.shape == image.grid.shape
    np.testing.assert_array_equal(back.array, confidence.astype(np.float32))
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-5)


def test_ids_over_255_are_written_as_uint16(tmp_path: Path) -> None:
    image = volume()
    labels = np.where(image.array > 2000, 256, 0)
    write_array(tmp_path / "out.nii.gz", labels, image, "labels")
    array, _, _ = read_labels(tmp_path / "out.nii.gz")
    assert array.dtype == np.uint16
    assert array[MARK_ZYX] == 256


@pytest.mark.parametrize("bad", [-1.0, 0.5, 70000.0, np.nan])
def test_labels_that_are_no_ids_are_a_programming_error(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="labels"):
        write_array(tmp_path / "out.nii.gz", np.full((8, 9, 11), bad), volume(), "labels")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sform", "qform"), [(2, 1), (1, 0), (0, 1), (0, 0)])
def test_a_nifti_result_repeats_the_sources_forms_bit_for_bit(tmp_path: Path, sform: int, qform: int) -> None:
    image = nib.Nifti1Image(canonical_array().transpose(2, 1, 0), None)
    image.header.set_zooms((1.1, 2.2, 3.3))
    image.set_qform(rotation(13) @ CANONICAL_AFFINE, code=qform)
    image.set_sform(rotation(12.9) @ CANONICAL_AFFINE, code=sform)
    image.header["cal_max"] = 400
    nib.save(image, tmp_path / "in.nii.gz")
    source = read_volume(tmp_path / "in.nii.gz")
    write_array(tmp_path / "out.nii.gz", labels_of(source), source, "labels")

    before, after = nib.load(tmp_path / "in.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    for field in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "quatern_c",
        "quatern_d",
    ):
        np.testing.assert_array_equal(after.header[field], before.header[field])
    np.testing.assert_array_equal(after.header["pixdim"], before.header["pixdim"])
    assert after.header.get_data_dtype() == np.uint8
    assert after.header["cal_max"] == 0


def test_a_nifti_file_without_an_orientation_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nib.save(nib.Nifti1Image(canonical_array().transpose(2, 1, 0), None), tmp_path / "in.nii")
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        read_volume(tmp_path / "in.nii")
    assert "left and right can't be told from the file, nor anterior and posterior" in caplog.text


def test_a_nifti_file_without_a_spacing_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "in.nii"
    image = nib.Nifti1Image(canonical_array().transpose(2, 1, 0), None)
    image.set_qform(CANONICAL_AFFINE, code=1)
    nib.save(image, path)
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        assert np.diag(read_labels(path)[1]).tolist() == [-1, -2, 3, 1]
        assert caplog.messages == []
        whole = path.read_bytes()
        path.write_bytes(whole[:88] + bytes(4) + whole[92:])  # pixdim[3]
        assert np.diag(read_labels(path)[1]).tolist() == [-1, -2, 1, 1]
    ours = [record.message for record in caplog.records if record.name.startswith("pgpsam")]  # nibabel's has no name
    assert ours == [f"{path} says nothing of its voxel spacing: it is taken as 1 mm"]


def _with_two_forms(path: Path, sform: int, qform: int, **changes: Any) -> Path:
    """A file whose qform differs from its sform in some places; a code of 0 says that a form is not meant."""
    image = nib.Nifti1Image(canonical_array().transpose(2, 1, 0), None)
    image.set_qform(_affine(**changes), code=qform)
    image.set_sform(CANONICAL_AFFINE, code=sform)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    "changes",
    [{"a00": 1, "a03": 10}, {"a23": 10}, {"a22": 5}],
    ids=["left and right", "origin", "spacing"],
)
def test_a_nifti_file_that_slicer_puts_elsewhere_is_refused(tmp_path: Path, changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"two places \(sform, and qform or spacing\), up to \S+ mm apart"):
        read_volume(_with_two_forms(tmp_path / "in.nii.gz", 2, 1, **changes))


@pytest.mark.parametrize(("sform", "qform", "shift"), [(1, 1, 50), (2, 0, 50), (2, 1, 0.5)])
def test_forms_that_itk_takes_as_we_do_or_that_agree_are_accepted(
    tmp_path: Path, sform: int, qform: int, shift: float
) -> None:
    path = _with_two_forms(tmp_path / "in.nii.gz", sform, qform, a23=-40 + shift)
    itk = sitk.ReadImage(path)
    assert itk.GetOrigin()[2] == pytest.approx(-40, abs=0.5)
    np.testing.assert_array_equal(read_volume(path).affine, CANONICAL_AFFINE)


def test_nifti_scaling_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(canonical_array().transpose(2, 1, 0), CANONICAL_AFFINE)
    image.header.set_slope_inter(0.5, -1000)
    nib.save(image, tmp_path / "in.nii.gz")
    stored = nib.load(tmp_path / "in.nii.gz")
    assert (stored.dataobj.slope, stored.dataobj.inter) == (0.5, -1000)
    np.testing.assert_array_equal(read_volume(tmp_path / "in.nii.gz").array, canonical_array() * 0.5 - 1000)


def test_trailing_axes_of_one_are_no_fourth_dimension(tmp_path: Path) -> None:
    data = canonical_array().transpose(2, 1, 0)[..., np.newaxis]
    nib.save(nib.Nifti1Image(data, CANONICAL_AFFINE), tmp_path / "in.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "in.nii.gz").array, canonical_array())


def test_a_slicer_segmentation_carries_names_colours_and_codes(tmp_path: Path) -> None:
    image = volume("RAS")
    write_array(tmp_path / "out.seg.nrrd", labels_of(image), image, "labels", ABDOMEN)
    assert read_labels(tmp_path / "out.seg.nrrd")[2] == {1: "spleen", 6: "liver"}
    stored = sitk.ReadImage(tmp_path / "out.seg.nrrd")
    assert stored.GetMetaData("Segment1_LabelValue") == "6"
    assert stored.GetMetaData("Segment1_Color") == "0.866667 0.509804 0.396078"
    assert stored.GetMetaData("Segment1_Tags") == f"TerminologyEntry:{ABDOMEN.by_name('liver').terminology}|"
    assert stored.GetMetaData("Segment1_Extent") == "7 9 4 6 1 2"  # x 1..3 of 11 and y 2..4 of 9, both flipped


def layered_segmentation(path: Path, layers: NDArray[np.uint8], segments: Sequence[tuple[str, int, int]]) -> Path:
    """A file as Slicer saves several layers ``[k, j, i, layer]``; segments are (name, value, layer)."""
    k, j, i, count = layers.shape
    fields = [
        f"Segment{number}_{key}:={text}"
        for number, (name, value, layer) in enumerate(segments)
        for key, text in (("ID", f"S{number}"), ("Name", name), ("LabelValue", value), ("Layer", layer))
    ]
    header = [
        "NRRD0004",
        "type: unsigned char",
        "dimension: 4",
        "space: left-posterior-superior",
        f"sizes: {count} {i} {j} {k}",
        "space directions: none (1,0,0) (0,2,0) (0,0,3)",
        "kinds: list domain domain domain",
        "encoding: raw",
        "space origin: (-20,-30,-40)",
        *fields,
    ]
    path.write_bytes("\n".join(header).encode() + b"\n\n" + layers.tobytes())
    return path


def test_layers_that_do_not_overlap_become_one_label_map(tmp_path: Path) -> None:
    layers = np.zeros((8, 9, 11, 2), dtype=np.uint8)
    layers[1, 2, 3, 0] = 1
    layers[4, 5, 6, 1] = 1
    path = layered_segmentation(tmp_path / "two.seg.nrrd", layers, [("liver", 1, 0), ("spleen", 1, 1)])
    array, affine, names = read_labels(path)
    assert names == {1: "liver", 2: "spleen"}
    assert (array[1, 2, 3], array[4, 5, 6], np.count_nonzero(array)) == (1, 2, 2)
    np.testing.assert_array_equal(affine, CANONICAL_AFFINE)


def test_layers_keep_their_values_where_these_differ(tmp_path: Path) -> None:
    layers = np.zeros((8, 9, 11, 2), dtype=np.uint8)
    layers[1, 2, 3, 0] = 6
    layers[4, 5, 6, 1] = 1
    path = layered_segmentation(tmp_path / "two.seg.nrrd", layers, [("liver", 6, 0), ("spleen", 1, 1)])
    array, _, names = read_labels(path)
    assert names == {6: "liver", 1: "spleen"}
    assert (array[1, 2, 3], array[4, 5, 6]) == (6, 1)


def test_fields_in_another_encoding_do_no_harm(tmp_path: Path) -> None:
    image = volume()
    write_array(tmp_path / "out.seg.nrrd", labels_of(image), image, "labels", ABDOMEN)
    data = (tmp_path / "out.seg.nrrd").read_bytes()
    data = data.replace(b"Segment1_Name:=liver", "Segment1_Name:=Léber\nÄrztin:=Müller".encode("latin-1"))
    (tmp_path / "out.seg.nrrd").write_bytes(data)
    assert read_labels(tmp_path / "out.seg.nrrd")[2] == {1: "spleen", 6: "L?ber"}


def test_segments_that_slicer_cropped_are_put_back_where_they_lie(tmp_path: Path) -> None:
    image = volume("RAS")
    labels = labels_of(image)
    first = np.eye(4)
    first[:3, 3] = (1, 1, 1)
    part = Volume.from_kji(image.array[1:4, 1:, 1:], image.affine @ first)
    write_array(tmp_path / "part.seg.nrrd", labels[1:4, 1:, 1:], part, "labels", ABDOMEN)
    np.testing.assert_array_equal(read_labels_on(image, tmp_path / "part.seg.nrrd"), labels)
    first[0, 3] = 1.4
    between = Volume.from_kji(image.array[1:4, 1:, 1:], image.affine @ first)
    write_array(tmp_path / "between.seg.nrrd", labels[1:4, 1:, 1:], between, "labels", ABDOMEN)
    with pytest.raises(UserError, match="10 x 8 x 3 voxels, but spec has"):
        read_labels_on(image, tmp_path / "between.seg.nrrd")


def test_layers_that_overlap_are_refused_by_name(tmp_path: Path) -> None:
    layers = np.ones((8, 9, 11, 2), dtype=np.uint8)
    path = layered_segmentation(tmp_path / "two.seg.nrrd", layers, [("liver", 1, 0), ("tumour", 1, 1)])
    with pytest.raises(UserError, match="'liver' and 'tumour' overlap"):
        read_labels(path)


# -------------------------------------------------------------------------------------- labels on their image


def test_labels_stored_along_other_axes_are_accepted(tmp_path: Path) -> None:
    stored = volume("SLA")
    write_array(tmp_path / "labels.nrrd", labels_of(stored), stored, "labels")
    np.testing.assert_array_equal(read_labels_on(volume("RAS"), tmp_path / "labels.nrrd"), labels_of(stored))


def test_float_labels_of_whole_numbers_are_accepted(tmp_path: Path) -> None:
    data = labels_of(volume()).transpose(2, 1, 0).astype(np.float64)
    nib.save(nib.Nifti1Image(data, CANONICAL_AFFINE), tmp_path / "labels.nii.gz")
    labels = read_labels_on(volume(), tmp_path / "labels.nii.gz")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, labels_of(volume()))


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((8, 9, 10), CANONICAL_AFFINE, "10 x 9 x 8 voxels, but spec has 11 x 9 x 8"),
        ((8, 9, 11), _affine(a22=2.5), "spacing is 1 x 2 x 2.5 mm, but spec has 1 x 2 x 3 mm"),
        ((8, 9, 11), _affine(a03=21), "origin differs .* 1 mm apart"),
        ((8, 9, 11), rotation(5) @ CANONICAL_AFFINE, "orientation differs"),
    ],
)
def test_labels_of_another_grid_are_refused_with_what_differs(
    tmp_path: Path, shape: tuple[int, int, int], affine: NDArray[np.float64], message: str
) -> None:
    data = np.zeros(shape[::-1], dtype=np.uint8)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "labels.nii.gz")
    with pytest.raises(UserError, match=message):
        read_labels_on(volume(), tmp_path / "labels.nii.gz")


@pytest.mark.parametrize(("value", "message"), [(0.5, "not whole numbers"), (-1, "from -1"), (1e6, "0 to 65535")])
def test_values_that_are_no_labels_are_refused(tmp_path: Path, value: float, message: str) -> None:
    data = np.zeros((11, 9, 8), dtype=np.float32)
    data[3, 4, 5] = value
    nib.save(nib.Nifti1Image(data, CANONICAL_AFFINE), tmp_path / "labels.nii.gz")
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "labels.nii.gz")


# ----------------------------------------------------------------------------------- files that can't be read


def _nifti(data: NDArray[Any], affine: NDArray[np.float64] = CANONICAL_AFFINE) -> Any:
    return nib.Nifti1Image(data, affine)


def _truncated(path: Path) -> None:
    whole = path.with_name(f"whole-{path.name}")
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(_nifti(canonical_array().transpose(2, 1, 0)), whole)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(canonical_array()), whole)
    path.write_bytes(whole.read_bytes()[:-200])


def _text(path: Path) -> None:
    path.write_text("not an image at all\n" * 40)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _four_axes(path: Path) -> None:
    if path.name.endswith(".nii.gz"):
        nib.save(_nifti(np.zeros((11, 9, 8, 5), dtype=np.int16)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 8, 9, 11), dtype=np.int16), isVector=False), path)


def _vector(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((8, 9, 11, 5), dtype=np.int16), isVector=True), path)


def _two_axes(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 11), dtype=np.int16)), path)


def _colour(path: Path) -> None:
    rgb = np.zeros((11, 9, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(_nifti(rgb), path)


def _complex(path: Path) -> None:
    nib.save(_nifti((canonical_array() * 1j).transpose(2, 1, 0).astype(np.complex64)), path)


def _sheared(path: Path) -> None:
    nib.save(_nifti(canonical_array().transpose(2, 1, 0), _affine(a12=0.5)), path)


def _metres(path: Path) -> None:
    image = _nifti(canonical_array().transpose(2, 1, 0))
    image.header.set_xyzt_units("meter")
    nib.save(image, path)


def _giant(path: Path) -> None:
    header = nib.Nifti1Header()
    header["dim"] = [3, 30000, 30000, 30000, 1, 1, 1, 1]
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock + bytes(400))


def _with_nan(path: Path) -> None:
    nib.save(_nifti(_with(np.nan).transpose(2, 1, 0)), path)


def _missing(path: Path) -> None:
    assert not path.exists()


def _folder(path: Path) -> None:
    (path / "below" / "deeper").mkdir(parents=True)
    (path / "notes.txt").write_text("no images here")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("in.nii.gz", _missing, "does not exist"),
        ("in.nii.gz", _text, "can't be read"),
        ("in.nii", _text, "can't be read"),
        ("in.nrrd", _text, "can't be read"),
        ("in.mha", _text, "can't be read"),
        ("in.nii.gz", _empty, "can't be read"),
        ("in.nrrd", _empty, "can't be read"),
        ("in.nii.gz", _truncated, "can't be read"),
        ("in.nii", _truncated, "can't be read"),
        ("in.nrrd", _truncated, "can't be read"),
        ("in.mha", _truncated, "can't be read"),
        ("in.nii", _giant, "header claims 30000 x 30000 x 30000"),
        ("in.png", _text, "not in a format that can be read"),
        ("in.dcm", _text, "a folder with one DICOM series"),
        ("in.seg.nrrd", _text, "a segmentation, not an image"),
        ("in.nii.gz", _four_axes, "5 frames or components"),
        ("in.nrrd", _four_axes, "5 frames or components"),
        ("in.mha", _vector, "5 frames or components"),
        ("in.nrrd", _two_axes, "2 axes"),
        ("in.nii.gz", _colour, "colour image"),
        ("in.nii.gz", _complex, "not real numbers"),
        ("in.nii.gz", _sheared, "sheared"),
        ("in.nii.gz", _metres, "in metres"),
        ("in.nii.gz", _with_nan, "1 of 792 voxels are NaN"),
        ("in", _folder, "holds no DICOM images"),
        ("in.nii.gz", _folder, "holds no DICOM images"),
    ],
)
def test_what_can_not_be_read_is_said_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        read_volume(tmp_path / name)
    assert "\n" not in str(caught.value)


@contextmanager
def as_another_user() -> Iterator[None]:
    """Root may read everything, so it becomes somebody else meanwhile."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_what_the_user_may_not_read_is_not_called_damaged() -> None:
    with TemporaryDirectory() as parent:  # not pytest's, which others cannot even enter
        os.chmod(parent, 0o755)
        file, series = Path(parent, "in.nii.gz"), Path(parent, "series")
        nib.save(_nifti(NOISE), file)
        series.mkdir()
        (series / "1.dcm").write_bytes(b"no image, but who knows")
        for path in (file, series / "1.dcm"):
            path.chmod(0)
        for path, culprit in ((file, file), (series, series / "1.dcm")):
            with as_another_user(), pytest.raises(UserError) as caught:
                read_volume(path)
            assert caught.value.message == f"{culprit} can't be read: Permission denied"
            assert caught.value.hint == "Check its permissions, and that its drive is connected"


# A volume of noise: a bit that flips in it leaves a stream that can be decompressed to the end.
NOISE = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 11)).astype(np.int16)


def _compressed(path: Path) -> Path:
    """Writes the noise; returns the file that holds the compressed voxels."""
    if path.name.endswith(".nii.gz"):
        nib.save(_nifti(NOISE.transpose(2, 1, 0)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(NOISE), path, useCompression=True)
    return {".mhd": path.with_suffix(".zraw"), ".nhdr": path.with_suffix(".raw.gz")}.get(path.suffix, path)


@pytest.mark.parametrize("name", ["in.nii.gz", "in.nrrd", "in.nhdr", "in.mha", "in.mhd"])
def test_compressed_voxels_that_are_damaged_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = _compressed(path)
    whole = data.read_bytes()
    np.testing.assert_array_equal(np.sort(read_volume(path).array, axis=None), np.sort(NOISE, axis=None))
    for byte in range(len(whole) - 600, len(whole) - 8, 60):
        data.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :])
        with pytest.raises(UserError, match="can't be read"):
            read_volume(path)
    for missing in (1, 4, 8, 100):
        data.write_bytes(whole[:-missing])
        with pytest.raises(UserError, match="can't be read"):
            read_volume(path)


def _plain_text_header(path: Path, *fields: str) -> Path:
    """A NRRD or MetaImage file of the canonical array with nothing in its header but what is needed and the fields."""
    if path.suffix == ".nrrd":
        head = ["NRRD0005", "type: short", "dimension: 3", "sizes: 11 9 8", "endian: little", "encoding: raw"]
        tail = ["", ""]
    else:
        head = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False"]
        tail = ["DimSize = 11 9 8", "ElementType = MET_SHORT", "ElementDataFile = LOCAL", ""]
    path.write_bytes("\n".join([*head, *fields, *tail]).encode() + canonical_array().tobytes())
    return path


NRRD_PLACE = ("space: left-posterior-superior", "space directions: (1,0,0) (0,2,0) (0,0,3)", "space origin: (0,0,0)")


@pytest.mark.parametrize(
    ("name", "fields", "unit"),
    [
        ("in.nrrd", (*NRRD_PLACE, 'space units: "m" "m" "m"'), "m"),
        ("in.nrrd", (*NRRD_PLACE, 'space units: "cm" "cm" "cm"'), "cm"),
        ("in.nrrd", ("spacings: 1 2 3", 'units: "um" "um" "um"'), "um"),
        ("in.mha", ("ElementSpacing = 1 2 3", "DistanceUnits = cm"), "cm"),
    ],
)
def test_other_units_than_mm_are_refused(tmp_path: Path, name: str, fields: tuple[str, ...], unit: str) -> None:
    with pytest.raises(UserError, match=f"its header is in {unit}. Convert it to mm"):
        read_volume(_plain_text_header(tmp_path / name, *fields))


@pytest.mark.parametrize(
    ("name", "fields", "unsaid"),
    [
        ("in.nrrd", (*NRRD_PLACE, 'space units: "mm" "mm" "mm"', "spacing:=not said"), []),
        ("in.nrrd", ("spacings: 1 2 3",), ["orientation"]),
        ("in.nrrd", (), ["voxel spacing", "orientation"]),
        ("in.mha", ("ElementSpacing = 1 2 3", "TransformMatrix = 1 0 0 0 1 0 0 0 1"), []),
        ("in.mha", ("ElementSpacing = 1 2 3",), ["orientation"]),
        ("in.mha", (), ["voxel spacing", "orientation"]),
    ],
)
def test_what_a_header_does_not_say_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, fields: tuple[str, ...], unsaid: list[str]
) -> None:
    path = _plain_text_header(tmp_path / name, *fields)
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        read_labels(path)
    begin = [f"{path} says nothing of its {what}: " for what in unsaid]
    assert len(caplog.messages) == len(begin)
    assert all(message.startswith(start) for message, start in zip(caplog.messages, begin, strict=True))


@pytest.mark.parametrize(
    ("low", "high", "what"),
    [
        (0, 3000, "stored values"),
        (-2000, 3000, "stored values"),  # a scanner's padding around the field of view
        (0, 255, "grey levels or labels"),
        (0, 13, "grey levels or labels"),
        (-1, 3000, ""),
        (0, 400, ""),
        (-125, 275, ""),  # a volume that was rebuilt from a window
        (-1000, 255, ""),
    ],
)
def test_values_that_are_no_hu_are_warned_of(caplog: pytest.LogCaptureFixture, low: int, high: int, what: str) -> None:
    array = np.clip(canonical_array(), 0, high)
    array[0, 0, :2] = low, 0
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        Volume.from_kji(array, CANONICAL_AFFINE, "scan 7")
    said = f"scan 7: its values run from 0 to {high}: they look like {what}, not HU"
    assert caplog.messages == ([said] if what else [])


def latin1(name: str) -> str:
    """A name as an old CD has it, the way Python holds it."""
    return os.fsdecode(name.encode("latin-1"))


NAMED_FILE = """
import os, sys
from pgpsam.errors import UserError
from pgpsam.volume import read_volume
try:
    read_volume(os.fsdecode(bytes.fromhex(sys.argv[1])))
except UserError as error:
    print(ascii(str(error)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("where", ["folder", "file in a folder", "nrrd"])
def test_a_name_in_another_encoding_is_refused_before_it_ends_the_process(tmp_path: Path, where: str) -> None:
    path = tmp_path / (latin1("für") if where == "folder" else "for")
    if where == "nrrd":
        path = tmp_path / latin1("für.nrrd")
        _plain_text_header(tmp_path / "in.nrrd", *NRRD_PLACE).rename(path)
    else:
        write_dicom(tmp_path / "series", stack(4)).rename(path)
    if where == "file in a folder":
        next(path.iterdir()).rename(path / latin1("ä.dcm"))
    run = [sys.executable, "-c", NAMED_FILE, os.fsencode(path).hex()]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has a name in another encoding than UTF-8. Rename it" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_nifti_file_of_such_a_name_is_read(tmp_path: Path) -> None:
    nib.save(_nifti(canonical_array().transpose(2, 1, 0)), tmp_path / "in.nii.gz")
    (tmp_path / "in.nii.gz").rename(tmp_path / latin1("für.nii.gz"))
    np.testing.assert_array_equal(read_volume(tmp_path / latin1("für.nii.gz")).array, canonical_array())


# -------------------------------------------------------------------------------- files that can't be written


def test_an_unknown_extension_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.nii\.gz, \.nii, \.nrrd, \.seg\.nrrd, \.mha"):
        write_array(tmp_path / "out.png", labels_of(volume()), volume(), "labels")


def test_confidence_is_no_segmentation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds segments, not confidence"):
        write_array(tmp_path / "out.seg.nrrd", np.zeros((8, 9, 11)), volume(), "confidence")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_missing_folder_is_a_user_error(tmp_path: Path, extension: str) -> None:
    with pytest.raises(UserError, match="can't be written"):
        write_array(tmp_path / "missing" / f"out{extension}", labels_of(volume()), volume(), "labels")


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pgpsam.errors import UserError
from pgpsam.volume import Volume, write_array

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
random = np.random.default_rng(0)
volume = Volume.from_kji(random.normal(size=(10, 64, 64)), np.eye(4))
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
for path in sys.argv[1:]:
    try:
        write_array(path, random.integers(0, 255, (10, 64, 64)), volume, "labels")
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system can't limit the size of files")
def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    paths = [tmp_path / f"out{extension}" for extension in EXTENSIONS]
    for path in paths:
        path.write_text("the result of yesterday")
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *paths], capture_output=True, text=True, check=True)
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [f"{p} can't be written" for p in paths]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert {path.read_text() for path in paths} == {"the result of yesterday"}


# ------------------------------------------------------------------------------------------------------ DICOM


def write_dicom(
    folder: Path,
    positions: Sequence[Sequence[float]],
    *,
    series: str = "1.2.3.4",
    columns: int = 12,
    description: str = "Abdomen",
    orientation: str = "1\\0\\0\\0\\1\\0",
    **tags: str,
) -> Path:
    """A CT series of 10 rows; slice k holds the value 10 k + 2 everywhere but for its first pixel, -1000."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, position in enumerate(positions):
        pixels = np.full((1, 10, columns), 10 * k + 2, dtype=np.int16)
        pixels[0, 0, 0] = -1000
        image = sitk.GetImageFromArray(pixels)
        image.SetSpacing((0.5, 0.75, 3.0))
        fields = {
            "0008|0060": "CT",
            "0008|103e": description,
            "0018|0050": "3",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0020|0032": "\\".join(f"{mm:.4f}" for mm in position),
            "0020|0037": orientation,
            "0028|1052": "-1024",
            "0028|1053": "2",
            **{key.replace("_", "|"): text for key, text in tags.items()},
        }
        for key, text in fields.items():
            image.SetMetaData(key, text)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        # Names run against the positions, as a scanner's may.
        writer.SetFileName(str(folder / f"{series}-{999 - k}.dcm"))
        writer.Execute(image)
    return folder


def stack(count: int, step: float = 2.5) -> list[tuple[float, float, float]]:
    return [(-10.0, -20.0, 100.0 + step * k) for k in range(count)]


def test_a_dicom_series_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    image = read_volume(write_dicom(tmp_path / "series", stack(5)))
    assert (image.name, image.shape, image.spacing) == ("series", (5, 10, 12), (0.5, 0.75, 2.5))
    np.testing.assert_array_equal(image.array[:, 5, 5], [2, 12, 22, 32, 42])
    np.testing.assert_array_equal(image.array[:, 0, 0], -1000)
    # DICOM's (-10, -20, 100) in LPS is (10, 20, 100) in RAS.
    expected = [[-0.5, 0, 0, 10], [0, -0.75, 0, 20], [0, 0, 2.5, 100], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)


def test_a_series_one_folder_down_is_found(tmp_path: Path) -> None:
    write_dicom(tmp_path / "export" / "series", stack(4))
    (tmp_path / "export" / "viewer").mkdir()
    assert read_volume(tmp_path / "export").shape == (4, 10, 12)


SCOUT = {"series": "1.2.3.5", "description": "Topogram", "orientation": "1\\0\\0\\0\\0\\-1"}


@pytest.mark.parametrize("below", [False, True], ids=["beside", "above"])
def test_a_localizer_beside_or_above_the_scan_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, below: bool
) -> None:
    write_dicom(tmp_path / "scan" if below else tmp_path, stack(6), series="1.2.3.4")
    write_dicom(tmp_path, stack(1), **SCOUT)
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        assert read_volume(tmp_path).shape == (6, 10, 12)
    said = "'Abdomen' (6 images) is taken, and 'Topogram' (1 images) is left out, as it is no part of that stack"
    assert caplog.messages == [f"{tmp_path}: {said}"]


@pytest.mark.parametrize("place", ["", "rest"], ids=["by number", "by folder"])
def test_the_rest_of_a_scan_in_a_series_of_its_own_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    write_dicom(tmp_path / ("first" if place else ""), stack(20)[:17], series="1.2.3.4")
    write_dicom(tmp_path / place, stack(20)[17:], series="1.2.3.5")
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        assert read_volume(tmp_path).shape == (17, 10, 12)
    assert "'Abdomen' (3 images) is left out, though it continues the stack: the scan may be cut short" in caplog.text


def test_a_folder_of_other_files_asks_for_the_files(tmp_path: Path) -> None:
    write_array(tmp_path / "ct.nii.gz", canonical_array().astype(np.float32), volume(), "confidence")
    with pytest.raises(UserError, match=r"holds no DICOM images\. .*name files of other formats one by one"):
        read_volume(tmp_path)


def test_a_single_dicom_image_takes_its_thickness_as_spacing(tmp_path: Path) -> None:
    assert read_volume(write_dicom(tmp_path, stack(1))).spacing == (0.5, 0.75, 3.0)


def test_positions_rounded_by_the_scanner_are_an_even_stack(tmp_path: Path) -> None:
    rounded = [(-10.0, -20.0, round(0.75 * k + 0.01, 1)) for k in range(9)]
    assert read_volume(write_dicom(tmp_path, rounded)).spacing == pytest.approx((0.5, 0.75, 0.75))


def test_dicom_labels_repeat_its_grid(tmp_path: Path) -> None:
    image = read_volume(write_dicom(tmp_path / "series", stack(5)))
    labels = (image.array > 20).astype(np.uint8)
    write_array(tmp_path / "out.nii.gz", labels, image, "labels")
    np.testing.assert_array_equal(read_labels_on(image, tmp_path / "out.nii.gz"), labels)
    header = nib.load(tmp_path / "out.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"]), header.get_xyzt_units()[0]) == (1, 1, "mm")


def test_a_damaged_slice_at_the_end_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dicom(tmp_path, stack(5), columns=120)
    last = tmp_path / "1.2.3.4-995.dcm"
    last.write_bytes(last.read_bytes()[:-1500])
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        assert read_volume(tmp_path).shape == (4, 10, 120)
    assert "1 DICOM files hold no readable image: ['1.2.3.4-995.dcm']" in caplog.text


def _two_series(folder: Path) -> None:
    write_dicom(folder, stack(5), series="1.2.3.4", description="arterial")
    write_dicom(folder, stack(6), series="1.2.3.5", description="venous")


def _missing_slice(folder: Path) -> None:
    write_dicom(folder, stack(9)[:4] + stack(9)[6:])


def _uneven(folder: Path) -> None:
    write_dicom(folder, [*stack(5), (-10.0, -20.0, 113.25)])


def _two_phases(folder: Path) -> None:
    write_dicom(folder, stack(4) + stack(4))


def _mixed_sizes(folder: Path) -> None:
    write_dicom(folder, stack(4))
    write_dicom(folder / "more", stack(6)[4:], columns=14)
    for file in (folder / "more").iterdir():
        file.rename(folder / f"more-{file.name}")
    (folder / "more").rmdir()


def _tilted(folder: Path) -> None:
    write_dicom(folder, [(-10.0, -20.0 + 0.5 * k, 100.0 + 2.5 * k) for k in range(5)])


def _shifted(folder: Path) -> None:
    write_dicom(folder, [(x + (3.0 if k == 2 else 0.0), y, z) for k, (x, y, z) in enumerate(stack(5))])


def _mixed_orientations(folder: Path) -> None:
    _mixed_sizes(folder)
    for file in folder.glob("more-*"):
        file.unlink()
    write_dicom(folder / "more", stack(6)[4:], orientation="0\\1\\0\\0\\0\\-1")
    for file in (folder / "more").iterdir():
        file.rename(folder / f"more-{file.name}")


def _no_positions(folder: Path) -> None:
    position, other = b"\x20\x00\x32\x00", b"\x20\x00\x31\x00"  # tags (0020,0032) and (0020,0031)
    for file in write_dicom(folder, stack(4)).iterdir():
        assert file.read_bytes().count(position) == 1
        file.write_bytes(file.read_bytes().replace(position, other))


def _several_frames(folder: Path) -> None:
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(canonical_array().astype(np.uint16)), folder / "frames.dcm")


def _other_modality(folder: Path) -> None:
    write_dicom(folder, stack(5), **{"0008_0060": "MR"})


def _no_spacing(folder: Path) -> None:
    spacing, other = b"\x28\x00\x30\x00", b"\x28\x00\x31\x00"  # tags (0028,0030) and (0028,0031)
    for file in write_dicom(folder, stack(4)).iterdir():
        assert file.read_bytes().count(spacing) == 1
        file.write_bytes(file.read_bytes().replace(spacing, other))


def _one_file_twice(folder: Path) -> None:
    file = sorted(write_dicom(folder, stack(5)).iterdir())[2]
    (folder / "copy.dcm").write_bytes(file.read_bytes())


def _latin1_descriptions(folder: Path) -> None:
    write_dicom(folder, stack(5), series="1.2.3.4", description="fur Arzte")
    write_dicom(folder, stack(5), series="1.2.3.5")
    for file in folder.glob("1.2.3.4-*"):
        file.write_bytes(file.read_bytes().replace(b"fur Arzte", "für Ärzte".encode("latin-1")))


def _colour_slices(folder: Path) -> None:
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((1, 9, 11, 3), np.uint8), isVector=True), folder / "a.dcm")


def _truncated_slice(folder: Path) -> None:
    write_dicom(folder, stack(5), columns=120)
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-1500])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_two_series, r"2 DICOM series: 'arterial' \(5 images\), 'venous' \(6 images\)"),
        (_missing_slice, r"2 slice\(s\) are missing between 107.50 and 115.00 mm"),
        (_uneven, r"unevenly spaced \(2.5 mm as a rule, 3.25 mm between 110.00 and 113.25 mm"),
        (_two_phases, r"several images lie at one position \(100.00 mm"),
        (_one_file_twice, r"(copy.dcm and 1.2.3.4-997.dcm|1.2.3.4-997.dcm and copy.dcm) are the same image"),
        (_latin1_descriptions, "'für Ärzte' \\(5 images\\)"),
        (_other_modality, "its modality is MR, not CT"),
        (_no_spacing, "says nothing of its pixel spacing"),
        (_mixed_sizes, r"different sizes \(12 x 10, 14 x 10\)"),
        (_mixed_orientations, "differ in orientation or pixel spacing"),
        (_tilted, r"tilted by 11.3 degrees \(gantry tilt\)"),
        (_shifted, "slice 3 is shifted sideways"),
        (_no_positions, "says nothing of its position"),
        (_several_frames, "frames.dcm holds several frames"),
        (_colour_slices, "a.dcm is a colour image"),
        (_truncated_slice, r"1 slice\(s\) are missing between 102.50 and 107.50"),
    ],
)
def test_a_series_that_is_no_regular_stack_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "series")
    with pytest.raises(UserError, match=message) as caught:
        read_volume(tmp_path / "series")
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- real volumes


def test_a_real_dicom_series_lies_where_its_labels_do(shared_data: Path) -> None:
    image = read_volume(shared_data / "samples" / "dicom")
    assert (image.shape, image.spacing) == ((20, 512, 512), (0.9765625, 0.9765625, 2.0))
    assert image.array.min() == -1024.0  # air, after the rescale intercept
    np.testing.assert_allclose(image.affine[:3, 3], [249.51171875, 437.51171875, -804.5])
    labels = read_labels_on(image, shared_data / "samples" / "dicom_seg.nii.gz")
    assert {1, 6, 8} <= set(np.unique(labels).tolist())
    liver = image.array[labels == 6]
    assert 30 < np.median(liver) < 160  # soft tissue in HU


def test_the_liver_lies_on_the_patients_right_and_at_small_x(shared_data: Path) -> None:
    image = read_volume(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    labels = read_labels_on(image, shared_data / "samples" / "ts_abdomen_seg.nii.gz")
    assert image.shape == (112, 101, 122)
    centres = {name: np.argwhere(labels == ABDOMEN.by_name(name).id).mean(0)[::-1] for name in ("liver", "spleen")}
    assert centres["liver"][0] < centres["spleen"][0]
    ras = {name: image.affine @ [*centre, 1] for name, centre in centres.items()}
    assert ras["liver"][0] > 0 > ras["spleen"][0]


def test_the_back_lies_at_large_y_and_the_head_at_large_z(shared_data: Path) -> None:
    image = read_volume(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    labels = read_labels_on(image, shared_data / "samples" / "ts_abdomen_seg.nii.gz")
    z, y, _ = (
        {name: np.argwhere(labels == ABDOMEN.by_name(name).id).mean(0)[axis] for name in ("stomach", "left kidney")}
        for axis in range(3)
    )
    assert y["left kidney"] > y["stomach"]
    assert z["left kidney"] < z["stomach"]


@pytest.mark.parametrize("name", ["chest_ct_lps", "ts_abdomen_ct"])
def test_results_on_real_files_repeat_the_affine_bit_for_bit(shared_data: Path, tmp_path: Path, name: str) -> None:
    source = shared_data / "samples" / f"{name}.nii.gz"
    image = read_volume(source)
    write_array(tmp_path / "out.nii.gz", image.array > 0, image, "labels")
    before, after = nib.load(source), nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj) > 0)


def test_labels_of_a_crop_with_the_same_affine_are_refused(shared_data: Path, tmp_path: Path) -> None:
    image = read_volume(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    crop = nib.load(shared_data / "samples" / "ts_abdomen_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(crop.dataobj)[:100], crop.affine), tmp_path / "crop.nii.gz")
    with pytest.raises(UserError, match="100 x 101 x 112 voxels, but ts_abdomen_ct has 122 x 101 x 112"):
        read_labels_on(image, tmp_path / "crop.nii.gz")


def test_a_grid_can_be_made_without_an_image() -> None:
    grid = Grid.from_source((11, 9, 8), in_orientation("SAR")[1])
    assert grid.canonical_shape == (8, 9, 11)
    np.testing.assert_array_equal(grid.canonical_affine, CANONICAL_AFFINE)
