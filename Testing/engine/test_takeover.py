"""A training that starts from a model of other organs: what is shared is taken over, an organ's own goes by name."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from choosing import choose_samples
from pgpsam.labels import LabelSet
from pgpsam.models.store import load_model, load_spec
from pgpsam.models.weights import load_state, locate
from pgpsam.network.lora import trained_tensors
from pgpsam.training.choice import SliceChoice
from pgpsam.training.data import read_dataset
from pgpsam.training.finetune import finetune
from pgpsam.training.settings import TrainingSettings
from pgpsam.training.takeover import put_shared, rows_per_organ
from small_networks import build, nudge, quickest

BEFORE = ("liver", "spleen", "aorta")
OF_ALL_ORGANS = ("encoder.", "levels.", "fuse.", "decoder.transformer.", "decoder.up", "decoder.half", "refiner.")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """LiteMedSAM's own weights."""
    return load_state(locate("lite_medsam"), "lite_medsam")


def start(method: str, published: dict[str, Tensor], now: tuple[str, ...]):
    """A model of `BEFORE`, moved from where it began; a fresh network of the organs `now`; what came of it."""
    settings = TrainingSettings(method=method, backbone=quickest(method))
    before = build(method, settings.backbone, published, seed=1, classes=len(BEFORE) + 1)
    nudge(before, 0.1)
    network = build(method, settings.backbone, published, seed=2, classes=len(now) + 1)
    fresh = {name: value.clone() for name, value in trained_tensors(network).items()}
    whole = put_shared(network, trained_tensors(before), BEFORE, now, settings)
    return trained_tensors(before), fresh, trained_tensors(network), whole


@pytest.mark.parametrize(
    ("method", "mixed"),
    [
        *((method, set()) for method in ("pgsam", "samsp", "probe", "ptsam", "unet")),
        ("pgp", {"ppg.0.relate.weight", "ppr.0.columns.point.weight", "ppr.0.fuse.weight"}),
    ],
)
def test_every_tensor_is_shared_or_has_rows_of_each_organ_but_for_what_mixes_them(method, mixed, published):
    settings = TrainingSettings(method=method, backbone=quickest(method))
    network = build(method, settings.backbone, published, classes=5)
    rows = rows_per_organ(network, settings)
    assert rows.keys() == trained_tensors(network).keys()
    assert {name.replace(".1.", ".0.").replace(".2.", ".0.") for name, each in rows.items() if each is None} == mixed
    for name, each in rows.items():
        length = len(network.get_parameter(name)) if network.get_parameter(name).ndim else 0
        assert not each or length in (4 * each, 5 * each), name


def test_organs_of_a_models_own_bring_all_that_it_knows_of_them(published):
    before, _, now, whole = start("pgsam", published, ("aorta", "liver"))
    assert whole
    for name, value in now.items():
        if value.shape == before[name].shape:
            assert torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, before[name][[0, 3, 1]]), name


def test_an_organ_that_the_model_does_not_know_begins_as_without_it(published):
    before, fresh, now, whole = start("pgsam", published, ("pancreas", "liver"))
    assert not whole
    for name, value in now.items():
        if name.startswith("prototypes."):
            assert torch.equal(value, fresh[name]), name
        elif value.shape == before[name].shape:
            assert torch.equal(value, before[name]), name
            assert not name.startswith(OF_ALL_ORGANS) or not torch.equal(value, fresh[name]), name
        else:
            assert torch.equal(value[[0, 2]], before[name][[0, 1]]), name
            assert torch.equal(value[1], fresh[name][1]), name


def test_as_many_other_organs_are_no_more_the_models_own(published):
    """Tensors of equal shapes must not be mistaken for the same organs'."""
    before, fresh, now, _ = start("samsp", published, ("pancreas", "gallbladder", "stomach"))
    tokens = "decoder.mask_tokens"
    assert torch.equal(now[tokens][0], before[tokens][0]), "the background is one"
    assert torch.equal(now[tokens][1:], fresh[tokens][1:])


def test_rows_of_prompts_without_a_background(published):
    before, fresh, now, _ = start("ptsam", published, ("pancreas", "spleen"))
    assert torch.equal(now["prompts"][1], before["prompts"][1])
    assert torch.equal(now["prompts"][0], fresh["prompts"][0])


def test_the_share_of_an_earlier_start_is_not_told_of_a_later_one(phantoms, quick_model, quick_settings, tmp_path):
    given = shutil.copytree(quick_model, tmp_path / "given")
    dataset = read_dataset(phantoms)
    for share, out in ((0.5, "first"), (0.0, "second")):
        settings = replace(quick_settings, iterations=1, start_share=share, start_from=str(given))
        samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), settings)
        given = finetune(samples, dataset.labels, settings, tmp_path / out, name=out, device="cpu")
    assert load_spec(tmp_path / "first").training["started_from"]["share"] == 0.5
    assert "share" not in load_spec(given).training["started_from"]


def test_a_training_on_other_organs_names_its_start_but_has_not_its_scores(
    phantoms, quick_model, quick_settings, tmp_path
):
    given = shutil.copytree(quick_model, tmp_path / "given")
    dataset = read_dataset(phantoms)
    liver, spleen = dataset.labels
    settings = replace(quick_settings, iterations=1, lr=0.0, published_lr=0.0, start_from=str(given))
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), settings)
    other = LabelSet((liver, replace(spleen, id=9, name="lesion")))
    finetune(samples, other, settings, tmp_path / "m", name="m", device="cpu")
    told = load_spec(tmp_path / "m").training["started_from"]
    assert told == {"name": "quick", "cases": ["case_0", "case_1"], "commands": []}
    (_, first), (_, second) = load_model(given), load_model(tmp_path / "m")
    tokens = "decoder.mask_tokens"
    assert torch.equal(first[tokens][:2], second[tokens][:2])
    assert not torch.equal(first[tokens][2], second[tokens][2])
    assert not torch.equal(first["prototypes.intra"], second["prototypes.intra"]), "they start at the slices"


def test_an_organ_goes_by_its_name_in_any_known_spelling(phantoms, quick_model, quick_settings, tmp_path):
    dataset = read_dataset(phantoms)
    settings = replace(quick_settings, iterations=1, lr=0.0, published_lr=0.0, start_from=str(quick_model))
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), settings)
    spelled = LabelSet(tuple(replace(label, name=label.name.upper()) for label in dataset.labels))
    finetune(samples, spelled, settings, tmp_path / "m", name="m", device="cpu")
    (_, first), (_, second) = load_model(quick_model), load_model(tmp_path / "m")
    assert all(torch.equal(first[name], second[name]) for name in first)
