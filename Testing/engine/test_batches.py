"""Batches of encoded slices: each view several times, and the same again after a pause."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pgpsam.models.weights import load_state, locate
from pgpsam.network.methods import SegmentationNetwork, build_network
from pgpsam.training.augment import Augmentation, Augmenter
from pgpsam.training.batches import Kept, Order, Replay
from pgpsam.training.data import Sample

CANVAS = (28, 28)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    return build_network("pgp", "lite_medsam", 3, {}, load_state(locate("lite_medsam"), "lite_medsam"))


@pytest.fixture
def samples() -> list[Sample]:
    """Six slices that can be told apart by their grey value and their label's size."""
    made = []
    for i in range(6):
        labels = torch.zeros(28, 28, dtype=torch.uint8)
        labels[: 4 * (i + 1)] = 1
        made.append(Sample("case", i, torch.full((1, 28, 28), 0.1 * (i + 1), dtype=torch.float16), labels))
    return made


def replay(network: SegmentationNetwork, samples: list[Sample], times: int) -> Replay:
    order, augmenter = Order(samples, 0.0, seed=3), Augmenter(CANVAS, Augmentation())
    return Replay(network, samples, order, augmenter, batch=2, replay=times, seed=3)


def test_a_view_is_used_as_often_as_asked_and_then_forgotten(network, samples) -> None:
    source = replay(network, samples, 4)
    source.encode = lambda number: ((torch.zeros(1), torch.zeros(1)), torch.tensor(number))  # only the numbers matter
    network_upper = type(network.encoder).upper
    try:
        type(network.encoder).upper = lambda self, parts: parts  # type: ignore[method-assign]
        used = Counter(int(n) for step in range(400) for n in source(step)[1])
    finally:
        type(network.encoder).upper = network_upper  # type: ignore[method-assign]
    settled = [used[n] for n in range(40, 180)]
    assert sum(settled) / len(settled) == pytest.approx(4, abs=0.3)
    assert len(source.ring) == source.capacity == 16


def test_a_resumed_run_sees_the_same_batches(network, samples) -> None:
    source = replay(network, samples, 2)
    for step in range(3):
        features, labels = source(step)
    again, same = replay(network, samples, 2)(2)
    assert torch.equal(labels, same)
    torch.testing.assert_close(features.neck, again.neck)


@pytest.mark.parametrize(("stages", "reached"), [({}, "123"), ({"lora_stages": r"stages\.3.*"}, "3")])
def test_gradients_reach_the_adapted_stages_and_nothing_below(samples, stages, reached) -> None:
    network = build_network("pgp", "lite_medsam", 3, stages, load_state(locate("lite_medsam"), "lite_medsam"))
    features, _ = replay(network, samples, 1)(0)
    assert features.neck.requires_grad
    assert not features.details[0].requires_grad  # of stage 0, which has no attention
    assert features.taps[0].requires_grad == (reached != "3")
    features.neck.float().square().mean().backward()
    adapted = {name for name, value in network.encoder.named_parameters() if value.grad is not None}
    assert all("lora" in name for name in adapted)
    assert {name.split("stages.")[1][0] for name in adapted} == set(reached)


def test_an_encoder_that_learns_nothing_sees_every_view_once(samples) -> None:
    network = build_network("pgp", "lite_medsam", 3, {}, load_state(locate("lite_medsam"), "lite_medsam"))
    learning, _ = replay(network, samples, 4)(0)
    network.encoder.requires_grad_(False)
    source = replay(network, samples, 4)
    seen = []
    network.encoder.neck.register_forward_hook(lambda *_: seen.append(1))
    features, _ = source(0)
    assert len(seen) == source.capacity
    source(1)
    assert len(seen) == source.capacity, "half a view a step"
    assert not features.neck.requires_grad
    for one, other in zip((features.neck, *features.taps), (learning.neck, *learning.taps), strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=0.05, rtol=0.05)
    assert len(features.details) == len(learning.details)


def test_batches_are_the_encoders_own_features(network, samples) -> None:
    order, plain = Order(samples, 0.0, seed=0), Augmenter(CANVAS, None)
    features, labels = Replay(network, samples, order, plain, batch=2, replay=1, seed=0)(0)
    kept, kept_labels = Kept(network, samples, order, plain, batch=2)(0)
    numbers = sorted(order[i] for i in range(2))
    assert sorted(int(one[:, 0].sum()) // 4 - 1 for one in labels) == numbers
    assert sorted(int(one[:, 0].sum()) // 4 - 1 for one in kept_labels) == numbers
    for one, label in zip(features.neck, labels, strict=True):
        twin = next(k for k, other in zip(kept.neck, kept_labels, strict=True) if torch.equal(label, other))
        torch.testing.assert_close(one.float(), twin, atol=0.02, rtol=0.02)
