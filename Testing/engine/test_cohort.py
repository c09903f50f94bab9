"""What a cohort calls done, what it does anew, and what it never replaces: the real command line, a quick model."""

import csv
import json
import os
import sys
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from pgpsam.cli import main
from pgpsam.cohort import name_sources, segment_cohort
from pgpsam.cohort_lists import TABLE, WRITTEN, read_table, read_written
from pgpsam.errors import UserError
from pgpsam.labels import LabelSet
from pgpsam.segmentation import Segmentation
from pgpsam.segmenter import Segmenter
from pgpsam.volume import read_labels, write_array
from phantoms import make_phantom


class Quick:
    """Says that the middle of every volume is the organ `says`."""

    name, version, label_set, says = "quick", "1", LabelSet.from_names({"spleen": 1, "liver": 6}), 6

    def segment(self, volume, organs=None, **_):
        labels = np.zeros(volume.shape, np.uint8)
        labels[:, 10:20, 10:20] = self.says
        sure, wanted = np.ones(volume.shape, np.float32), self.label_set.select(organs)
        return Segmentation(labels, sure, labels, [], {"slices": 0.0}, "cpu", self.name, wanted)


@pytest.fixture
def quick(monkeypatch):
    model = Quick()
    monkeypatch.setattr(Segmenter, "load", lambda *_: model)
    return model


def make_scan(path, seed=7):
    volume, _ = make_phantom(seed)
    write_array(path, volume.array, volume, "confidence")
    return path


@pytest.fixture
def ct(tmp_path):
    return make_scan(tmp_path / "ct.nii.gz")


@pytest.fixture
def run(quick, tmp_path, capsys):
    """Runs the cohort into tmp_path / "out"; the exit code and what it printed."""

    def cohort(*words):
        code = main(["cohort", *map(str, words), "-o", str(tmp_path / "out"), "--progress", "none"])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return cohort


def organs_in(path):
    return set(np.unique(read_labels(path)[0])) - {0}


def test_a_scan_that_was_exported_anew_is_done_anew(run, quick, ct, tmp_path):
    assert run(ct)[0] == 0
    assert "ct: done before" in run(ct)[1]
    make_scan(ct, seed=8)
    quick.says = 1
    assert "done before" not in run(ct)[1]
    assert organs_in(tmp_path / "out" / "ct.nii.gz") == {1}
    assert "ct: done before" in run(ct)[1]


def test_a_dicom_folder_with_another_file_is_done_anew(run, tmp_path, monkeypatch):
    series = tmp_path / "series"
    series.mkdir()
    monkeypatch.setattr("pgpsam.cohort.read_volume", lambda _: make_phantom(7)[0])
    (series / "1.dcm").write_bytes(b"1")
    assert run(series)[0] == 0
    assert "series: done before" in run(series)[1]
    (series / "2.dcm").write_bytes(b"2")
    assert "done before" not in run(series)[1]


@pytest.mark.parametrize("result", ["ct.nii.gz", "ct.png"])
def test_what_was_corrected_by_hand_is_kept_and_the_others_go_on(run, quick, ct, tmp_path, result):
    other, out = make_scan(tmp_path / "other.nii.gz", 8), tmp_path / "out"
    assert run(ct, other)[0] == 0
    volume, drawn = make_phantom(7)
    write_array(tmp_path / "drawn.nii.gz", drawn, volume, "labels")
    corrected = (tmp_path / "drawn.nii.gz").read_bytes()
    (out / result).write_bytes(corrected)
    quick.version = "2"
    code, said = run(ct, other)
    assert code == 2
    assert f"ct: {out / result} was changed since this cohort wrote it. Move it away" in said
    assert "other: 1 organs" in said
    assert (out / result).read_bytes() == corrected
    (out / result).rename(tmp_path / "moved")
    assert run(ct, other)[0] == 0


