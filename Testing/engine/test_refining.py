"""Training the volume refiner: what a sample shows, and that neighbours mend what a slice got wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pgpsam.device import autocast
from pgpsam.errors import Cancelled, UserError
from pgpsam.network.volume_refiner import VolumeRefiner, log_shares
from pgpsam.training.data import IGNORED
from pgpsam.training.refining import Answers, Parts, RefinerSettings, gain, train_refiner

CPU = torch.device("cpu")
QUICK = RefinerSettings(iterations=50, lr=5e-3, warmup=3, planes=16, canvas=(32, 48), missed=0.0, bias=0.1)
STILL = replace(
    QUICK, rotate_degrees=0.0, scale=0.0, shift=0.0, thickness=0.0, brightness=0.0, contrast=0.0, noise=0.0,
    sharpness=(1.0, 1.0), bias=0.0,
)  # fmt: skip


def patient(seed: int, wrong: bool = True, slice_mm: float = 4.0, depth: int = 24) -> Answers:
    """A long organ that a model takes for another class in every fourth slice; half of the slices are annotated."""
    random = np.random.default_rng(seed)
    height, width = 30, 44
    y, x = np.mgrid[:height, :width]
    organ = ((y - 15 - random.uniform(-2, 2)) ** 2 + (x - 20 - random.uniform(-3, 3)) ** 2 < 64)[None].repeat(depth, 0)
    truth = organ.astype(np.uint8)
    found = truth.copy()
    if wrong:
        found[seed % 4 :: 4][truth[seed % 4 :: 4] == 1] = 2
    shares = torch.nn.functional.one_hot(torch.from_numpy(found).long(), 3).movedim(-1, 1).float()
    image = 0.3 + 0.3 * organ + random.normal(0, 0.01, organ.shape)
    labels = torch.full((depth, height, width), IGNORED, dtype=torch.uint8)
    labels[::2] = torch.from_numpy(truth[::2])
    return Answers(
        f"p{seed}", (0.8 * shares + 0.2 / 3).half(), torch.from_numpy(image.astype(np.float16)), labels, slice_mm
    )


def test_only_annotated_slices_are_counted() -> None:
    assert patient(0).annotated == list(range(0, 24, 2))


def test_without_variation_a_part_is_what_the_model_said_around_an_annotated_slice() -> None:
    one = patient(0)
    part = Parts([one], STILL)[0]
    assert part.seen.shape == (16, 4, 32, 48)
    assert torch.allclose(part.seen[:, :3].sum(1), torch.ones(16, 32, 48), atol=1e-3)
    crop = (..., slice(1, 31), slice(2, 46))  # the 30 x 44 pixels in the middle of 32 x 48
    assert set(part.labels.unique().tolist()) == {0, 1}
    for label, own in zip(part.labels, part.own, strict=True):
        known = [z for z in one.annotated if torch.equal(one.labels[z], label[crop].byte())]
        assert any(torch.allclose(own[crop], log_shares(one.shares[z]), atol=0.02) for z in known)
    outside = part.seen[:, :, 0]
    assert torch.allclose(outside[:, 0], torch.ones(16, 48), atol=1e-3)
    assert outside[:, 3].max() < 1e-5


@pytest.mark.parametrize("slice_mm", [1.0, 2.5, 5.0])
def test_annotated_slices_lie_where_their_planes_are(slice_mm: float) -> None:
    """The truth beside what the planes show there, whatever the distance of the slices."""
    part = Parts(
        [patient(1, wrong=False, slice_mm=slice_mm, depth=96)], replace(QUICK, noise=0.0, sharpness=(1.0, 1.0))
    )[3]
    for label, place in zip(part.labels, part.places, strict=True):
        assert 0 <= place <= 15
        shown = part.seen[int(place.round()), 1] > 0.5
        assert (shown == (label == 1)).float().mean() > 0.98
        brighter = part.seen[int(place.round()), 3]
        assert brighter[label == 1].mean() > brighter[label == 0].mean() + 0.1


def test_a_part_follows_from_its_number_and_the_seed() -> None:
    answers = [patient(0), patient(1)]
    again, other = Parts(answers, QUICK), Parts(answers, replace(QUICK, seed=1))
    first = Parts(answers, QUICK)[7]
    again[3]
    assert torch.equal(first.seen, again[7].seen)
    assert not torch.equal(first.seen, other[7].seen)


def test_slices_of_no_organ_are_refused() -> None:
    one = patient(0)
    with pytest.raises(UserError, match="none of the annotated slices shows an organ"):
        Parts([replace(one, labels=torch.zeros_like(one.labels))], QUICK)


def test_neighbours_mend_what_a_slice_got_wrong() -> None:
    """A patient that was not trained on: the model is wrong in every fourth slice, the refiner in none."""
    refiner = train_refiner([patient(seed) for seed in (0, 1, 2, 4, 5, 6)], 3, QUICK, CPU)
    test = patient(3)
    seen = torch.cat((test.shares, test.image[:, None]), 1).float().transpose(0, 1)[None]
    with torch.inference_mode():
        corrected = log_shares(test.shares) + refiner.over(seen).transpose(0, 1)
    truth = patient(3, wrong=False).shares.argmax(1)
    before = (test.shares.argmax(1) != truth).float().mean()
    after = (corrected.argmax(1) != truth).float().mean()
    assert before > 0.03
    assert after < before / 10


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    answers, settings, state = [patient(0), patient(1)], replace(QUICK, iterations=6), tmp_path / "refiner.pt"
    whole = train_refiner(answers, 3, settings, CPU)
    seen: list[int] = []
    with pytest.raises(Cancelled, match="iteration 3"):
        train_refiner(
            answers, 3, settings, CPU, state=state,
            progress=lambda p: seen.append(p.iteration), cancelled=lambda: len(seen) == 3,
        )  # fmt: skip
    with pytest.raises(UserError, match="other settings, slices or labels"):
        train_refiner(answers, 3, replace(settings, seed=1), CPU, state=state)
    resumed = train_refiner(answers, 3, settings, CPU, state=state, progress=lambda p: seen.append(p.iteration))
    assert seen == [1, 2, 3, 4, 5, 6]
    again = train_refiner(answers, 3, settings, CPU, state=state, progress=lambda p: seen.append(p.iteration))
    assert seen == [1, 2, 3, 4, 5, 6]  # a finished one has nothing to do
    for name, value in whole.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name].float(), value.float(), atol=1e-5), name
        assert torch.equal(again.state_dict()[name], resumed.state_dict()[name]), name


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "refiner.pt").write_bytes(b"no state")
    with pytest.raises(UserError, match="damaged"):
        train_refiner([patient(0)], 3, QUICK, CPU, state=tmp_path / "refiner.pt")


def test_half_precision_gives_the_gradients_of_full_precision() -> None:
    """The libraries' bfloat16 weight gradients of convolutions over few voxels are garbage on some CPUs."""
    torch.manual_seed(0)
    refiner = VolumeRefiner(3, (8, 16, 32, 64, 64))
    torch.nn.init.normal_(refiner.network.final_conv.weight, std=0.1)
    seen = torch.rand(1, 4, 32, 48, 64)
    gradients = []
    for context in (autocast(CPU), torch.autocast("cpu", enabled=False)):
        refiner.zero_grad()
        with context:
            change = refiner(seen)
        (change - 1).square().mean().backward()
        gradients.append({name: value.grad.clone() for name, value in refiner.named_parameters() if value.ndim == 5})
    for name, half in gradients[0].items():
        full = gradients[1][name]
        assert (half - full).norm() < 0.5 * full.norm(), name


def test_the_gain_is_what_the_refiner_does_for_patients_it_has_not_seen() -> None:
    """By hand: the organ of 3 x 4 voxels is half found before, and whole after class 1 gets more everywhere."""
    shares = torch.full((8, 3, 16, 16), 0.01)
    shares[:, 0] = 0.98
    labels = torch.zeros(8, 16, 16, dtype=torch.uint8)
    labels[:, 4:7, 4:8] = 1
    shares[:, :, 4:7, 4:6] = torch.tensor([0.3, 0.6, 0.1])[:, None, None]
    shares[:, :, 4:7, 6:8] = torch.tensor([0.55, 0.44, 0.01])[:, None, None]  # called background, nearly the organ
    labels[1::2] = IGNORED
    one = Answers("p", shares.half(), torch.full((8, 16, 16), 0.5).half(), labels, 4.0)
    refiner = VolumeRefiner(3, (8, 8, 8, 8, 8)).eval()
    assert gain(refiner, [one], CPU) == pytest.approx((2 * 6 / 18, 2 * 6 / 18))
    with torch.no_grad():
        refiner.network.final_conv.bias[1] = 1.0
    assert gain(refiner, [one], CPU) == pytest.approx((2 * 6 / 18, 1.0), abs=1e-6)
