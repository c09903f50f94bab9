"""What a model says of whom it learned from and whose its scores are: through refiners, later stages, means, copies."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pgpsam.errors import UserError
from pgpsam.hello import score_line
from pgpsam.models.store import load_spec
from pgpsam.models.weights import FROM_SCRATCH
from pgpsam.training import crossfit
from pgpsam.training.card import model_card
from pgpsam.training.choice import SliceChoice, choose_slices
from pgpsam.training.commands import finetune_main, ship_main
from pgpsam.training.crossfit import REFINING, refine
from pgpsam.training.data import Dataset, read_dataset
from pgpsam.training.finetune import finetune
from pgpsam.training.origins import trained_cases, trained_commands
from pgpsam.training.refining import Answers, RefinerSettings, train_refiner
from pgpsam.training.run import split_cases, train_on_dataset
from pgpsam.training.settings import TrainingSettings
from pgpsam.training.shipping import ship
from pgpsam.training.staged import train_in_stages
from pgpsam.volume import write_array
from phantoms import make_phantom

TINY = TrainingSettings(
    method="unet", backbone=FROM_SCRATCH, settings={"width": 2, "levels": 3}, iterations=1, batch=1, warmup=1,
    canvas=(64, 112),
)  # fmt: skip
REFINER = RefinerSettings(iterations=1, planes=16, canvas=(32, 32))


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five patients, the last of whom the data set suggests to hold out."""
    folder = tmp_path_factory.mktemp("five")
    about = {"labels": {"background": 0, "liver": 6, "spleen": 1}, "validation": ["case_4"]}
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for seed in range(5):
        volume, labels = make_phantom(seed)
        write_array(folder / "images" / f"case_{seed}.nii.gz", volume.array, volume, "confidence")
        write_array(folder / "labels" / f"case_{seed}.nii.gz", labels, volume, "labels")
    return read_dataset(folder)


def train(dataset: Dataset, out: Path, choice: SliceChoice | None = None, seed: int = 0, **more: object) -> Path:
    settings = replace(TINY, seed=seed, start_from=str(more.pop("start_from", "")))
    same: dict = {"device": "cpu", "scored": False, **more}
    train_on_dataset(dataset, out, settings, choice or SliceChoice(), **same)
    return out


def listed(path: Path, *rows: str) -> SliceChoice:
    path.write_text("\n".join(["case,slice", *rows, ""]), encoding="utf-8")
    return SliceChoice(path)


def show_scores(model: Path, split: Sequence[str], **more: str) -> None:
    """Put scores into a model's folder, as if it had been scored."""
    dice = {"dice": 0.5, "hd95_mm": 1.0, "missed": 0, "organs": 2}
    summary = {"organs": [], "reported_labels": [], "reported": dice, "all": dice}
    about = json.loads((model / "model.json").read_text(encoding="utf-8"))
    about["scores"] = {"split": list(split), "looks": 2, "summary": summary, **more}
    (model / "model.json").write_text(json.dumps(about), encoding="utf-8")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[tuple[str, int]]]:
    """The annotated slices, as (case, z), that every training was shown, by its name, and the refiner's."""
    shown: dict[str, set[tuple[str, int]]] = {}

    def watch(samples, *rest, **more):
        shown[more["name"]] = {(sample.case, sample.index) for sample in samples if not sample.guessed}
        return finetune(samples, *rest, **more)

    def watch_refiner(answers: Sequence[Answers], *rest, **more):
        shown["refiner"] = {(one.case, z) for one in answers for z in one.annotated}
        return train_refiner(answers, *rest, **more)

    monkeypatch.setattr("pgpsam.training.run.finetune", watch)
    monkeypatch.setattr("pgpsam.training.crossfit.train_refiner", watch_refiner)
    return shown


# ------------------------------------------------------------------------------------------ the refiner's slices


@pytest.mark.parametrize(
    "choice", [SliceChoice(shots=3), SliceChoice(fraction=0.2), SliceChoice(per_organ=2)], ids=lambda c: c.text
)
def test_a_refiner_learns_from_the_models_slices(five: Dataset, choice: SliceChoice, tmp_path: Path, seen) -> None:
    """Not every patient got a slice, and the folds' models have another seed than the model."""
    drawn = [choose_slices(five, split_cases(five, None)[0], choice, seed) for seed in range(9)]
    seed = next(s for s, one in enumerate(drawn) if s and 2 <= sum(bool(part.slices) for part in one) < 4)
    model = train(five, tmp_path / "m", choice, seed)
    refine(model, five, TINY, choice, folds=2, refining=REFINER, device="cpu")
    assert seen["refiner"] == seen["m"] == seen["fold1"] | seen["fold2"]