def test_a_correction_made_during_the_run_is_kept(run, quick, ct, tmp_path, monkeypatch):
    assert run(ct)[0] == 0
    labels = tmp_path / "out" / "ct.nii.gz"

    class Slow(Quick):
        version = "2"

        def segment(self, *words, **options):
            labels.write_bytes(b"mine")
            return super().segment(*words, **options)

    monkeypatch.setattr(Segmenter, "load", lambda *_: Slow())
    assert run(ct)[0] == 2
    assert labels.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("first", "then", "mine"), [(["--no-pictures"], [], "ct.png"), ([], ["--format", ".seg.nrrd"], "ct.seg.nrrd")]
)
def test_a_users_own_file_is_neither_replaced_nor_called_done(run, ct, tmp_path, first, then, mine):
    assert run(ct, *first)[0] == 0
    own = tmp_path / "out" / mine
    own.write_bytes(b"mine")
    code, said = run(ct, *then)
    assert (code, said.count(f"{own} exists and is no result of this cohort")) == (2, 1)
    assert own.read_bytes() == b"mine"


def test_two_formats_are_two_results(run, quick, ct, tmp_path):
    """The table is of the later one: the earlier one, of another model, is not taken for it."""
    assert run(ct)[0] == 0
    quick.version, quick.says = "2", 1
    assert run(ct, "--format", ".nrrd")[0] == 0
    assert organs_in(tmp_path / "out" / "ct.nii.gz") == {6}
    code, said = run(ct)
    assert (code, "done before" in said) == (0, False)
    assert organs_in(tmp_path / "out" / "ct.nii.gz") == {1}


