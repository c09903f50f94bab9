"""The segmenter: the same result whatever the batch and the orientation; cancel, memory, air, organs, identity."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from pgpsam.errors import Cancelled, UserError
from pgpsam.looks import LOOKS
from pgpsam.models.store import load_model, save_model
from pgpsam.models.weights import base_state
from pgpsam.network.base import Output
from pgpsam.network.lora import put_tensors
from pgpsam.network.methods import build_network
from pgpsam.network.volume_refiner import VolumeRefiner
from pgpsam.segmenter import Segmenter, restore_network
from pgpsam.slices import body_mask, frame_volume
from pgpsam.training.suggest import body_features
from pgpsam.volume import Volume
from phantoms import make_phantom


@pytest.fixture(scope="module")
def segmenter(quick_model):
    return Segmenter.load(quick_model, "cpu")


def test_result_lies_on_the_volumes_grid(segmenter):
    volume, _ = make_phantom(7)
    result = segmenter.segment(volume)
    assert result.labels.shape == result.confidence.shape == result.regions.shape == volume.shape
    assert result.labels.dtype == np.uint8
    assert set(np.unique(result.labels)) <= {0, 1, 6}
    assert (result.confidence > 0).all()
    assert (result.confidence <= 1).all()
    assert list(result.seconds) == ["prepare", "slices", "clean up"]
    assert result.device == "cpu"
    assert result.model == "quick"


def test_batches_do_not_change_the_result(segmenter):
    """bfloat16 rounds differently in other batch sizes: labels may differ only where two classes are about even."""
    volume, _ = make_phantom(7)
    one = segmenter.segment(volume, clean=False)
    segmenter.batch, former = 1, segmenter.batch
    other = segmenter.segment(volume, clean=False)
    segmenter.batch = former
    differ = one.labels != other.labels
    assert differ.mean() < 0.01
    assert not (differ & (one.confidence > 0.6)).any()
    assert np.abs(one.confidence - other.confidence).mean() < 1e-2


def test_orientation_does_not_change_the_result(segmenter):
    volume, _ = make_phantom(7)
    affine = volume.grid.affine @ np.array([[-1, 0, 0, 71], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1]], float)
    turned = Volume.from_kji(np.ascontiguousarray(volume.array[::-1, :, ::-1]), affine)
    expected = segmenter.segment(volume).labels
    assert np.array_equal(turned.restore(segmenter.segment(turned).labels), expected[::-1, :, ::-1])


def test_organs_that_were_not_asked_for_are_left_out(segmenter):
    volume, _ = make_phantom(7)
    every = segmenter.segment(volume, clean=False)
    liver = segmenter.segment(volume, ["liver"], clean=False)
    assert np.array_equal(liver.labels == 6, every.labels == 6)
    assert set(np.unique(liver.labels)) <= {0, 6}
    assert {p.label_id for p in liver.points} <= {6}
    assert set(np.unique(liver.regions)) <= {0, 6}
    with pytest.raises(UserError, match="spleen, liver"):
        segmenter.segment(volume, ["brain"])


class Seen(torch.nn.Module):
    """A stand-in network that notes its canvases, and is surer of class 1 the larger they are."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes, self.canvases = classes, []

    def forward(self, image: torch.Tensor) -> Output:
        self.canvases.append(tuple(image.shape[-2:]))
        logits = torch.zeros(len(image), self.classes, *image.shape[-2:])
        logits[:, 1] = image.shape[-2] / 56
        return Output(logits)


