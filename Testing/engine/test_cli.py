"""The command line as users call it: real processes, exit codes, one line for errors, nothing half-written."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest

from pgpsam.cli import agreement, main, print_agreement
from pgpsam.cohort import segment_cohort
from pgpsam.hello import hello
from pgpsam.labels import ABDOMEN
from pgpsam.models.lookup import find_model
from pgpsam.models.store import load_spec
from pgpsam.segmenter import Segmenter
from pgpsam.terminal import ProgressReporter, print_table
from pgpsam.training.origins import trained_cases, trained_commands
from pgpsam.volume import write_array
from phantoms import make_phantom

ROOT = Path(__file__).parents[2]
TRAINING = ("finetune", "refine", "evaluate", "ship", "benchmark", "embed_descriptions")


def pgpsam(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "pgpsam", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("script", sorted((ROOT / "Training").glob("*.py")), ids=lambda p: p.stem)
def test_every_training_command_explains_itself(script):
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script.name}")


COMMANDS = [["-m", "pgpsam", "models"], *([f"Training/{name}.py"] for name in TRAINING)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[-1])
def test_ctrl_c_while_a_command_is_imported_is_one_line(command):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "argparse" in line:
            break
    process.send_signal(signal.SIGINT)
    said = [line for line in process.stderr.read().splitlines() if not line.startswith("import time:")]
    assert said == ["cancelled"]
    assert process.wait(timeout=30) == 130


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    volume, _ = make_phantom(7)
    write_array(path, volume.array, volume, "confidence")
    return path


def test_segment_writes_everything_on_the_inputs_grid(ct, quick_model, tmp_path):
    names = {
        "-o": "labels.nii.gz",
        "--prompts": "prompts.nii.gz",
        "--points": "points.mrk.json",
        "--confidence": "confidence.nii.gz",
        "--preview": "preview.png",
        "--report": "report.html",
    }
    files = [word for option, name in names.items() for word in (option, tmp_path / name)]
    done = pgpsam("segment", ct, "--model", quick_model, "--device", "cpu", "--progress", "json", *files)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == set(names.values())
    source, labels = nibabel.load(ct), nibabel.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(source.affine, labels.affine)
    assert source.shape == labels.shape
    steps = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [step["done"] for step in steps] == [1, 3, 5, 6]
    assert "liver" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.nii.gz", "-o", "out.nii.gz"], "missing.nii.gz"),
        (["CT", "-o", "out.xyz"], "out.xyz"),
        (["CT", "-o", "nowhere/out.nii.gz"], "no such folder"),
        (["CT", "-o", "CT"], "is the input itself"),
        (["CT", "-o", "mine.nii.gz", "--reference", "mine.nii.gz"], "is the reference itself"),
        (["CT", "-o", "out.nii.gz", "--prompts", "./out.nii.gz"], "is another output itself"),
        (["CT", "-o", "out.nii.gz", "--confidence", "sure.seg.nrrd"], "holds segments, not confidence"),
        (["CT", "-o", "out.nii.gz", "--organs", "brain"], "brain"),
        (["CT", "-o", "out.nii.gz", "--organs", ""], "'' is not among the organs"),
        (["CT", "-o", "out.nii.gz", "--organs", "lung", "--organs", "liver"], "'lung' is not among the organs"),
        (["CT", "-o", "out.nii.gz", "--model", "no-such-model"], "no-such-model"),
        (["CT", "-o", "out.nii.gz", "--device", "cuda:9"], "cuda:9"),
        (["CT", "-o", "out.nii.gz", "--preview", "picture.jpeg"], "picture.jpeg"),
        (["CT", "-o", "a" * 250 + ".nii.gz"], "can't be written: "),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(ct, quick_model, tmp_path, arguments, message):
    words = [str(ct) if word == "CT" else word for word in arguments]
    if "--model" not in words:
        words += ["--model", str(quick_model)]
    done = pgpsam("segment", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


OUTPUTS = {
    "--out": "a.nii.gz",
    "--prompts": "b.nii.gz",
    "--confidence": "c.nii.gz",
    "--points": "d.mrk.json",
    "--preview": "e.png",
    "--report": "f.html",
}


@pytest.mark.parametrize("option", OUTPUTS)
def test_outputs_that_cannot_be_written_are_told_before_the_scan_is_read(tmp_path, monkeypatch, capsys, option):
    monkeypatch.setattr("pgpsam.cli.read_volume", lambda _: pytest.fail("the scan was read"))
    monkeypatch.chdir(tmp_path)
    words = ["segment", "ct.nii.gz", "--out", "a.nii.gz", option, OUTPUTS[option]]
    (tmp_path / OUTPUTS[option]).mkdir()
    assert main(words) == 2
    assert f"error: {OUTPUTS[option]} is a folder" in capsys.readouterr().err
    (tmp_path / OUTPUTS[option]).rmdir()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pgpsam.pages.NamedTemporaryFile", refuse)
    assert main(words) == 2
    assert "can't be written: Permission denied" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    done = pgpsam("segment", "missing.nii.gz", "-o", tmp_path / "out.nii.gz", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_interrupt_ends_with_130_and_leaves_no_file(ct, quick_model, tmp_path):
    import SimpleITK

    long = SimpleITK.GetImageFromArray(np.tile(make_phantom(7)[0].array, (60, 1, 1)))
    long.SetSpacing((3.0, 3.0, 5.0))
    SimpleITK.WriteImage(long, str(tmp_path / "long.mha"))
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "pgpsam", "segment", tmp_path / "long.mha", "-o", out / "labels.nii.gz"]
    process = subprocess.Popen(
        [*map(str, command), "--model", str(quick_model), "--device", "cpu", "--progress", "json"],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("{"):
            break
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - started < 10
    assert "cancelled" in rest
    assert "Traceback" not in rest
    assert list(out.iterdir()) == []


def test_a_cohort_goes_on_after_a_failure_and_after_a_stop(ct, quick_model, tmp_path):
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    volume, _ = make_phantom(8)
    write_array(tmp_path / "second.nrrd", volume.array, volume, "confidence")
    inputs, out = [ct, tmp_path / "broken.nii.gz", tmp_path / "second.nrrd"], tmp_path / "out"
    words = ["-o", out, "--model", quick_model, "--device", "cpu", "--progress", "none"]
    done = pgpsam("cohort", *inputs, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 of 3 volumes could not be segmented: broken")
    assert "broken: " in done.stdout
    assert {path.name for path in out.glob("[!.]*")} == {
        f"{n}{e}" for n in ("ct", "second") for e in (".nii.gz", ".png")
    } | {"organs.csv", "cohort.json"}
    assert np.array_equal(nibabel.load(out / "ct.nii.gz").affine, nibabel.load(ct).affine)
    with (out / "organs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["volume"] for row in rows} == {"ct", "second"}
    assert all(float(row["ml"]) > 0 for row in rows if row["organ"])

    (out / "second.nii.gz").unlink()
    before = (out / "ct.nii.gz").stat().st_mtime_ns
    done = pgpsam("cohort", inputs[0], inputs[2], *words)
    assert done.returncode == 0, done.stderr
    assert "ct: done before" in done.stdout
    assert (out / "second.nii.gz").is_file()
    assert (out / "ct.nii.gz").stat().st_mtime_ns == before
    with (out / "organs.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_a_cohort_goes_on_wherever_it_was_stopped_and_knows_its_model(ct, quick_model, tmp_path, monkeypatch):
    segmenter, said = Segmenter.load(quick_model, "cpu"), []

    def run():
        said.clear()
        assert segment_cohort(segmenter, {"ct": ct}, tmp_path, pictures=False, say=said.append) == []
        return "done before" in said[0]

    def stopped(*_, **__):
        raise KeyboardInterrupt

    for place in ("organ_table", "write_whole", "write_array"):
        with monkeypatch.context() as patched:
            patched.setattr(f"pgpsam.cohort.{place}", stopped)
            with pytest.raises(KeyboardInterrupt):
                run()
        assert not run(), f"nothing was done when it stopped in {place}"
        assert run()
        segmenter.version += "1"  # a model of the same name that was trained anew


def test_a_cohort_refuses_names_that_collide_and_files_that_are_not_there(ct, quick_model, tmp_path):
    twin = tmp_path / "ct.nrrd"
    twin.write_bytes(b"")
    for inputs, message in (([ct, twin], "would both be called ct"), ([tmp_path / "none.nii.gz"], "no such file")):
        done = pgpsam("cohort", *inputs, "-o", tmp_path / "out", "--model", quick_model)
        assert done.returncode == 2
        assert message in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_cohort_never_overwrites_an_input_or_another_patients_result(ct, quick_model, tmp_path):
    scans, again, out = tmp_path / "scans", tmp_path / "again", tmp_path / "out"
    for folder in (scans, again):
        folder.mkdir()
        shutil.copy(ct, folder / "ct.nii.gz")
    words = ["--model", quick_model, "--device", "cpu", "--progress", "none"]
    before = (scans / "ct.nii.gz").read_bytes()
    done = pgpsam("cohort", scans / "ct.nii.gz", "-o", scans, *words)
    assert (done.returncode, done.stderr.count("would overwrite an input")) == (2, 1)
    assert (scans / "ct.nii.gz").read_bytes() == before

    done = pgpsam("cohort", scans / "ct.nii.gz", "-o", out, "--organs", "liver", *words)
    assert done.returncode == 0, done.stderr
    done = pgpsam("cohort", again / "ct.nii.gz", "-o", out, *words)
    assert (done.returncode, done.stdout.count("already holds a result called ct")) == (2, 1)
    done = pgpsam("cohort", scans / "ct.nii.gz", "-o", out, *words)  # now all organs
    assert "done before" not in done.stdout
    done = pgpsam("cohort", scans / "ct.nii.gz", "-o", out, "--looks", 1, *words)  # now in another way
    assert "done before" not in done.stdout
    (out / "organs.csv").write_text("volume;organ\nct;liver\n")
    done = pgpsam("cohort", scans / "ct.nii.gz", "-o", out, *words)
    assert (done.returncode, done.stderr.count("is not the table of a cohort")) == (2, 1)


def test_a_cohort_refuses_files_that_it_did_not_write_and_formats_that_there_are_not(ct, quick_model, tmp_path):
    scan, out = tmp_path / "ct.nii.gz", tmp_path / "out"
    scan.write_bytes(ct.read_bytes())
    out.mkdir()
    drawn = out / "ct.nii.gz"
    drawn.write_text("drawn by hand", encoding="utf-8")
    words = ["-o", out, "--model", quick_model]
    for extra, line in (
        ([], "exists and is no result of this cohort"),
        (["--format", "seg.nrrd"], "error: 'seg.nrrd' is no format of labels. Use .nii.gz, .nii, "),
        (["--format", "nrrd"], "error: 'nrrd' is no format of labels. Use .nii.gz, .nii, "),
    ):
        done = pgpsam("cohort", scan, *words, *extra)
        assert (done.returncode, (done.stdout + done.stderr).count(line)) == (2, 1), done.stderr
    assert drawn.read_text(encoding="utf-8") == "drawn by hand"
    assert sorted(path.name for path in out.glob("[!.]*")) == ["ct.nii.gz"]
    scan.rename(tmp_path / "file")
    done = pgpsam("cohort", tmp_path / "file", "-o", tmp_path / "file", "--model", quick_model)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr


def test_agreement_with_a_reference(ct, quick_model, tmp_path):
    """The figure printed is the Dice of the two files, whatever the model found."""
    volume, drawn = make_phantom(7)
    write_array(tmp_path / "drawn.nii.gz", drawn, volume, "labels")
    (tmp_path / "names.json").write_text('{"6": "liver", "1": "spleen"}')
    words = ["--reference", tmp_path / "drawn.nii.gz", "--reference-names", tmp_path / "names.json"]
    done = pgpsam("segment", ct, "-o", tmp_path / "a.nii.gz", "--model", quick_model, "--progress", "none", *words)
    assert done.returncode == 0, done.stderr
    ours, theirs = (np.asarray(nibabel.load(tmp_path / name).dataobj) for name in ("a.nii.gz", "drawn.nii.gz"))
    dice = [2 * ((ours == i) & (theirs == i)).sum() / ((ours == i).sum() + (theirs == i).sum()) for i in (1, 6)]
    assert f"mean Dice {np.mean(dice):.3f} of the organs that either shows" in done.stdout


def test_agreement_is_of_the_organs_that_were_asked_for_however_the_reference_writes_them(ct, quick_model, tmp_path):
    words = ["--model", quick_model, "--progress", "none", "--organs", "liver"]
    assert pgpsam("segment", ct, "-o", tmp_path / "a.seg.nrrd", *words).returncode == 0
    again = pgpsam("segment", ct, "-o", tmp_path / "b.nii.gz", *words, "--reference", tmp_path / "a.seg.nrrd")
    assert "mean Dice 1.000 of the organs that either shows" in again.stdout, again.stdout + again.stderr
    ours, theirs = np.array([[[0, 3]]], np.uint8), np.array([[[0, 4]]], np.uint8)
    kidney = ABDOMEN.select(["left kidney"])
    assert agreement(ours, kidney, theirs, {4: "Kidney_Left"}) == {"left kidney": 1.0}
    assert agreement(ours, kidney, theirs, {4: "spleen"}) == {}, "it may show a kidney that it does not name"
    halves = np.array([[[4, 5]]], np.uint8)
    assert agreement(np.full_like(halves, 3), kidney, halves, {4: "left kidney", 5: "kidney_left"})["left kidney"] == 1


def test_whose_ids_a_reference_without_names_is_taken_to_have_is_said(ct, quick_model, tmp_path):
    volume, drawn = make_phantom(7)
    write_array(tmp_path / "drawn.nii.gz", drawn, volume, "labels")
    words = ["--model", quick_model, "--progress", "none", "--reference", tmp_path / "drawn.nii.gz", "--looks", 1]
    done = pgpsam("segment", ct, "-o", tmp_path / "a.nii.gz", *words)
    assert "the reference names no organs: its ids are taken for those of quick" in done.stdout, done.stderr


def test_organs_that_the_reference_does_not_name_have_a_dash_and_no_part_in_the_mean(ct, quick_model, tmp_path):
    volume, drawn = make_phantom(7)
    write_array(tmp_path / "liver.nii.gz", np.where(drawn == 6, drawn, 0), volume, "labels")
    names = tmp_path / "names.json"
    names.write_text('{"6": "liver"}', encoding="utf-8-sig")  # as editors on Windows save it
    words = ["--reference", tmp_path / "liver.nii.gz", "--reference-names", names]
    done = pgpsam("segment", ct, "-o", tmp_path / "a.nii.gz", "--model", quick_model, "--progress", "none", *words)
    assert done.returncode == 0, done.stderr
    ours, theirs = (np.asarray(nibabel.load(tmp_path / name).dataobj) == 6 for name in ("a.nii.gz", "liver.nii.gz"))
    dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
    assert f"mean Dice {dice:.3f} of the organs that either shows" in done.stdout
    assert "the reference does not name spleen" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "spleen" in line)
    assert row.strip("│ ").split("│")[-1].strip() == "-", row


def test_agreement_leaves_out_organs_that_neither_shows(capsys):
    print_agreement({"liver": float("nan"), "spleen": 0.5})
    print_agreement({"liver": float("nan")})
    assert capsys.readouterr().out.splitlines() == [
        "agreement with the reference: mean Dice 0.500 of the organs that either shows",
        "agreement with the reference: neither shows any of these organs",
    ]
    print_agreement({}, ["liver", "spleen"])
    assert capsys.readouterr().out == "the reference does not name liver, spleen\n"


def test_models_and_info(quick_model):
    done = pgpsam("info", quick_model)
    assert done.returncode == 0
    assert "quick" in done.stdout
    assert "spleen, liver" in done.stdout
    listed = pgpsam("models", env={**os.environ, "PGPSAM_MODELS": str(quick_model.parent)})
    assert listed.returncode == 0
    assert str(quick_model) in listed.stdout, "a folder's name is whole where no terminal's edge cuts it"
    assert pgpsam("info", "no-such-model").returncode == 2


def test_info_is_short_and_names_patients_and_commands(capsys):
    assert main(["info", "abdomen-ct"]) == 0
    lines = capsys.readouterr().out.splitlines()
    spec = load_spec(find_model("abdomen-ct"))
    told, cases = spec.training, trained_cases(spec)
    counts = f"{told['slices']} slices ({told['slices_with_organs']} with organs)"
    assert f"trained on {told['data']}, {told['choice']}: {counts}" in lines
    assert f"patients: {len(cases)}: {', '.join(cases)}" in lines
    assert "held out: none" in lines
    made = lines.index("made by:") + 1
    assert lines[made : made + len(trained_commands(spec))] == [f"  {command}" for command in trained_commands(spec)]
    assert not any("{" in line and "dice" in line for line in lines)


@pytest.mark.parametrize("training", [{"cases": 5}, {"started_from": [1]}, {"held_out": 3}])
def test_a_training_that_cannot_be_shown_is_one_line(quick_model, tmp_path, capsys, training):
    model = edited(quick_model, tmp_path / "model", training=training)
    assert main(["info", str(model)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {model / 'model.json'}: its training is not as training writes it")
    assert error.count("\n") == 1


def edited(model, folder, **changes):
    """A copy of a model with other words in its model.json."""
    shutil.copytree(model, folder)
    spec = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(spec | changes))
    return folder


def test_a_model_goes_by_the_name_of_its_folder(quick_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PGPSAM_MODELS", str(tmp_path))
    for folder in ("bobs-model", "my-liver"):
        edited(quick_model, tmp_path / folder, name="my-liver")
    listed = {model["name"]: model for model in hello()["models"]}
    for name in ("bobs-model", "my-liver"):
        assert find_model(name) == tmp_path / name == Path(listed[name]["folder"])
        assert listed[name]["title"] == f"{name}: 2 organs"
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "bobs-model" in printed


REPORTED = {"dice": 0.9, "organs": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"summary": {"reported": REPORTED}}},
        {"scores": {"summary": None}},
        {"scores": {"summary": []}},
        {"scores": {"summary": {"reported": {"dice": 0.9}}, "split": ["a"]}},
        {"scores": {"summary": {"reported": {**REPORTED, "dice": "good"}}, "split": ["a"]}},
        {"scores": {}, "training": {"started_from": None}},
    ],
)
def test_scores_that_cannot_be_read_do_not_hide_a_model_or_others(quick_model, tmp_path, monkeypatch, caplog, changes):
    monkeypatch.setenv("PGPSAM_MODELS", str(tmp_path))
    odd = edited(quick_model, tmp_path / "odd", **changes)
    edited(quick_model, tmp_path / "whole", scores={"summary": {"reported": REPORTED}, "split": ["a"]})
    scores = {model["name"]: model["score"] for model in hello()["models"]}
    assert scores["odd"] == ""
    assert scores["whole"] == "Dice 0.90, mean of 2 organs in 1 held-out cases"
    assert "the scores of model quick are not as training writes them" in caplog.text
    assert trained_cases(load_spec(odd)) == changes.get("training", {"cases": ["case_0", "case_1"]}).get("cases", [])


def test_models_that_are_left_out_are_told_with_the_reason(quick_model, tmp_path, monkeypatch):
    monkeypatch.setenv("PGPSAM_MODELS", str(tmp_path))
    edited(quick_model, tmp_path / "newer", schema_version=99)
    edited(quick_model, tmp_path / "my liver")
    answer = hello()
    assert not {"newer", "my liver", "quick"} & {model["name"] for model in answer["models"]}
    misnamed, newer = answer["left_out"]
    assert misnamed.startswith(f"{tmp_path / 'my liver'}: this cannot name a model. Rename the folder")
    assert newer.startswith(f"{tmp_path / 'newer' / 'model.json'}: schema_version 99: the model was made by a newer")


@pytest.mark.parametrize(
    ("backend", "kept"),
    [("matplotlib_inline.backend_inline", find_spec("matplotlib_inline")), ("matplotlib.backends.backend_svg", True)],
)
def test_a_notebooks_backend_that_this_python_lacks_does_not_matter(backend, kept):
    code = "import os, pgpsam.report; print(os.environ['MPLBACKEND'])"
    environment = os.environ | {"MPLBACKEND": f"module://{backend}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == (f"module://{backend}" if kept else "agg")


@pytest.mark.skipif(sys.platform == "win32", reason="there every user has a name")
def test_a_user_without_a_name_can_train():
    """As in a container that runs under a number; MONAI asks for the name when it is imported."""
    code = """
