"""PG-SAM: that the text matters, at the start and after training; the refiner; what the prior begins with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.models.weights import load_state, locate
from pgpsam.network.descriptions import WIDTH
from pgpsam.network.lora import trained_tensors
from pgpsam.network.methods import make_settings
from pgpsam.network.prototypes import coarse_labels
from pgpsam.network.refiner import Refiner
from pgpsam.network.text_prior import TextPrior
from small_networks import CLASSES, build, loss_of, nudge, slices

SIZE = (28, 56)
ORGANS = ("liver", "spleen")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """LiteMedSAM's own weights."""
    return load_state(locate("lite_medsam"), "lite_medsam")


@pytest.fixture(scope="module")
def trained(published: dict[str, Tensor]) -> Any:
    """A network that knows two slices by heart."""
    network: Any = build("pgsam", "lite_medsam", published)
    network.start_from_names(ORGANS)
    image, labels = slices(2, *SIZE)
    with torch.no_grad():
        neck = network.encoder(image).neck
    network.start_from_support(neck, coarse_labels(labels, *neck.shape[-2:]))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-4)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(network(image), labels).backward()
        optimizer.step()
    return network.requires_grad_(False)


def dice(network: Any) -> float:
    """Mean over the two organs on the slices that were learned."""
    image, labels = slices(2, *SIZE)
    with torch.inference_mode():
        found = network(image).logits.argmax(1)
    each = [
        float(2 * ((found == k) & (labels == k)).sum() / ((found == k).sum() + (labels == k).sum()))
        for k in range(1, CLASSES)
    ]
    return sum(each) / len(each)


# ------------------------------------------------------------------------------------------------- the text matters


def test_other_descriptions_give_other_masks_from_the_start(published: dict[str, Tensor]) -> None:
    found = []
    for names in (ORGANS, ORGANS[::-1], ("aorta", "pancreas")):
        network = build("pgsam", "lite_medsam", published)  # alike but for the names
        network.start_from_names(names)
        with torch.inference_mode():
            found.append(network(slices(1, *SIZE)[0]).logits)
    spread = found[0].std()
    assert (found[0] - found[1]).abs().mean() > 0.1 * spread
    assert (found[0] - found[2]).abs().mean() > 0.1 * spread


def test_a_trained_network_is_lost_when_its_descriptions_change_places(trained: Any) -> None:
    image, _ = slices(2, *SIZE)
    text = trained.prototypes.text
    own = text.clone()
    with torch.no_grad():
        right, logits = dice(trained), trained(image).logits
        text.copy_(own[[0, 2, 1]])
        wrong, shuffled = dice(trained), trained(image).logits
        text.copy_(own)
    assert right > 0.8
    assert wrong < right - 0.3
    assert (logits - shuffled).abs().mean() > 0.2 * logits.std()


@pytest.mark.parametrize("value", [-20.0, 20.0])
def test_the_gate_decides_between_text_and_image(trained: Any, value: float) -> None:
    image, _ = slices(1, *SIZE)
    gate = trained.prototypes.gate
    bias = gate.bias.clone()
    with torch.no_grad():
        before = trained(image).logits
        gate.bias.fill_(value)
        after = trained(image).logits
        gate.bias.copy_(bias)
    assert (before - after).abs().mean() > 0.01 * before.std()


def test_classes_differ_by_their_text_alone() -> None:
    torch.manual_seed(0)
    prior, tokens = TextPrior(4, 16, 8.0), torch.randn(2, 9, 16)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        attention, prompts = prior(tokens)
        prior.text.copy_(prior.text[order].clone())
        for whole, permuted in zip((attention, prompts), prior(tokens), strict=True):
            torch.testing.assert_close(permuted, whole[:, order])


def test_the_gate_by_hand() -> None:
    prior, tokens = TextPrior(2, 16, 8.0), torch.randn(1, 9, 16)
    with torch.no_grad():
        prior.gate.weight.zero_()
        prior.gate.bias.fill_(-100.0)  # closed: the prompt is the text's prototype
        torch.testing.assert_close(prior(tokens)[1][0], prior.project(prior.text))
        prior.gate.bias.fill_(100.0)  # open: what the attention saw
        attention, prompts = prior(tokens)
        torch.testing.assert_close(prompts[0], prior.mlp(attention.softmax(-1) @ tokens)[0])