def test_two_looks_are_the_mean_of_their_logits(segmenter):
    volume, _ = make_phantom(7)
    classes = len(segmenter.label_set) + 1
    network = Seen(classes)
    fine = replace(segmenter.preparation, spacing_mm=0.9, multiple=4)
    looking = Segmenter(network, segmenter.label_set, fine, "seen", "cpu")
    frames = [frame_volume(volume, replace(fine, spacing_mm=0.9 * scale)) for scale in LOOKS]
    assert len({frame.canvas for frame in frames}) == 2, "the phantom must need another canvas at the second look"

    def expected(*heights: int) -> float:
        logit = np.mean([height / 56 for height in heights])
        return float(np.exp(logit) / (np.exp(logit) + classes - 1))

    y0, y1, x0, x1 = frames[0].box
    for looks in (1, 2):
        network.canvases.clear()
        result = looking.segment(volume, looks=looks, clean=False)
        assert set(network.canvases) == {frame.canvas for frame in frames[:looks]}
        inside = result.confidence[:, y0:y1, x0:x1]
        assert np.allclose(inside, expected(*(frame.canvas[0] for frame in frames[:looks])), atol=1e-4)


def test_a_second_network_takes_the_second_look(segmenter):
    volume, _ = make_phantom(7)
    first, second = (Seen(len(segmenter.label_set) + 1) for _ in range(2))
    fine = replace(segmenter.preparation, spacing_mm=0.9, multiple=4)
    looking = Segmenter(first, segmenter.label_set, fine, "seen", "cpu", second=second)
    frames = [frame_volume(volume, replace(fine, spacing_mm=0.9 * scale)) for scale in LOOKS]
    looking.segment(volume, looks=1)
    assert not second.canvases
    first.canvases.clear()
    looking.segment(volume)
    assert (set(first.canvases), set(second.canvases)) == ({frames[0].canvas}, {frames[1].canvas})


def test_two_looks_are_the_default_and_cannot_be_three(segmenter):
    volume, _ = make_phantom(7)
    usual, once, twice = (segmenter.segment(volume, **kind).confidence for kind in ({}, {"looks": 1}, {"looks": 2}))
    assert np.array_equal(usual, twice)
    assert not np.array_equal(usual, once)
    for looks in (0, 3):
        with pytest.raises(UserError, match=f"{looks} looks at every slice: there can be 1 to 2"):
            segmenter.segment(volume, looks=looks)


def test_air_is_skipped(segmenter):
    volume, _ = make_phantom(7)
    array = volume.array.copy()
    array[3:] = -1000.0
    steps = []
    result = segmenter.segment(Volume.from_kji(array, volume.grid.affine), progress=steps.append)
    assert steps[-1].total == steps[-1].done == 3
    assert not result.labels[3:].any()


def test_cancel_stops_before_the_next_batch(segmenter):
    volume, _ = make_phantom(7)
    seen = []
    with pytest.raises(Cancelled):
        segmenter.segment(volume, progress=seen.append, cancelled=lambda: bool(seen))
    assert len(seen) == 1


def test_partial_results_grow(segmenter):
    volume, _ = make_phantom(7)
    finished = []
    segmenter.segment(volume, partial=lambda labels, done: finished.append((done, labels.any((1, 2)).sum())))
    written = [done for done, _ in finished]
    assert written == sorted(written)
    assert written[-1] == 6
    assert all(filled <= done for done, filled in finished)


def refined(segmenter, favoured: int) -> Segmenter:
    """The same model with a refiner that prefers one class everywhere."""
    refiner = VolumeRefiner(len(segmenter.label_set) + 1, (8, 8, 8, 8, 8))
    with torch.no_grad():
        refiner.network.final_conv.bias[favoured] = 50.0
    parts = segmenter.network, segmenter.label_set, segmenter.preparation
    return Segmenter(*parts, "refined", "cpu", lambda: refiner)


def test_a_refiner_has_the_last_word(segmenter):
    volume, _ = make_phantom(7)
    liver = 1 + segmenter.label_set.names.index("liver")
    result = refined(segmenter, liver).segment(volume, clean=False)
    body = volume.array > 0
    assert (result.labels[body] == 6).all()
    assert (result.confidence[body] > 0.99).all()
    background = refined(segmenter, 0).segment(volume, clean=False)
    assert not background.labels.any()
    assert not refined(segmenter, liver).segment(volume, ["spleen"], clean=False).labels.any()


