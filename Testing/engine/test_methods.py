"""The methods: one suite that every method of the registry passes, and what is particular to PGP-SAM and the probe.

The other methods' particulars are in files of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.models.weights import FROM_SCRATCH, load_state, locate
from pgpsam.network.backbones import BACKBONES, build_backbone
from pgpsam.network.base import upsample
from pgpsam.network.lora import put_tensors, trained_tensors
from pgpsam.network.methods import METHODS, SegmentationNetwork, build_network, default_method, make_settings
from pgpsam.network.pgp import PGPSettings
from pgpsam.network.probe import ProbeSettings
from pgpsam.network.prototypes import coarse_labels
from pgpsam.training.recipes import recipe
from small_networks import (
    CANVASES,
    CLASSES,
    ON_BACKBONES,
    build,
    loss_of,
    nudge,
    quickest,
    slices,
    small_vit,
    unlearning,
)

SWITCHES: list[dict[str, Any]] = [{f.name: False} for f in fields(PGPSettings) if f.default is True]
SWITCHES.append({"lora_rank": 0})

BY_HEART = {"ptsam": (2e-2, 60), "samsp": (1e-3, 40), "unet": (2e-3, 25)}
"""Learning rate and steps after which a method knows two slices by heart; of the others, (5e-4, 25)."""


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """LiteMedSAM's own weights."""
    return load_state(locate("lite_medsam"), "lite_medsam")


@pytest.fixture(autouse=True)
def a_small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another backbone for the time of a test: SAM's ViT in small, with random weights."""
    monkeypatch.setitem(BACKBONES, "small_vit", small_vit)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, where a gradient that is zero but for rounding can be told from a small one."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


every_method = pytest.mark.parametrize("method", METHODS)
on_every_backbone = pytest.mark.parametrize(("method", "backbone"), ON_BACKBONES)


# ------------------------------------------------------------------------------------ what every method does


