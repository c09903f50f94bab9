"""The papers' modules: on any grid, each slice of a batch alone, and by values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from segment_anything.modeling import MaskDecoder as PublishedDecoder
from segment_anything.modeling import PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from pgpsam.models.weights import load_state, locate
from pgpsam.network.attention import CosineLogits, to_tokens
from pgpsam.network.backbones.tiny_vit import LayerNorm2d
from pgpsam.network.cfm import CFM
from pgpsam.network.decoder import ClassHypernetworks, Detail, MaskDecoder, PositionEncoding
from pgpsam.network.ppg import PPG
from pgpsam.network.ppr import PPR, AxisProfile
from pgpsam.network.prototypes import Prototypes, coarse_labels

CHANNELS, CLASSES, INTER = 16, 3, 12
GRIDS = [(7, 7), (5, 9)]


def zero(module: nn.Module) -> None:
    """Set every parameter of a module to 0."""
    with torch.no_grad():
        for value in module.parameters():
            value.zero_()


def first_of(layer: nn.Linear | nn.Conv2d) -> None:
    """Make a layer pass on the first of its inputs, as many as it has outputs."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight.flatten(1).fill_diagonal_(1)
        assert layer.bias is not None
        layer.bias.zero_()


def sharpen(logits: CosineLogits) -> None:
    """Make an attention choose: a cosine that is larger by 0.01 wins by e^100."""
    with torch.no_grad():
        logits.log_temperature.fill_(math.log(1e4))


def mirrored(vectors: Tensor, channels: int = -1) -> Tensor:
    """Vectors and their negatives side by side, so that their channels' mean is 0: centring changes nothing."""
    return torch.cat((vectors, -vectors), channels)


# ---------------------------------------------------------------------- any grid, each slice of a batch alone


def run_cfm(image: Tensor) -> tuple[Tensor, ...]:
    return (CFM(CHANNELS, CHANNELS)(image),)


def run_projection(image: Tensor) -> tuple[Tensor, ...]:
    return (CFM(CHANNELS, CHANNELS, modulate=False)(image),)


def run_ppg(image: Tensor) -> tuple[Tensor, ...]:
    intra, inter = Prototypes(CLASSES, CHANNELS, INTER // CLASSES)(len(image))
    return PPG(CLASSES, CHANNELS, temperature=10.0)(image, intra, inter)


def run_ppr(image: Tensor) -> tuple[Tensor, ...]:
    intra, inter = Prototypes(CLASSES, CHANNELS, INTER // CLASSES)(len(image))
    ppr = PPR(CLASSES, CHANNELS, nearest=4, profiles=2, temperature=10.0)
    return ppr(image, image[:, :CLASSES].softmax(1), intra, inter)


def run_decoder(image: Tensor) -> tuple[Tensor, ...]:
    decoder = MaskDecoder(CLASSES, channels=CHANNELS)
    tokens, keys = decoder.tokens(image, dense=image.sin(), sparse=image.mean(3).transpose(1, 2))
    return tokens, keys, decoder.class_map(tokens, keys), decoder.masks(tokens, keys)


def run_detailed_decoder(image: Tensor) -> tuple[Tensor, ...]:
    decoder = MaskDecoder(CLASSES, detail_channels=(6, 5), channels=CHANNELS)
    full, half = (image[:, :n].repeat_interleave(r, 2).repeat_interleave(r, 3) for n, r in ((6, 4), (5, 2)))
    tokens, keys = decoder.tokens(image, dense=None, sparse=None)
    return (decoder.masks(tokens, keys, (full, half)),)


Shapes = Callable[[int, int], list[tuple[int, ...]]]
"""From a grid's h and w to a module's output shapes, without the batch."""

MODULES: dict[str, tuple[Callable[[Tensor], tuple[Tensor, ...]], Shapes]] = {
    "CFM": (run_cfm, lambda h, w: [(CHANNELS, h, w)]),
    "projection": (run_projection, lambda h, w: [(CHANNELS, h, w)]),
    "PPG": (run_ppg, lambda h, w: [(CHANNELS, h, w), (CLASSES, CHANNELS), (CLASSES, h, w)]),
    "PPR": (run_ppr, lambda h, w: [(CLASSES, CHANNELS), (INTER, CHANNELS)]),
    "decoder": (
        run_decoder,
        lambda h, w: [(CLASSES, CHANNELS), (CHANNELS, h, w), (CLASSES, h, w), (CLASSES, 4 * h, 4 * w)],
    ),
    "decoder with details": (run_detailed_decoder, lambda h, w: [(CLASSES, 4 * h, 4 * w)]),
}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_runs_on_any_grid_and_sees_each_slice_alone(name: str, grid: tuple[int, int]) -> None:
    run, shapes = MODULES[name]
    torch.manual_seed(0)
    image = torch.randn(2, CHANNELS, *grid)
    outputs = []
    for batch in (image, image[:1]):
        torch.manual_seed(1)  # the same random module
        with torch.no_grad():
            outputs.append(run(batch))
    both, alone = outputs
    assert [tuple(value.shape) for value in both] == [(2, *shape) for shape in shapes(*grid)]
    for two, one in zip(both, alone, strict=True):
        assert two.isfinite().all()
        torch.testing.assert_close(two[:1], one, atol=1e-5, rtol=1e-4)


# --------------------------------------------------------------------------------------------- normalisation


def test_layer_norm_takes_each_position_over_its_channels() -> None:
    norm = LayerNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0]))
        norm.bias.copy_(torch.tensor([0.0, 10.0]))
        out = norm(torch.tensor([[1.0, 50.0], [3.0, 10.0]])[None, :, None])  # two channels, one row, two columns
    torch.testing.assert_close(out, torch.tensor([[-1.0, 1.0], [12.0, 8.0]])[None, :, None])


