"""Scores smoothed along z."""

from __future__ import annotations

import math

import pytest
import torch

from pgpsam.smoothing import AlongZ


def run(smooth: AlongZ, slices: dict[int, float]) -> list[tuple[int, float]]:
    """Slices in, (z, score) out, in the order in which they come."""
    out = [(z, float(s)) for index, value in slices.items() for z, s in smooth.add(index, torch.tensor(value))]
    return out + [(z, float(s)) for z, s in smooth.finish()]


def test_a_gaussian_by_hand() -> None:
    # 5 mm apart with a standard deviation of 2.5 mm: only the next slice to either side, with weight e^-2.
    near = math.exp(-2)
    got = run(AlongZ(2.5, 5.0), {3: 1.0, 4: 0.0, 5: 0.0})
    assert [z for z, _ in got] == [3, 4, 5]
    assert [s for _, s in got] == pytest.approx([1 / (1 + near), near / (1 + 2 * near), 0.0])


def test_constant_scores_stay_as_they_are_at_the_ends_too() -> None:
    got = run(AlongZ(2.5, 1.0), dict.fromkeys(range(20), 7.0))
    assert [z for z, _ in got] == list(range(20))
    assert [s for _, s in got] == pytest.approx([7.0] * 20)


def test_a_slice_without_scores_has_no_say() -> None:
    got = dict(run(AlongZ(2.5, 5.0), {1: 1.0, 3: 0.0}))  # slice 2 is air
    assert got == pytest.approx({1: 1.0, 3: 0.0})


def test_a_slice_is_given_as_soon_as_its_neighbours_are_there() -> None:
    smooth = AlongZ(2.5, 2.5)  # two slices to either side
    ready = [[z for z, _ in smooth.add(index, torch.zeros(1))] for index in range(5)]
    assert ready == [[], [], [0], [1], [2]]
    assert [z for z, _ in smooth.finish()] == [3, 4]
    assert len(smooth.near) <= 5


@pytest.mark.parametrize(("sigma", "spacing"), [(0.0, 3.0), (2.5, 8.0)])
def test_slices_too_far_apart_are_passed_on(sigma: float, spacing: float) -> None:
    assert run(AlongZ(sigma, spacing), {0: 1.0, 1: 5.0}) == [(0, 1.0), (1, 5.0)]
