"""SAM-SP: masks to boxes to prompts, the second pass, and what the first one learns from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.models.weights import load_state, locate
from pgpsam.network.base import upsample
from pgpsam.network.lora import trained_tensors
from pgpsam.network.methods import make_settings
from pgpsam.network.samsp import attention_of, mask_boxes
from pgpsam.training.losses import distillation_loss
from small_networks import build, slices

SIZE = (28, 56)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """LiteMedSAM's own weights."""
    return load_state(locate("lite_medsam"), "lite_medsam")


@pytest.fixture
def network(published: dict[str, Tensor]) -> Any:
    """Three classes; the background wins everywhere unless a test says otherwise."""
    made: Any = build("samsp", "lite_medsam", published)
    with torch.no_grad():
        made.decoder.mask_bias[0] = 1e4
    return made


# ------------------------------------------------------------------------------------------------ masks to boxes


def drawn(*masks: tuple[slice, slice]) -> Tensor:
    """Logits [1, 1 + n, 4, 8] in which each organ wins in its own rectangle."""
    logits = torch.zeros(1, 1 + len(masks), 4, 8)
    for index, (rows, columns) in enumerate(masks, start=1):
        logits[0, index, rows, columns] = 9.0
    return logits


def test_a_box_reaches_from_the_first_pixels_edge_to_the_lasts() -> None:
    boxes, found = mask_boxes(drawn((slice(1, 3), slice(2, 6)), (slice(3, 4), slice(7, 8))))
    assert found.tolist() == [[False, True, True]]
    assert boxes[0, 1].tolist() == [0.25, 0.25, 0.75, 0.75]
    assert boxes[0, 2].tolist() == [0.875, 0.75, 1.0, 1.0]  # a single pixel: its own size, not a point


def test_a_class_that_wins_nowhere_has_no_box_and_the_background_never_one() -> None:
    _, found = mask_boxes(drawn((slice(0, 4), slice(0, 8)), (slice(0, 0), slice(0, 0))))
    assert found.tolist() == [[False, True, False]]
    assert not mask_boxes(torch.zeros(2, 3, 4, 8))[1].any()


def test_a_box_spans_all_parts_of_a_mask() -> None:
    logits = drawn((slice(0, 1), slice(0, 1)))
    logits[0, 1, 3, 5] = 9.0
    assert mask_boxes(logits)[0][0, 1].tolist() == [0.0, 0.0, 0.75, 1.0]


def test_corners_are_coded_as_segment_anything_codes_a_box(published: dict[str, Tensor], network: Any) -> None:
    prompts = PromptEncoder(256, (64, 64), (256, 256), mask_in_chans=16)
    own = {k.removeprefix("prompt_encoder."): v for k, v in published.items() if k.startswith("prompt_encoder.")}
    prompts.load_state_dict(own)
    box = torch.tensor([[40.0, 100.0, 96.0, 232.0]])  # pixels of 256; theirs adds half a pixel
    with torch.no_grad():
        expected, _ = prompts(None, box - 0.5, None)
        found = network.corner_tokens(box / 256, torch.empty(1, 256, 64, 64))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------------- the two passes


def test_an_empty_first_pass_is_the_answer(network: Any) -> None:
    with torch.inference_mode():
        output = network(slices(2, *SIZE)[0])
    first = output.coarse[0]
    assert not first.argmax(1).any()
    assert torch.equal(output.logits, upsample(first, SIZE))
    assert output.attention.isfinite().all()
    assert distillation_loss(output.distillation) == 0


def test_the_second_pass_changes_the_organs_that_the_first_one_found_and_no_others(network: Any) -> None:
    with torch.no_grad():
        network.decoder.mask_bias[2] = 2e4  # organ 2 wins everywhere
        output = network(slices(1, *SIZE)[0])
    first = upsample(output.coarse[0], SIZE)
    assert torch.equal(output.logits[:, :2], first[:, :2])
    assert not torch.allclose(output.logits[:, 2], first[:, 2])


def test_the_box_is_what_the_second_pass_sees(network: Any) -> None:
    image, _ = slices(1, *SIZE)
    with torch.no_grad():
        network.decoder.mask_bias[1] = 2e4
        before = network(image).logits[:, 1]
        network.prompt_encoder.corners[1] += 1
        after = network(image).logits[:, 1]
    assert (before - after).abs().max() > 1e-3


def test_the_second_pass_is_the_same_in_half_precision(network: Any) -> None:
    with torch.no_grad():
        network.decoder.mask_bias[2] = 2e4  # organ 2 wins everywhere, rounded or not
        exact = network(slices(1, *SIZE)[0]).logits[:, 2]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(slices(1, *SIZE)[0]).logits[:, 2]
    assert torch.corrcoef(torch.stack((exact.flatten(), rounded.flatten())))[0, 1] > 0.99


def test_the_box_is_shown_as_attention_half_of_it_inside() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.25, 0.4, 0.75, 0.6]]])
    logits = torch.zeros(1, 2, 160, 160)
    logits[0, 0, 7, 9] = 5.0
    attention = attention_of(boxes, torch.tensor([[False, True]]), logits, (160, 160))
    weights = attention[0, 1].flatten().softmax(0).view(160, 160)
    assert weights[64:96, 40:120].sum() == pytest.approx(0.5, abs=0.02)
    row, column = divmod(int(weights.argmax()), 160)
    assert 79 <= row <= 80
    assert 79 <= column <= 80
    assert int(attention[0, 0].argmax()) == 7 * 160 + 9  # without a box, its own mask


# ---------------------------------------------------------------------------------------------------- what it trains


@pytest.mark.parametrize(("classes", "expected"), [(14, 5_355_886)])
def test_its_size_is_known(classes: int, expected: int, published: dict[str, Tensor]) -> None:
    parts: dict[str, int] = {}
    for name, value in trained_tensors(build("samsp", "lite_medsam", published, classes=classes)).items():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + value.numel()
    square = 256 * 256 + 256
    assert parts == {
        "encoder": 29_696,  # rank 4 on q and v of every attention
        "prompt_encoder": 3 * 256,  # two corners and "no mask"
        "decoder": 3_291_264
        - (2 * (256 + 128 + 128) + 128)  # SAM's two-way transformer, whose key biases change nothing
        + (256 * 64 * 4 + 64) + 2 * 64 + (64 * 32 * 4 + 32)
        + classes * (256 + 2 * square + 32 * 256 + 32)  # a token and a hypernetwork a class
        + classes * (32 + 1),  # a linear classifier on the masks' features
    }  # fmt: skip
    assert sum(parts.values()) == expected


def test_without_distillation_there_is_none(published: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        assert build("samsp", "lite_medsam", published, distil_weight=0.0)(slices(1, *SIZE)[0]).distillation is None


@pytest.mark.parametrize("change", [{"distil_weight": -1.0}, {"distil_temperature": 0.0}, {"lora_rank": -1}])
def test_settings_that_cannot_work_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"setting {next(iter(change))} of method samsp is"):
        make_settings("samsp", change)