# ------------------------------------------------------------------------------------------------------- CFM


def test_cfm_without_weights_doubles_its_features() -> None:
    # Both gates are sigmoid(0): F + F/2 + F/2.
    cfm, tap = CFM(8, CHANNELS), torch.randn(2, 8, 5, 9)
    zero(cfm.across)
    zero(cfm.channel)
    with torch.no_grad():
        torch.testing.assert_close(cfm(tap), 2 * cfm.project(tap))


def test_the_strip_along_rows_is_the_convolution_of_the_published_sum() -> None:
    cfm, features = CFM(8, CHANNELS), torch.randn(2, CHANNELS, 5, 9)
    published = features.mean(2, keepdim=True) + features.mean(3, keepdim=True)  # F_s of eq. 1
    weight, bias = cfm.along.weight[:, :, None], cfm.along.bias
    with torch.no_grad():
        expected = nn.functional.conv2d(published, weight, bias, padding=(0, 2), groups=CHANNELS)
        made = cfm.strip_along_rows(features.mean(2), features.mean(3))
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize(("gate", "factor"), [("across", 2.5), ("channel", 2.5)])
def test_a_gate_that_is_wide_open_adds_the_features_once_more(gate: str, factor: float) -> None:
    cfm, tap = CFM(8, CHANNELS), torch.randn(1, 8, 4, 6)
    zero(cfm.across)
    zero(cfm.channel)
    with torch.no_grad():
        getattr(cfm, gate)[-1].bias.fill_(50.0)
        torch.testing.assert_close(cfm(tap), factor * cfm.project(tap))


def test_cfm_without_modulation_is_the_projection() -> None:
    cfm, tap = CFM(8, CHANNELS, modulate=False), torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        assert torch.equal(cfm(tap), cfm.project(tap))
    assert {name.partition(".")[0] for name, _ in cfm.named_parameters()} == {"project"}


# ------------------------------------------------------------------------------------------- cosine attention


def test_cosine_logits_by_hand() -> None:
    prototypes = torch.tensor([[[3.0, -3.0, 1.0, -1.0], [7.0, 7.0, 5.0, 5.0]]])  # the second, centred: 1 1 -1 -1
    features = torch.tensor([[[0.6, -0.6, 0.2, -0.2], [9.0, 9.0, 9.0, 13.0], [8.0, 12.0, 8.0, 12.0]]])
    # Centred: the same direction; -1 -1 -1 3; -2 2 -2 2. Norms: sqrt 20 and 2; any, sqrt 12, 4.
    expected = torch.tensor([[[10.0, -4 / 240**0.5 * 10, -0.8944272 * 10], [0.0, -4 / 48**0.5 * 10, 0.0]]])
    with torch.no_grad():
        torch.testing.assert_close(CosineLogits(10.0)(prototypes, features), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 10.0, 200.0])
