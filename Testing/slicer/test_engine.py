"""Slicer's side of the worker, with a stand-in worker that answers at once and segments nothing.

How a worker fails is in Testing/faults.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from listening import Ear, is_alive, wait_for_end

from PGPSAMSegmentLib import engine as engine_module
from PGPSAMSegmentLib.childprocess import clean_environment
from PGPSAMSegmentLib.engine import Engine, EngineBusy

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "Testing" / "faults" / "standin_worker.py"


@pytest.fixture
def make_engine(tmp_path):
    engines = []

    def make(mode="good", **options):
        command = [sys.executable, str(STANDIN), mode]
        engines.append(Engine(command, tmp_path / os.fsdecode("scratch with ümläuts".encode()), **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("mode", ["good", "halves"])
def test_a_request_ends_once_after_its_progress(make_engine, mode):
    engine = make_engine(mode)
    ear = Ear(engine)
    end = ear.ask("segment")
    assert ear.names() == ["progress", "progress", "progress", "done"]
    assert [event["done"] for event in ear.events[:3]] == [0, 1, 2]
    assert ear.events[0]["stage"] == "Scheiben – 切片"
    assert end["labels"] == "labels.npy"


def test_events_come_only_from_poll(make_engine):
    engine = make_engine()
    ear = Ear(engine)
    engine.submit({"do": "segment"}, ear)
    time.sleep(1)
    assert ear.events == []
    ear.end()
    assert ear.names()[-1] == "done"


def test_the_worker_stays_warm(make_engine):
    engine = make_engine()
    assert not engine.running
    first, second = Ear(engine), Ear(engine)
    pids = {first.ask("hello")["pid"], second.ask("segment")["pid"]}
    assert len(pids) == 1
    assert engine.running
    assert first.events[-1]["id"] != second.events[-1]["id"]


def test_a_second_request_is_refused_and_the_first_goes_on(make_engine):
    engine = make_engine()
    ear = Ear(engine)
    engine.submit({"do": "segment"}, ear)
    with pytest.raises(EngineBusy, match="busy with 'segment'"):
        engine.submit({"do": "hello"}, ear)
    assert ear.end()["event"] == "done"


def test_a_callback_may_send_the_next_request(make_engine):
    engine = make_engine()
    second = Ear(engine)

    def then_segment(event):
        engine.submit({"do": "segment"}, second)

    engine.submit({"do": "hello"}, then_segment)
    assert second.end()["event"] == "done"


def test_cancel_is_answered_by_the_worker_which_stays(make_engine):
    engine = make_engine()
    pid = Ear(engine).ask("hello")["pid"]
    ear = Ear(engine)
    request = engine.submit({"do": "segment", "slow": True}, ear)
    limit = time.monotonic() + 30
    while len(ear.events) < 3:
        assert time.monotonic() < limit
        engine.poll()
        time.sleep(0.02)
    engine.cancel(request)
    end = ear.end()
    assert (end["event"], end["kind"]) == ("error", "cancelled")
    assert Ear(engine).ask("segment")["pid"] == pid


def test_a_cancel_that_comes_too_late_changes_nothing(make_engine):
    engine = make_engine()
    ear = Ear(engine)
    request = engine.submit({"do": "segment"}, ear)
    ear.end()
    engine.cancel(request)
    assert ear.names()[-1] == "done"
    assert Ear(engine).ask("segment")["event"] == "done"


def test_the_worker_sees_nothing_of_slicers_environment(make_engine, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    monkeypatch.setenv("QT_PLUGIN_PATH", "/nowhere")
    facts = Ear(make_engine()).ask("hello")["facts"]
    assert facts == {"PYTHONHOME": None, "LD_LIBRARY_PATH": None, "QT_PLUGIN_PATH": None, "HOME": os.environ["HOME"]}


def test_slicers_startup_environment_keeps_the_users_libraries():
    startup = {"LD_LIBRARY_PATH": "/users/own", "PYTHONPATH": "/nowhere", "HTTPS_PROXY": "http://proxy"}
    cleaned = clean_environment(startup)
    assert cleaned["LD_LIBRARY_PATH"] == "/users/own"
    assert cleaned["HTTPS_PROXY"] == "http://proxy"
    assert "PYTHONPATH" not in cleaned
    assert cleaned["PYTHONUTF8"] == "1"


def test_a_request_that_may_not_fit_into_the_pipe_is_refused(make_engine):
    engine = make_engine()
    with pytest.raises(ValueError, match="pass long lists in a file"):
        engine.submit({"do": "segment", "slices": list(range(50_000))}, Ear(engine))
    assert not engine.busy


def test_a_computer_that_slept_finds_its_job_at_work_and_a_silent_one_is_still_stopped(make_engine, monkeypatch):
    """The clock of some systems goes on during sleep."""
    engine, now = make_engine("hangs", hang_s=30.0), [0.0]
    monkeypatch.setattr(engine_module.time, "monotonic", lambda: now[0])
    ear = Ear(engine)
    engine.submit({"do": "segment"}, ear)
    while not ear.events:  # the first word comes, and no other
        engine.poll()
        time.sleep(0.02)
    for pause in (3600, 9, 9, 9):
        now[0] += pause
        engine.poll()
        assert engine.busy, f"stopped after {now[0]} s"
    now[0] += 9
    engine.poll()
    assert ear.events[-1]["kind"] == "hung"


def test_closing_ends_the_worker_and_the_open_request(make_engine):
    engine = make_engine()
    ear = Ear(engine)
    pid = ear.ask("hello")["pid"]
    engine.submit({"do": "segment", "slow": True}, ear)
    engine.close()
    assert not is_alive(pid)
    end = ear.end()
    assert (end["kind"], end["message"]) == ("cancelled", "the engine was closed")
    assert list(engine.scratch.glob("*.out")) == []


def test_an_interpreter_that_ends_takes_its_worker_along(tmp_path):
    """As when Slicer is closed, or crashes: the worker's input ends, or `atexit` runs."""
    program = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT / "PGPSAMSegment")!r})
from PGPSAMSegmentLib.engine import Engine
engine = Engine([sys.executable, {str(STANDIN)!r}, "good"], {str(tmp_path)!r})
def answered(event):
    print(event["pid"], flush=True)
    if sys.argv[1] == "crash while it works":
        engine.submit({{"do": "segment", "slow": True}}, answered)
    if sys.argv[1] != "leave":
        os._exit(1)
engine.submit({{"do": "hello"}}, answered)
while engine.busy:
    engine.poll()
    time.sleep(0.02)
"""
    for end in ("leave", "crash", "crash while it works"):
        result = subprocess.run([sys.executable, "-c", program, end], capture_output=True, text=True, timeout=300)
        pid = int(result.stdout)
        wait_for_end(pid)
