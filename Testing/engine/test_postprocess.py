"""One piece for every organ that is one piece, and nothing else changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pgpsam.labels import ABDOMEN
from pgpsam.postprocess import (
    GAP_MM,
    HANGING,
    MIN_ML,
    MIN_SHARE,
    NECK_MM,
    _linked,
    clean_up,
    hanging,
    keep_components,
)
from pgpsam.volume import read_labels

SPLEEN, LIVER, AORTA, PORTAL_VEIN, PANCREAS, UNKNOWN = 1, 6, 8, 10, 11, 99
CUBE_MM = (10.0, 10.0, 10.0)  # a voxel is 1 mL


def empty() -> NDArray[np.uint8]:
    """``[z, y, x]``, 7 x 8 x 9 voxels."""
    return np.zeros((7, 8, 9), dtype=np.uint8)


def keep(labels: NDArray[np.uint8], spacing: Sequence[float] = CUBE_MM) -> NDArray[np.uint8]:
    return keep_components(labels, ABDOMEN, spacing)


def test_the_largest_piece_stays_and_the_others_become_background() -> None:
    labels = empty()
    labels[2:4, 1:3, 1:3] = LIVER  # 8 voxels
    labels[2:4, 6, 6] = LIVER  # 2 voxels
    labels[5, 1, 8] = LIVER
    expected = empty()
    expected[2:4, 1:3, 1:3] = LIVER
    np.testing.assert_array_equal(keep(labels), expected)


def test_of_what_is_taken_away_the_confidence_is_what_was_left() -> None:
    labels = empty()
    labels[2:4, 1:3, 1:3] = LIVER  # 8 voxels
    labels[5, 1, 8] = LIVER
    confidence = np.full(labels.shape, 0.9, np.float32)
    kept, left = clean_up(labels, confidence, ABDOMEN, CUBE_MM)
    np.testing.assert_array_equal(kept, keep(labels))
    assert left[5, 1, 8] == np.float32(1) - np.float32(0.9)
    assert (left == confidence).sum() == labels.size - 1


def test_pieces_that_touch_by_a_corner_are_one() -> None:
    labels = empty()
    labels[2, 2, 2] = labels[3, 3, 3] = labels[4, 2, 4] = LIVER
    np.testing.assert_array_equal(keep(labels), labels)


def test_of_two_pieces_of_one_size_the_one_nearer_to_the_origin_stays() -> None:
    labels = empty()
    labels[2, 2, 2] = labels[4, 5, 6] = LIVER
    assert np.argwhere(keep(labels)).tolist() == [[2, 2, 2]]


def test_the_ascending_aorta_stays_where_the_arch_was_missed() -> None:
    assert MIN_SHARE == 0.3
    labels = empty()
    labels[1, 1:3, 0:5] = AORTA  # 10 voxels
    labels[5, 1, 6:9] = AORTA  # 3 voxels
    expected = labels.copy()
    labels[4, 6, 0:2] = AORTA  # 2 voxels
    np.testing.assert_array_equal(keep(labels), expected)


def test_large_pieces_stay_where_a_gap_of_missed_slices_parts_them() -> None:
    """The head and the tail of a pancreas: three slices of 5 mm may be missed between two of its pieces."""
    assert (MIN_SHARE, GAP_MM) == (0.3, 20.0)
    spacing = (10.0, 10.0, 5.0)
    labels = np.zeros((24, 4, 12), np.uint8)
    labels[0, 0, 0] = SPLEEN  # so that the pancreas's ends are not the scan's
    labels[2:5, 2, 0:4] = PANCREAS  # 12 voxels
    labels[8:10, 2, 0:2] = PANCREAS  # 4 voxels, 20 mm above
    labels[13:15, 2, 0:2] = PANCREAS  # 4 voxels, 20 mm above those
    labels[4, 2, 6] = PANCREAS  # 1 voxel beside
    expected = labels.copy()
    labels[20:22, 2, 0:2] = PANCREAS  # 4 voxels, 30 mm above the last
    expected[4, 2, 6] = 0
    np.testing.assert_array_equal(keep(labels, spacing), expected)


@pytest.mark.parametrize("seed", range(6))
def test_how_far_pieces_lie_apart_is_measured_near_the_organ_as_in_the_whole_scan(seed: int) -> None:
    spacing, mask = (2.0, 1.5, 5.0), np.random.default_rng(seed).random((14, 20, 22)) > 0.985
    pieces, count = ndimage.label(ndimage.binary_dilation(mask), np.ones((3, 3, 3)))
    assert count > 6
    candidates = np.arange(2, count + 1)
    expected, before = {1}, set()
    while before != expected:
        before = set(expected)
        distance = ndimage.distance_transform_edt(~np.isin(pieces, list(before)), spacing[::-1])
        expected |= {int(i) for i in candidates if distance[pieces == i].min() <= 8.0}
    assert set(candidates[_linked(pieces, 1, candidates, spacing, 8.0)]) == expected - {1}


def test_organs_do_not_join_each_other_nor_take_each_others_voxels() -> None:
    labels = empty()
    labels[3, 3, 0:4] = LIVER
    labels[3, 3, 4] = SPLEEN  # a stray voxel of spleen between two parts of liver
    labels[3, 3, 5] = LIVER
    labels[3, 6, 1:4] = SPLEEN
    expected = empty()
    expected[3, 3, 0:4] = LIVER
    expected[3, 6, 1:4] = SPLEEN
    np.testing.assert_array_equal(keep(labels), expected)


def test_organs_of_several_pieces_and_unknown_ids_stay_as_they_are() -> None:
    labels = empty()
    labels[2, 1:4, 1] = labels[5, 6, 6] = PORTAL_VEIN
    labels[1, 1, 1] = labels[5, 1, 7] = UNKNOWN
    np.testing.assert_array_equal(keep(labels, (0.1, 0.1, 0.1)), labels)


def test_an_organ_of_a_smaller_label_set_is_left_alone() -> None:
    labels = empty()
    labels[2, 1:4, 1] = labels[5, 6, 6] = LIVER
    np.testing.assert_array_equal(keep_components(labels, ABDOMEN.select(["spleen"]), CUBE_MM), labels)


def test_pieces_that_reach_one_end_of_the_scan_may_join_outside_it() -> None:
    """The ascending and the descending aorta, in a scan that ends below the arch."""
    labels = empty()
    labels[0:7, 6, 4] = AORTA  # descending, from the lowest to the highest slice
    labels[5:7, 2, 4] = AORTA  # ascending, reaches the highest
    labels[0, 2, 8] = AORTA  # reaches the lowest
    labels[3:5, 1, 1] = AORTA  # reaches neither: noise
    expected = labels.copy()
    expected[3:5, 1, 1] = 0
    np.testing.assert_array_equal(keep(labels), expected)


def test_an_end_of_the_scan_that_the_largest_piece_does_not_reach_joins_nothing() -> None:
    labels = empty()
    labels[2:7, 6, 4] = AORTA
    labels[0, 2, 4] = AORTA
    expected = labels.copy()
    expected[0] = 0
    np.testing.assert_array_equal(keep(labels), expected)


def test_in_a_single_slice_every_piece_may_join_outside_it() -> None:
    labels = empty()[:1]
    labels[0, 1:4, 1] = labels[0, 6, 6] = LIVER
    np.testing.assert_array_equal(keep(labels), labels)


@pytest.mark.parametrize(("slice_mm", "stays"), [(3.0, False), (4.0, True)])
def test_a_piece_below_the_least_volume_is_noise(slice_mm: float, stays: bool) -> None:
    """One voxel of 3 x 3 x 3 mm is 0.027 mL, of 3 x 3 x 4 mm 0.036 mL; the least is 0.03 mL."""
    assert MIN_ML == 0.03
    labels = empty()
    labels[3, 3, 3] = SPLEEN
    assert keep(labels, (3.0, 3.0, slice_mm)).any() == stays


def test_the_input_is_not_changed_and_a_second_pass_changes_nothing() -> None:
    labels = np.random.default_rng(0).integers(0, 14, size=(20, 24, 28)).astype(np.uint8)
    before = labels.copy()
    once = keep(labels)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(keep(once), once)
    changed = once != labels
    assert changed.any()
    assert not once[changed].any()
    assert once.dtype == np.uint8


def test_nothing_comes_of_nothing() -> None:
    assert not keep(empty()).any()


def two_balls(small_mm: float, neck_mm: float, spacing: Sequence[float]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A ball of 40 mm radius and, beneath it, a smaller one on a bar: (both, the smaller one alone), ``[z, y, x]``."""
    z, y, x = np.meshgrid(*(np.arange(-90.0, 50.0, mm) for mm in reversed(spacing)), indexing="ij")
    large, centre = z**2 + y**2 + x**2 < 40.0**2, -50.0 - small_mm
    small = (z - centre) ** 2 + y**2 + x**2 < small_mm**2
    bar = (z < 0) & (z > centre) & (np.maximum(abs(y), abs(x)) < neck_mm / 2)
    return large | bar | small, small


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (0.9, 0.9, 5.0)])
def test_a_thick_piece_that_hangs_on_the_liver_by_a_thin_neck_goes(spacing: tuple[float, float, float]) -> None:
    assert (NECK_MM, HANGING) == (16.0, (0.03, 0.15))
    organ, small = two_balls(17.0, 8.0, spacing)  # (17 / 40)^3 = 0.08 of the large one
    kept = keep_components(organ.astype(np.uint8) * LIVER, ABDOMEN, spacing) == LIVER
    assert not (kept & small).any()
    assert kept.sum() > 0.97 * (organ & ~small).sum()
    as_spleen = organ.astype(np.uint8) * SPLEEN
    np.testing.assert_array_equal(keep_components(as_spleen, ABDOMEN, spacing), as_spleen)