def test_cosine_logits_stay_within_the_temperature_whatever_the_magnitudes(temperature: float) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logits = CosineLogits(temperature)(1e3 * torch.randn(2, 7, 4), 10 * torch.randn(2, 50, 4))
    assert logits.abs().max() <= temperature * (1 + 1e-5)
    assert logits.abs().max() > 0.9 * temperature


def test_cosine_logits_are_float32_for_half_precision_features() -> None:
    half = torch.randn(1, 5, 4).bfloat16()
    assert CosineLogits()(half, half).dtype == torch.float32


def test_tokens_run_along_rows() -> None:
    assert to_tokens(torch.arange(6.0).view(1, 1, 2, 3)).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert to_tokens(torch.zeros(2, 4, 3, 5)).shape == (2, 15, 4)


# ------------------------------------------------------------------------------------------------------- PPG


@pytest.fixture
def choosing_ppg() -> PPG:
    """Two classes, two mirrored channels; the learned layers pass their input on, and attention chooses one."""
    ppg = PPG(classes=2, channels=4, temperature=10.0)
    first_of(ppg.relate)
    ppg.sparse, ppg.dense = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
    sharpen(ppg.sparse_logits)
    sharpen(ppg.dense_logits)
    return ppg


FOUR = torch.tensor([[[3.0, 0.0], [-1.0, 2.0]], [[0.0, 5.0], [0.0, 2.0]]])[None]  # (3,0) (0,5) / (-1,0) (2,2)
IMAGE = mirrored(FOUR, 1)


def test_the_sparse_prompt_is_what_the_best_matching_position_holds(choosing_ppg: PPG) -> None:
    intra = torch.tensor([[[1.0, 1.1], [-7.0, 0.5]]])
    with torch.no_grad():
        _, sparse, where = choosing_ppg(IMAGE, mirrored(intra), torch.randn(1, 4, 4))
    assert sparse[..., :2].tolist() == [[[2.0, 2.0], [-1.0, 0.0]]]
    assert where.flatten(2).argmax(-1).tolist() == [[3, 2]]  # row 1, column 1 and row 1, column 0


def test_the_dense_prompt_is_the_best_matching_prototype_of_each_position(choosing_ppg: PPG) -> None:
    inter = torch.tensor([[[0.5, 0.0], [0.0, 0.5], [-0.5, 0.1], [0.4, 0.3]]])
    with torch.no_grad():
        dense, _, _ = choosing_ppg(IMAGE, torch.randn(1, 2, 4), mirrored(inter))
    chosen = dense[0, :2].permute(1, 2, 0).flatten(0, 1)
    torch.testing.assert_close(chosen, inter[0, [0, 1, 2, 3]])


def test_the_prototypes_are_related_by_their_products_over_the_root_of_the_channels() -> None:
    ppg, seen = PPG(classes=2, channels=4, temperature=10.0), []
    ppg.relate.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    intra = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]]])
    inter = torch.tensor([[[2.0, 3.0, 4.0, 5.0]]])
    with torch.no_grad():
        ppg(torch.randn(1, 4, 2, 2), intra, inter)
    assert seen[0].tolist() == [[[2.0, 3.0, 4.0, 5.0, 1.0, 3.5]]]  # (1 * 2) / 2 and (3 + 4) / 2


# ------------------------------------------------------------------------------------------------------- PPR


def ppr_of(classes: int, nearest: int, class_weight: float, query_weight: float) -> PPR:
    """A refinement on two mirrored channels whose W_c is flat and whose F_hat is the image feature."""
    ppr = PPR(classes, 4, nearest, profiles=1, temperature=10.0)
    first_of(ppr.fuse)
    zero(ppr.spread)
    with torch.no_grad():
        ppr.class_weight.fill_(class_weight)
        ppr.query_weight.fill_(query_weight)
    return ppr


def test_ppr_without_weights_leaves_the_prototypes_as_they_are() -> None:
    torch.manual_seed(0)
    ppr = PPR(CLASSES, CHANNELS, nearest=2, profiles=4, temperature=10.0)
    intra, inter = torch.randn(2, CLASSES, CHANNELS), torch.randn(2, INTER, CHANNELS)
    with torch.no_grad():
        ppr.class_weight.zero_()
        ppr.query_weight.zero_()
        refined = ppr(torch.randn(2, CHANNELS, 5, 9), torch.rand(2, CLASSES, 5, 9), intra, inter)
    assert torch.equal(refined[0], intra)
    assert torch.equal(refined[1], inter)


