"""The geometry of the random variations: what is asked for, and no more."""

from __future__ import annotations

import pytest
import torch
from monai.utils import convert_to_tensor
from torch import Tensor

from pgpsam.training.augment import Augmentation, Augmenter

STILL = {"rotate_degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "elastic_pixels": (0.0, 0.0)}
CANVAS = (140, 168)


def bent(**settings: object) -> Tensor:
    """Where every pixel of the canvas comes from, [2, H, W], in pixels of the slice."""
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in CANVAS), indexing="ij")
    augmenter = Augmenter(CANVAS, Augmentation(**{**STILL, **settings}))  # type: ignore[arg-type]
    bend = augmenter.transform.transforms[0]
    bend.set_random_state(3)
    made = bend({"image": torch.stack((rows, columns)) + 1000, "labels": rows[None]})
    return convert_to_tensor(made["image"]) - 1000


def test_a_slice_that_is_not_varied_stays_where_it_is() -> None:
    rows, columns = bent()
    assert torch.allclose(rows, torch.arange(140.0)[:, None].expand(CANVAS), atol=1e-3)
    assert torch.allclose(columns, torch.arange(168.0).expand(CANVAS), atol=1e-3)


def test_straight_lines_stay_straight_without_elasticity() -> None:
    seen = bent(rotate_degrees=15.0, scale=0.2, shear=0.1)[:, 40:100, 50:118]  # nothing from beside the slice
    assert (seen - bent()[:, 40:100, 50:118]).abs().max() > 5, "nothing was varied"
    assert (seen[:, 2:] - 2 * seen[:, 1:-1] + seen[:, :-2]).abs().max() < 1e-2


@pytest.mark.parametrize("pixels", [1.0, 3.0])
def test_elasticity_is_of_the_size_that_was_asked_for(pixels: float) -> None:
    seen = bent(elastic_pixels=(pixels, pixels))
    inside = (slice(None), slice(8, -8), slice(8, -8))  # what is moved across the border is not seen
    moved = seen[inside] - bent()[inside]
    assert 0.4 * pixels < float((moved**2).mean().sqrt()) < 1.3 * pixels