def test_a_refiner_reports_and_can_be_cancelled(segmenter):
    volume, _ = make_phantom(7)
    steps = []
    refined(segmenter, 0).segment(volume, progress=steps.append)
    assert [(s.done, s.total) for s in steps if s.stage == "refine"] == [(0, 1), (1, 1)]
    seen = []
    with pytest.raises(Cancelled):
        refined(segmenter, 0).segment(
            volume, progress=seen.append, cancelled=lambda: bool(seen) and seen[-1].done == seen[-1].total
        )
    assert {step.stage for step in seen} == {"slices"}


class TooLarge(torch.nn.Module):
    """A network with an injected fault: it runs out of memory on batches over `limit`."""

    def __init__(self, network, limit):
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, image):
        if len(image) > self.limit:
            raise torch.OutOfMemoryError("injected")
        return self.network(image)


def test_out_of_memory_halves_the_batch_and_goes_on(quick_model):
    volume, _ = make_phantom(7)
    whole = Segmenter.load(quick_model, "cpu")
    expected = whole.segment(volume).labels
    segmenter = Segmenter(TooLarge(whole.network, 2), whole.label_set, whole.preparation, "quick", "cpu")
    segmenter.batch = 5
    assert (segmenter.segment(volume).labels != expected).mean() < 1e-3
    assert segmenter.batch == 2
    hopeless = Segmenter(TooLarge(whole.network, 0), whole.label_set, whole.preparation, "quick", "cpu")
    with pytest.raises(UserError, match="not enough memory"):
        hopeless.segment(volume)


def test_out_of_memory_halves_the_batch_where_slices_to_annotate_are_looked_for(quick_model):
    volume, _ = make_phantom(7)
    seen = volume, body_mask(volume.array), list(range(6))
    segmenter = Segmenter.load(quick_model, "cpu")
    encoder, expected, steps = segmenter.network.encoder, body_features(segmenter, *seen), []
    segmenter.network.encoder, segmenter.batch = TooLarge(encoder, 2), 5
    features = body_features(segmenter, *seen, progress=lambda done, total: steps.append((done, total)))
    assert np.allclose(features, expected, atol=1e-2 * np.abs(expected).max())
    assert segmenter.batch == 2
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1] == (6, 6)
    segmenter.network.encoder = TooLarge(encoder, 0)
    with pytest.raises(UserError, match="not enough memory on cpu for one slice"):
        body_features(segmenter, *seen)


class TooLargeForCards:
    """A refiner with an injected fault: it runs out of memory on anything but the CPU."""

    def __init__(self, refiner):
        self.refiner = refiner

    def to(self, device):
        return self

    def eval(self):
        return self

    def over(self, seen):
        if seen.device.type != "cpu":
            raise torch.OutOfMemoryError("injected")
        return self.refiner.over(seen)


def test_a_refiner_that_does_not_fit_goes_on_on_the_cpu(segmenter, monkeypatch):
    """torch's device without memory, `meta`, stands in for a card."""
    volume, _ = make_phantom(7)
    monkeypatch.setattr("pgpsam.segmenter.autocast", lambda device: nullcontext())
    torch.manual_seed(0)
    refiner = VolumeRefiner(len(segmenter.label_set) + 1, (8, 8, 8, 8, 8))
    torch.nn.init.normal_(refiner.network.final_conv.weight)
    parts = segmenter.network, segmenter.label_set, segmenter.preparation
    expected = Segmenter(*parts, "refined", "cpu", lambda: refiner).segment(volume)
    small = Segmenter(*parts, "refined", "cpu", lambda: TooLargeForCards(refiner))

    def change_to_the_card(step):
        if step.stage == "refine":
            small.device = torch.device("meta")

    result = small.segment(volume, progress=change_to_the_card)
    assert result.device == "meta"
    assert np.array_equal(result.labels, expected.labels)
    assert np.array_equal(result.confidence, expected.confidence)
    assert (expected.labels != segmenter.segment(volume).labels).any(), "the refiner must have a say"


