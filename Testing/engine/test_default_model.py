"""The shipped model on real CTs: the right grid, the right side, and the agreement that the README promises."""

import nibabel
import numpy as np
import pytest

from pgpsam.models.lookup import find_model
from pgpsam.models.store import load_spec
from pgpsam.segmenter import Segmenter
from pgpsam.training.card import model_card
from pgpsam.volume import read_labels_on, read_volume

REPORTED = (1, 2, 3, 4, 6, 7, 8, 11)
ASKED_MEAN, ASKED_LIVER = 0.75, 0.92


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.load("abdomen-ct", "cpu")


@pytest.mark.parametrize(("name", "patients"), [("abdomen-ct", 18), ("abdomen-ct-fewshot", 15)])
def test_a_shipped_model_is_small_enough_and_says_what_it_is(name, patients):
    folder = find_model(name)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 25e6
    spec = load_spec(folder)
    assert spec.name == name
    assert len(spec.labels) == 13
    assert len(spec.training["cases"]) == patients
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    assert card == model_card(spec)
    assert "Not for clinical use" in card
    assert "btcv_0037" in card


@pytest.fixture(scope="module")
def sample(segmenter, shared_data):
    """An unenhanced abdominal CT at 3 mm, its reference labels [z, y, x] and the model's result."""
    volume = read_volume(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    reference = read_labels_on(volume, shared_data / "samples" / "ts_abdomen_seg.nii.gz")
    return volume, reference, segmenter.segment(volume)


@pytest.fixture(scope="module")
def dice(sample, segmenter):
    """Dice by label id, of the reported organs that the reference has."""
    _, reference, result = sample
    scores = {}
    for identifier in REPORTED:
        ours, theirs = result.labels == identifier, reference == identifier
        if theirs.any():
            scores[identifier] = 2 * int((ours & theirs).sum()) / int(ours.sum() + theirs.sum())
    print({segmenter.label_set.by_id(i).name: round(d, 3) for i, d in scores.items()})
    return scores


def test_agreement_with_the_samples_reference(dice):
    assert dice[6] >= ASKED_LIVER
    assert np.mean(list(dice.values())) >= ASKED_MEAN


def test_right_and_left_are_the_patients(sample):
    volume, _, result = sample
    middle = volume.shape[2] / 2
    for identifier, right in ((6, True), (2, True), (1, False), (3, False)):
        assert (np.nonzero(result.labels == identifier)[2].mean() < middle) == right


def test_prompts_lie_in_their_organs(sample):
    """A prompt of a large organ points into it: at least four of five peaks."""
    _, reference, result = sample
    inside = [reference[p.z, p.y, p.x] == p.label_id for p in result.points if p.label_id in (1, 2, 3, 6)]
    assert len(inside) >= 10
    assert np.mean(inside) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chest_ct_lps.nii.gz", "dicom", "head_ct.nii.gz", "thorax_ct_512.nii.gz"])
def test_every_sample_comes_back_on_its_grid_with_the_liver_on_the_right(segmenter, shared_data, name):
    path = shared_data / "samples" / name
    volume = read_volume(path)
    result = segmenter.segment(volume)
    if path.is_file():
        assert volume.restore(result.labels).shape == nibabel.load(path).shape[::-1]
    liver = result.labels == 6
    if liver.sum() * volume.voxel_ml > 200:
        assert np.nonzero(liver)[2].mean() < volume.shape[2] / 2
