"""A volume refiner for a trained model: folds by patient, answers about patients unseen, and a model that has it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pgpsam.errors import Cancelled, UserError
from pgpsam.models.store import REFINER_PREFIX, load_model, load_spec
from pgpsam.segmenter import Segmenter
from pgpsam.training.choice import SliceChoice
from pgpsam.training.commands import refine_main
from pgpsam.training.course import Progress
from pgpsam.training.crossfit import REFINING, fold_settings, folds_of, refine
from pgpsam.training.data import read_dataset
from pgpsam.training.finetune import finetune
from pgpsam.training.refining import RefinerSettings
from pgpsam.training.run import train_on_dataset
from pgpsam.training.settings import TrainingSettings
from phantoms import make_phantom

QUICK = RefinerSettings(iterations=2, planes=16, canvas=(48, 64))
SLICES = SliceChoice(shots=4)


@pytest.fixture(scope="module")
def scored(phantoms: Path, quick_settings: TrainingSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two patients, scored on the third."""
    out = tmp_path_factory.mktemp("scored") / "m"
    train_on_dataset(
        read_dataset(phantoms), out, replace(quick_settings, iterations=4), SLICES, device="cpu", command="first"
    )
    return out


@pytest.fixture
def model(scored: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scored, tmp_path / "m")


def test_every_patient_is_in_one_fold() -> None:
    assert folds_of(["e", "b", "a", "d", "c"], 2) == [["a", "c", "e"], ["b", "d"]]
    for count in (1, 3):
        with pytest.raises(UserError, match="2 patients cannot be split"):
            folds_of(["a", "b"], count)


def test_the_folds_models_are_trained_as_the_first_stage_of_the_recipe(scored: Path) -> None:
    settings = fold_settings(load_spec(scored), 3)
    assert (settings.method, settings.seed, settings.iterations) == ("pgp", 3, 450)
    assert (settings.preparation.spacing_mm, settings.canvas) == (2.0, (140, 168))
    assert settings.settings["alpha"] == 2