def test_flat_class_attention_adds_the_image_mean_to_classes_and_to_their_nearest() -> None:
    ppr = ppr_of(classes=2, nearest=1, class_weight=1.0, query_weight=0.0)
    intra = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    inter = torch.tensor([[[9.0, 1.0], [-1.0, -1.0], [0.1, 4.0]]])
    with torch.no_grad():
        new_intra, new_inter = ppr(IMAGE, torch.rand(1, 2, 2, 2), mirrored(intra), mirrored(inter))
    # FOUR's mean is (1, 1.75). The nearest are rows 0 and 2; each gets its class's update over two classes.
    torch.testing.assert_close(new_intra[..., :2], torch.tensor([[[2.0, 1.75], [1.0, 2.75]]]))
    torch.testing.assert_close(new_inter[..., :2], torch.tensor([[[9.5, 1.875], [-1.0, -1.0], [0.6, 4.875]]]))


def test_a_prototype_that_several_classes_choose_gets_all_their_updates() -> None:
    ppr = ppr_of(classes=2, nearest=1, class_weight=1.0, query_weight=0.0)
    intra = torch.tensor([[[1.0, 0.1], [1.0, -0.1]]])
    inter = torch.tensor([[[-5.0, 0.0], [5.0, 0.0]]])
    with torch.no_grad():
        _, new_inter = ppr(IMAGE, torch.rand(1, 2, 2, 2), mirrored(intra), mirrored(inter))
    torch.testing.assert_close(new_inter[..., :2], torch.tensor([[[-5.0, 0.0], [6.0, 1.75]]]))


def test_sharp_query_attention_adds_the_matching_position() -> None:
    ppr = ppr_of(classes=2, nearest=1, class_weight=0.0, query_weight=1.0)
    sharpen(ppr.logits)
    intra = torch.tensor([[[0.1, 0.0], [0.2, 0.2]]])  # as (3, 0) and (2, 2) in FOUR
    inter = torch.tensor([[[0.3, 0.1], [0.0, 0.7]]])  # nearest to both: row 0, itself most like (3, 0)
    with torch.no_grad():
        new_intra, new_inter = ppr(IMAGE, torch.rand(1, 2, 2, 2), mirrored(intra), mirrored(inter))
    torch.testing.assert_close(new_intra[..., :2], torch.tensor([[[3.1, 0.0], [2.2, 2.2]]]))
    torch.testing.assert_close(new_inter[..., :2], torch.tensor([[[3.3, 0.1], [0.0, 0.7]]]))


@pytest.mark.parametrize(("pool", "expected"), [(3, [302.0, 904.0]), (2, [201.5, 302.0, 905.5])])
def test_a_profile_mixes_mean_and_maximum_along_the_other_axis(pool: int, expected: list[float]) -> None:
    profile = AxisProfile(inputs=1, profiles=1, pool=pool)
    zero(profile)
    with torch.no_grad():
        profile.point.weight.fill_(1.0)
        profile.mix.weight.copy_(torch.tensor([[[1.0], [100.0]]]))  # mean + 100 x maximum
        out = profile(torch.tensor([[1.0, 3.0, 2.0], [2.0, 1.0, 9.0]])[None, None])
    assert out[0, 0].tolist() == expected


# --------------------------------------------------------------------------------------------------- decoder


@pytest.fixture(scope="module")
def lite_medsam() -> dict[str, Tensor]:
    return load_state(locate("lite_medsam"), "lite_medsam")


def published_prompts(state: dict[str, Tensor], height: int, width: int) -> PromptEncoder:
    """segment-anything's own prompt encoder for a grid, with the published random Fourier matrix."""
    prompts = PromptEncoder(256, (height, width), (4 * height, 4 * width), mask_in_chans=16)
    own = {k.removeprefix("prompt_encoder."): v for k, v in state.items() if k.startswith("prompt_encoder.")}
    prompts.load_state_dict(own)
    return prompts


