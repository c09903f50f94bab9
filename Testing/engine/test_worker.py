"""The worker as Slicer meets it: a real process, real pipes, the shipped model, a crop of a real CT."""

import errno
import io
import json
import os
import queue
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from pgpsam.errors import UserError
from pgpsam.exchange import class_indices, organs_from_json, organs_json, read_array, write_files
from pgpsam.finetune_job import annotated
from pgpsam.labels import ABDOMEN
from pgpsam.training.data import LoadedCase
from pgpsam.training.suggest import k_centre
from pgpsam.volume import Grid, read_labels, read_volume
from pgpsam.worker import Answers
from phantoms import make_phantom

PATIENCE = 300.0  # seconds: the machine may be busy with other work, and torch is read from a cold disk
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # several wait for each other by spinning: minutes, where a core is taken
RESULTS = {"labels.npy", "confidence.npy", "regions.npy", "points.json"}


class Client:
    """A worker process and the events that it has sent, as a caller would see them."""

    def __init__(self, *arguments, code=None):
        start = ["-c", code] if code else ["-m", "pgpsam", "worker"]
        self.process = subprocess.Popen(
            [sys.executable, *start, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ONE_THREAD,
        )
        self.lines: queue.Queue = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.number = 0

    def _listen(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))  # a line that is not JSON ends the thread, and `next` times out
        self.lines.put(None)

    def send(self, do, **fields):
        self.number += 1
        self.write(json.dumps({"id": self.number, "do": do, **fields}).encode())
        return self.number

    def write(self, line):
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def next(self):
        """The next event; None after the end of standard output."""
        return self.lines.get(timeout=PATIENCE)

    def until_end(self):
        """Events up to the next "done" or "error"."""
        events = [self.next()]
        while events[-1]["event"] not in ("done", "error"):
            events.append(self.next())
        return events

    def ask(self, do, **fields):
        """Events of a request that runs alone."""
        number = self.send(do, **fields)
        events = self.until_end()
        assert {event["id"] for event in events} == {number}
        return events

    def close(self):
        """The exit code, after standard input has ended."""
        self.process.stdin.close()
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """One warm worker for the tests that need no fresh one."""
    client = Client("--log", tmp_path_factory.mktemp("log") / "worker.log")
    yield client
    assert client.close() == 0


