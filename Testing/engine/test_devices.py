"""What computes must not matter: segmenting and training on every device that is here, beside the CPU.

On a machine without a graphics card the tests run on the CPU alone, and say what they skipped.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from choosing import choose_samples
from pgpsam.device import choose_device, refusal
from pgpsam.errors import Cancelled
from pgpsam.models.store import load_spec
from pgpsam.segmenter import Segmenter
from pgpsam.training.choice import SliceChoice
from pgpsam.training.curves import CURVES
from pgpsam.training.data import read_dataset
from pgpsam.training.finetune import finetune
from pgpsam.training.resuming import CHECKPOINT
from phantoms import make_phantom


@pytest.fixture(params=["cpu", "cuda", "mps"])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here[name]:
        pytest.skip(f"no {name} device on this machine")
    return name


@pytest.mark.parametrize("looks", [1, 2])
def test_a_device_segments_as_the_cpu_does(quick_model, device, looks):
    """Rounding differs: labels may differ only where two classes are about even."""
    volume, _ = make_phantom(7)
    expected = Segmenter.load(quick_model, "cpu").segment(volume, looks=looks, clean=False)
    segmenter = Segmenter.load(quick_model, device)
    result = segmenter.segment(volume, looks=looks, clean=False)
    assert next(segmenter.network.parameters()).device.type == device
    differ = result.labels != expected.labels
    assert differ.mean() < 0.01
    assert not (differ & (expected.confidence > 0.6)).any()
    assert np.abs(result.confidence - expected.confidence).mean() < 0.02
    assert result.device.startswith(device)


def test_auto_takes_the_first_card_that_computes(monkeypatch):
    """The cards are stand-ins: of three, the first is one that this torch was not built for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr("pgpsam.device.refusal", lambda card: "no kernel image" if card == "cuda:0" else "")
    assert choose_device("auto") == torch.device("cuda:1")
    monkeypatch.setattr("pgpsam.device.refusal", lambda card: "no kernel image")
    assert choose_device("auto").type in ("cpu", "mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without CUDA is wanted")
def test_a_card_that_is_not_there_says_why():
    assert refusal("cuda:0")


def losses(folder: Path) -> list[float]:
    with (folder / CURVES).open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_a_device_trains_as_the_cpu_does_stops_and_goes_on(phantoms, quick_settings, quick_model, device, tmp_path):
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.select(["case_0", "case_1"]), SliceChoice(), quick_settings)
    run = {"name": "quick", "device": device}
    calls = iter(range(100))
    with pytest.raises(Cancelled, match="iteration 5"):
        finetune(samples, dataset.labels, quick_settings, tmp_path, **run, cancelled=lambda: next(calls) == 4)
    assert (tmp_path / CHECKPOINT).is_file()
    finetune(samples, dataset.labels, quick_settings, tmp_path, **run, resume=True)
    ours, theirs = losses(tmp_path), losses(quick_model)  # the same run on the CPU
    assert len(ours) == len(theirs) == quick_settings.iterations
    assert ours[:5] == pytest.approx(theirs[:5], rel=0.1)  # rounding adds up later
    assert all(map(math.isfinite, ours))
    cost = load_spec(tmp_path).training["cost"]
    assert cost["peak_memory_gb"] > 0
    assert ("CPU" in cost["device"]) == (device == "cpu")
    volume, _ = make_phantom(7)  # what was trained anywhere runs on the CPU
    assert Segmenter.load(tmp_path, "cpu").segment(volume, looks=1).labels.shape == volume.shape