def test_prototypes_begin_at_the_classes_mean_features() -> None:
    torch.manual_seed(0)
    prior = TextPrior(3, 16, 8.0)
    labels = torch.tensor([[[0, 0, 1, 1]]])  # class 2 is not shown
    features = torch.randn(1, 16, 1, 4)
    prior.align(features, labels)
    with torch.no_grad():
        prototypes = prior.project(prior.text)
    for index, mean in ((0, features[0, :, 0, :2].mean(1)), (1, features[0, :, 0, 2:].mean(1))):
        assert torch.corrcoef(torch.stack((prototypes[index], mean)))[0, 1] > 0.95


def test_texts_begin_without_what_they_share() -> None:
    prior = TextPrior(3, 16, 8.0)
    prior.start_from_texts(torch.ones(3, WIDTH) + 0.1 * torch.randn(3, WIDTH))
    assert prior.text.mean(0).abs().max() < 1e-5
    assert prior.text.square().mean().item() == pytest.approx(1.0, abs=1e-4)


# -------------------------------------------------------------------------------------------------------- the refiner


def test_the_refiner_has_about_ten_thousand_parameters_and_starts_as_nothing() -> None:
    refiner = Refiner()
    assert sum(value.numel() for value in refiner.parameters()) == 33 * 32 * 9 + 32 + 32 * 9 + 1 == 9_825
    logits = torch.randn(2, 3, 8, 8)
    assert torch.equal(refiner(logits, torch.randn(2, 32, 8, 8), 2), logits)


def test_the_refiner_is_one_network_on_each_classs_logit_and_the_features() -> None:
    torch.manual_seed(0)
    refiner, logits, features = Refiner(4, 5), torch.randn(2, 3, 6, 7), torch.randn(2, 4, 6, 7)
    nudge(refiner, 0.3)
    first = torch.nn.Conv2d(5, 5, 3, padding=1)
    with torch.no_grad():
        first.weight.copy_(torch.cat((refiner.mask.weight, refiner.see.weight), 1))
        first.bias.copy_(refiner.see.bias)
        for rounds in (1, 2):
            expected = logits
            for _ in range(rounds):
                steps = [
                    refiner.change(first(torch.cat((expected[:, k : k + 1], features), 1)).relu()) for k in range(3)
                ]
                expected = expected + torch.cat(steps, 1)
            torch.testing.assert_close(refiner(logits, features, rounds), expected)


def test_without_training_the_refiner_leaves_classes_that_win_nowhere_as_they_are() -> None:
    torch.manual_seed(0)
    refiner, logits, features = Refiner(4, 5), torch.randn(2, 3, 6, 7), torch.randn(2, 4, 6, 7)
    nudge(refiner, 0.3)
    logits[:, 1] -= 20
    logits[1, 1, 2, 3] = 0  # in one pixel of one slice it may win ...
    every = refiner(logits, features, 2)
    torch.testing.assert_close(refiner.eval()(logits, features, 2), every)
    logits[1, 1, 2, 3] = -20  # ... and now nowhere
    every, spared = refiner.train()(logits, features, 2), refiner.eval()(logits, features, 2)
    assert torch.equal(spared[:, 1], logits[:, 1])
    assert not torch.equal(every[:, 1], logits[:, 1])
    torch.testing.assert_close(spared[:, [0, 2]], every[:, [0, 2]])


# ---------------------------------------------------------------------------------------------------- what it trains


def test_its_size_is_known(published: dict[str, Tensor]) -> None:
    parts: dict[str, int] = {}
    for name, value in trained_tensors(build("pgsam", "lite_medsam", published, classes=14)).items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + value.numel()
    decoder = parts.pop("decoder")
    fuse = parts.pop("fuse")
    assert parts == {
        "encoder": 29_696,
        "prototypes": 14 * WIDTH + WIDTH * 256 + (WIDTH * 256 + 256) + 1 + 14 + 2 * (256 * 256 + 256),
        "levels": (160 + 320) * 256 + 2 * 256 + 2 * 2 * 256,
        "refiner": 9_825,
    }
    pgp = trained_tensors(build("pgp", "lite_medsam", published, classes=14))
    assert decoder == sum(v.numel() for k, v in pgp.items() if k.startswith("decoder."))  # the same decoder
    assert 2 * fuse == sum(v.numel() for k, v in pgp.items() if k.startswith("fuse."))  # one stage of its context


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"refinements": 0}, {"lora_rank": -1}])
def test_settings_that_cannot_work_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"setting {next(iter(change))} of method pgsam is"):
        make_settings("pgsam", change)
