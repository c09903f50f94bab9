"""Large tensors in 8 bits: how much is lost, what stays, and what a damaged file says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pgpsam.cli import main
from pgpsam.errors import UserError
from pgpsam.models.compact import SCALE, compact, expand
from pgpsam.models.store import SECOND_PREFIX, load_model, load_spec, save_model
from pgpsam.segmenter import Segmenter
from pgpsam.training.card import model_card
from pgpsam.training.choice import SliceChoice
from pgpsam.training.commands import ship_main
from pgpsam.training.data import load_case, read_dataset
from pgpsam.training.run import train_on_dataset
from pgpsam.training.shipping import ship


def test_a_row_is_off_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    sizes = {"matrix": (64, 96), "stack": (3, 64, 32), "convolution": (16, 32, 3, 3)}
    tensors = {
        name: torch.randn(size) * torch.rand(size[0]).view(-1, *[1] * (len(size) - 1)) for name, size in sizes.items()
    }
    tensors["stack"][1, 5] = 0  # a row of zeros has no scale to divide by
    tensors["small"], tensors["vector"] = torch.randn(8, 8), torch.randn(5000)
    packed = compact(tensors)
    assert {name for name, value in packed.items() if value.dtype == torch.int8} == set(sizes)
    back = expand({name: value.half() if value.dtype == torch.float16 else value for name, value in packed.items()})
    assert back.keys() == tensors.keys()
    for name in sizes:
        scale = packed[name + SCALE]
        assert ((back[name].float() - tensors[name]).abs() <= scale * 0.5 + tensors[name].abs() * 2**-10).all()
    assert torch.equal(back["small"], tensors["small"])
    assert not back["stack"][1, 5].any()
    assert expand(compact(back))["matrix"].allclose(back["matrix"], rtol=2**-9)  # packing again loses no more


@pytest.mark.parametrize(
    "wrong",
    [
        {"w" + SCALE: torch.ones(4, 1)},
        {"w": torch.ones(4, 2), "w" + SCALE: torch.ones(4, 1)},
        {"w": torch.ones(4, 2, dtype=torch.int8), "w" + SCALE: torch.ones(3, 1)},
        {"w": torch.ones(1, 2, dtype=torch.int8), "w" + SCALE: torch.ones(3, 1)},
        {"w": torch.ones(4, 2, dtype=torch.int8), "w" + SCALE: torch.ones(4)},
    ],
)
def test_scales_that_do_not_fit_are_refused_in_one_line(
    wrong: dict[str, torch.Tensor], scored: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the scales of w"):
        expand(wrong)
    save_model(tmp_path / "m", load_spec(scored), wrong)
    with pytest.raises(UserError, match=r"adapter\.safetensors is damaged: the scales of w"):
        load_model(tmp_path / "m")


@pytest.fixture(scope="module")
def scored(phantoms, quick_settings, tmp_path_factory) -> Path:
    """A model of two patients, scored on the third."""
    out = tmp_path_factory.mktemp("scored") / "m"
    train_on_dataset(
        read_dataset(phantoms),
        out,
        replace(quick_settings, iterations=4),
        SliceChoice(shots=4),
        device="cpu",
        command="a",
    )
    return out


def test_a_shipped_copy_is_half_as_large_scored_and_says_how_it_was_made(
    scored: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "given"
    words = ["--model", str(scored), "--out", str(out), "--data", str(phantoms), "--device", "cpu"]
    assert ship_main([*words, "--name", "my-organs", "--description", "Two organs"]) == 0
    assert "MB of weights" in capsys.readouterr().out
    small, large = ((f / "adapter.safetensors").stat().st_size for f in (out, scored))
    assert small < 0.6 * large
    spec = load_spec(out)
    assert (spec.name, spec.description) == ("my-organs", "Two organs")
    assert spec.scores["split"] == load_spec(scored).scores["split"]
    assert (out / "validation" / "failures.png").is_file()
    card = (out / "CARD.md").read_text()
    assert card == model_card(spec)
    assert "a\npython Training/ship.py --model" in card
    assert load_model(out, as_stored=True)[1].keys() > load_model(out)[1].keys()  # scoring left it packed


def test_a_model_of_every_patient_shows_its_twins_scores(
    scored: Path, phantoms: Path, quick_settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "given"
    choice = SliceChoice(shots=4)
    train_on_dataset(
        read_dataset(phantoms), whole, replace(quick_settings, iterations=2), choice, hold_out=[], device="cpu"
    )
    ship(str(whole), out, twin=str(scored))
    assert "`m`, trained in the same way without the patients that follow, on case_2" in (out / "CARD.md").read_text()
    assert (out / "validation" / "confidence.png").is_file()
    for arguments, message in (
        ({"data": phantoms}, "learned from every case of"),
        ({"twin": str(whole)}, "has no scores"),
        ({"twin": "abdomen-ct"}, "is no twin of"),
    ):
        with pytest.raises(UserError, match=message):
            ship(str(whole), tmp_path / "not", **arguments)
    with pytest.raises(UserError, match="is a model that the new one is made from"):
        ship(str(whole), whole)
    assert not (tmp_path / "not").exists()


@pytest.fixture(scope="module")
def apart(phantoms, quick_settings, tmp_path_factory) -> Path:
    """A model of all three patients, trained apart from `scored`."""
    out = tmp_path_factory.mktemp("apart") / "apart"
    settings = replace(quick_settings, iterations=3, seed=1)
    train_on_dataset(read_dataset(phantoms), out, settings, SliceChoice(), hold_out=[], device="cpu", command="c")
    return out


def test_the_second_look_can_be_anothers(
    scored: Path, apart: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = tmp_path / "pair"
    ship(str(apart), pair, second=str(scored), twin=str(scored), command="d")
    volume = load_case(read_dataset(phantoms).cases[2], load_spec(pair).labels).volume
    looks = [Segmenter.load(model, "cpu") for model in (pair, apart, scored)]
    both, first, second = ([one._look(volume, view, [1]).logits for view in one._views(volume, 2)] for one in looks)
    for at, own, others in ((0, first, second), (1, second, first)):
        assert (both[at] - own[at]).abs().mean() < 0.1 * (both[at] - others[at]).abs().mean()  # 8 bits are not exact

    card, spec = (pair / "CARD.md").read_text(), load_spec(pair)
    assert card == model_card(spec)
    assert "the second look is by another network, `m`, trained apart on 2 patients" in card
    assert "`m`, trained as the first network was but without the patients that follow, on case_2" in card
    assert "The second network's: `m`, has a mean Dice of" in card
    assert "a\nc\nd\n" in card  # how both were trained
    assert main(["info", str(pair)]) == 0
    assert "scores on case_2, of m, trained as its first network was, but without them" in capsys.readouterr().out

    again = tmp_path / "again"
    ship(str(pair), again, command="e")  # a copy keeps its second network and says how it was made
    assert "d\ne\n" in (again / "CARD.md").read_text()
    (_, one), (_, other) = load_model(pair), load_model(again)
    assert one.keys() == other.keys()
    assert any(name.startswith(SECOND_PREFIX) for name in other)


def test_a_model_that_cannot_look_again_is_refused(scored: Path, apart: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"abdomen-ct cannot look again for .*: its method is another"):
        ship(str(apart), tmp_path / "not", second="abdomen-ct")
    with pytest.raises(UserError, match=r"was trained on case_2, which .* holds out"):
        ship(str(scored), tmp_path / "not", second=str(apart))
    ship(str(apart), tmp_path / "pair", second=str(scored))
    with pytest.raises(UserError, match="only one of them has a second network"):
        ship(str(apart), tmp_path / "not", average_with=str(tmp_path / "pair"))
    assert not (tmp_path / "not").exists()


def test_a_training_goes_on_from_the_first_of_two_networks(
    scored: Path, apart: Path, phantoms: Path, quick_settings, tmp_path: Path
) -> None:
    ship(str(apart), tmp_path / "pair", second=str(scored), twin=str(scored))
    settings = replace(quick_settings, iterations=1, lr=0.0, published_lr=0.0, start_from=str(tmp_path / "pair"))
    train_on_dataset(read_dataset(phantoms), tmp_path / "on", settings, SliceChoice(), hold_out=[], device="cpu")
    began, ended = load_model(tmp_path / "pair")[1], load_model(tmp_path / "on")[1]
    assert not any(name.startswith(SECOND_PREFIX) for name in ended)
    card = (tmp_path / "on" / "CARD.md").read_text()
    assert "`m`, trained in the same way as the first network of `pair`, an earlier stage of this model," in card
    assert all(torch.allclose(began[name], value, atol=1e-3) for name, value in ended.items())


def test_a_copy_can_be_the_mean_of_two_models_in_all_or_in_some_of_their_weights(
    scored: Path, phantoms: Path, quick_settings, tmp_path: Path
) -> None:
    later, whole = tmp_path / "later", tmp_path / "whole"
    settings = replace(quick_settings, iterations=2, start_from=str(scored))
    for out, held, choice in ((later, None, SliceChoice(shots=4)), (whole, [], SliceChoice())):
        train_on_dataset(read_dataset(phantoms), out, settings, choice, hold_out=held, device="cpu", command="b")
    ship(str(later), tmp_path / "mean", average_with=str(scored), keep=r"decoder\.transformer")
    assert f"those of `{scored.name}`" in (tmp_path / "mean" / "CARD.md").read_text()
    (a, b, mean), early = (load_model(path)[1] for path in (scored, later, tmp_path / "mean")), set()
    for name, value in expand(compact({n: ((a[n].float() + b[n].float()) / 2).to(a[n].dtype) for n in a})).items():
        if name.startswith("decoder.transformer"):
            value = expand(compact({name: a[name]}))[name]
            early.add(name)
        assert torch.equal(mean[name], value), name
    assert early
    assert any(not torch.equal(a[name], b[name]) for name in early)
    assert "b\n" in (tmp_path / "mean" / "CARD.md").read_text()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"average_with": str(scored), "keep": "("}, "is no regular expression"),
        ({"average_with": str(scored), "keep": "nothing"}, "fits no tensor"),
        ({"keep": "decoder"}, "says what stays of another model"),
        ({"average_with": str(whole)}, "was trained on case_2, which .* holds out"),
        ({"average_with": "abdomen-ct"}, "cannot be averaged with"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UserError, match=message):
            ship(str(later), tmp_path / "not", **arguments)
    assert not (tmp_path / "not").exists()