def test_a_stopped_run_goes_on_and_ends_with_a_model_that_refines(
    phantoms: Path, model: Path, quick_settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(quick_settings, iterations=2)
    before, tensors = load_model(model)
    trained: list[str] = []
    seen: dict[str, set[str]] = {}

    def note(what: str, _: Progress) -> None:
        if what not in trained:
            trained.append(what)

    def watch(samples, *rest, **more):  # what every fold's model is shown
        seen[more["name"]] = {sample.case for sample in samples}
        return finetune(samples, *rest, **more)

    monkeypatch.setattr("pgpsam.training.run.finetune", watch)

    def run(**more: object) -> dict | None:
        same: dict = {"folds": 2, "refining": QUICK, "device": "cpu", "progress": note}
        return refine(model, read_dataset(phantoms), settings, SLICES, **same, **more)

    with pytest.raises(Cancelled):
        run(cancelled=lambda: trained[-1:] == ["without fold 2 of 2"])
    assert seen == {"fold1": {"case_1"}, "fold2": {"case_0"}}
    assert load_spec(model) == before
    with pytest.raises(UserError, match="other settings, slices or labels than now"):
        refine(model, read_dataset(phantoms), replace(settings, lr=1.0), SLICES, folds=2, refining=QUICK, device="cpu")
    summary = run(command="python Training/refine.py ...")
    assert trained == ["without fold 1 of 2", "without fold 2 of 2", "refiner"]
    assert not (model / REFINING).exists()

    spec, refined = load_model(model)
    assert spec.refiner["cases"] == ["case_0", "case_1"]
    assert spec.refiner["slices"] == 4
    assert {name for name in refined if not name.startswith(REFINER_PREFIX)} == set(tensors)
    assert summary is not None
    assert [case["case"] for case in summary["cases"]] == ["case_2"]
    card = (model / "CARD.md").read_text(encoding="utf-8")
    assert "volume refiner" in card
    assert card.index("first") < card.index("python Training/refine.py ...")

    segmenter = Segmenter.load(model, "cpu")
    result = segmenter.segment(make_phantom(7)[0])
    assert list(result.seconds) == ["prepare", "slices", "refine", "clean up"]
    assert set(result.labels.flat) <= {0, 1, 6}


def test_a_stopped_run_does_not_go_on_with_other_folds_or_another_list(
    phantoms: Path, quick_settings: TrainingSettings, tmp_path: Path
) -> None:
    """A finished fold would answer about patients that it has learned from, or have learned from other slices."""
    model, listed, settings = tmp_path / "m", tmp_path / "list.csv", replace(quick_settings, iterations=1)
    rows = "case,slice\ncase_0,2\ncase_1,2\ncase_2,2\n"
    listed.write_text(rows, encoding="utf-8")
    train_on_dataset(read_dataset(phantoms), model, settings, SliceChoice(listed), hold_out=[], device="cpu")
    trained: list[str] = []

    def run(folds: int) -> None:
        refine(
            model,
            read_dataset(phantoms),
            settings,
            SliceChoice(listed),
            folds=folds,
            refining=QUICK,
            device="cpu",
            progress=lambda what, _: trained.append(what),
            cancelled=lambda: trained[-1:] == ["without fold 2 of 3"],
        )

    with pytest.raises(Cancelled):
        run(3)
    with pytest.raises(UserError, match=r"fold1 was trained on case_2.*delete"):
        run(2)
    listed.write_text(f"{rows}case_2,3\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"m was trained on slices of list\.csv .*, not on slices of list\.csv"):
        run(3)
    assert trained == ["without fold 1 of 3", "without fold 2 of 3"]


def test_a_model_that_starts_from_a_refined_one_keeps_the_refiner(
    phantoms: Path, model: Path, quick_settings: TrainingSettings, tmp_path: Path
) -> None:
    settings = replace(quick_settings, iterations=2)
    (model / "curves.csv").unlink()  # as shipped models are
    refine(model, read_dataset(phantoms), settings, SLICES, folds=2, hold_out=["case_1"], refining=QUICK, device="cpu")
    own, out = replace(settings, start_from=str(model)), tmp_path / "next"
    train_on_dataset(read_dataset(phantoms), out, own, SLICES, device="cpu", scored=False)
    spec, tensors = load_model(out)
    former, others = load_model(model)
    assert spec.refiner == former.refiner
    assert former.refiner["cases"] == ["case_0"]
    assert former.refiner["held_out"]["cases"] == ["case_1"]
    assert "On case_1, which it did not learn from" in (model / "CARD.md").read_text(encoding="utf-8")
    for name in others:
        if name.startswith(REFINER_PREFIX):
            assert (tensors[name] == others[name]).all()


def test_from_the_command_line(
    phantoms: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--model", str(model), "--data", str(phantoms), "--shots", "4", "--device", "cpu", "--progress", "none"]
    assert refine_main([*given, "--folds", "9"]) == 2
    said = "error: 2 patients cannot be split into 9 folds. A refiner needs two patients or more, and from 2 folds to"
    assert capsys.readouterr().err.startswith(said)
    for count in ("0", "-3"):
        assert refine_main([*given, "--refiner-iterations", count]) == 2
        told = f"error: {count} iterations of the refiner are none. Train it for at least one."
        assert capsys.readouterr().err.strip() == told
        assert refine_main([*given, "--iterations", count]) == 2
        assert f"iterations is {count}: a training needs at least one" in capsys.readouterr().err
    assert refine_main([*given, "--set", "no_such=1"]) == 2
    assert "no_such" in capsys.readouterr().err
    assert refine_main([*given, "--hold-out", "case_2"]) == 2
    assert "was not trained on case_2" in capsys.readouterr().err
    assert refine_main([*given, "--hold-out", "case_0", "case_1"]) == 2
    assert "no patient is left" in capsys.readouterr().err
    assert not (model / REFINING).exists()
    small = ["canvas=[56,112]", "batch=2"]
    monkeypatch.setattr("pgpsam.training.commands.RefinerSettings", lambda seed: replace(QUICK, seed=seed))
    words = [*given, "--folds", "2", "--iterations", "2", "--refiner-iterations", "1", "--set", *small]
    assert refine_main(words) == 0
    assert "mean of the reported organs" in capsys.readouterr().out
    described = json.loads((model / "model.json").read_text(encoding="utf-8"))["refiner"]
    assert described["iterations"] == 1
    assert described["command"].startswith("python Training/refine.py --model")