def test_a_staged_model_has_one_set_of_slices(five: Dataset, tmp_path: Path, seen) -> None:
    settings, choice = replace(TINY, iterations=4, seed=2), SliceChoice(shots=3)
    train_in_stages(five, tmp_path / "m", settings, choice, refining=REFINER, device="cpu", scored=False, name="m")
    assert len(seen["m"]) == 3
    assert {frozenset(seen[stage]) for stage in ("coarse", "fine", "m", "refiner")} == {frozenset(seen["m"])}
    assert load_spec(tmp_path / "m").training["cases"] == ["case_0", "case_1", "case_2", "case_3"]  # of two, guesses
    refine(tmp_path / "m", five, TINY, choice, folds=2, refining=REFINER, device="cpu")
    assert seen["refiner"] == seen["m"] == seen["fold1"] | seen["fold2"]


def test_a_refiner_with_other_slices_than_the_models_is_refused(five: Dataset, tmp_path: Path, seen) -> None:
    rows = listed(tmp_path / "list.csv", "case_0,1", "case_1,2")
    few, some = train(five, tmp_path / "few", SliceChoice(shots=3)), train(five, tmp_path / "some", rows)
    full = train(five, tmp_path / "full", SliceChoice(fully_annotated=True))
    for model, wrong, line in (
        (few, SliceChoice(), "few was trained on 3 slices, 3 in all, not on all annotated slices, 16 in all"),
        (few, SliceChoice(shots=2), "not on 2 slices"),
        (some, SliceChoice(), r"some was trained on slices of list\.csv \(SHA-256 .*\), 2 in all, not on all"),
        (full, SliceChoice(), "all annotated slices, 24 in all, not on all annotated slices, 16 in all"),
    ):
        with pytest.raises(UserError, match=f"{line}.*the same options for the slices"):
            refine(model, five, TINY, wrong, folds=2, refining=REFINER, device="cpu")
        assert not (model / REFINING).exists()
    about = json.loads((some / "model.json").read_text(encoding="utf-8"))
    for old in ("slices of list.csv", None):  # of a time before a list's hash or the choice itself was recorded
        about["training"]["choice"] = old
        if old is None:
            del about["training"]["choice"]
        (some / "model.json").write_text(json.dumps(about), encoding="utf-8")
        refine(some, five, TINY, rows, folds=2, refining=REFINER, device="cpu")
        assert seen["refiner"] == {("case_0", 1), ("case_1", 2)}


def test_patients_who_show_no_organ_cannot_be_compared_on(five: Dataset, tmp_path: Path) -> None:
    rows = ["case_0,1", "case_1,2", "case_2,0"]  # the first and the last slice of a phantom are empty
    choice = listed(tmp_path / "list.csv", *rows)
    model = train(five, tmp_path / "m", choice)
    for held, line in ((["case_2"], "case_2 show"), (["case_0", "case_1"], "no patient is left")):
        with pytest.raises(UserError, match=line):
            refine(model, five, TINY, choice, hold_out=held, refining=REFINER, device="cpu")
        assert not (model / REFINING).exists()


# ---------------------------------------------------------------------------------------------------- whose scores


