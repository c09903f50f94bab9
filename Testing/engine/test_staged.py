"""The recipe for few slices: three runs from one command, stopped and resumed at any of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pgpsam.errors import Cancelled, UserError
from pgpsam.models.store import load_spec
from pgpsam.training.choice import SliceChoice
from pgpsam.training.commands import finetune_main
from pgpsam.training.course import Progress
from pgpsam.training.data import load_case, read_dataset
from pgpsam.training.recipes import recipe
from pgpsam.training.refining import RefinerSettings
from pgpsam.training.settings import TrainingSettings
from pgpsam.training.staged import ITERATIONS, STAGES, stages, train_in_stages
from pgpsam.volume import write_array

SLICES = SliceChoice(shots=4)
REFINING = RefinerSettings(iterations=2, planes=16, canvas=(48, 64))


def test_the_stages_of_the_default_recipe(tmp_path: Path) -> None:
    made = stages(replace(recipe("pgp"), iterations=ITERATIONS), tmp_path)
    assert list(made) == ["coarse", "fine", "taught"]
    coarse, fine, taught = made.values()
    assert [s.iterations for s in (coarse, fine, taught)] == [598, 351, 351]
    assert (coarse.preparation.spacing_mm, coarse.canvas) == (2.0, (140, 168))
    assert (fine.preparation.spacing_mm, fine.canvas) == (1.5, (168, 224))
    assert (fine.lr, fine.published_lr) == (1e-3, 2.5e-4)
    assert (fine.balance, fine.dice_weight) == ((0.2, 0.2), (0.8, 0.8))
    assert (taught.balance, taught.dice_weight) == ((0.1, 0.1), (0.5, 0.5))
    assert {s.average for s in (coarse, fine, taught)} == {0.99}
    assert [Path(s.start_from).name for s in (coarse, fine, taught)] == ["", "coarse", "fine"]


def test_a_run_that_is_stopped_in_its_second_stage_goes_on_there(
    phantoms: Path, quick_settings: TrainingSettings, tmp_path: Path
) -> None:
    settings, out, seen = replace(quick_settings, iterations=8), tmp_path / "m", []
    steps: list[int] = []

    def note(stage: str, _: Progress) -> None:
        if not seen or seen[-1] != stage:
            seen.append(stage)

    def stop() -> bool:
        steps.append(1)
        return len(steps) == 5

    def train(**more: object) -> object:
        return train_in_stages(
            read_dataset(phantoms), out, settings, SLICES, device="cpu", refining=REFINING, progress=note, **more
        )  # fmt: skip

    with pytest.raises(Cancelled):
        train(cancelled=stop)
    assert seen == ["coarse", "fine"]
    with pytest.raises(UserError, match="is there, of a stopped run"):
        train()
    before = (out / STAGES / "coarse" / "model.json").stat().st_mtime_ns
    wider = replace(settings.preparation, spacing_mm=2.5)
    for other in (replace(settings, seed=1), replace(settings, preparation=wider)):
        with pytest.raises(UserError, match="other settings, slices or labels than now"):
            train_in_stages(read_dataset(phantoms), out, other, SLICES, device="cpu", resume=True)
    assert (out / STAGES / "coarse" / "model.json").stat().st_mtime_ns == before
    summary = train(resume=True, command="python Training/finetune.py --staged")
    assert seen == ["coarse", "fine", "without fold 1 of 2", "without fold 2 of 2", "refiner", "taught"]
    assert isinstance(summary, dict)
    assert [case["case"] for case in summary["cases"]] == ["case_2"]
    assert not (out / STAGES).exists()
    spec = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert spec["training"]["taught_by"]["name"] == "fine"
    assert spec["training"]["started_from"]["cases"] == ["case_0", "case_1"]
    assert spec["refiner"]["cases"] == ["case_0", "case_1"]
    assert (out / "CARD.md").read_text(encoding="utf-8").count("--staged") == 1


def test_a_stopped_run_does_not_go_on_with_corrected_labels(
    phantoms: Path, quick_settings: TrainingSettings, tmp_path: Path
) -> None:
    """Its finished stages and folds have learned what was drawn before."""
    data, out, seen = shutil.copytree(phantoms, tmp_path / "data"), tmp_path / "m", list[str]()
    settings = replace(quick_settings, iterations=8)

    def train(**more: object) -> None:
        given: dict = {"device": "cpu", "refining": REFINING, "scored": False, **more}
        train_in_stages(
            read_dataset(data), out, settings, SLICES, progress=lambda stage, _: seen.append(stage), **given
        )

    with pytest.raises(Cancelled):
        train(cancelled=lambda: seen[-1:] == ["refiner"])
    before = set(seen)
    case = load_case(read_dataset(data).cases[0], read_dataset(data).labels)
    swapped = np.array([0, 6, 1], np.uint8)[case.labels]
    write_array(data / "labels" / "case_0.nii.gz", swapped, case.volume, "labels")
    with pytest.raises(UserError, match="coarse was trained with other settings, slices or labels than now"):
        train(resume=True)
    assert set(seen) == before


def test_a_stopped_run_that_was_to_replace_another_model_goes_on(
    phantoms: Path, quick_model: Path, quick_settings: TrainingSettings, tmp_path: Path
) -> None:
    out, seen = shutil.copytree(quick_model, tmp_path / "m"), list[str]()

    def train(**more: object) -> None:
        given: dict = {"device": "cpu", "refining": REFINING, "scored": False, "progress": note, **more}
        train_in_stages(read_dataset(phantoms), out, replace(quick_settings, iterations=8), SLICES, **given)

    def note(stage: str, _: Progress) -> None:
        seen.append(stage)

    with pytest.raises(Cancelled):
        train(cancelled=lambda: bool(seen))
    train(resume=True)
    assert seen[-1] == "taught"
    assert load_spec(out).training["taught_by"]["name"] == "fine"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--iterations", "1"], "1 iterations are too few for 3 stages"),
        (["--fully-annotated"], "all are annotated"),
        (["--teacher", "abdomen-ct"], "is its own teacher"),
        (["--start-from", "abdomen-ct"], "starts from nothing"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_what_cannot_be_staged_is_refused_at_once(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    given = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--staged", "--device", "cpu", *words]
    assert finetune_main(given) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "m").exists()
