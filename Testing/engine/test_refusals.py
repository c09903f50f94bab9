"""What a training refuses before it begins, and that a stopped one loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from pgpsam.labels import LabelSet
from pgpsam.models.store import load_spec
from pgpsam.training import benchmark, course
from pgpsam.training.commands import benchmark_main, evaluate_main, finetune_main, refine_main
from pgpsam.training.data import read_dataset
from pgpsam.training.outfolder import LOCK, alone_in

QUICK = ["--method", "unet", "--device", "cpu", "--progress", "none"]
SMALL = ["--set", "batch=1", "canvas=[64,112]", "width=2", "levels=3"]


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that is refused."""
    assert finetune_main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture
def copied(phantoms: Path, tmp_path: Path) -> Path:
    """A copy of the phantoms' data set, to be spoiled."""
    return shutil.copytree(phantoms, tmp_path / "data")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--iterations", "0"], "0 iterations are none"),
        (["--iterations", "-5"], "-5 iterations are none"),
        (["--set", "iterations=-2"], "-2 iterations are none"),
        (["--set", "batch=0"], "batch is 0"),
        (["--set", "replay=0"], "replay is 0"),
        (["--set", "empty_share=1"], "empty_share is 1"),
        (["--set", "canvas=[0,0]"], "canvas (0, 0)"),
        (["--set", "start_share=0.5"], "--set start_share: there is no model of all these organs"),
        (["--set", "seed=7"], "Give it as --seed"),
        (["--set", "start_from=nowhere"], "Give it as --start-from"),
        (["--set", "offsets_mm=[NaN,0,0]"], "--set offsets_mm: (nan, 0, 0) is not of the kind of (0.0, 0.0, 0.0)"),
        (["--set", "canvas=[56.0,112.0]"], "--set canvas: (56.0, 112.0) is not of the kind of"),
        (["--set", "lr=NaN"], "--set lr: nan is not of the kind of"),
        (["--set", "batch=0", "--set", "lr=0.001"], "batch is 0"),
        (["--seed", "-1"], "seed -1"),
        (["--name", "liver (2024)"], "not a plain name"),
    ],
)
def test_what_no_run_can_be_made_of(
    words: list[str], says: str, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in error_of(["--data", str(phantoms), "--out", str(tmp_path / "m"), *QUICK, *words], capsys)
    assert not (tmp_path / "m").exists()


def test_a_share_of_weights_that_are_not_all_the_starts_is_refused(
    phantoms: Path, quick_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """model.json would tell of a mean that was never taken."""
    names = {"labels": {"background": 0, "liver": 6, "kidney": 1}, "validation": ["case_2"]}
    data = shutil.copytree(phantoms, tmp_path / "data")
    (data / "dataset.json").write_text(json.dumps(names))
    words = ["--data", str(data), "--out", str(tmp_path / "m"), "--start-from", str(quick_model), "--set"]
    assert "there is no model of all these organs" in error_of([*words, "start_share=0.5"], capsys)
    assert not (tmp_path / "m").exists()


def test_slices_without_organs_alone_teach_nothing(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("case,slice\ncase_0,0\n")
    words = ["--data", str(copied), "--out", str(tmp_path / "m"), "--slices", str(tmp_path / "list.csv")]
    words += ["--method", "pgp", "--device", "cpu", "--progress", "none"]
    assert "shows an organ" in error_of(words, capsys)


def test_a_list_of_unknown_cases_is_not_shortened_silently(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text("case,slice\ncase_0,2\n case_1,2\n")
    words = ["--data", str(copied), "--out", str(tmp_path / "m"), "--slices", str(tmp_path / "list.csv"), *QUICK]
    assert "names ' case_1'" in error_of(words, capsys)


def test_one_patient_is_not_trained_on_and_scored_under_two_names(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("images", "labels"):
        shutil.copy(copied / part / "case_0.nii.gz", copied / part / "patient_7.nii.gz")
    words = ["--data", str(copied), "--out", str(tmp_path / "m"), "--hold-out", "patient_7", *QUICK]
    assert "is the same scan as" in error_of(words, capsys)


def emptied(data: Path, case: str) -> Path:
    """Takes all that is drawn from a case's labels, as if they had been exported too early."""
    path = data / "labels" / f"{case}.nii.gz"
    stored = nibabel.load(path)
    ids = np.zeros(stored.shape, np.uint8)
    nibabel.save(nibabel.Nifti1Image(ids, stored.affine, stored.header), path)
    return path


@pytest.mark.parametrize("staged", [False, True])
def test_held_out_cases_of_which_none_shows_an_organ_are_refused_before_the_training(
    staged: bool, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emptied(copied, "case_2")
    words = ["--data", str(copied), "--out", str(tmp_path / "m"), *QUICK, *SMALL, "--iterations", "6"]
    words += ["--staged"] if staged else []
    error = error_of(words, capsys)
    assert "the labels of case_2 show no organ to score. Export them again, or hold out other" in error
    assert not (tmp_path / "m").exists()


def test_a_held_out_case_whose_labels_are_empty_is_warned_of(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    emptied(copied, "case_2")
    out = tmp_path / "m"
    words = ["--data", str(copied), "--out", str(out), *QUICK, *SMALL, "--iterations", "1"]
    assert finetune_main([*words, "--hold-out", "case_1", "case_2"]) == 0
    said = "case_2: the labels show no organ to score. Export them again, or"
    assert caplog.messages == [f"{said} hold out other cases with --hold-out."]
    caplog.clear()
    words = ["--model", str(out), "--data", str(copied), "--out", str(tmp_path / "scores"), *QUICK[2:], "--looks=1"]
    assert evaluate_main([*words, "--cases", "case_1", "case_2"]) == 0
    assert caplog.messages == [f"{said} name other cases with --cases."]
    capsys.readouterr()
    assert evaluate_main([*words, "--cases", "case_2"]) == 2
    assert "the labels of case_2 show no organ to score. Export them again, or name other" in capsys.readouterr().err


def test_a_held_out_case_that_cannot_be_read_is_told_before_the_training(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = copied / "images" / "case_2.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    words = ["--data", str(copied), "--out", str(tmp_path / "m"), *QUICK, *SMALL, "--iterations", "1"]
    error = error_of(words, capsys)
    assert str(image) in error
    assert not (tmp_path / "m").exists()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no folder that nobody can write to")
def test_an_output_folder_that_cannot_be_written_to_is_told_by_the_users_own_word(
    phantoms: Path, quick_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as model.json in a folder that is above it."""
    said = "error: /proc/none/m can't be written to: No such file or directory. Check its permissions"
    assert error_of(["--data", str(phantoms), "--out", "/proc/none/m", *QUICK], capsys).startswith(said)
    words = ["--model", str(quick_model), "--data", str(phantoms), "--out", "/proc/none/m", "--cases", "case_2"]
    assert evaluate_main(words) == 2
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--hold-out", "case_9"], "has no case named case_9. Its cases are case_0, case_1, case_2."),
        (["--hold-out", "case_0", "case_1", "case_2"], "none is left to train on. Hold out fewer."),
    ],
)
def test_cases_that_cannot_be_held_out_are_told_with_a_way_out(
    words: list[str], says: str, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in error_of(["--data", str(phantoms), "--out", str(tmp_path / "m"), *QUICK, *words], capsys)


@pytest.mark.parametrize("labels", [{"liver": 1, "spleen": 1}, {"liver": [1, 6]}, ["liver"]])
def test_labels_that_name_no_organs_are_told_of_their_file(
    labels: object, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "dataset.json").write_text(json.dumps({"labels": labels}))
    error = error_of(["--data", str(copied), "--out", str(tmp_path / "m"), *QUICK], capsys)
    assert error.startswith(f"error: {copied / 'dataset.json'}: labels: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [("case_0", "line 2: '' is not a slice number"), ("case_0,2.5", "line 2: '2.5' is not a slice number")],
)
def test_a_line_of_a_list_without_a_slice_is_told(
    text: str, says: str, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.csv").write_text(f"case,slice\n{text}\n")
    words = ["--data", str(phantoms), "--out", str(tmp_path / "m"), *QUICK, "--slices", str(tmp_path / "list.csv")]
    assert says in error_of(words, capsys)


def test_two_files_of_one_name_are_not_chosen_from(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(copied / "labels" / "case_0.nii.gz", copied / "labels" / "case_0.nii")
    error = error_of(["--data", str(copied), "--out", str(tmp_path / "m"), *QUICK], capsys)
    assert "case_0.nii and case_0.nii.gz have one name" in error


def test_more_organs_than_class_indices_are_refused(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {f"organ {i}": i for i in range(1, 256)}
    (copied / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **names}}))
    assert "255 organs, more than 254" in error_of(
        ["--data", str(copied), "--out", str(tmp_path / "m"), *QUICK], capsys
    )
    (copied / "dataset.json").write_text(json.dumps({"labels": dict(list(names.items())[:254])}))
    assert len(read_dataset(copied).labels) == 254


def test_ctrl_c_saves_the_state_and_the_same_call_does_not_overwrite_it(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    update = course.Average.update

    def counted(self: course.Average, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal steps
        steps += 1
        update(self, tensors)
        if steps == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(course.Average, "update", counted)
    words = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--hold-out", *QUICK, "--iterations", "6", *SMALL]
    assert finetune_main(words) == 130
    assert "--resume continues" in capsys.readouterr().err
    assert torch.load(tmp_path / "m" / "training.pt", weights_only=True)["iteration"] == 4
    assert "Go on with --resume, or delete it" in error_of(words, capsys)
    other = error_of([*words, "--seed", "1", "--resume"], capsys)
    assert "other settings, slices or labels. Give the same ones, or delete it and start without --resume." in other
    state = (tmp_path / "m" / "training.pt").read_bytes()
    (tmp_path / "m" / "training.pt").write_bytes(state[:1000])
    damaged = f"error: {tmp_path / 'm' / 'training.pt'} is damaged. Delete it and start without --resume.\n"
    assert error_of([*words, "--resume"], capsys) == damaged
    (tmp_path / "m" / "training.pt").write_bytes(state)
    assert finetune_main([*words, "--resume"]) == 0
    assert steps == 6
    assert not (tmp_path / "m" / "training.pt").exists()


def test_a_former_models_scores_do_not_stay_beside_a_new_one(phantoms: Path, tmp_path: Path) -> None:
    words = ["--data", str(phantoms), "--out", str(tmp_path / "m"), *QUICK, "--iterations", "1", *SMALL]
    assert finetune_main([*words, "--hold-out", "case_2"]) == 0
    assert (tmp_path / "m" / "validation" / "scores.json").is_file()
    (tmp_path / "m" / "validation" / "mine.txt").write_text("of the user")
    assert finetune_main([*words, "--hold-out", "--overwrite"]) == 0
    assert load_spec(tmp_path / "m").scores == {}
    assert [path.name for path in (tmp_path / "m" / "validation").iterdir()] == ["mine.txt"]


def test_a_model_is_replaced_only_if_that_is_asked_for(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--hold-out", *QUICK, "--iterations", "1", *SMALL]
    assert finetune_main(words) == 0
    assert "phantoms: 3 cases" in capsys.readouterr().out
    before = (tmp_path / "m" / "model.json").read_bytes()
    assert "holds a model already. Name another folder, replace it with --overwrite" in error_of(words, capsys)
    assert (tmp_path / "m" / "model.json").read_bytes() == before
    assert finetune_main([*words, "--seed", "1", "--overwrite"]) == 0
    training = load_spec(tmp_path / "m").training
    assert training["seed"] == 1
    assert "--overwrite" not in training["command"]


def test_two_trainings_into_one_folder_are_noticed(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "m"
    words = ["--data", str(phantoms), "--out", str(out), "--hold-out", *QUICK, "--iterations", "1", *SMALL]
    with alone_in(out):
        assert f"another training is at work in {out}" in error_of(words, capsys)
    assert not out.exists()
    assert finetune_main(words) == 0
    assert not (out / LOCK).exists()
    with alone_in(out):
        assert refine_main(["--model", str(out), "--data", str(phantoms)]) == 2
    assert "another training is at work in" in capsys.readouterr().err


def test_options_that_are_given_twice_add_up(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m"
    words = ["--data", str(phantoms), "--out", str(out), *QUICK, "--iterations", "1", *SMALL, "--set", "lr=0.001"]
    assert finetune_main([*words, "--hold-out", "case_0", "--hold-out", "case_2"]) == 0
    training = load_spec(out).training
    assert (training["cases"], training["held_out"]) == (["case_1"], ["case_0", "case_2"])
    assert training["lr"] == 0.001
    assert training["canvas"] == [64, 112]
    words = ["--model", str(out), "--data", str(phantoms), "--out", str(tmp_path / "scores"), *QUICK[2:], "--looks=1"]
    capsys.readouterr()
    assert evaluate_main([*words, "--cases", "case_0", "--cases", "case_2"]) == 0
    assert "2 cases, all slices" in " ".join(capsys.readouterr().out.split())


def test_a_benchmark_whose_scored_patients_lack_the_reported_organs_has_a_page(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = LabelSet.from_names({"spleen": 1, "liver": 6, "pancreas": 11})
    told = {"labels": dict(zip(names.names, names.ids, strict=True)), "reported_labels": [11], "validation": ["case_2"]}
    (copied / "dataset.json").write_text(json.dumps(told))
    out = tmp_path / "runs"
    words = ["--data", str(copied), "--out", str(out), "--methods", "unet", "--amounts", "10%", "--seeds", "0"]
    words += ["--device", "cpu", "--slices-seen", "8", "--set", "canvas=[64,112]", "width=2", "levels=3"]
    assert benchmark_main(words) == 0
    assert "| - |" in (out / "benchmark.md").read_text()
    assert benchmark.is_done(out / "unet-10pct-seed0")
