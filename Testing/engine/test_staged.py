"""The recipe for few slices: three runs from one command, stopped and resumed at any of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pgpsam.errors import Cancelled, UserError
from pgpsam.training.commands import finetune_main
from pgpsam.training.finetune import TrainingSettings
from pgpsam.training.recipes import recipe
from pgpsam.training.run import SliceChoice
from pgpsam.training.staged import ITERATIONS, STAGES, stages, train_in_stages

SLICES = SliceChoice(shots=4)


def test_the_stages_of_the_default_recipe(tmp_path: Path) -> None:
    """The figures behind the scores in Training/EXPERIMENTS.md."""
    coarse, fine, taught = stages(replace(recipe("pgp"), iterations=ITERATIONS), tmp_path)
    assert [s.settings.iterations for s in (coarse, fine, taught)] == [598, 351, 351]
    assert (coarse.settings.preparation.spacing_mm, coarse.settings.canvas) == (2.0, (140, 168))
    assert (fine.settings.preparation.spacing_mm, fine.settings.canvas) == (1.5, (168, 224))
    assert (fine.settings.lr, fine.settings.published_lr) == (1e-3, 2.5e-4)
    assert (fine.settings.balance, fine.settings.dice_weight) == ((0.2, 0.2), (0.8, 0.8))
    assert {s.settings.average for s in (coarse, fine, taught)} == {0.99}
    assert [s.taught for s in (coarse, fine, taught)] == [False, False, True]
    assert [Path(s.settings.start_from).name for s in (coarse, fine, taught)] == ["", "coarse", "fine"]


def test_a_run_that_is_stopped_in_its_second_stage_goes_on_there(
    phantoms: Path, quick_settings: TrainingSettings, tmp_path: Path
) -> None:
    settings, out, seen = replace(quick_settings, iterations=8), tmp_path / "m", []
    steps = []

    def stop() -> bool:
        steps.append(1)
        return len(steps) == 5

    def train(**more: object) -> object:
        return train_in_stages(phantoms, out, settings, SLICES, device="cpu", stage_begins=seen.append, **more)

    with pytest.raises(Cancelled):
        train(cancelled=stop)
    assert seen == ["coarse", "fine"]
    before = (out / STAGES / "coarse" / "model.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="other settings than now"):
        train_in_stages(phantoms, out, replace(settings, seed=1), SLICES, device="cpu", resume=True)
    assert (out / STAGES / "coarse" / "model.json").stat().st_mtime_ns == before
    summary = train(resume=True, command="python Training/finetune.py --staged")
    assert seen == ["coarse", "fine", "fine", "taught"]
    assert isinstance(summary, dict)
    assert [case["case"] for case in summary["cases"]] == ["case_2"]
    assert not (out / STAGES).exists()
    spec = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert spec["training"]["taught_by"]["name"] == "fine"
    assert spec["training"]["started_from"]["cases"] == ["case_0", "case_1"]
    assert (out / "CARD.md").read_text(encoding="utf-8").count("--staged") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--iterations", "1"], "1 iterations are too few for 3 stages"),
        (["--fully-annotated"], "all are annotated"),
    ],
)
def test_what_cannot_be_staged_is_refused_at_once(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    given = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--staged", "--device", "cpu", *words]
    assert finetune_main(given) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_staged_run_takes_no_start_and_no_teacher(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        finetune_main(["--data", str(phantoms), "--out", str(tmp_path / "m"), "--staged", "--teacher", "abdomen-ct"])
    assert stopped.value.code == 2
