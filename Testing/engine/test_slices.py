"""Slices to canvases and back: scale in millimetres, body box, channels, one resampling."""

import numpy as np
import pytest
import torch

from pgpsam.errors import UserError
from pgpsam.slices import (
    Preparation,
    body_mask,
    box_scores,
    frame_volume,
    neighbours,
    network_input,
    scale_labels,
    trunk_mask,
)
from pgpsam.volume import Volume, read_volume


def phantom(spacing: float, depth: int = 3, field_mm: float = 420.0) -> Volume:
    """An elliptic body of 300 x 200 mm in air, with a bright ball 60 mm to the patient's right of its centre."""
    side = round(field_mm / spacing)
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) * spacing
    body = (x / 150) ** 2 + (y / 100) ** 2 < 1
    ball = (x + 60) ** 2 + y**2 < 25**2
    plane = np.where(ball, 200.0, np.where(body, 40.0, -1000.0)).astype(np.float32)
    affine = np.diag([-spacing, -spacing, 5.0, 1.0])
    return Volume.from_kji(np.stack([plane] * depth), affine)


def test_preparation_survives_json():
    made = Preparation((-160.0, 240.0), 1.5, (-3.0, 0.0, 3.0), 28)
    assert Preparation.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": 0},
        {"window": [5, 5]},
        {"window": "wide"},
        {"multiple": 0},
        {"offsets_mm": [0, 0]},
        {"extra": 1},
    ],
)
def test_unusable_preparations_are_refused_in_one_line(change):
    with pytest.raises(UserError) as caught:
        Preparation.from_json({**Preparation().to_json(), **change})
    assert "\n" not in str(caught.value)


def test_frame_is_the_body_with_a_margin():
    frame = frame_volume(phantom(1.0), Preparation(spacing_mm=2.0))
    y0, y1, x0, x1 = frame.box
    assert abs((y1 - y0) - 212) <= 4  # 200 mm and 6 mm on both sides
    assert abs((x1 - x0) - 312) <= 4
    assert frame.canvas == (112, 168)


def discs(*wanted: tuple[float, float, float]) -> Volume:
    """Discs of soft tissue in air: (x, y, radius) in mm from the middle of 460 mm."""
    y, x = np.mgrid[:460, :460] - 229.5
    tissue = np.any([(x - right) ** 2 + (y - down) ** 2 < radius**2 for right, down, radius in wanted], axis=0)
    return Volume.from_kji(np.stack([np.where(tissue, 40.0, -1000.0)] * 3), np.diag([-1.0, -1.0, 5.0, 1.0]))


def test_arms_beside_the_trunk_are_not_in_its_box():
    trunk, arms = (0, 0, 130), [(-180, 30, 35), (180, 30, 35)]
    assert frame_volume(discs(trunk, *arms), Preparation()).box == frame_volume(discs(trunk), Preparation()).box


def test_two_thighs_are_both_trunk_and_a_hand_is_not():
    thighs = [(-80, 0, 75), (80, 0, 50)]
    assert np.array_equal(trunk_mask(discs(*thighs, (210, 0, 15)).array), body_mask(discs(*thighs).array))


def test_the_box_of_a_scan_with_arms_beside_the_trunk_ends_between_them(shared_data):
    volume = read_volume(shared_data / "samples" / "dicom")
    assert frame_volume(volume, Preparation()).box[2] > 60  # columns 15 to 72 show an arm


@pytest.mark.parametrize("scale", [Preparation().spacing_mm, 2.0])
@pytest.mark.parametrize("spacing", [0.38, 0.6, 1.2, 3.0])
def test_images_of_all_spacings_look_alike_to_the_network(spacing, scale):
    preparation = Preparation(spacing_mm=scale)
    images = []
    for one in (1.0, spacing):
        volume = phantom(one)
        frame = frame_volume(volume, preparation)
        images.append((network_input(volume, frame, preparation, [1]), frame))
    (first, frame), (second, other) = images
    assert frame.canvas == other.canvas
    assert max(abs(a - b) for a, b in zip(frame.size, other.size, strict=True)) <= 3
    assert (first - second).abs().mean() < 0.02


def test_couch_is_cut_off():
    volume = phantom(2.0)
    array = volume.array.copy()
    array[:, -12:-9, :] = 100.0
    with_couch = Volume.from_kji(array, volume.grid.affine)
    assert frame_volume(with_couch, Preparation()).box == frame_volume(volume, Preparation()).box


def test_window_maps_to_zero_and_one():
    volume = phantom(2.0)
    preparation = Preparation(window=(-160.0, 240.0))
    image = network_input(volume, frame_volume(volume, preparation), preparation, [0])
    assert image.shape[1] == 3
    assert image.min() == 0
    assert image.max() == pytest.approx((200 + 160) / 400, abs=1e-3)
    assert image[0, 0, image.shape[2] // 2, image.shape[3] // 2] == pytest.approx(0.5, abs=1e-3)


def test_neighbours_are_millimetres_away_and_inside():
    preparation = Preparation(offsets_mm=(-3.0, 0.0, 3.0))
    assert neighbours(5, 10, 1.0, preparation) == [2, 5, 8]
    assert neighbours(5, 10, 3.0, preparation) == [4, 5, 6]
    assert neighbours(0, 10, 3.0, preparation) == [0, 0, 1]
    assert neighbours(9, 10, 8.0, preparation) == [9, 9, 9]


@pytest.mark.parametrize("spacing", [0.7, 1.3, 3.0])
def test_scores_return_to_the_voxels_they_came_from(spacing):
    volume, preparation = phantom(spacing), Preparation(spacing_mm=2.0)
    frame = frame_volume(volume, preparation)
    image = network_input(volume, frame, preparation, [1])
    bright = box_scores((image[:, :1] > 0.7).float(), frame)[0, 0].numpy() > 0.5
    y0, y1, x0, x1 = frame.box
    truth = volume.array[1, y0:y1, x0:x1] > 100
    shift = np.argwhere(bright).mean(0) - np.argwhere(truth).mean(0)
    assert np.abs(shift * spacing).max() < 0.5  # mm
    assert 2 * (bright & truth).sum() / (bright.sum() + truth.sum()) > 0.93


def test_labels_are_never_invented():
    volume, preparation = phantom(1.3), Preparation(spacing_mm=2.0)
    labels = np.where(volume.array > 100, 7, np.where(volume.array > 0, 2, 0)).astype(np.uint8)
    scaled = scale_labels(labels, frame_volume(volume, preparation), [0, 2])
    assert scaled.dtype == torch.uint8
    assert set(scaled.unique().tolist()) == {0, 2, 7}


def test_spacing_that_cannot_be_true_is_refused():
    volume = phantom(2.0)
    with pytest.raises(UserError, match="spacing"):
        frame_volume(Volume.from_kji(volume.array, np.diag([-60.0, -60.0, 5.0, 1.0])), Preparation())


def test_a_field_of_view_too_small_for_a_patient_is_refused_and_a_crop_is_not():
    array = phantom(2.0).array[:, 95:116, 95:116].copy()  # 42 mm in the middle of the body
    array[0, 0, 0] = -1000.0
    assert frame_volume(Volume.from_kji(array, np.diag([-2.0, -2.0, 5.0, 1.0])), Preparation()).size == (28, 28)
    metres = Volume.from_kji(array, np.diag([-0.002, -0.002, 0.005, 1.0]), "scan")
    with pytest.raises(UserError, match=r"scan: its slices are 0.042 x 0.042 mm, too small .* spacing"):
        frame_volume(metres, Preparation())