import pwd
def nobody(number):
    raise KeyError(f"uid not found: {number}")
pwd.getpwuid = nobody
import pgpsam
import monai.config
"""
    nameless = {key: value for key, value in os.environ.items() if key not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    done = subprocess.run([sys.executable, "-c", code], env=nameless, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "scores",
    [{"summary": {"organs": []}}, {"summary": {"organs": [{"organ": "liver"}]}, "split": ["a"]}, {"summary": [1]}],
)
def test_scores_that_cannot_be_shown_are_one_line(quick_model, tmp_path, capsys, scores):
    model = shutil.copytree(quick_model, tmp_path / "model")
    spec = json.loads((model / "model.json").read_text())
    (model / "model.json").write_text(json.dumps(spec | {"scores": scores}))
    assert main(["info", str(model)]) == 2
    printed = capsys.readouterr()
    assert "organs: spleen, liver" in printed.out
    assert printed.err.startswith(f"error: {model / 'model.json'}: its scores")
    assert printed.err.count("\n") == 1


def test_tables_and_bars_show_brackets_as_they_are(capsys):
    print_table("scan [/b] [red]", ["[/organ]"], [["a liver [/x] that makes the table wide"], [":smile:"]])
    out = capsys.readouterr().out
    for text in ("scan [/b] [red]", "[/organ]", "liver [/x]", ":smile:"):
        assert text in out
    with ProgressReporter("bar") as report:
        report("case [/b]", 1, 1, 0.0, "note [/x]")
    err = capsys.readouterr().err
    assert "case [/b]" in err
    assert "note [/x]" in err


@pytest.mark.parametrize("kind", ["bar", "json"])
def test_a_name_that_the_terminal_cannot_show_ends_nothing(ct, quick_model, tmp_path, kind):
    scan = shutil.copy(ct, tmp_path / "腹部 [red].nii.gz")
    words = ["--model", quick_model, "--device", "cpu", "--progress", kind]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    for command in (["segment", scan, "-o", tmp_path / "腹.nii.gz"], ["cohort", scan, "-o", tmp_path / "出"]):
        done = pgpsam(*command, *words, env=environment, encoding="cp1252")
        assert done.returncode == 0, done.stderr
        assert "wrote" in done.stdout
