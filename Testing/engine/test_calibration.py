"""Confidence against correctness, by hand-worked numbers."""

import csv
import json
import tracemalloc

import numpy as np
import pytest

from pgpsam.training.calibration import OrganSlice, failures_found, organ_slices, reliability, write_calibration

ORGANS = ("liver", "spleen")


@pytest.fixture
def case():
    """Three slices of 2 x 4 voxels: the liver half found, then right; the spleen missed in the last."""
    predicted, reference = np.zeros((3, 2, 4), np.uint8), np.zeros((3, 2, 4), np.uint8)
    predicted[0, 0], reference[0, 0, :2] = 1, 1
    predicted[1, 0], reference[1, 0] = 1, 1
    reference[2, 1] = 2
    confidence = np.ones((3, 2, 4), np.float32)
    confidence[0, 0] = 0.6, 0.8, 0.5, 0.5
    confidence[1, 0] = 0.96
    return predicted, reference, confidence


def test_organ_slices_of_a_hand_worked_example(case):
    liver, right, spleen = organ_slices(*case, ORGANS, "c")
    assert (liver.z, liver.organ, liver.predicted, liver.reference) == (0, "liver", 4, 2)
    assert liver.dice == pytest.approx(2 * 2 / 6)
    assert liver.confidence == pytest.approx((0.6 + 0.8 + 0.5 + 0.5) / 4)
    assert (right.dice, right.confidence) == (1, pytest.approx(0.96))
    assert (spleen.z, spleen.dice, spleen.confidence, spleen.predicted, spleen.reference) == (2, 0, None, 0, 4)


def test_organ_slices_take_no_memory_of_a_volumes_size():
    random, shape = np.random.default_rng(0), (32, 128, 128)
    predicted, reference = (random.integers(0, 3, shape, np.uint8) for _ in range(2))
    confidence = random.random(shape, np.float32)
    tracemalloc.start()
    rows = organ_slices(predicted, reference, confidence, ORGANS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < predicted.size
    assert len(rows) == 2 * len(predicted)
    assert sum(row.predicted for row in rows) == np.count_nonzero(predicted)


def test_reliability_of_a_hand_worked_example(case):
    found = reliability(*case)
    assert found.voxels.sum() == 12  # background in both is left out
    assert (found.voxels[10], found.right[10]) == (2, 0)  # confidence 0.5, both wrong
    assert (found.voxels[19], found.right[19]) == (8, 4)  # four right of 0.96, four missed of 1.0
    gaps = abs(1.0 - 0) + abs(0.6 - 1) + abs(0.8 - 1) + abs(4 * 0.96 + 4 * 1.0 - 4)
    assert found.error == pytest.approx(gaps / 12, abs=1e-6)
    both = found + found
    assert both.voxels.sum() == 24
    assert both.error == pytest.approx(found.error)


def test_failures_among_the_least_confident():
    values = [(0.1, 0.3), (0.9, 0.4), (0.2, 0.5), (0.9, 0.9), (0.3, 0.96)]
    rows = [OrganSlice("c", z, "liver", dice, sure, 9, 9) for z, (dice, sure) in enumerate(values)]
    missed = OrganSlice("c", 9, "liver", 0.0, None, 0, 9)
    found = failures_found([missed, *rows], looked_at=0.6)
    assert [found[key] for key in ("segmented", "failed", "missed", "looked_at", "found")] == [5, 3, 1, 3, 2]
    assert found["recall"] == pytest.approx(2 / 4)
    assert found["precision"] == pytest.approx(2 / 3)
    assert failures_found([])["recall"] is None


def test_what_is_written(case, tmp_path):
    rows = organ_slices(*case, ORGANS, "c")
    summary = write_calibration(rows, reliability(*case), tmp_path, "quick <on> data", ["liver"])
    assert (summary["reported"]["segmented"], summary["all"]["segmented"]) == (2, 2)
    assert (summary["reported"]["missed"], summary["all"]["missed"]) == (0, 1)
    assert json.loads((tmp_path / "confidence.json").read_text(encoding="utf-8")) == summary
    with (tmp_path / "confidence.csv").open(encoding="utf-8") as file:
        assert [row["organ"] for row in csv.DictReader(file)] == ["liver", "liver", "spleen"]
    text = (tmp_path / "confidence.html").read_text(encoding="utf-8")
    assert "quick &lt;on&gt; data" in text
    assert "data:image/png" in text