def test_merged_lora_says_what_the_trained_network_said(quick_model):
    """The network of training, with peft's branches, and the one that segments, without them."""
    torch.manual_seed(0)
    spec, tensors = load_model(quick_model)
    tensors = {name: torch.randn_like(t) * 0.5 if "lora_B" in name else t for name, t in tensors.items()}
    trained = build_network(spec.method, spec.backbone, 3, spec.settings, base_state(spec.backbone)[0])
    put_tensors(trained, tensors, "quick")
    merged = restore_network(spec, tensors)
    untrained = restore_network(spec, {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in tensors.items()})
    image = torch.rand(1, 3, 56, 112)
    with torch.no_grad():
        expected, got, without = (network.eval()(image).logits for network in (trained, merged, untrained))
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert (got - expected).abs().max() < 1e-3 * expected.abs().max()
    assert (got - expected).abs().max() < 1e-2 * (without - expected).abs().max()
    missing = next(name for name in tensors if "lora_A" in name)
    with pytest.raises(UserError, match="does not fit its method"):
        restore_network(spec, {name: t for name, t in tensors.items() if name != missing})


def test_where_the_clean_up_decides_otherwise_the_confidence_is_what_was_left(segmenter, monkeypatch):
    volume, _ = make_phantom(7)
    raw = segmenter.segment(volume, clean=False)

    def another_slice(labels, *_):  # a stand-in for the clean-up, which changes every voxel of one slice
        kept = labels.copy()
        kept[2] = np.where(labels[2] > 0, 0, 6)
        return kept

    monkeypatch.setattr("pgpsam.postprocess.keep_components", another_slice)
    clean = segmenter.segment(volume)
    assert (clean.labels[2] != raw.labels[2]).all()
    np.testing.assert_allclose(clean.confidence[2], 1 - raw.confidence[2], atol=1e-6)
    np.testing.assert_array_equal(clean.confidence[3], raw.confidence[3])


def test_importing_the_segmenter_does_not_import_peft():
    """Peft imports transformers: seconds in which nobody sees a first slice."""
    code = "import sys, pgpsam.segmenter; sys.exit(1 if {'peft', 'transformers', 'monai'} & set(sys.modules) else 0)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_save_and_load_give_identical_logits(quick_model, tmp_path):
    spec, tensors = load_model(quick_model)
    save_model(tmp_path / "copy", spec, tensors)
    image = torch.rand(1, 3, 56, 112)
    logits = []
    for folder in (quick_model, tmp_path / "copy"):
        network = restore_network(*load_model(folder)).eval()
        with torch.inference_mode():
            logits.append(network(image).logits)
    assert torch.equal(*logits)


def test_an_adapter_of_another_method_is_refused(quick_model):
    spec, tensors = load_model(quick_model)
    del tensors["prototypes.intra"]
    with pytest.raises(UserError, match=r"does not fit its method \(prototypes.intra"):
        restore_network(spec, tensors)


def test_a_model_of_other_base_weights_is_refused(quick_model):
    spec, tensors = load_model(quick_model)
    with pytest.raises(UserError, match=r"quick was trained on other base weights of lite_medsam \(SHA-256 00000000"):
        restore_network(replace(spec, backbone_sha256="0" * 64), tensors)


def test_points_lie_in_the_organs_slices(segmenter):
    volume, _ = make_phantom(7)
    result = segmenter.segment(volume)
    for point in result.points:
        assert (result.labels[point.z] == point.label_id).any()
        assert 0 < point.weight <= 1


def test_unknown_devices_are_refused(quick_model):
    for name in ("gpu", "cuda:99"):
        with pytest.raises(UserError, match="device"):
            Segmenter.load(quick_model, name)