def test_a_thick_piece_beside_the_liver_goes_though_both_reach_the_scans_end() -> None:
    """An arm: pieces that reach the end of the scan together otherwise stay."""
    organ, small = two_balls(17.0, 0.0, (3.0, 3.0, 3.0))
    beside = np.roll(small, (24, -22), axis=(0, 2))  # to the right of the large ball, at the height of its middle
    labels = ((organ & ~small) | beside).astype(np.uint8)[: len(organ) * 2 // 3] * LIVER
    for part in (beside, organ & ~small):
        assert (part[: len(labels)][-1] & (labels[-1] == LIVER)).any()
    kept = keep_components(labels, ABDOMEN, (3.0, 3.0, 3.0)) == LIVER
    assert not (kept & beside[: len(labels)]).any()
    assert kept.any()


@pytest.mark.parametrize(("small_mm", "neck_mm"), [(11.0, 8.0), (25.0, 8.0), (17.0, 24.0)])
def test_a_bump_a_lobe_and_what_is_broadly_joined_stay(small_mm: float, neck_mm: float) -> None:
    """0.02 and 0.24 of the large one lie beyond the limits; a neck of 24 mm is none."""
    organ, _ = two_balls(small_mm, neck_mm, (2.0, 2.0, 2.0))
    assert not hanging(organ, (2.0, 2.0, 2.0)).any()


def test_organs_that_people_drew_are_one_piece(shared_data: Path) -> None:
    """What the label set says of the organs holds for patients: nothing of a drawn organ is removed."""
    for case in ("0007", "0023", "0040"):  # 0007 ends below the arch of the aorta
        labels, affine, _ = read_labels(shared_data / "btcv" / "labels" / f"btcv_{case}.nii.gz")
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_array_equal(keep_components(labels, ABDOMEN, spacing), labels)
