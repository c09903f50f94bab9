"""The network that corrects slices as one volume, and its place in a model's file."""

import pytest
import torch

from pgpsam.errors import UserError
from pgpsam.models.store import REFINER_PREFIX, split_tensors, with_prefix
from pgpsam.network.volume_refiner import (
    WINDOW,
    VolumeRefiner,
    log_shares,
    refiner_tensors,
    restore_refiner,
)

CHANNELS = (8, 8, 8, 8, 8)


def seen(planes: int, classes: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(planes)
    shares = torch.randn(1, classes, planes, 24, 32, generator=generator).softmax(1)
    return torch.cat((shares, torch.rand(1, 1, planes, 24, 32, generator=generator)), 1)


def trained() -> VolumeRefiner:
    """A refiner whose every value has moved, statistics included."""
    torch.manual_seed(0)
    refiner = VolumeRefiner(3, CHANNELS)
    with torch.no_grad():
        for value in refiner.parameters():
            value.add_(0.1 * torch.randn_like(value))
    refiner(seen(32))
    return refiner.eval()


def test_it_starts_at_no_correction() -> None:
    change = VolumeRefiner(3, CHANNELS)(seen(32))
    assert change.shape == (1, 3, 32, 24, 32)
    assert not change.any()


def test_every_parameter_learns() -> None:
    refiner = trained().train()
    refiner(seen(32)).square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in refiner.parameters())


@pytest.mark.parametrize("planes", [1, 5, 33, WINDOW + 17])
def test_any_number_of_planes_is_corrected(planes: int) -> None:
    with torch.inference_mode():
        change = trained().over(seen(planes))
    assert change.shape == (3, planes, 24, 32)
    assert change.isfinite().all()


def test_in_windows_or_whole_the_correction_is_the_same_but_at_the_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, part = trained(), seen(WINDOW + 32)
    with torch.inference_mode():
        windows = refiner.over(part)
        monkeypatch.setattr("pgpsam.network.volume_refiner.WINDOW", 1000)
        whole = refiner.over(part)
    assert (windows - whole).abs().mean() < 0.1 * whole.abs().mean()


def test_from_a_models_file_it_comes_back() -> None:
    refiner = trained()
    own = {"decoder.weight": torch.ones(2)}
    held, refining = split_tensors(own | with_prefix(refiner_tensors(refiner), REFINER_PREFIX), REFINER_PREFIX)
    assert held == own
    back = restore_refiner(3, {"channels": list(CHANNELS)}, refining, "m")
    with torch.inference_mode():
        assert torch.allclose(back.eval()(seen(32)), refiner(seen(32)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("description", "classes", "line"),
    [
        ({}, 3, "has the channels None"),
        ({"channels": [8, 8]}, 3, "not five numbers"),
        ({"channels": [8, 8, 8, 8, 0]}, 3, "not five numbers"),
        ({"channels": [8, 8, 8, 8, 16]}, 3, "do not fit"),
        ({"channels": list(CHANNELS)}, 4, "do not fit its 4 classes"),
    ],
)
def test_what_does_not_fit_is_refused(description: dict, classes: int, line: str) -> None:
    with pytest.raises(UserError, match=line):
        restore_refiner(classes, description, refiner_tensors(trained()), "m")


def test_log_shares_are_logits_of_the_shares() -> None:
    shares = torch.tensor([0.7, 0.2, 0.1])
    assert torch.allclose(log_shares(shares).softmax(0), shares)
    assert log_shares(torch.zeros(1)).isfinite().all()
