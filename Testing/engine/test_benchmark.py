"""The grid of runs: what is run, that it goes on where it stopped, and the page that is written from it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from choosing import choose_samples
from pgpsam.errors import UserError
from pgpsam.models.store import load_model, save_model
from pgpsam.training.benchmark import Row, arguments, collect, page, plan, plot, run_all, score_again, spread
from pgpsam.training.choice import SliceChoice
from pgpsam.training.commands import benchmark_main
from pgpsam.training.data import read_dataset

QUICK = ["--set", "batch=2", "warmup=1", "canvas=[56,112]", "replay=1", "--device", "cpu"]


@pytest.fixture
def dataset(phantoms):
    return read_dataset(phantoms)


def test_the_grid_and_its_cross_validation_by_patient(dataset):
    rows = plan(dataset, ["pgp", "probe"], ["16", "10%"], [0, 1], folds=3)
    assert len({row.name for row in rows}) == len(rows) == 2 * 2 * 2 + 3
    folds = [row for row in rows if row.fold]
    assert {row.method for row in folds} == {"pgp"}
    assert sorted(name for row in folds for name in row.hold_out) == ["case_0", "case_1", "case_2"]
    with pytest.raises(UserError, match="no amount of slices named most"):
        plan(dataset, ["pgp"], ["most"], [0])
    with pytest.raises(UserError, match="does not say which cases to score"):
        plan(replace(dataset, validation=()), ["pgp"], ["16"], [0])
    for folds in (9, 1, -2):
        with pytest.raises(UserError, match=f"--folds {folds} of 3 cases"):
            plan(dataset, ["pgp"], ["16"], [0], folds=folds)


def test_every_run_has_the_same_budget_and_the_data_sets_own_lists(dataset, tmp_path):
    listed = dataset.folder / "fewshot_16_seed1.csv"
    listed.write_text("case,slice\ncase_0,2\n")
    try:
        words = {m: arguments(Row(m, "16", 1), dataset, tmp_path, 2400) for m in ("pgp", "probe")}
    finally:
        listed.unlink()
    assert words["pgp"][words["pgp"].index("--slices") + 1] == str(listed)
    steps = {m: int(w[w.index("--iterations") + 1]) for m, w in words.items()}
    assert steps == {"pgp": 600, "probe": 300}  # batches of 4 and of 8
    smaller = arguments(Row("pgp", "16", 1), dataset, tmp_path, 2400, ["--set", "average=0.99", "batch=2"])
    assert smaller[smaller.index("--iterations") + 1] == "1200"
    assert "--shots" in arguments(Row("pgp", "16", 1), dataset, tmp_path, 2400)
    for whole in (False, True):
        told = replace(dataset, fully_annotated=whole)
        assert ("--fully-annotated" in arguments(Row("pgp", "all", 1), told, tmp_path, 2400)) is whole


def test_another_backbone_is_for_the_methods_that_have_one(dataset, tmp_path):
    rows = plan(dataset, ["pgp", "unet"], ["16"], [0], folds=3, backbone="vit_b")
    assert [row.name for row in rows[:2]] == ["pgp-vit_b-16-seed0", "unet-16-seed0"]
    given = [arguments(row, dataset, tmp_path, 2400) for row in rows]
    assert ["--backbone" in words and words[words.index("--backbone") + 1] for words in given] == [
        "vit_b",
        False,
        *["vit_b"] * 3,
    ]


def test_a_slice_for_every_organ(dataset, quick_settings):
    samples = choose_samples(dataset, dataset.cases, SliceChoice(per_organ=1), quick_settings)
    shown = [set(s.labels.unique().tolist()) - {0} for s in samples]
    assert 1 <= len(samples) <= 2
    assert set.union(*shown) == {1, 2}
    with pytest.raises(UserError, match="--per-organ 0"):
        SliceChoice(per_organ=0)


def test_runs_are_kept_failures_are_told_and_the_page_holds_the_scores(dataset, tmp_path, capsys):
    out = tmp_path / "runs"
    rows = plan(dataset, ["probe"], ["16"], [0, 1])
    rows = [replace(row, amount="10%") for row in rows]  # 16 slices of two cases are not there
    quick = [*QUICK, "--iterations", "2"]
    assert run_all(rows[:1], dataset, out, 8, quick) == []
    before = (out / rows[0].name / "model.json").read_text()
    assert run_all([*rows, Row("probe", "16", 5)], dataset, out, 8, quick) == ["probe-16-seed5"]
    assert f"{rows[0].name}: done before" in capsys.readouterr().out
    assert (out / rows[0].name / "model.json").read_text() == before

    (group,) = groups = collect(rows, out)
    assert (group.method, group.amount, len(group.specs)) == ("probe", "10%", 2)
    scores = [json.loads((out / row.name / "model.json").read_text())["scores"]["summary"] for row in rows]
    text = page(groups, dataset, "python Training/benchmark.py", "benchmark.png")
    assert f"| {spread([s['reported']['dice'] for s in scores], 3)} |" in text
    assert "CPU threads" in text
    assert text.count("`python Training/finetune.py --data") == 2
    assert plot(groups).startswith(b"\x89PNG")


def test_the_commands_can_be_listed_without_running_them(phantoms, tmp_path, capsys):
    words = ["--data", str(phantoms), "--out", str(tmp_path / "runs"), "--methods", "pgp", "--amounts", "10%", "--list"]
    assert benchmark_main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["python", "Training/finetune.py"]] * 3
    assert not (tmp_path / "runs").exists()


def test_lists_that_are_given_twice_add_up_and_all_slices_are_as_annotated_as_is_said(phantoms, tmp_path, capsys):
    words = ["--data", str(phantoms), "--out", str(tmp_path / "runs"), "--list"]
    words += [
        "--methods",
        "pgp",
        "--methods",
        "probe",
        "--amounts",
        "one",
        "--amounts",
        "all",
        "--seeds=3",
        "--seeds=4",
    ]
    for extra in ([], ["--fully-annotated"]):
        assert benchmark_main([*words, *extra]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == len(set(lines)) == 2 * 2 * 2
        assert sum("--fully-annotated" in line for line in lines) == (4 if extra else 0)


def test_a_benchmark_of_nothing_is_refused_and_one_that_failed_throughout_says_so(dataset, tmp_path, capfd):
    words = ["--data", str(dataset.folder), "--out", str(tmp_path / "runs"), "--methods", "unet", "--amounts", "10%"]
    words += ["--seeds", "-1", "--device", "cpu", "--progress", "none"]
    assert benchmark_main([*words, "--slices-seen", "0"]) == 2
    assert capfd.readouterr().err.startswith("error: --slices-seen 0 trains nothing.")
    assert not (tmp_path / "runs").exists()
    assert benchmark_main(words) == 2  # of a seed that no training takes
    error = capfd.readouterr().err.splitlines()[-1]
    assert error == "error: 1 of 1 runs failed: unet-10pct-seed-1. Run this again to go on."


def test_the_page_can_be_written_while_runs_are_missing(dataset, tmp_path, capsys):
    out, page_file = tmp_path / "runs", tmp_path / "docs" / "benchmark.md"
    words = ["--data", str(dataset.folder), "--out", str(out), "--methods", "probe", "unet", "--amounts", "10%"]
    words += ["--seeds", "0", "--page", str(page_file), "--finished"]
    assert benchmark_main(words) == 2
    assert f"no run in {out} is finished" in capsys.readouterr().err
    run_all([Row("probe", "10%", 0)], dataset, out, 8, [*QUICK, "--iterations", "2"])
    assert benchmark_main(words) == 0
    assert "`probe`" in page_file.read_text()
    assert "`unet`" not in page_file.read_text()
    assert page_file.with_suffix(".png").is_file()
    assert sorted(path.name for path in out.iterdir()) == ["probe-10pct-seed0"]
    capsys.readouterr()
    del words[words.index("--page") : words.index("--page") + 2]
    assert benchmark_main(words) == 0
    assert (out / "benchmark.md").is_file()
    assert (out / "benchmark.png").is_file()
    printed = capsys.readouterr().out
    assert re.search(r"10% \(\d+\) +│ +probe ", printed)
    assert "HD95 mm" in printed


def test_a_page_that_cannot_be_written_is_noticed_before_the_runs(dataset, tmp_path, capsys):
    (tmp_path / "docs").write_text("a file")
    words = ["--data", str(dataset.folder), "--out", str(tmp_path / "runs"), "--methods", "probe"]
    assert benchmark_main([*words, "--page", str(tmp_path / "docs" / "benchmark.md")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "docs" in error
    assert not (tmp_path / "runs").exists()


def test_finished_runs_can_be_scored_again_as_is_done_today(dataset, tmp_path, capsys):
    out, row = tmp_path / "runs", Row("probe", "10%", 0)
    run_all([row], dataset, out, 8, [*QUICK, "--iterations", "2"])
    card = (out / row.name / "CARD.md").read_text()
    spec, tensors = load_model(out / row.name, as_stored=True)
    save_model(out / row.name, replace(spec, scores={**spec.scores, "summary": {}, "looks": 1}), tensors, "")
    words = ["--data", str(dataset.folder), "--out", str(out), "--methods", "probe", "--amounts", "10%", "--seeds", "0"]
    assert benchmark_main([*words, "--finished", "--score-again"]) == 0
    again, same = load_model(out / row.name, as_stored=True)
    assert again.scores == spec.scores
    assert again.training == spec.training
    assert all(torch.equal(tensors[name], same[name]) for name in tensors)
    assert (out / row.name / "CARD.md").read_text() == card


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """Two seeds of a benchmark, finished; its words, and the folder of its runs."""
    out = tmp_path_factory.mktemp("finished")
    words = ["--data", str(phantoms), "--out", str(out), "--methods", "unet", "--amounts", "10%", "--seeds", "0", "1"]
    words += ["--device", "cpu", "--slices-seen", "16", "--progress", "none"]
    words += ["--set", "batch=1", "canvas=[64,112]", "width=2", "levels=3"]
    assert benchmark_main(words) == 0
    return words, out


def tell(folder, **changes):
    """Write values into a run's model.json, "training__seed" for the key seed in training."""
    path = folder / "model.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    for place, value in changes.items():
        *way, last = place.split("__")
        part = spec
        for key in way:
            part = part[key]
        part[last] = value
    path.write_text(json.dumps(spec), encoding="utf-8")


