"""PTSAM: SAM's own decoder, frozen, for every organ; its few parameters counted one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.models.weights import load_state, locate
from pgpsam.network.backbones import BACKBONES, build_backbone
from pgpsam.network.backbones.sam_vit import SplitQKV
from pgpsam.network.backbones.tiny_vit import WindowAttention
from pgpsam.network.encoder_tokens import PromptedAttention, PromptedWindows, add_tokens
from pgpsam.network.lora import trained_tensors
from pgpsam.network.methods import build_network, make_settings
from pgpsam.network.sam_decoder import SamDecoder
from small_networks import build, slices, small_vit


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """LiteMedSAM's own weights."""
    return load_state(locate("lite_medsam"), "lite_medsam")


# ------------------------------------------------------------------------------------------------- how few they are


@pytest.mark.parametrize("backbone", ["lite_medsam", "vit_b"])
@pytest.mark.parametrize("organs", [1, 13])
def test_it_trains_2048_parameters_an_organ_and_nothing_else(backbone: str, organs: int) -> None:
    shapes = {name: value.shape for name, value in trained_of(backbone, organs + 1).items()}
    assert shapes == {"prompts": (organs, 8, 256)}
    assert shapes["prompts"].numel() == organs * 2048


def test_tokens_in_vit_b_are_73728_parameters_more() -> None:
    trained = trained_of("vit_b", 2, encoder_tokens=8)
    assert len(trained) == 12 + 1
    assert sum(value.numel() for value in trained.values()) == 73_728 + 2048


def test_tokens_in_tiny_vit_are_eight_in_each_of_its_ten_attention_layers() -> None:
    trained = trained_of("lite_medsam", 2, encoder_tokens=8)
    assert len(trained) == 10 + 1
    assert sum(value.numel() for value in trained.values()) == 8 * (2 * 128 + 6 * 160 + 2 * 320) + 2048


def trained_of(backbone: str, classes: int, **settings: Any) -> dict[str, Tensor]:
    with torch.device("meta" if backbone == "vit_b" else "cpu"):  # TinyViT's tables cannot be made without values
        return trained_tensors(build_network("ptsam", backbone, classes, settings))


@pytest.mark.parametrize("change", [{"tokens": 0}, {"encoder_tokens": -1}])
def test_settings_that_cannot_work_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"setting {next(iter(change))} of method ptsam is"):
        make_settings("ptsam", change)


# --------------------------------------------------------------------------------------------------- the decoder


def test_the_decoder_is_segment_anythings_own_for_every_image_and_prompt(published: dict[str, Tensor]) -> None:
    theirs = MaskDecoder(
        transformer_dim=256,
        transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
    )
    own = {k.removeprefix("mask_decoder."): v for k, v in published.items() if k.startswith("mask_decoder.")}
    theirs.load_state_dict(own)
    ours = SamDecoder(256, 64.0)
    ours.load_published(published)
    torch.manual_seed(0)
    images, prompts = torch.randn(2, 256, 6, 9), torch.randn(3, 8, 256)
    dense = published["prompt_encoder.no_mask_embed.weight"].view(1, 256, 1, 1).expand(1, -1, 6, 9)
    with torch.no_grad():
        masks = ours(images, prompts)
        assert masks.shape == (2, 3, 24, 36)
        for image, found in zip(images, masks, strict=True):  # theirs takes one image with many prompts
            expected, _ = theirs(image[None], ours.position(6, 9), prompts, dense, multimask_output=False)
            torch.testing.assert_close(found, expected[:, 0], atol=1e-4, rtol=1e-4)


def test_background_is_logit_0_and_organs_do_not_know_of_each_other(published: dict[str, Tensor]) -> None:
    network: Any = build("ptsam", "lite_medsam", published)
    image, _ = slices(1, 28, 56)
    with torch.inference_mode():
        before = network(image).logits
        network.prompts[1] += 1
        after = network(image).logits
    assert not before[:, 0].any()
    assert torch.equal(before[:, 1], after[:, 1])
    assert not torch.allclose(before[:, 2], after[:, 2])


# ------------------------------------------------------------------------------------------ tokens in the encoder


@pytest.mark.parametrize("backbone", ["lite_medsam", "small_vit"])
def test_without_tokens_the_encoder_stays_as_it_is(backbone: str) -> None:
    encoder = small_vit() if backbone == "small_vit" else build_backbone(backbone)
    before = [type(module) for module in encoder.modules()]
    add_tokens(encoder, 0)
    assert [type(module) for module in encoder.modules()] == before


def vit_attention() -> Attention:
    """A window's attention of SAM's ViT, its tables of relative positions at their start: zeros."""
    attention = Attention(16, num_heads=2, use_rel_pos=True, input_size=(3, 4))
    attention.qkv = SplitQKV(attention.qkv)
    return attention


def test_tokens_that_repeat_the_window_change_nothing() -> None:
    # Every key twice: the softmax halves each weight, and their sum is the same.
    torch.manual_seed(0)
    attention, x = vit_attention(), torch.randn(1, 3, 4, 16)
    prompted = PromptedAttention(attention, 12)
    with torch.no_grad():
        prompted.tokens.copy_(x.view(12, 16))
        torch.testing.assert_close(prompted(x), attention(x))
        prompted.tokens.mul_(3)
        assert not torch.allclose(prompted(x), attention(x), atol=1e-3)


def test_tokens_that_repeat_tiny_vits_window_change_nothing() -> None:
    torch.manual_seed(0)
    attention, x = WindowAttention(16, heads=2, window=3), torch.randn(1, 3, 3, 16)
    prompted = PromptedWindows(attention, 9)
    with torch.no_grad():
        prompted.tokens.copy_(attention.partition(x)[0])
        torch.testing.assert_close(prompted(x), attention(x))
        prompted.tokens.mul_(3)
        assert not torch.allclose(prompted(x), attention(x), atol=1e-3)


def test_positions_and_windows_stay_what_they_were() -> None:
    # Without a token, with tables that are not zero, and for TinyViT with windows that must be padded.
    torch.manual_seed(0)
    vit, tiny = vit_attention(), WindowAttention(16, heads=2, window=3)
    with torch.no_grad():
        for table in (vit.rel_pos_h, vit.rel_pos_w, tiny.attention_biases):
            table.normal_()
        x = torch.randn(2, 3, 4, 16)
        torch.testing.assert_close(PromptedAttention(vit, 0)(x), vit(x))
        x = torch.randn(2, 5, 7, 16)
        torch.testing.assert_close(PromptedWindows(tiny, 0)(x), tiny(x))


@pytest.mark.parametrize("backbone", ["lite_medsam", "small_vit"])
def test_tokens_in_the_encoder_learn_in_every_layer(
    backbone: str, published: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "small_vit", small_vit)
    network = build("ptsam", backbone, published, encoder_tokens=2)
    image, _ = slices(1, *((28, 56) if backbone == "lite_medsam" else (64, 96)))
    network(image).logits.square().mean().backward()
    gradients = {name: value.grad for name, value in network.named_parameters() if value.requires_grad}
    assert len(gradients) == (11 if backbone == "lite_medsam" else 6)
    assert all(gradient is not None and gradient.norm() > 0 for gradient in gradients.values())