@on_every_backbone
@pytest.mark.parametrize("classes", [2, 14])
def test_a_method_gives_masks_of_the_canvas_and_supervision_on_the_tokens(
    method: str, backbone: str, classes: int, published: dict[str, Tensor]
) -> None:
    network = build(method, backbone, published, classes=classes)
    stride = max(network.encoder.stride, 8 if backbone == FROM_SCRATCH else 1)
    for height, width in ((7 * stride, 14 * stride), (9 * stride, 5 * stride)):
        with torch.inference_mode():
            output = network(slices(2, height, width)[0])
        tokens = (2, classes, height // stride, width // stride)
        assert output.logits.shape == (2, classes, height, width)
        assert output.logits.dtype == torch.float32
        for coarse in output.coarse:
            finer = height // coarse.shape[-2]
            assert coarse.shape == (2, classes, height // finer, width // finer)
            assert finer <= max(stride, 8)
        assert output.attention is None or output.attention.shape == tokens
        assert all(x.isfinite().all() for x in (output.logits, *output.coarse))


@on_every_backbone
def test_a_slice_does_not_see_the_others_of_its_batch(method: str, backbone: str, published: dict[str, Tensor]) -> None:
    network = build(method, backbone, published)
    nudge(network, 0.01)
    image, _ = slices(2, *CANVASES[backbone])
    with torch.inference_mode():
        both, alone = network(image), network(image[:1])
    for two, one in zip((both.logits, *both.coarse), (alone.logits, *alone.coarse), strict=True):
        assert (two[:1] - one).abs().max() < 1e-4 * two.abs().max()


@on_every_backbone
def test_training_and_inference_run_the_same_network(method: str, backbone: str, published: dict[str, Tensor]) -> None:
    network = build(method, backbone, published)
    image, _ = slices(1, *CANVASES[backbone])
    with torch.no_grad():
        assert torch.equal(network.train()(image).logits, network.eval()(image).logits)


@on_every_backbone
def test_a_method_runs_in_half_precision_and_answers_in_single(
    method: str, backbone: str, published: dict[str, Tensor]
) -> None:
    network = build(method, backbone, published)
    image, _ = slices(1, *CANVASES[backbone])
    with torch.inference_mode():
        whole = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(image)
    assert half.logits.dtype == torch.float32
    exact, rounded = whole.logits, half.logits
    if method == "samsp":  # boxes what wins; in an untrained network rounding decides that, so its first pass counts
        exact, rounded = whole.coarse[0], half.coarse[0]
    assert torch.corrcoef(torch.stack((exact.flatten(), rounded.flatten())))[0, 1] > 0.99


@on_every_backbone
def test_every_trainable_parameter_learns(
    method: str, backbone: str, published: dict[str, Tensor], double: None
) -> None:
    # An untrained samsp may find nothing to box, as with seed 0, and then boxes teach nothing.
    seed = 1 if method == "samsp" else 0
    assert not unlearning(build(method, backbone, published, seed=seed), CANVASES[backbone])


@on_every_backbone
def test_the_published_encoder_is_never_trained(method: str, backbone: str, published: dict[str, Tensor]) -> None:
    trained = set(trained_tensors(build(method, backbone, published).encoder))
    assert trained.isdisjoint(build_backbone(backbone).state_dict())


@every_method
def test_every_method_has_a_recipe_that_it_can_be_built_from(method: str) -> None:
    settings = recipe(method)
    assert settings.method == method
    build_network(method, settings.backbone, CLASSES, settings.settings)


@every_method
def test_a_method_on_a_backbone_that_it_cannot_use_is_one_line(method: str) -> None:
    wrong = "lite_medsam" if quickest(method) == FROM_SCRATCH else FROM_SCRATCH
    with pytest.raises(UserError, match=f"method {method} st") as caught:
        build_network(method, wrong, CLASSES, {})
    assert "\n" not in str(caught.value)


@every_method
def test_base_weights_and_trained_tensors_make_the_network_anew(method: str, published: dict[str, Tensor]) -> None:
    # This is a model folder's promise: what training changed, on the published weights, is the whole network.
    first = build(method, quickest(method), published, seed=1)
    nudge(first, 0.01)
    second = build(method, quickest(method), published, seed=2)
    image, _ = slices(1, 56, 84)
    with torch.inference_mode():
        expected = first(image).logits
        assert not torch.equal(second(image).logits, expected)
        put_tensors(second, trained_tensors(first), "mine")
        assert torch.equal(second(image).logits, expected)


@on_every_backbone
def test_a_method_can_start_from_annotated_slices(method: str, backbone: str, published: dict[str, Tensor]) -> None:
    network = build(method, backbone, published)
    image, labels = slices(2, *CANVASES[backbone])
    with torch.inference_mode():
        neck = network.encoder(image).neck
        network.start_from_support(neck, coarse_labels(labels, *neck.shape[-2:]))
        assert network(image).logits.isfinite().all()


@every_method
def test_a_method_learns_two_slices_by_heart(method: str, published: dict[str, Tensor]) -> None:
    network = build(method, quickest(method), published)
    image, labels = slices(2, 28, 56)
    rate, steps = BY_HEART.get(method, (5e-4, 25))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(network(image), labels).backward()
        optimizer.step()
    with torch.inference_mode():
        found = network(image).logits.argmax(1)
    for label in range(1, CLASSES):
        mine, true = found == label, labels == label
        assert 2 * (mine & true).sum() / (mine.sum() + true.sum()) > 0.8  # Dice


# -------------------------------------------------------------------------------------------------- settings


def test_an_unknown_method_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError) as caught:
        make_settings("pgpp", {})
    assert str(caught.value) == f"unknown method 'pgpp'. Choose one of {', '.join(METHODS)}."


@every_method
def test_an_unknown_setting_is_named_with_those_that_exist(method: str) -> None:
    with pytest.raises(UserError) as caught:
        build_network(method, quickest(method), CLASSES, {"lora_rnk": 8})
    message = str(caught.value)
    assert message.startswith(f"method {method} has no setting 'lora_rnk'. It has ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lora_rank", 4.0, "setting lora_rank of method pgp is 4.0, not a int"),
        ("lora_rank", True, "setting lora_rank of method pgp is True, not a int"),
        ("cfm", 1, "setting cfm of method pgp is 1, not a bool"),
        ("temperature", "hot", "setting temperature of method pgp is 'hot', not a float"),
        ("temperature", None, "setting temperature of method pgp is None, not a float"),
        ("lora_stages", 3, "setting lora_stages of method pgp is 3, not a str"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_in_one_line(name: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_settings("pgp", {name: value})
    assert str(caught.value) == message


def test_settings_are_the_defaults_but_for_what_is_given() -> None:
    assert make_settings("pgp", {}) == PGPSettings()
    assert make_settings("pgp", {"lora_alpha": 8, "ppr": False}) == PGPSettings(lora_alpha=8.0, ppr=False)
    assert make_settings("probe", {"hidden": 64}) == ProbeSettings(hidden=64)


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="unknown backbone 'vit_x'"):
        build_network("pgp", "vit_x", CLASSES, {})


# --------------------------------------------------------------------------------------------------- PGP-SAM


def counts(network: SegmentationNetwork) -> dict[str, int]:
    """Trainable parameters by part of the network."""
    parts: dict[str, int] = {}
    for name, value in trained_tensors(network).items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + value.numel()
    return parts


@pytest.mark.parametrize(("classes", "expected"), [(14, 8_536_435), (9, 7_815_770)])
def test_the_size_of_pgp_is_known(classes: int, expected: int, published: dict[str, Tensor]) -> None:
    k, square = classes, 256 * 256 + 256  # a 1x1 convolution or Linear from C = 256 to C, with its bias
    parts = counts(build("pgp", "lite_medsam", published, classes=k))
    axes = (256 * 16 + 16) + (k * 16 + 16) + 2 * (32 * 16 + 16)  # both profiles of the class attention
    details = (64 * 32 + 32) + (32 * 32 * 9 + 32) + (128 * 64 + 64) + (64 * 64 * 9 + 64)
    upscaling = (256 * 64 * 4 + 64) + 2 * 64 + (64 * 32 * 4 + 32)
    assert parts == {
        # rank 4 on q and v of two blocks of 128 channels, six of 160 and two of 320
        "encoder": 2 * 4 * 2 * (2 * 128 + 6 * 160 + 2 * 320),
        "prototypes": (1 + 8) * k * 256,
        "cfm": (160 + 320) * 256 + 2 * (256 + 512 + 2 * (5 * 256 + 256) + 512 + 2 * square + 512),
        "ppg": 3 * ((256 + k) * 256 + 256 + 4 * square + k + 2),
        "ppr": 2 * (axes + 16 * 5 * k + (256 + k) * 256 + 256 + 3),
        "fuse": 2 * ((256 * 128 * 9 + 128) + 3 * (128 * 128 * 9 + 128) + 4 * 2 * 128 + (128 * 256 + 256)),
        "decoder": 3_291_264  # SAM's two-way transformer
        - (2 * (256 + 128 + 128) + 128)  # whose key biases change nothing and stay
        + upscaling
        + details
        + k * (256 + 2 * square + 32 * 256 + 32)  # a token and a hypernetwork a class
        + k * (256 + 1 + 32 + 1)  # a linear classifier on the tokens, and one on the masks' features
        + 1,
    }
    assert sum(parts.values()) == expected


@pytest.mark.parametrize(("classes", "expected"), [(14, 444_942), (9, 444_297)])
def test_the_size_of_the_probe_is_known(classes: int, expected: int, published: dict[str, Tensor]) -> None:
    assert counts(build("probe", "lite_medsam", published, classes=classes)) == {"head": expected}


def test_the_size_of_pgp_on_vit_b_is_known() -> None:
    with torch.device("meta"):  # shapes without values
        parts = counts(build_network("pgp", "vit_b", 14, {}))
    assert parts["encoder"] == 147_456
    assert sum(parts.values()) == 8_868_019


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
def test_each_part_of_pgp_can_be_left_out(settings: dict[str, Any], published: dict[str, Tensor], double: None) -> None:
    network = build("pgp", "lite_medsam", published, **settings)
    assert not unlearning(network, (28, 56))


def test_the_stages_run_from_the_deep_tap_to_the_shallow_one(published: dict[str, Tensor]) -> None:
    network: Any = build("pgp", "lite_medsam", published)
    assert [cfm.project[0].in_channels for cfm in network.cfm] == [320, 160]


def test_every_earlier_pass_and_every_prompt_is_supervised(published: dict[str, Tensor]) -> None:
    image, _ = slices(1, *CANVASES["lite_medsam"])
    with torch.inference_mode():
        whole = build("pgp", "lite_medsam", published)(image)
        plain = build("pgp", "lite_medsam", published, ppg=False)(image)
    assert len(whole.coarse) == 5  # the attention of three prompts, the class maps of two passes
    assert whole.attention is whole.coarse[-1]
    assert len(plain.coarse) == 2
    assert plain.attention is None


def test_pgp_starts_on_the_published_encoder_and_decoder(published: dict[str, Tensor]) -> None:
    network: Any = build("pgp", "lite_medsam", published)
    bare: Any = build_backbone("lite_medsam")
    bare.load_published(published)
    image, _ = slices(1, *CANVASES["lite_medsam"])
    with torch.inference_mode():
        assert torch.equal(network.encoder(image).neck, bare(image).neck)
    for name, value in network.decoder.transformer.state_dict().items():
        assert torch.equal(value, published[f"mask_decoder.transformer.{name}"])


def test_logits_are_upsampled_between_pixel_centres_and_only_where_they_must_be() -> None:
    logits = torch.tensor([[[[0.0, 4.0]]]])
    assert upsample(logits, (1, 4)).tolist() == [[[[0.0, 1.0, 3.0, 4.0]]]]
    assert upsample(logits, (1, 2)) is logits
    assert upsample(logits.bfloat16(), (1, 2)).dtype == torch.float32


# ----------------------------------------------------------------------------------------------- at full size


@pytest.mark.slow
@pytest.mark.parametrize("side", [512, 448])
def test_pgp_on_vit_b_runs_and_trains_at_full_size(side: int) -> None:
    torch.manual_seed(0)
    network = build_network("pgp", "vit_b", 14, {})
    nudge(network, 0.01)
    image, labels = slices(1, side, side)
    output = network(image)
    assert output.logits.shape == (1, 14, side, side)
    assert output.coarse[0].shape == (1, 14, side // 16, side // 16)
    before = loss_of(output, labels)
    before.backward()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    optimizer.step()
    with torch.inference_mode():
        assert loss_of(network(image), labels) < before


def test_the_default_method_is_pgsam_where_every_organ_is_described() -> None:
    assert default_method(["liver", "Right_Kidney"]) == "pgsam"
    assert default_method(["liver", "my own lump"]) == "pgp"