@pytest.mark.parametrize("extra", [[], ["--finished"], ["--score-again"], ["--finished", "--score-again"]])
@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"validation": ["case_1"]}, "unet-10pct-seed0 was scored on case_2, not on case_1"),
        ({"labels": {"background": 0, "Leber": 6, "spleen": 1}}, "knows the organs spleen, liver, not spleen, Leber"),
    ],
)
def test_finished_runs_of_other_patients_or_organs_are_refused(finished, tmp_path, capsys, about, says, extra):
    words, _ = finished
    data = shutil.copytree(words[1], tmp_path / "data")
    told = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    (data / "dataset.json").write_text(json.dumps({**told, **about}), encoding="utf-8")
    assert benchmark_main(["--data", str(data), *words[2:], "--page", str(tmp_path / "page.md"), *extra]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Move it away, or give another --out." in error
    assert error.count("\n") == 1
    assert not (tmp_path / "page.md").exists()


def test_finished_runs_with_another_budget_do_not_get_others_beside_them(finished, capsys):
    words, _ = finished
    words = [*words, "--slices-seen", "24"]
    for extra in ([], ["--score-again"]):
        assert benchmark_main([*words, *extra]) == 2
        assert "unet-10pct-seed0 was run with other settings than now. Give the same" in capsys.readouterr().err
    assert benchmark_main([*words, "--finished"]) == 0  # who only writes the page need not repeat it


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training__iterations": 7}, "was trained with other settings than"),
        ({"preparation__spacing_mm": 3.0}, "was trained with other settings than"),
        ({"scores__labels_crc32": 1}, "was scored on other labels than"),
        ({"scores__summary__reported_labels": [6]}, "was scored for other reported organs than"),
    ],
)
def test_runs_that_cannot_be_averaged_are_refused(finished, tmp_path, capsys, changes, says):
    words, out = finished
    runs = shutil.copytree(out, tmp_path / "runs")
    words = [*words[:2], "--out", str(runs), *words[4:], "--finished"]
    tell(runs / "unet-10pct-seed1", **changes)
    assert benchmark_main(words) == 2
    assert f"unet-10pct-seed1 {says} {runs / 'unet-10pct-seed0'}." in capsys.readouterr().err
    if "scores" in next(iter(changes)):
        assert benchmark_main([*words, "--score-again"]) == 0