def test_the_position_code_is_the_published_one_at_the_published_grid(lite_medsam: dict[str, Tensor]) -> None:
    prompts, position = published_prompts(lite_medsam, 64, 64), PositionEncoding(256, 64.0)
    position.gaussian.copy_(prompts.pe_layer.positional_encoding_gaussian_matrix)
    with torch.no_grad():
        torch.testing.assert_close(position(64, 64), prompts.get_dense_pe(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (14, 28), (2, 64)])
def test_the_same_place_has_the_same_code_on_every_canvas(height: int, width: int) -> None:
    position = PositionEncoding(CHANNELS, 64.0)
    top, left = (64 - height) // 2, (64 - width) // 2
    middle = position(64, 64)[..., top : top + height, left : left + width]
    torch.testing.assert_close(position(height, width), middle)
    assert position(height, width).shape == (1, CHANNELS, height, width)


def test_the_position_code_by_hand() -> None:
    position = PositionEncoding(channels=2, reach=4.0)
    position.gaussian.copy_(torch.tensor([[1.0], [0.5]]))  # 1 turn along x, half a turn along y
    # Two columns at -1/8 and +1/8 of the reach, doubled: a quarter turn either way; one row at the centre.
    torch.testing.assert_close(position(1, 2)[0, :, 0], torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))


def test_class_hypernetworks_are_one_perceptron_a_class() -> None:
    torch.manual_seed(0)
    together = ClassHypernetworks(CLASSES, CHANNELS, 5)
    tokens = torch.randn(2, CLASSES, CHANNELS)
    rows = []
    with torch.no_grad():
        for bias in together.biases:
            bias.normal_()
        for k in range(CLASSES):
            layers = [nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 5)]
            for layer, weight, bias in zip(layers, together.weights, together.biases, strict=True):
                layer.weight.copy_(weight[k])
                layer.bias.copy_(bias[k])
            alone = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
            rows.append(alone(tokens[:, k]))
        torch.testing.assert_close(together(tokens), torch.stack(rows, 1))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (7, 12)])
def test_the_decoder_is_segment_anythings_own_for_one_image(
    height: int, width: int, lite_medsam: dict[str, Tensor]
) -> None:
    # The published queries are the IoU token and four mask tokens. Five classes with those tokens, and
    # the published hypernetworks for the last four, must give its four masks.
    published = PublishedDecoder(
        transformer_dim=256,
        transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
    )
    own = {k.removeprefix("mask_decoder."): v for k, v in lite_medsam.items() if k.startswith("mask_decoder.")}
    published.load_state_dict(own)
    decoder = MaskDecoder(classes=5)
    decoder.load_published(lite_medsam)
    with torch.no_grad():
        decoder.mask_tokens.copy_(torch.cat((own["iou_token.weight"], own["mask_tokens.weight"])))
        for i in range(4):
            for layer, (weight, bias) in enumerate(
                zip(decoder.hypernetworks.weights, decoder.hypernetworks.biases, strict=True)
            ):
                weight[i + 1] = own[f"output_hypernetworks_mlps.{i}.layers.{layer}.weight"]
                bias[i + 1] = own[f"output_hypernetworks_mlps.{i}.layers.{layer}.bias"]
        torch.manual_seed(0)
        image, dense = torch.randn(2, 1, 256, height, width)
        sparse = torch.randn(1, 3, 256)
        expected, _ = published.predict_masks(image, decoder.position(height, width), sparse, dense)
        masks = decoder.masks(*decoder.tokens(image, dense, sparse))
    assert expected.shape == (1, 4, 4 * height, 4 * width)
    torch.testing.assert_close(masks[:, 1:], expected, atol=1e-3, rtol=1e-4)


def test_every_class_starts_from_the_published_single_mask_but_not_from_the_same_token(
    lite_medsam: dict[str, Tensor],
) -> None:
    decoder = MaskDecoder(classes=4)
    decoder.load_published(lite_medsam)
    away = decoder.mask_tokens - lite_medsam["mask_decoder.mask_tokens.weight"][0]
    assert 0.08 < away.std() < 0.12
    assert torch.pdist(decoder.mask_tokens).min() > 1
    last = lite_medsam["mask_decoder.output_hypernetworks_mlps.0.layers.2.weight"]
    assert all(torch.equal(weight, last) for weight in decoder.hypernetworks.weights[2])