def test_no_picture_of_a_former_model_stays_beside_new_labels(run, quick, ct, tmp_path, monkeypatch):
    picture = tmp_path / "out" / "ct.png"
    assert run(ct)[0] == 0
    former = picture.read_bytes()
    quick.version, quick.says = "2", 1
    assert run(ct, "--no-pictures")[0] == 0
    assert not picture.exists()
    assert run(ct)[0] == 0
    assert picture.read_bytes() != former

    former, quick.version, quick.says = picture.read_bytes(), "3", 6
    with monkeypatch.context() as patched:
        patched.setattr("pgpsam.cohort.overview_png", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(ct)[0] == 130
    assert "done before" not in run(ct)[1]
    assert picture.read_bytes() != former


def test_a_cohort_of_an_earlier_version_is_believed_and_its_files_are_kept(run, quick, ct, tmp_path):
    assert run(ct)[0] == 0
    out = tmp_path / "out"
    (out / WRITTEN).unlink()
    assert "ct: done before" in run(ct)[1]
    before = (out / "ct.nii.gz").read_bytes()
    quick.version = "2"
    code, said = run(ct, make_scan(tmp_path / "other.nii.gz"))
    assert (code, said.count("may have been changed since an earlier version wrote it")) == (2, 1)
    assert (out / "ct.nii.gz").read_bytes() == before
    quick.version = "1"
    assert "ct: done before" in run(ct)[1]


def test_what_a_damaged_table_asks_for_mends_it(run, ct, tmp_path):
    table = tmp_path / "out" / TABLE
    for file in (table, table.with_name(WRITTEN)):
        assert run(ct)[0] == 0
        file.write_text("volume;organ")
        code, said = run(ct)
        assert (code, "Move" in said) == (2, True)
        if file == table:
            assert "Move it away; its volumes are then done again" in said
            file.unlink()
        else:
            assert "Move the whole folder away" in said
            table.parent.rename(tmp_path / "moved")
        code, said = run(ct)
        assert (code, "done before" in said) == (0, False), said


def test_names_that_a_spreadsheet_would_run_are_text_and_are_recognised(run, quick, tmp_path, monkeypatch):
    quick.label_set = LabelSet.from_names({"@spleen": 1, "=liver": 6})
    monkeypatch.chdir(tmp_path)
    scans = [make_scan(tmp_path / f"{name}.nii.gz") for name in ("=HYPERLINK(1)", "'quoted", "+a", "-5")]
    assert run(*scans)[0] == 0
    text = (tmp_path / "out" / TABLE).read_text(encoding="utf-8")
    with (tmp_path / "out" / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["volume"] for row in rows] == ["'=HYPERLINK(1)", "''quoted", "'+a", "-5"], text
    assert {row["organ"] for row in rows} == {"'=liver"}
    assert {row["asked_for"] for row in rows} == {"'@spleen, =liver"}
    assert all(float(row["mean_hu"]) < 1000 for row in rows)
    assert [row["volume"] for row in read_table(tmp_path / "out")] == ["=HYPERLINK(1)", "'quoted", "+a", "-5"]
    assert run(*scans)[1].count("done before") == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
@pytest.mark.parametrize("name", ["a" * 250, os.fsdecode(b"caf\xe9")], ids=["too long", "not UTF-8"])
def test_a_name_that_no_result_can_have_fails_that_volume_only(run, ct, tmp_path, name):
    odd = make_scan(tmp_path / "odd.nii").rename(tmp_path / f"{name}.nii")
    code, said = run(odd, ct)
    assert (code, said.count("error: 1 of 2 volumes could not be segmented")) == (2, 1)
    assert "ct: 1 organs" in said
    shown = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert shown == ["cohort.json", "ct.nii.gz", "ct.png", TABLE]


def test_an_input_whose_name_is_too_long_is_no_such_file(run):
    code, said = run("a" * 300 + ".nii")
    assert (code, said.startswith("error: no such file or folder: aaa")) == (2, True)


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(run, ct, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pgpsam.pages.NamedTemporaryFile", refuse)
    monkeypatch.setattr(Quick, "segment", lambda *_, **__: pytest.fail("it was segmented"))
    code, said = run(ct)
    assert (code, said.count("can't be written: Permission denied")) == (2, 1)


def test_the_list_of_what_was_written_is_of_whole_files(run, ct, tmp_path):
    assert run(ct)[0] == 0
    written = json.loads((tmp_path / "out" / WRITTEN).read_text(encoding="utf-8"))
    assert sorted(written) == ["ct.nii.gz", "ct.png"]
    (tmp_path / "out" / WRITTEN).write_text('{"ct.nii.gz": 3}')
    with pytest.raises(UserError, match="is not a cohort's"):
        read_written(tmp_path / "out", ".nii.gz")


def test_two_cohorts_that_write_at_once_know_each_others_results(run, quick, ct, tmp_path, monkeypatch):
    """The second one ends while the first one writes, unless it waits."""
    other, out = make_scan(tmp_path / "other.nii.gz", 8), tmp_path / "out"
    second = Thread(target=segment_cohort, args=(quick, {"other": other}, out), kwargs={"say": str, "pictures": False})

    def interrupted(path, *more):
        if path.name == "ct.nii.gz":
            second.start()
            second.join(timeout=2)
        write_array(path, *more)

    monkeypatch.setattr("pgpsam.cohort.write_array", interrupted)
    assert run(ct, "--no-pictures")[0] == 0
    second.join()
    assert {row["volume"] for row in read_table(out)} == {"ct", "other"}
    assert set(read_written(out, ".nii.gz")) == {"ct.nii.gz", "other.nii.gz"}
    assert run(ct, other, "--no-pictures")[1].count("done before") == 2


def test_two_cohorts_over_one_list_share_it(quick, tmp_path, monkeypatch):
    """As on two GPUs: what the other one is at work on comes last, and is then done or done before."""
    scans = {name: make_scan(tmp_path / f"{name}.nii.gz", seed) for seed, name in enumerate("ab")}
    out, asked, said, other_done = tmp_path / "out", [], [], Event()

    def tell(line):
        said.append(line)
        if line.startswith("b: 1 organs"):
            other_done.set()

    second = Thread(target=segment_cohort, args=(quick, scans, out), kwargs={"say": tell, "pictures": False})

    class Slow(Quick):
        def segment(self, volume, *words, **options):
            asked.append(volume.name)
            second.start()
            assert other_done.wait(timeout=60), said
            return super().segment(volume, *words, **options)

    lines = []
    assert segment_cohort(Slow(), scans, out, pictures=False, say=lines.append) == []
    second.join()
    assert asked == ["a"]
    assert [line.split(" in ")[0] for line in lines] == ["a: 1 organs", "b: done before"]
    first, *others = said
    assert first == "a: another run is at work on it"
    assert [line.split(" in ")[0] for line in others] == ["b: 1 organs", "a: done before"]
    assert {path.name for path in out.iterdir()} - {".lock"} == {"a.nii.gz", "b.nii.gz", TABLE, WRITTEN}


@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot limit the size of its files")
@pytest.mark.parametrize("words", [[], ["--format", ".seg.nrrd"]])
def test_a_disk_that_is_full_is_told_of_the_file_that_the_user_knows(run, ct, tmp_path, words):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
    try:
        code, said = run(ct, *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    file = tmp_path / "out" / f"ct{words[-1] if words else '.nii.gz'}"
    assert f"error: {file} can't be written: " in said
    assert "has room, and run this again to go on." in said
    assert ".part" not in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock"]


def test_the_lists_are_parsed_once_where_all_is_done(run, tmp_path, monkeypatch):
    scans = [make_scan(tmp_path / f"{number}.nii.gz") for number in range(3)]
    assert run(*scans)[0] == 0
    parsed = []
    monkeypatch.setattr("pgpsam.cohort_lists.read_table", lambda out: parsed.append(out) or read_table(out))
    assert run(*scans)[1].count("done before") == 3
    assert len(parsed) <= 1


def test_a_link_that_now_leads_elsewhere_fails_that_volume_only(run, ct, tmp_path):
    latest = tmp_path / "latest.nii.gz"
    try:
        latest.symlink_to(ct)
    except OSError:
        pytest.skip("this system makes no links")
    assert run(latest)[0] == 0
    latest.unlink()
    latest.symlink_to(make_scan(tmp_path / "newer.nii.gz", 8))
    code, said = run(latest, ct)
    assert (code, "error: 1 of 2 volumes could not be segmented: latest" in said) == (2, True)
    assert f"already holds a result called latest, of {ct}. Give another --out." in said
    assert "ct: 1 organs" in said


def test_a_cohort_of_which_all_failed_does_not_say_that_it_wrote_a_table(run, tmp_path):
    empty = tmp_path / "empty.nii.gz"
    empty.write_bytes(b"")
    code, said = run(empty)
    assert (code, "wrote" in said) == (2, False)
    assert "error: 1 of 1 volumes could not be segmented: empty" in said
    assert not (tmp_path / "out" / TABLE).exists()


def test_a_pattern_that_the_shell_did_not_expand_stands_for_its_files(run, tmp_path):
    (tmp_path / "scans").mkdir()
    for name in ("b.nii.gz", "a.nii.gz", "[1].nii.gz"):
        make_scan(tmp_path / "scans" / name)
    (tmp_path / "scans" / "._a.nii.gz").write_bytes(b"what macOS adds")
    code, said = run(tmp_path / "scans" / "*.nii.gz")
    assert (code, [line.split(":")[0] for line in said.splitlines() if "organs in" in line]) == (0, ["[1]", "a", "b"])
    assert "[1]: done before" in run(tmp_path / "scans" / "[1].nii.gz")[1]
    assert "no such file or folder" in run(tmp_path / "scans" / "*.mha")[1]


def test_a_volume_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    """As by scans/*.nii.gz and by its own name; a folder with and without a slash at its end."""
    (tmp_path / "scans" / "series").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "scans" / f"{name}.nii.gz").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    given = ["scans/*.nii.gz", str(tmp_path / "scans" / "a.nii.gz"), "scans/../scans/b.nii.gz"]
    sources = name_sources([*given, "scans/series", "scans/series/"])
    files = {"a": "scans/a.nii.gz", "b": "scans/b.nii.gz", "series": "scans/series"}
    assert sources == {name: Path(file) for name, file in files.items()}
    (tmp_path / "scans" / "series" / "a.nrrd").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.nii\.gz and .*a\.nrrd would both be called a"):
        name_sources([*given, "scans/series/a.nrrd"])
