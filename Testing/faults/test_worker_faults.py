"""The real worker, killed and cancelled in the middle of its work, as the module sees it.

One engine serves all tests, in their order: each also shows that the one before left it usable.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin_slicer
from listening import Ear, is_alive, wait_for_end

from PGPSAMSegmentLib.engine import Engine
from PGPSAMSegmentLib.enginefolder import LIB
from PGPSAMSegmentLib.install import own_worker_command

PATIENCE_S = 300.0

if os.name == "nt":
    resource: Any = None
else:
    import resource

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the engine's packages are absent")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = Engine(own_worker_command(sys.executable), tmp_path_factory.mktemp("scratch of the real worker"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def untrained_model(tmp_path_factory):
    """The shipped model's method with nothing learnt: it works as hard, whatever it finds."""
    from pgpsam.models.lookup import find_model
    from pgpsam.models.store import load_spec, save_model
    from pgpsam.network.lora import trained_tensors
    from pgpsam.network.methods import build_network

    spec = replace(load_spec(find_model("abdomen-ct")), refiner={})
    network = build_network(spec.method, spec.backbone, len(spec.labels) + 1, spec.settings)
    folder = tmp_path_factory.mktemp("models") / "untrained"
    save_model(folder, spec, trained_tensors(network))
    return folder


@pytest.fixture(scope="module")
def request_fields(untrained_model, tmp_path_factory):
    """A body of soft tissue in air, large enough that many slices are left when the first is done."""
    folder = tmp_path_factory.mktemp("volume")
    volume = np.full((60, 192, 192), -1000, np.int16)
    volume[:, 20:-20, 20:-20] = np.random.default_rng(0).integers(-20, 120, (60, 152, 152))
    np.save(folder / "v.npy", volume)
    affine = [[-1.5, 0, 0, 0], [0, -1.5, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1.0]]
    places = {"volume": str(folder / "v.npy"), "out": str(folder / "out")}
    model = {"model": str(untrained_model), "device": "cpu"}
    return {"do": "segment", **places, "affine": affine, **model, "partial": True}


def begin(engine, request_fields):
    """Sends the request and returns when the first slices are under way."""
    ear = Ear(engine)
    number = engine.submit(request_fields, ear)
    limit = time.monotonic() + PATIENCE_S
    while not any(event.get("stage") == "slices" and event["done"] for event in ear.events):
        assert engine.busy, ear.events
        assert time.monotonic() < limit, ear.events
        engine.poll()
        time.sleep(0.05)
    return ear, number


def test_hello(engine):
    end = Ear(engine).ask("hello", PATIENCE_S)
    assert (end["event"], end["protocol"]) == ("done", 1)
    assert "abdomen-ct" in [model["name"] for model in end["models"]]


def test_a_killed_worker_is_reported_and_replaced(engine, request_fields):
    pid = Ear(engine).ask("hello", PATIENCE_S)["pid"]
    ear, _ = begin(engine, request_fields)
    os.kill(pid, signal.SIGKILL)
    end = ear.end(PATIENCE_S)
    assert end["kind"] == "memory"
    assert end["message"] == "the engine was stopped, most likely for lack of memory (signal 9 (SIGKILL))"
    assert any(f"worker {pid} begins" in line for line in end["log"])
    assert not is_alive(pid)
    assert Ear(engine).ask("hello", PATIENCE_S)["pid"] != pid


def test_cancel_in_the_middle_ends_within_two_seconds(engine, request_fields):
    ear, number = begin(engine, request_fields)
    clicked = time.monotonic()
    engine.cancel(number)
    end = ear.end(PATIENCE_S)
    assert time.monotonic() - clicked < 2.0
    assert (end["event"], end["kind"]) == ("error", "cancelled")
    assert Ear(engine).ask("hello", PATIENCE_S)["event"] == "done"


def test_what_the_user_can_mend_is_one_line_and_the_worker_stays(engine, request_fields):
    pid = Ear(engine).ask("hello", PATIENCE_S)["pid"]
    ear = Ear(engine)
    engine.submit({**request_fields, "model": "no-such-model"}, ear)
    end = ear.end(PATIENCE_S)
    assert end["kind"] == "user"
    assert "no-such-model" in end["message"]
    assert Ear(engine).ask("hello", PATIENCE_S)["pid"] == pid


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets the limits of another process")
def test_a_result_that_the_disk_refuses_is_told_and_the_worker_stays(engine, request_fields):
    """A limit on the size of files stands in for the disk: the write is cut short, as where a disk fills up."""
    pid = Ear(engine).ask("hello", PATIENCE_S)["pid"]
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # labels.npy has 2.2 MB
    try:
        ear = Ear(engine)
        engine.submit(request_fields, ear)
        end = ear.end(PATIENCE_S)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert (end["event"], end["kind"]) == ("error", "user")
    assert end["message"] == f"cannot write to {request_fields['out']}: the disk is full"
    assert end["hint"] == "Check the folder, its free space and its permissions."
    out = Path(request_fields["out"])
    assert not out.exists() or list(out.iterdir()) == []
    assert Ear(engine).ask("hello", PATIENCE_S)["pid"] == pid


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets the limits of another process")
def test_an_answer_that_the_disk_has_no_room_for_comes_as_soon_as_it_has(engine):
    """A limit on the size of files stands in for the disk that the worker's own standard output lies on."""
    pid = Ear(engine).ask("hello", PATIENCE_S)["pid"]
    (output,) = engine.scratch.glob("worker-*.out")
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (output.stat().st_size + 9, before[1]))  # within a line
    try:
        ear = Ear(engine)
        engine.submit({"do": "hello"}, ear)
        limit = time.monotonic() + 3
        while time.monotonic() < limit:
            engine.poll()
            time.sleep(0.05)
        assert engine.busy
        assert ear.events == []
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert ear.end(PATIENCE_S)["pid"] == pid


def test_a_temporary_folder_that_was_cleaned_away_costs_nothing(engine, request_fields):
    """As systemd-tmpfiles does while nobody asks for anything; the worker stands in this folder."""
    pid = Ear(engine).ask("hello", PATIENCE_S)["pid"]
    shutil.rmtree(engine.scratch)
    ear, number = begin(engine, request_fields)
    engine.cancel(number)
    assert ear.end(PATIENCE_S)["kind"] == "cancelled"
    wait_for_end(pid)


def test_closing_leaves_no_process(engine):
    pid = Ear(engine).ask("hello", PATIENCE_S)["pid"]
    engine.close()
    wait_for_end(pid)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Slicer is a shell script")
def test_below_slicers_launcher_the_engine_has_its_own_packages_and_ends_whole(tmp_path):
    """The real worker, started as an installation starts it; Slicer's Python stands in."""
    import torch

    packages = Path(torch.__file__).parents[1]
    launcher = standin_slicer.make_slicer(tmp_path / "Slicer 5.99")
    standin_slicer.put_package(standin_slicer.site_packages(launcher), "numpy", "0.0")  # Slicer's own: not the engine's
    start = str(LIB / "enginestart.py")
    engine = Engine([str(launcher), "-S", "-s", start, str(packages), "worker"], tmp_path / "scratch")
    end = Ear(engine).ask("hello", PATIENCE_S)
    assert (end["event"], end["protocol"]) == ("done", 1), end
    engine.close()
    wait_for_end(end["pid"])  # the child of the launcher