def test_the_class_map_is_the_scaled_product_of_class_and_image_tokens() -> None:
    decoder = MaskDecoder(classes=2, channels=CHANNELS)
    assert decoder.class_scale.item() == 0.25  # 1 / sqrt(16)
    tokens, image = torch.zeros(1, 2, CHANNELS), torch.zeros(1, CHANNELS, 1, 2)
    tokens[0, :, :2] = torch.tensor([[1.0, 2.0], [0.0, -4.0]])
    image[0, :2, 0] = torch.tensor([[8.0, 0.0], [2.0, 1.0]])  # positions (8, 2) and (0, 1)
    with torch.no_grad():
        assert decoder.class_map(tokens, image).tolist() == [[[[3.0, 0.5]], [[-2.0, -1.0]]]]


def test_dense_prompts_are_added_to_the_image() -> None:
    decoder = MaskDecoder(classes=2, channels=CHANNELS)
    image, dense = torch.randn(2, 1, CHANNELS, 3, 4)
    with torch.no_grad():
        apart, together = decoder.tokens(image, dense, None), decoder.tokens(image + dense, None, None)
    assert torch.equal(apart[0], together[0])
    assert torch.equal(apart[1], together[1])


def test_details_are_added_only_as_far_as_they_are_learned() -> None:
    detail, x = Detail(inputs=3, channels=8), torch.randn(1, 8, 6, 10)
    other = torch.randn(1, 3, 12, 20)  # finer than x
    with torch.no_grad():
        assert not torch.equal(detail(x, other), x)
        zero(detail.mix)
        assert torch.equal(detail(x, other), x)


# ------------------------------------------------------------------------------------- prototypes and labels


def test_prototypes_are_the_same_for_every_slice_of_a_batch() -> None:
    prototypes = Prototypes(CLASSES, CHANNELS, alpha=8)
    intra, inter = prototypes(2)
    assert (intra.shape, inter.shape) == ((2, CLASSES, CHANNELS), (2, 8 * CLASSES, CHANNELS))
    assert torch.equal(intra[0], intra[1])
    assert torch.equal(inter[1], prototypes.inter)


def test_prototypes_start_from_class_means_and_samples_of_the_classes() -> None:
    prototypes = Prototypes(classes=3, channels=2, alpha=2)
    before = prototypes.intra.detach().clone()
    features = torch.tensor([[[1.0, 3.0], [8.0, 5.0]], [[0.0, 2.0], [8.0, 7.0]]])[None]  # tokens (1,0) (3,2) / ...
    prototypes.start_from(features, torch.tensor([[[0, 0], [2, 2]]]), noise=0.0)
    intra, inter = prototypes.intra.detach(), prototypes.inter.detach()
    assert intra[[0, 2]].tolist() == [[2.0, 1.0], [6.5, 7.5]]
    assert torch.equal(intra[1], before[1])  # not in the support set
    assert {tuple(row) for row in inter[:2].tolist()} <= {(1.0, 0.0), (3.0, 2.0)}
    assert {tuple(row) for row in inter[4:].tolist()} <= {(8.0, 8.0), (5.0, 7.0)}


def test_the_noise_on_samples_is_in_units_of_the_features() -> None:
    torch.manual_seed(0)
    prototypes = Prototypes(classes=1, channels=64, alpha=50)
    features = 20 * torch.randn(1, 64, 1, 1).expand(1, 64, 8, 8)  # one value everywhere
    prototypes.start_from(features, torch.zeros(1, 8, 8, dtype=torch.long), noise=0.05)
    away = (prototypes.inter - features[0, :, 0, 0]).std() / features.std()
    assert 0.045 < away < 0.055


def test_coarse_labels_are_labels_of_the_slice_never_mixtures() -> None:
    labels = torch.tensor([[[0, 9, 9, 9], [9, 1, 9, 9], [9, 9, 9, 9], [9, 4, 9, 7]]])
    assert coarse_labels(labels, 2, 2).tolist() == [[[1, 9], [4, 7]]]
    assert coarse_labels(labels, 4, 4).equal(labels)
    assert coarse_labels(labels, 1, 2).tolist() == [[[9, 9]]]
    assert coarse_labels(labels, 2, 2).dtype == torch.long