@pytest.fixture(scope="module")
def crop(shared_data):
    """Six slices around the liver: array [k, j, i] int16, affine (i, j, k) to RAS mm, reference ids."""
    volume = read_volume(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    array = volume.restore(volume.array).astype(np.int16)
    ids = read_labels(shared_data / "samples" / "ts_abdomen_seg.nii.gz")[0]
    affine = volume.grid.affine.copy()
    affine[:3, 3] += 93 * affine[:3, 2]
    return array[93:99], affine, ids[93:99]


def put(folder, array, affine, name="v.npy"):
    """The fields of a request that name a volume."""
    np.save(folder / name, array)
    return {"volume": str(folder / name), "affine": np.asarray(affine).tolist(), "device": "cpu"}


def read_points(folder):
    with open(os.path.join(folder, "points.json")) as file:
        return json.load(file)


def kinds_of(events):
    return [event["event"] for event in events]


@pytest.fixture(scope="module")
def segmented(worker, crop, tmp_path_factory):
    """The crop's request, events and results, as many tests look at them."""
    folder = tmp_path_factory.mktemp("segmented")
    request = put(folder, crop[0], crop[1]) | {"model": "abdomen-ct", "out": str(folder / "out")}
    events = worker.ask("segment", **request)
    assert events[-1]["event"] == "done", events[-1]
    return request, events, {name: np.load(folder / "out" / name) for name in sorted(RESULTS - {"points.json"})}


def test_hello_tells_version_devices_and_models(worker):
    (answer,) = worker.ask("hello")
    assert answer["event"] == "done"
    assert answer["protocol"] == 1
    assert answer["pid"] == worker.process.pid
    devices = {device["name"]: device for device in answer["devices"]}
    assert devices["cpu"]["available"]
    assert devices["cpu"]["memory_gb"] > 0
    assert answer["default_device"] in devices
    assert (answer["default_device"] == "cpu") == bool(answer["device_note"])
    model = next(m for m in answer["models"] if m["name"] == "abdomen-ct")
    assert len(model["organs"]) == 13
    kidney = next(o for o in model["organs"] if o["name"] == "right kidney")
    assert kidney["snomed"]["type"] == ["SCT", "64033007", "Kidney"]
    assert kidney["snomed"]["modifier"] == ["SCT", "24028007", "Right"]
    assert os.path.isfile(model["card"])
    assert set(model) == {"name", "folder", "title", "description", "organs", "method", "backbone", "score", "card"}


def test_what_is_odd_about_a_volume_is_told_with_the_result(worker, crop, segmented, tmp_path):
    assert segmented[1][-1]["warnings"] == []
    window = np.clip((crop[0][:1].astype(np.float32) + 125) / 400 * 255, 0, 255).astype(np.uint8)
    request = put(tmp_path, window, crop[1]) | {"model": "abdomen-ct", "out": str(tmp_path / "out"), "name": "MR"}
    (line,) = worker.ask("segment", **request, organs=["liver"], looks=1)[-1]["warnings"]
    assert line.startswith("MR: its values run from 0 to 255: they look like grey levels")


def test_a_segmentation_says_what_it_does_in_order(segmented):
    request, events, _ = segmented
    steps = [event for event in events if event["event"] == "progress"]
    stages = [step["stage"] for step in steps]
    assert list(dict.fromkeys(stages)) == ["load", "prepare", "slices", "write"]
    slices = [step for step in steps if step["stage"] == "slices"]
    assert [s["done"] for s in slices] == sorted({s["done"] for s in slices})
    assert slices[-1]["done"] == slices[-1]["total"] == 6
    assert events[-1]["event"] == "done"
    partials = [event["done"] for event in events if event["event"] == "partial"]
    assert partials[0] == 1  # the first slice alone, so that there is something to look at soon
    assert partials == sorted(set(partials))
    first_partial = kinds_of(events).index("partial")
    assert first_partial < kinds_of(events).index("done")
    assert events[first_partial + 1]["stage"] == "slices"
    assert set(os.listdir(request["out"])) == RESULTS


def test_results_lie_on_the_inputs_grid_and_agree_with_the_reference(segmented, crop):
    _, events, results = segmented
    array, _, ids = crop
    assert {name: (a.dtype, a.shape) for name, a in results.items()} == {
        "confidence.npy": (np.float32, array.shape),
        "labels.npy": (np.uint8, array.shape),
        "regions.npy": (np.uint8, array.shape),
    }
    ours, theirs = results["labels.npy"] == 6, ids == 6
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.8
    assert results["confidence.npy"].min() > 0
    assert results["confidence.npy"].max() <= 1
    assert set(np.unique(results["regions.npy"])) <= set(ABDOMEN.ids) | {0}
    assert events[-1]["device"] == "cpu"
    assert [organ["id"] for organ in events[-1]["label_set"]] == list(ABDOMEN.ids)


def test_organs_are_measured(segmented, crop):
    _, events, results = segmented
    array, affine, _ = crop
    measured = {organ["name"]: organ for organ in events[-1]["organs"]}
    liver, mask = measured["liver"], results["labels.npy"] == 6
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert liver["volume_ml"] == pytest.approx(mask.sum() * voxel_ml)
    assert liver["mean_hu"] == pytest.approx(array[mask].mean(), abs=0.01)
    assert liver["confidence"] == pytest.approx(results["confidence.npy"][mask].mean(), abs=1e-4)
    assert liver["slices_axis"] == 0
    shown = np.flatnonzero(mask.any((1, 2)))
    assert sorted(liver["slice_confidence"]) == sorted(map(str, shown))
    some = shown[0]
    expected = results["confidence.npy"][some][mask[some]].mean()
    assert liver["slice_confidence"][str(some)] == pytest.approx(expected, abs=1e-4)
    absent = [organ for organ in measured.values() if not organ["volume_ml"]]
    assert all(organ["mean_hu"] is None and organ["slice_confidence"] == {} for organ in absent)


def test_points_lie_in_the_input(segmented, crop):
    request, _, results = segmented
    _, affine, _ = crop
    points = read_points(request["out"])
    assert {point["organ"] for point in points} >= {"liver"}
    for point in points:
        assert np.allclose(affine @ [*point["ijk"], 1], [*point["ras"], 1])
        assert 0 < point["weight"] <= 1
    i, j, k = max((p for p in points if p["organ"] == "liver"), key=lambda p: p["weight"])["ijk"]
    assert results["labels.npy"][k, j, i] == 6


def test_a_turned_volume_gives_the_same_result_turned(worker, segmented, crop, tmp_path):
    """The axial axis last, one axis against its direction: results and slice numbers follow."""
    _, events, results = segmented
    array, affine, _ = crop
    turned = np.ascontiguousarray(array.transpose(2, 1, 0)[:, ::-1, ::-1])  # axes i, j, k of the crop
    nk, nj, _ = array.shape
    # (i', j', k') of the turned array is (k' , nj - 1 - j', nk - 1 - i') of the crop
    back = np.array([[0, 0, 1, 0], [0, -1, 0, nj - 1], [-1, 0, 0, nk - 1], [0, 0, 0, 1]], float)
    request = put(tmp_path, turned, affine @ back) | {"model": "abdomen-ct", "out": str(tmp_path / "out")}
    again = worker.ask("segment", **request)
    assert again[-1]["event"] == "done", again[-1]
    for name, expected in results.items():
        assert np.array_equal(np.load(tmp_path / "out" / name), expected.transpose(2, 1, 0)[:, ::-1, ::-1]), name
    for one, other in zip(events[-1]["organs"], again[-1]["organs"], strict=True):
        assert other["slices_axis"] == 2
        assert {str(nk - 1 - int(k)): v for k, v in other["slice_confidence"].items()} == one["slice_confidence"]
    first, second = (read_points(one["out"]) for one in (segmented[0], request))
    assert np.allclose([p["ras"] for p in first], [p["ras"] for p in second])
    assert [(back @ [*p["ijk"], 1])[:3].round().tolist() for p in second] == [p["ijk"] for p in first]
    assert "load" not in {event.get("stage") for event in again}, "the model was warm"


def test_only_the_organs_that_were_asked_for(worker, segmented, tmp_path):
    request = {**segmented[0], "organs": ["liver", "aorta"], "partial": False, "out": str(tmp_path / "out")}
    events = worker.ask("segment", **request)
    assert "partial" not in kinds_of(events)
    assert [organ["name"] for organ in events[-1]["organs"]] == ["liver", "aorta"]
    assert set(np.unique(np.load(tmp_path / "out" / "labels.npy"))) <= {0, 6, 8}


def test_cancel_leaves_a_live_worker_and_no_files(worker, segmented, crop, tmp_path):
    request = put(tmp_path, np.tile(crop[0], (20, 1, 1)), crop[1]) | {"model": "abdomen-ct"}
    running = worker.send("segment", **request, out=str(tmp_path / "out"))
    while (event := worker.next())["event"] != "partial":
        assert event["id"] == running
        assert event["event"] == "progress"
    assert os.listdir(tmp_path / "out") == ["labels.npy"]
    waiting = worker.send("segment", **request, out=str(tmp_path / "other"))
    worker.send("cancel", target=waiting)
    worker.send("cancel", target=running)
    ends = {}
    while running not in ends or len(ends) < 4:
        event = worker.next()
        if event["event"] in ("done", "error"):
            ends[event["id"]] = event
    assert ends[running]["kind"] == ends[waiting]["kind"] == "cancelled"
    assert next(iter(ends)) == waiting, "a job that waits is answered at once"
    assert all(ends[number]["found"] for number in ends if number not in (running, waiting))
    assert os.listdir(tmp_path / "out") == []
    assert not (tmp_path / "other").exists()
    assert worker.ask("cancel", target=running)[-1]["found"] is False
    assert worker.ask("hello")[-1]["event"] == "done"


def test_two_jobs_are_done_in_order(worker, segmented, tmp_path):
    request = segmented[0]
    first = worker.send("segment", **{**request, "out": str(tmp_path / "1")})
    second = worker.send("segment", **{**request, "out": str(tmp_path / "2")})
    events = worker.until_end() + worker.until_end()
    numbers = [event["id"] for event in events]
    assert numbers == sorted(numbers)
    assert [(e["id"], e["event"]) for e in events if e["event"] in ("done", "error")] == [
        (first, "done"),
        (second, "done"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{nonsense", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"", "not JSON"),
        (b"[1, 2]", "not an object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"do": "hello"}', "id is None"),
        (b'{"id": "7", "do": "hello"}', "id is '7'"),
    ],
)
def test_what_is_no_request_is_answered_without_an_id(worker, line, message):
    worker.write(line)
    event = worker.next()
    assert event["event"] == "error"
    assert event["kind"] == "internal"
    assert message in event["message"]
    assert "id" not in event
    assert worker.ask("hello")[-1]["event"] == "done"


@pytest.mark.parametrize(
    ("do", "changes", "kind", "message"),
    [
        ("dance", {}, "internal", "unknown request 'dance'"),
        ("segment", {"out": None}, "internal", "field 'out' is None"),
        ("segment", {"affine": "identity"}, "internal", "field 'affine'"),
        ("segment", {"partial": 1}, "internal", "field 'partial'"),
        ("finetune", {"labels": organs_json(ABDOMEN)}, "internal", "field 'cases'"),
        ("segment", {"model": "no-such-model"}, "user", "no model 'no-such-model'"),
        ("segment", {"volume": "missing.npy"}, "user", "missing.npy"),
        ("segment", {"affine": [[1]]}, "user", "4 x 4"),
        ("segment", {"affine": [["x"]]}, "user", "4 x 4"),
        ("segment", {"device": "cuda:99"}, "user", "cuda:99"),
        ("segment", {"organs": ["heart"]}, "user", "'heart'"),
        ("suggest", {"count": 0}, "user", "0 slices"),
        ("finetune", {"data": "nowhere"}, "user", "nowhere"),
        ("finetune", {"data": "nowhere", "method": "magic"}, "user", "magic"),
        ("finetune", {"data": "nowhere", "name": "a/b"}, "user", "'a/b'"),
        ("finetune", {"labels": [{"id": 1}], "cases": []}, "user", "labels[0]"),
    ],
)
def test_a_request_that_cannot_work_is_refused_in_one_line(worker, segmented, tmp_path, do, changes, kind, message):
    request = {**segmented[0], "out": str(tmp_path / "out"), **changes}
    event = worker.ask(do, **request)[-1]
    assert event["event"] == "error"
    assert (event["kind"], message in event["message"]) == (kind, True), event
    assert "\n" not in event["message"]
    assert "Traceback" not in event["message"]
    assert event["hint"] or kind == "user"
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


def test_an_unknown_model_comes_with_the_known_ones(worker, segmented):
    event = worker.ask("segment", **{**segmented[0], "model": "no-such-model"})[-1]
    assert "abdomen-ct" in event["hint"]


def test_results_that_cannot_be_written_are_the_users_to_mend(worker, segmented, tmp_path):
    (tmp_path / "file").write_text("in the way")
    event = worker.ask("segment", **{**segmented[0], "out": str(tmp_path / "file" / "out")})[-1]
    assert event["kind"] == "user"
    assert str(tmp_path / "file") in event["message"]
    assert event["hint"]


def test_a_model_that_was_written_anew_is_loaded_anew(worker, segmented, quick_model, tmp_path):
    volume, _ = make_phantom(7)
    request = put(tmp_path, volume.restore(volume.array), volume.grid.affine) | {"model": str(quick_model)}

    def stages():
        events = worker.ask("segment", **request, out=str(tmp_path / "out"))
        assert events[-1]["event"] == "done", events[-1]
        return {event["stage"] for event in events if event["event"] == "progress"}

    assert "load" in stages()
    assert "load" not in stages()
    later = time.time_ns() + 10**9
    os.utime(quick_model / "model.json", ns=(later, later))
    assert "load" in stages()


def test_suggested_slices_lie_along_the_axial_axis_and_in_the_body(worker, segmented, crop, tmp_path):
    array, affine, _ = crop
    stack = np.concatenate([np.full_like(array[:3], -1000), array])  # three slices of air below
    turned = np.ascontiguousarray(stack.transpose(1, 0, 2))
    swap = np.eye(4)[[0, 2, 1, 3]]
    request = put(tmp_path, turned, affine @ swap) | {"model": "abdomen-ct", "count": 3}
    events = worker.ask("suggest", **request)
    answer = events[-1]
    assert answer["event"] == "done", answer
    assert answer["slices_axis"] == 1
    assert len(set(answer["slices"])) == 3
    assert all(3 <= n < 9 for n in answer["slices"])
    assert max(abs(a - b) for a, b in pairwise(answer["slices"])) >= 2, "far apart, not neighbours"


def phantom_cases(tmp_path):
    """Two phantoms as a request brings them; of the second one the upper slices are marked as not annotated."""
    cases = []
    for seed in range(2):
        volume, ids = make_phantom(seed)
        ids = np.ascontiguousarray(volume.grid.to_source(ids))
        if seed:
            ids[4:] = 255
        np.save(tmp_path / f"l{seed}.npy", ids)
        fields = put(tmp_path, volume.restore(volume.array), volume.grid.affine, f"v{seed}.npy")
        del fields["device"]
        cases.append({"name": f"case_{seed}", "labels": str(tmp_path / f"l{seed}.npy"), **fields})
    return cases


def test_finetune_goes_on_from_a_shipped_model_with_an_organ_that_it_does_not_know(worker, tmp_path):
    spleen, liver = organs_json(ABDOMEN.select(["spleen", "liver"]))
    labels = [liver, {**spleen, "name": "lesion", "snomed": None}]
    request = {"cases": phantom_cases(tmp_path), "labels": labels, "start_from": "abdomen-ct", "method": "pgsam"}
    settings = {"batch": 2, "warmup": 1, "canvas": [56, 112]}
    out = tmp_path / "mine"
    answer = worker.ask("finetune", **request, out=str(out), settings=settings, iterations=1, device="cpu")[-1]
    assert answer["event"] == "done", answer
    spec = json.loads((out / "model.json").read_text())
    assert [label["name"] for label in spec["labels"]] == ["liver", "lesion"]
    assert spec["training"]["started_from"]["name"] == "abdomen-ct"
    assert "scores" not in spec["training"]["started_from"]
    assert answer["score"] == ""
    fields = {name: request["cases"][0][name] for name in ("volume", "affine")}
    done = worker.ask("segment", **fields, model=str(out), device="cpu", out=str(tmp_path / "out"))[-1]
    assert done["event"] == "done", done


def test_finetune_from_cases_gives_a_model_that_segments(worker, tmp_path):
    """A short run on two phantoms: one with listed slices, one with slices marked as not annotated."""
    names = organs_json(ABDOMEN.select(["spleen", "liver"]))
    cases = phantom_cases(tmp_path)
    cases[0]["slices"] = [0, 2, 3]
    settings = {"batch": 2, "warmup": 1, "canvas": [56, 112]}
    out = tmp_path / "mine"
    events = worker.ask(
        "finetune", cases=cases, labels=names, out=str(out), settings=settings, iterations=3, device="cpu"
    )
    answer = events[-1]
    assert answer["event"] == "done", answer
    assert answer["folder"] == str(out)
    assert answer["model"] == "mine"
    assert answer["scores"] is None
    training = [event for event in events if event.get("stage") == "training"]
    assert [event["done"] for event in training] == [0, 1, 2, 3]
    assert training[-1]["note"].startswith("loss ")
    spec = json.loads((out / "model.json").read_text())
    assert spec["training"]["cases"] == ["case_0", "case_1"]
    assert spec["training"]["slices"] == 3 + 4
    assert (out / "CARD.md").is_file()
    fields = {name: cases[0][name] for name in ("volume", "affine")}
    done = worker.ask("segment", **fields, model=str(out), device="cpu", out=str(tmp_path / "out"))[-1]
    assert done["event"] == "done", done
    assert [organ["name"] for organ in done["label_set"]] == ["spleen", "liver"]


def test_a_card_that_shows_the_scores_of_the_model_gone_on_from_has_its_pictures(worker, phantoms, tmp_path):
    scored, out = tmp_path / "scored", tmp_path / "mine"
    settings = {"batch": 2, "warmup": 1, "canvas": [56, 112]}
    same = {"settings": settings, "iterations": 1, "device": "cpu"}
    assert worker.ask("finetune", data=str(phantoms), out=str(scored), **same)[-1]["event"] == "done"
    cases, labels = phantom_cases(tmp_path), organs_json(ABDOMEN.select(["spleen", "liver"]))
    answer = worker.ask("finetune", cases=cases, labels=labels, out=str(out), start_from=str(scored), **same)[-1]
    assert answer["event"] == "done", answer
    assert "an earlier stage of this model" in (out / "CARD.md").read_text(encoding="utf-8")
    for picture in ("validation/failures.png", "validation/confidence.png"):
        assert f"({picture})" in (out / "CARD.md").read_text(encoding="utf-8")
        assert (out / picture).read_bytes() == (scored / picture).read_bytes()


def test_finetune_goes_on_from_a_model_and_can_be_cancelled(worker, phantoms, quick_model, tmp_path):
    """Method, backbone and settings are those of the model to start from, without being repeated."""
    request = {"data": str(phantoms), "out": str(tmp_path / "m"), "start_from": str(quick_model), "device": "cpu"}
    number = worker.send("finetune", **request, settings={"canvas": [56, 112], "batch": 2}, iterations=500)
    while worker.next().get("stage") != "training":
        pass
    worker.send("cancel", target=number)
    ends = [worker.until_end()[-1], worker.until_end()[-1]]
    assert [end["kind"] for end in ends if end["event"] == "error"] == ["cancelled"]
    assert not (tmp_path / "m" / "model.json").exists()
    assert worker.ask("hello")[-1]["event"] == "done"


@pytest.mark.slow
def test_finetune_on_a_data_set_scores_its_held_out_case(worker, phantoms, tmp_path):
    settings = {"batch": 2, "warmup": 1, "canvas": [56, 112]}
    request = {"data": str(phantoms), "out": str(tmp_path / "m"), "settings": settings, "iterations": 3}
    events = worker.ask("finetune", **request, device="cpu")
    assert events[-1]["event"] == "done", events[-1]
    assert "1 held-out cases" in events[-1]["score"] or events[-1]["score"] == ""
    assert [organ["organ"] for organ in events[-1]["scores"]["organs"]] == ["spleen", "liver"]
    assert list(dict.fromkeys(e["stage"] for e in events[:-1])) == ["prepare", "training", "scoring"]


# ------------------------------------------------------------------------------------------ process and streams


def test_the_process_ends_when_its_parent_has_gone(crop, tmp_path):
    client = Client()
    request = put(tmp_path, np.tile(crop[0], (20, 1, 1)), crop[1]) | {"model": "abdomen-ct"}
    client.send("segment", **request, out=str(tmp_path / "out"))
    while client.next()["event"] != "partial":
        pass
    started = time.monotonic()
    client.close()
    assert time.monotonic() - started < 20


def test_bye_is_answered_last(tmp_path):
    client = Client("--log", tmp_path / "logs" / "worker.log")
    hello, bye = client.send("hello"), client.send("bye")
    ends = [client.next(), client.next(), client.next()]
    assert [end and end["id"] for end in ends] == [hello, bye, None]
    assert client.process.wait(timeout=60) == 0
    log = (tmp_path / "logs" / "worker.log").read_text()
    assert "begins" in log
    assert log.strip().endswith("ends")


# Stand-ins for what cannot be had on demand: a library that prints, memory that runs out, a fault of our own.
STAND_IN = textwrap.dedent(
    """
    import os, sys
    import numpy as np
    from pgpsam import cli, worker
    def noisy(job, warm):
        print("a library prints")
        os.write(1, b"a C library prints\\n")
        os.system("echo a child process prints")
        return {"stdin": sys.stdin.read()}
    def greedy(job, warm):
        np.ones(2**62, np.uint8)
    def faulty(job, warm):
        raise RuntimeError("first line\\nsecond line")
    def odd(job, warm):
        return {"value": float("nan")}
    def incomplete(job, warm):
        import a_module_that_is_not_there
    def stubborn(job, warm):
        import time
        job.tell({"event": "progress"})
        time.sleep(600)
    for job in (noisy, greedy, faulty, odd, incomplete, stubborn):
        worker.JOBS[job.__name__] = job
    sys.exit(cli.main(["worker", *sys.argv[1:]]))
    """
)


def test_standard_streams_belong_to_the_protocol_and_faults_to_the_log(tmp_path):
    log = tmp_path / "worker.log"
    client = Client("--log", log, code=STAND_IN)
    noisy, *ends = (client.ask(do)[-1] for do in ("noisy", "greedy", "faulty", "odd", "incomplete"))
    assert noisy == {"id": 1, "event": "done", "stdin": ""}
    assert [end["kind"] for end in ends] == ["memory", "internal", "internal", "user"]
    assert ends[1]["message"] == "RuntimeError: first line second line"
    assert "not there" in ends[3]["message"] or "a_module_that_is_not_there" in ends[3]["message"]
    assert all(end["hint"] for end in ends)
    assert client.ask("hello")[-1]["event"] == "done"
    assert client.close() == 0
    assert "Traceback" in log.read_text()
    assert "second line" in log.read_text()


def test_a_job_that_does_not_stop_cannot_outlive_the_parent():
    client = Client(code=STAND_IN)
    client.send("stubborn")
    assert client.next()["event"] == "progress"
    started = time.monotonic()
    assert client.close() == 1
    assert 4 < time.monotonic() - started < 30


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    command = [sys.executable, "-m", "pgpsam", "worker", "--log", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: cannot write the log {tmp_path}")


# ------------------------------------------------------------------------------------------------------- parts


class FullDisk(io.RawIOBase):
    """A stand-in for the file at Slicer's end: `room` bytes fit, and then the disk is full."""

    def __init__(self, room):
        self.room, self.written = room, b""

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.written += taken
        return len(taken)


def test_on_a_full_disk_an_end_waits_and_progress_falls_out():
    stream = FullDisk(room=10)  # within a line
    answers = Answers(stream)
    for done in range(3):
        answers.send({"event": "progress", "done": done})
    answers.send({"event": "done"})
    stream.room = 1000
    answers.send(None)
    answers.send({"event": "progress", "done": 9})
    told = [json.loads(line) for line in stream.written.splitlines()]
    assert told == [{"event": "progress", "done": 0}, {"event": "done"}, {"event": "progress", "done": 9}]


def test_organs_survive_the_way_there_and_back():
    assert organs_from_json(json.loads(json.dumps(organs_json(ABDOMEN)))) == ABDOMEN
    plain = organs_from_json([{"id": 3, "name": "tumour", "color": [1, 2, 3]}])
    assert plain.by_id(3).type.meaning == "Anatomical Structure"


def test_ids_become_class_indices():
    label_set = ABDOMEN.select(["spleen", "liver"])
    ids = np.array([[[0, 1, 6, 255]]], np.int64)
    assert class_indices(ids, label_set, "case").tolist() == [[[0, 1, 2, 255]]]
    with pytest.raises(UserError, match=r"ids \[7\]"):
        class_indices(np.array([[[7]]]), label_set, "case")
    with pytest.raises(UserError, match="whole numbers"):
        class_indices(np.array([[[1.0]]]), label_set, "case")


def test_which_slices_count_as_annotated():
    """The phantom is stored from head to feet, so that slice numbers run against canonical z."""
    volume, ids = make_phantom(0)
    volume = volume.from_kji(volume.array, np.diag([-3.0, -3.0, -5.0, 1.0]), "case")
    indices = np.where(ids[::-1] == 6, 2, np.where(ids[::-1] == 1, 1, 0)).astype(np.uint8)
    case = LoadedCase("case", volume, indices)
    assert annotated(case, None) == [1, 2, 3, 4]
    assert annotated(case, [0, 1]) == [4, 5]
    indices[3:, 5, 5] = 255
    assert annotated(case, None) == [0, 1, 2]
    with pytest.raises(UserError, match="slice 0 is listed"):
        annotated(case, [0])
    with pytest.raises(UserError, match="no slice 6"):
        annotated(case, [6])


def test_files_appear_all_or_none(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_files(tmp_path / "out", {"first.npy": np.zeros(3), "second.json": [float("nan")]})
    assert os.listdir(tmp_path / "out") == []
    write_files(tmp_path / "out", {"first.npy": np.arange(3), "second.json": [1]})
    assert sorted(os.listdir(tmp_path / "out")) == ["first.npy", "second.json"]
    assert read_array(tmp_path / "out" / "first.npy").tolist() == [0, 1, 2]


def test_an_array_of_objects_is_not_read(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"objects\.npy"):
        read_array(tmp_path / "objects.npy")


def test_voxels_of_a_turned_grid():
    affine = np.array([[0, 0, 2, 5], [0, -3, 0, 0], [4, 0, 0, 1], [0, 0, 0, 1]], float)
    grid = Grid.from_source((7, 9, 11), affine)  # k towards the right, j to posterior, i to superior
    assert grid.axial_axis == 2
    for z, y, x in ((0, 0, 0), (3, 5, 1), (10, 8, 6)):
        index = grid.source_index(z, y, x)
        assert np.allclose(affine @ [*index, 1], grid.canonical_affine @ [x, y, z, 1])
        assert index[2 - grid.axial_axis] == grid.axial_index(z)
        assert grid.axial_index(grid.axial_index(z)) == z


def test_k_centre_takes_the_usual_one_and_then_the_farthest():
    features = np.array([[0.0], [1.0], [2.0], [10.0], [10.0]], np.float32)
    assert k_centre(features, 3) == [2, 3, 0]
    assert sorted(k_centre(features, 9)) == [0, 1, 2, 3], "equal slices are taken once"