def test_scores_of_a_model_without_its_refiner_are_no_longer_its_own(
    five: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = train(five, tmp_path / "m")
    show_scores(model, ["case_4"])

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crossfit, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            refine(model, five, TINY, SliceChoice(), folds=2, refining=REFINER, device="cpu")
    spec = load_spec(model)
    assert spec.refiner
    assert spec.scores == {}
    card = (model / "CARD.md").read_text(encoding="utf-8")
    assert card == model_card(spec)
    assert "None: it was not scored." in card

    steps: list[str] = []  # called again, it has only to score
    again: dict = {"progress": lambda what, _: steps.append(what), "labelling": lambda case, _: steps.append(case)}
    summary = refine(model, five, TINY, SliceChoice(), folds=2, refining=REFINER, device="cpu", **again)
    assert steps == []
    assert load_spec(model).scores["summary"] == summary
    assert load_spec(model).refiner == spec.refiner
    assert not (model / REFINING).exists()


def test_data_without_the_cases_that_were_held_out_is_refused_before_anything_is_trained(
    five: Dataset, tmp_path: Path
) -> None:
    model = train(five, tmp_path / "m")
    less = replace(five, cases=five.cases[:4])
    with pytest.raises(UserError, match="no case named case_4"):
        refine(model, less, TINY, SliceChoice(), folds=2, refining=REFINER, device="cpu")
    assert not load_spec(model).refiner
    assert not (model / REFINING).exists()


def test_a_twins_scores_stay_the_twins(five: Dataset, tmp_path: Path) -> None:
    """Through a model that goes on from the one that shows them, and through another copy."""
    twin, whole = train(five, tmp_path / "twin"), train(five, tmp_path / "whole", hold_out=[])
    show_scores(twin, ["case_4"])
    ship(str(whole), tmp_path / "given", twin=str(twin))
    ship(str(whole), tmp_path / "again", twin=str(tmp_path / "given"))
    assert load_spec(tmp_path / "again").scores["model"] == "twin"
    assert "`twin`, trained in the same way without" in (tmp_path / "again" / "CARD.md").read_text(encoding="utf-8")

    first = train(five, tmp_path / "first", hold_out=[], start_from=str(tmp_path / "given"))
    later = train(five, tmp_path / "later", hold_out=[], start_from=str(first))
    for model in (first, later):
        spec = load_spec(model)
        line = "`twin`, trained in the same way as `given`, an earlier stage of this model, but without the patients"
        assert f"{line} that follow, on case_4" in (model / "CARD.md").read_text(encoding="utf-8")
        assert score_line(spec).endswith("in 1 held-out cases (an earlier stage, but trained without them)")
    own = train(five, tmp_path / "own", hold_out=[], start_from=str(twin))  # the twin is a stage of it
    assert "`twin`, an earlier stage of this model, on case_4" in (own / "CARD.md").read_text(encoding="utf-8")
    assert score_line(load_spec(own)).endswith("(an earlier stage)")
    assert score_line(load_spec(tmp_path / "again")).endswith("(trained without them)")


def test_a_scored_copy_says_which_slices_it_was_trained_on(five: Dataset, tmp_path: Path) -> None:
    model = train(five, tmp_path / "m", SliceChoice(shots=3))
    ship(str(model), tmp_path / "given", data=five.folder, device="cpu")
    scores = json.loads((tmp_path / "given" / "validation" / "scores.json").read_text(encoding="utf-8"))
    assert scores["about"]["training"] == "3 slices"


def test_a_copy_replaces_a_model_only_if_that_is_asked_for_and_leaves_nothing_of_it(
    five: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = train(five, tmp_path / "given", scored=True)
    model = train(five, tmp_path / "m", hold_out=[])
    pages = {"validation", "curves.csv", "summary.png"}
    assert {path.name for path in given.iterdir()} >= pages
    before = (given / "model.json").read_bytes()
    words = ["--model", str(model), "--out", str(given), "--progress", "none"]
    assert ship_main(words) == 2
    error = capsys.readouterr().err
    assert error == f"error: {given} holds a model already. Name another folder, or replace it with --overwrite.\n"
    assert (given / "model.json").read_bytes() == before
    assert {path.name for path in given.iterdir()} >= pages
    assert ship_main([*words, "--name", "a b", "--overwrite"]) == 2
    assert "name: 'a b' is not a plain name" in capsys.readouterr().err
    assert (given / "model.json").read_bytes() == before
    (given / "mine.txt").write_text("of the user", encoding="utf-8")
    assert ship_main([*words, "--overwrite"]) == 0
    assert {path.name for path in given.iterdir()} == {"model.json", "adapter.safetensors", "CARD.md", "mine.txt"}
    assert load_spec(given).training["cases"] == [f"case_{number}" for number in range(5)]
    assert "--overwrite" not in load_spec(given).training["ship_command"]


def test_a_model_is_not_written_over_one_that_it_is_made_from(
    five: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its card would show pictures that went with that model."""
    model = train(five, tmp_path / "m", scored=True)
    before = (model / "model.json").read_bytes()
    line = f"error: {model} is a model that the new one is made from. Name another folder with --out.\n"
    words = ["--data", str(five.folder), "--out", str(model), "--hold-out", "--overwrite", "--progress", "none"]
    for origin in ("--start-from", "--teacher"):
        assert finetune_main([*words, origin, str(model)]) == 2
        assert capsys.readouterr().err == line
    whole = train(five, tmp_path / "whole", hold_out=[])
    for origin in ("--scores-of", "--average-with"):
        words = ["--model", str(whole), origin, str(model), "--out", str(model), "--overwrite", "--progress", "none"]
        assert ship_main(words) == 2
        assert capsys.readouterr().err == line
    assert (model / "model.json").read_bytes() == before
    assert (model / "validation" / "failures.png").is_file()


def test_a_copy_that_is_not_scored_has_the_pictures_that_its_card_shows(five: Dataset, tmp_path: Path) -> None:
    """Those of an earlier stage where its model shows them; a model's own scores are not the copy's."""
    first = train(five, tmp_path / "first", scored=True)
    later = train(five, tmp_path / "later", hold_out=[], start_from=str(first))
    scored = train(five, tmp_path / "scored", start_from=str(first), scored=True)
    for model, stage in ((later, "`first`, an earlier stage of this model, on case_4"), (scored, "None: it was not")):
        out = tmp_path / f"{model.name}-given"
        ship(str(model), out)
        card = (out / "CARD.md").read_text(encoding="utf-8")
        assert stage in card
        shown = re.findall(r"!\[.*\]\((.*)\)", card)
        assert len(shown) == (2 if model == later else 0)
        for picture in shown:
            assert (out / picture).read_bytes() == (first / picture).read_bytes()


@pytest.mark.parametrize("lacking", [["failures.png"], ["failures.png", "confidence.png"]], ids=len)
def test_a_card_shows_no_picture_that_its_folder_lacks(five: Dataset, tmp_path: Path, lacking: list[str]) -> None:
    """As of a copy of model.json and the weights only, which can be shipped, trained on from and refined, too."""
    first = train(five, tmp_path / "first", scored=True)
    for name in lacking:
        (first / "validation" / name).unlink()
    later = train(five, tmp_path / "later", hold_out=[], start_from=str(first))
    ship(str(later), tmp_path / "given")
    ship(str(later), tmp_path / "twin", twin=str(first))
    refine(later, five, TINY, SliceChoice(), folds=2, refining=REFINER, device="cpu")
    for model in (later, tmp_path / "given", tmp_path / "twin"):
        card = (model / "CARD.md").read_text(encoding="utf-8")
        assert "on case_4, which it was not trained on" in card
        shown = re.findall(r"!\[.*\]\((.*)\)", card)
        assert len(shown) == 2 - len(lacking)
        assert all((model / picture).is_file() for picture in shown)


# -------------------------------------------------------------------------------------------------- the mean of two


def test_a_mean_has_learned_from_both_models_patients(five: Dataset, tmp_path: Path) -> None:
    one = train(five, tmp_path / "one", listed(tmp_path / "list.csv", "case_0,1"), command="first")
    other = train(five, tmp_path / "other", start_from=str(one), command="second")
    ship(str(one), tmp_path / "mean", average_with=str(other), command="third")
    spec = load_spec(tmp_path / "mean")
    everyone = ["case_0", "case_1", "case_2", "case_3"]
    assert spec.training["averaged_with"] == {"name": "other", "cases": everyone, "commands": ["first", "second"]}
    assert trained_cases(spec) == everyone
    assert trained_commands(spec) == ["first", "second", "third"]
    card = (tmp_path / "mean" / "CARD.md").read_text(encoding="utf-8")
    assert "those of `other`, trained on 4 patients." in card
    assert "first\nsecond\nthird\n" in card
    with pytest.raises(UserError, match="was trained on case_1"):
        train(five, tmp_path / "not", hold_out=["case_1"], start_from=str(tmp_path / "mean"))
    later = load_spec(train(five, tmp_path / "later", start_from=str(tmp_path / "mean")))
    assert later.training["started_from"]["cases"] == everyone
    assert later.training["started_from"]["commands"] == ["first", "second", "third"]
