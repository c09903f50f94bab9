"""Attention made visible: regions by mass, peaks as voxels."""

import numpy as np
import pytest
import torch

from pgpsam.labels import LabelSet
from pgpsam.prompts import attended_regions, peak_points, region_labels, token_voxel
from pgpsam.slices import Frame

FRAME = Frame(box=(10, 66, 20, 132), size=(28, 56), canvas=(56, 56))  # box of 56 x 112 voxels, rows 14..41


def test_region_is_the_smallest_set_with_the_mass():
    weights = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    assert attended_regions(weights.log(), 0.5).tolist() == [[True, True, False, False]]
    assert attended_regions(weights.log(), 0.4).tolist() == [[True, False, False, False]]
    assert attended_regions(weights.log(), 0.95).tolist() == [[True, True, True, True]]


def test_flat_attention_covers_half_the_positions():
    assert attended_regions(torch.zeros(4, 5), 0.5).sum() == 10


def test_token_centres_land_on_the_voxels_below_them():
    # 14 x 14 tokens of 4 pixels; the box starts at row 14 of the canvas and is stretched twofold.
    assert token_voxel(7, 7, (14, 14), FRAME) == (10 + 32, 20 + 60)
    assert token_voxel(0, 0, (14, 14), FRAME) == (10, 24)
    assert token_voxel(13, 13, (14, 14), FRAME) == (65, 20 + 108)


def test_overlapping_regions_go_to_the_stronger():
    attention = torch.full((2, 14, 14), -9.0)
    attention[0, 5, 5], attention[1, 8, 9] = 9.0, 9.0
    ids = torch.tensor([6, 11])
    shown = region_labels(attention, torch.tensor([True, True]), ids, FRAME)
    assert shown.shape == (56, 112)
    for row, column, label in ((5, 5, 6), (8, 9, 11)):
        y, x = token_voxel(row, column, (14, 14), FRAME)
        assert shown[y - 10, x - 20] == label
    assert set(region_labels(attention, torch.tensor([False, True]), ids, FRAME).unique().tolist()) == {0, 11}
    assert not region_labels(attention, torch.tensor([False, False]), ids, FRAME).any()


def test_points_are_peaks_apart_from_each_other():
    label_set = LabelSet.from_names({"background": 0, "liver": 6})
    labels = np.zeros((8, 80, 140), np.uint8)
    labels[2:7] = 6
    attention = {}
    for z in range(8):
        attention[z] = torch.zeros(1, 14, 14)
        attention[z][0, 7, z] = 5.0 + z
    points = peak_points(attention, labels, label_set, FRAME, spacing_z=5.0)
    assert [p.z for p in points] == [6, 4, 2]  # 10 mm apart, strongest first, only where the organ is
    assert points[0].weight == pytest.approx(1.0)
    assert (points[0].y, points[0].x) == token_voxel(7, 6, (14, 14), FRAME)
    assert all(p.label_id == 6 for p in points)
