"""A volume's slices on the coarse grid and back: places in millimetres, whatever the slices' distance."""

import numpy as np
import pytest
import torch

from pgpsam.slices import Frame, Preparation, frame_volume
from pgpsam.stack import GRID_MM, Stack, grid_shape, tent_weights, to_planes
from pgpsam.volume import Volume

CLASSES = 3


def ramp(slice_mm: float, depth: int, axis: int) -> Volume:
    """A body of 120 x 90 mm whose HU grow by one a millimetre along an axis of [z, y, x], from the volume's edge."""
    places = np.mgrid[:depth, :45, :60].astype(np.float32) + 0.5
    places *= np.array([slice_mm, 2.0, 2.0], np.float32)[:, None, None, None]
    return Volume.from_kji(places[axis], np.diag([-2.0, -2.0, slice_mm, 1.0]))


def stack_of(volume: Volume) -> tuple[Stack, Frame]:
    preparation = Preparation((0.0, 400.0), 1.5)
    frame = frame_volume(volume, preparation)
    return Stack(volume, frame, preparation, CLASSES), frame


def test_linear_weights_by_hand() -> None:
    weights = tent_weights(torch.tensor([-0.3, 0.0, 0.25, 1.5, 9.0]), 3)
    assert torch.equal(weights, torch.tensor([[1, 0, 0], [1, 0, 0], [0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1]]))


def test_averaging_weights_by_hand() -> None:
    weights = tent_weights(torch.tensor([2.0]), 5, 2.0)
    assert torch.allclose(weights, torch.tensor([[0, 0.25, 0.5, 0.25, 0]]))


@pytest.mark.parametrize(("slice_mm", "depth"), [(1.0, 80), (2.5, 32), (4.0, 20), (5.0, 16)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_grid_shows_the_volume_in_millimetres(slice_mm: float, depth: int, axis: int) -> None:
    volume = ramp(slice_mm, depth, axis)
    stack, frame = stack_of(volume)
    assert stack.shape == grid_shape(volume, frame) == (20, 30, 40)
    image = stack.planes()[0, CLASSES]
    expected = (torch.arange(stack.shape[axis]) + 0.5) * GRID_MM[axis] / 400
    seen = image.mean([a for a in range(3) if a != axis])
    inner = slice(1, -1)  # the first and last cells average over what is there
    assert torch.allclose(seen[inner], expected[inner], atol=2e-3)


def test_slices_that_were_not_added_are_background() -> None:
    stack, _ = stack_of(ramp(5.0, 16, 0))
    assert torch.equal(stack.planes()[0, 0], torch.ones(20, 30, 40))
    assert not stack.planes()[0, 1:CLASSES].any()


@pytest.mark.parametrize(("slice_mm", "depth"), [(1.0, 80), (5.0, 16)])
def test_a_correction_reaches_the_place_that_it_was_made_for(slice_mm: float, depth: int) -> None:
    """40 to 60 mm along z, 30 to 60 mm along y, 60 to 90 mm along x: class 1 gets 8 more."""
    stack, frame = stack_of(ramp(slice_mm, depth, 0))
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(CLASSES, *frame.size, generator=generator) for _ in range(depth)]
    for z, one in enumerate(logits):
        stack.add(z, one)
    change = torch.zeros(CLASSES, *stack.shape)
    change[1, 10:15, 10:20, 20:30] = 8
    corrected = stack.correct(change)
    y, x = (slice(round(low / 1.5), round(high / 1.5)) for low, high in ((34, 56), (64, 86)))
    for z, before in enumerate(logits):
        added = corrected(z) - before
        middle = (z + 0.5) * slice_mm
        assert added[[0, 2]].abs().max() < 4e-3  # of half precision
        if 43 < middle < 57:
            assert torch.allclose(added[1, y, x], torch.full_like(added[1, y, x], 8.0), atol=4e-3)
            assert added[1, :, : round(57 / 1.5)].abs().max() < 4e-3
        if not 37 < middle < 63:
            assert added.abs().max() < 4e-3


def test_planes_of_thin_slices_are_their_means() -> None:
    slices = torch.arange(12.0)[:, None]
    planes = to_planes(slices, torch.tensor([3.5, 7.5]), 4.0)
    assert torch.allclose(planes, torch.tensor([[3.5], [7.5]]))
