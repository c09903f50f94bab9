"""The result's plain data: one grid for all its arrays, and its organs one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pgpsam.labels import ABDOMEN
from pgpsam.segmentation import PromptPoint, Segmentation

SPLEEN, LIVER = 1, 6


def result(labels: NDArray[np.uint8], confidence: NDArray[np.float32] | None = None) -> Segmentation:
    if confidence is None:
        confidence = np.ones(labels.shape, dtype=np.float32)
    return Segmentation(labels, confidence, np.zeros_like(labels), [], {}, "cpu", "model", ABDOMEN)


def test_arrays_on_different_grids_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="one grid"):
        result(np.zeros((2, 3, 4), np.uint8), np.zeros((2, 4, 3), np.float32))
    with pytest.raises(ValueError, match="one grid"):
        result(np.zeros((3, 4), np.uint8))


def test_organs_come_in_the_label_sets_order_with_their_boxes() -> None:
    labels = np.zeros((5, 6, 7), dtype=np.uint8)
    labels[1, 2, 3] = labels[3, 2, 4] = LIVER
    labels[4, 5, 6] = SPLEEN
    labels[0, 0, 0] = 200  # not in the label set
    (spleen, spleen_box, _), (liver, liver_box, mask) = result(labels).organs()
    assert (spleen.id, liver.id) == (SPLEEN, LIVER)
    assert spleen_box == (slice(4, 5), slice(5, 6), slice(6, 7))
    assert liver_box == (slice(1, 4), slice(2, 3), slice(3, 5))
    assert np.argwhere(mask).tolist() == [[0, 0, 0], [2, 0, 1]]


def test_an_empty_result_has_no_organs() -> None:
    assert list(result(np.zeros((5, 6, 7), np.uint8)).organs()) == []


def test_confidence_by_slice_is_over_the_organs_own_voxels() -> None:
    """Slice 1 holds two voxels of 0.5 and 1; slice 2 none; slice 3 one of 0.25."""
    labels = np.zeros((5, 6, 7), dtype=np.uint8)
    confidence = np.full(labels.shape, 0.9, dtype=np.float32)
    for place, value in (((1, 2, 3), 0.5), ((1, 3, 3), 1.0), ((3, 2, 4), 0.25)):
        labels[place] = LIVER
        confidence[place] = value
    segmentation = result(labels, confidence)
    ((_, box, mask),) = segmentation.organs()
    np.testing.assert_allclose(segmentation.confidence_by_slice(box, mask), [0.75, np.nan, 0.25])


def test_prompts_are_a_mask_and_weighted_peaks_by_organ() -> None:
    regions = np.zeros((5, 6, 7), dtype=np.uint8)
    regions[1:3, 2, 3] = LIVER
    weak, strong = PromptPoint(LIVER, 1, 2, 3, 0.2), PromptPoint(LIVER, 2, 2, 3, 0.9)
    empty = result(np.zeros_like(regions))
    prompts = replace(empty, regions=regions, points=[weak, PromptPoint(SPLEEN, 4, 0, 0, 0.5), strong]).prompts
    assert list(prompts) == list(ABDOMEN.names)
    assert prompts["liver"].points == (strong, weak)
    assert np.argwhere(prompts["liver"].mask).tolist() == [[1, 2, 3], [2, 2, 3]]
    assert not prompts["spleen"].mask.any()
    assert prompts["pancreas"].points == ()