def test_methods_that_learned_from_other_labels_are_refused(finished, tmp_path):
    _, out = finished
    shutil.copytree(out / "unet-10pct-seed0", tmp_path / "unet-10pct-seed0")
    other = shutil.copytree(out / "unet-10pct-seed0", tmp_path / "probe-10pct-seed0")
    rows = [Row(method, "10%", 0) for method in ("unet", "probe")]
    assert len(collect(rows, tmp_path)) == 2
    tell(other, training__labels_crc32=1)
    with pytest.raises(UserError, match=r"probe-10pct-seed0 was trained on other slices or labels than .*/unet-10pct"):
        collect(rows, tmp_path)
    tell(other, training__labels_crc32=None, training__slices=9)  # as of a time before labels had a checksum
    with pytest.raises(UserError, match=r"probe-10pct-seed0 was trained on other data or slices than .*/unet-10pct"):
        collect(rows, tmp_path)


def test_labels_that_were_corrected_are_scored_on_by_all_runs_or_none(finished, tmp_path, capsys):
    """The second run is scored after a held-out patient's labels were corrected."""
    import nibabel

    words, out = finished
    data, runs = shutil.copytree(words[1], tmp_path / "data"), shutil.copytree(out, tmp_path / "runs")
    stored = nibabel.load(data / "labels" / "case_2.nii.gz")
    ids = np.asarray(stored.dataobj).copy()
    ids[:30] = 0
    nibabel.save(nibabel.Nifti1Image(ids, stored.affine), data / "labels" / "case_2.nii.gz")
    words = ["--data", str(data), "--out", str(runs), *words[4:], "--finished"]
    score_again([Row("unet", "10%", 1)], read_dataset(data), runs, "cpu")
    assert benchmark_main(words) == 2
    assert "was scored on other labels than" in capsys.readouterr().err
    assert benchmark_main([*words, "--score-again"]) == 0


def test_mean_and_spread():
    assert spread([0.8, 0.9], 3) == "0.850 ± 0.071"
    assert spread([0.8], 2) == "0.80"
    assert spread([], 2) == "-"
