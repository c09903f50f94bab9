"""What the user is told when the engine fails, and that the next click works. The worker is a stand-in.

The same with the real worker is in test_worker_faults.py.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from listening import Ear, is_alive, wait_for_end

from PGPSAMSegmentLib import childprocess
from PGPSAMSegmentLib.engine import OWN_REPAIR, Engine

STANDIN = Path(__file__).with_name("standin_worker.py")


@pytest.fixture
def make_engine(tmp_path):
    engines = []

    def make(mode, **options):
        engines.append(Engine([sys.executable, str(STANDIN), mode], tmp_path / "scratch", **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def heal(engine):
    """What the user does next: the same engine, with a worker that behaves."""
    engine.command[-1] = "good"
    return Ear(engine).ask("segment")


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [
        (
            "dies",
            "died",
            "the engine ended unexpectedly (exit code 3): RuntimeError: the weights are not there",
        ),
        ("killed", "memory", "the engine was stopped, most likely for lack of memory (signal 9 (SIGKILL))"),
        ("bad_alloc", "memory", "the engine was stopped, most likely for lack of memory (exit code 1)"),
        ("garbage", "protocol", "the engine wrote something that is no message: 'Loading checkpoint shards: 100%'"),
        ("flood", "protocol", "the engine wrote something that is no message: 'a line without an end'"),
    ],
)
def test_a_failing_worker_is_explained_ended_and_replaced(make_engine, mode, kind, message):
    engine = make_engine(mode)
    pid = Ear(engine).ask("hello")["pid"]
    ear = Ear(engine)
    end = ear.ask("segment")
    assert ear.names() == ["error"]
    assert (end["kind"], end["message"]) == (kind, message)
    assert end["hint"]
    assert end["log"][0] == f"stand-in worker: {mode}"
    assert Path(end["log_path"]).read_text(encoding="utf-8").startswith("stand-in worker")
    wait_for_end(pid)
    assert heal(engine)["event"] == "done"


def test_the_workers_own_word_about_memory_is_kept_and_it_stays(make_engine):
    engine = make_engine("memory")
    end = Ear(engine).ask("segment")
    assert (end["kind"], end["message"], end["hint"]) == ("memory", "not enough memory: CUDA gave up", "crop")
    assert engine.running


def test_a_crashs_last_words_go_to_the_lasting_log(make_engine, tmp_path):
    """The worker's own log does not have them: they come from the system, or from before it began to log."""
    log = tmp_path / "engine.log"
    log.write_text("what the worker logged\n")
    end = Ear(make_engine("dies", log=log)).ask("segment")
    assert end["log_path"] == str(log)
    kept = log.read_text(encoding="utf-8")
    assert kept.startswith("what the worker logged\n")
    assert end["message"] in kept
    assert kept.endswith("stand-in worker: dies\nloading the model\nRuntimeError: the weights are not there\n")
    log.unlink()
    log.mkdir()  # it can no longer be written
    assert Ear(make_engine("dies", log=log)).ask("segment")["message"] == end["message"]


@pytest.mark.parametrize("mode", ["memory", "nameless"])
def test_where_the_log_may_say_more_its_place_is_told(make_engine, tmp_path, mode):
    assert Ear(make_engine(mode, log=tmp_path / "engine.log")).ask("segment")["log_path"] == str(
        tmp_path / "engine.log"
    )
    assert Path(Ear(make_engine(mode)).ask("segment")["log_path"]).is_file()


def test_an_error_without_an_id_ends_the_request(make_engine):
    engine = make_engine("nameless")
    end = Ear(engine).ask("segment")
    assert (end["kind"], end["message"], end["id"]) == ("internal", "a line is not JSON", 1)
    assert not engine.busy


def test_a_silent_worker_counts_as_hung(make_engine):
    engine = make_engine("hangs", hang_s=2.0)
    ear = Ear(engine)
    pid = ear.ask("hello")["pid"]
    end = ear.ask("segment")
    assert ear.names() == ["done", "progress", "error"]
    assert (end["kind"], end["message"]) == ("hung", "the engine has said nothing for 2 seconds and was stopped")
    assert not is_alive(pid)
    assert heal(engine)["event"] == "done"


def test_a_worker_that_ignores_cancel_is_ended_with_its_children_within_two_seconds(make_engine):
    engine = make_engine("deaf")
    ear = Ear(engine)
    worker = ear.ask("hello")["pid"]
    request = engine.submit({"do": "segment"}, ear)
    limit = time.monotonic() + 60
    while "partial" not in ear.names():
        assert time.monotonic() < limit
        engine.poll()
        time.sleep(0.02)
    child = ear.events[-1]["child"]
    assert is_alive(worker)
    assert is_alive(child)
    clicked = time.monotonic()
    engine.cancel(request)
    end = ear.end()
    assert time.monotonic() - clicked < 2.0
    assert (end["event"], end["kind"]) == ("error", "cancelled")
    wait_for_end(worker)
    wait_for_end(child)
    assert heal(engine)["event"] == "done"


def test_closing_ends_a_deaf_worker_with_its_children(make_engine):
    engine = make_engine("deaf")
    ear = Ear(engine)
    engine.submit({"do": "segment"}, ear)
    limit = time.monotonic() + 60
    while "partial" not in ear.names():
        assert time.monotonic() < limit
        engine.poll()
        time.sleep(0.02)
    child = ear.events[-1]["child"]
    engine.close()
    wait_for_end(child)
    assert processes_naming(str(engine.scratch)) == []


def test_an_engine_of_another_version_is_named_with_the_remedy(make_engine):
    engine = make_engine("newer")
    end = Ear(engine).ask("hello")
    assert end["kind"] == "protocol"
    assert end["message"].startswith("the engine speaks protocol 99, and this module speaks 1")
    assert "Repair" in end["hint"]
    assert not engine.running


def test_a_worker_that_ended_while_idle_is_replaced_silently(make_engine):
    engine = make_engine("good")
    pid = Ear(engine).ask("hello")["pid"]
    os.kill(pid, 9)
    wait_for_end(pid)
    assert Ear(engine).ask("hello")["pid"] != pid


def test_a_missing_python_is_named(tmp_path):
    engine = Engine([str(tmp_path / "no such python"), "-m", "pgpsam", "worker"], tmp_path)
    ear = Ear(engine)
    end = ear.ask("hello")
    assert ear.names() == ["error"]
    assert end["kind"] == "user"
    assert end["message"] == f"the engine could not be started: there is no {tmp_path / 'no such python'}"
    assert end["hint"] == "Install or repair the engine, or choose another Python."


@pytest.mark.parametrize("mode", ["newer", "incomplete"])
def test_a_python_of_the_users_own_is_not_to_be_repaired(make_engine, mode):
    """Repair is greyed out for it."""
    end = Ear(make_engine(mode, repair=OWN_REPAIR)).ask("hello")
    assert end["kind"] in ("protocol", "died")
    assert end["hint"] == (
        "Install pgpsam in this Python again (setup_env.py install, or pip install); "
        "or press Remove, then Install, in the module's Engine section."
    )


def test_a_worker_whose_folder_was_cleaned_away_is_replaced(make_engine):
    engine = make_engine("good")
    pid = Ear(engine).ask("hello")["pid"]
    shutil.rmtree(engine.scratch)
    assert Ear(engine).ask("hello")["pid"] != pid
    wait_for_end(pid)
    assert engine.log_path.is_file()


def test_silence_on_a_full_disk_is_no_fault_of_the_worker(make_engine, monkeypatch):
    """What the system says of the disk is a stand-in."""
    engine = make_engine("hangs", hang_s=2.0)
    usage = shutil.disk_usage(".")._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if path == engine.scratch else None)
    end = Ear(engine).ask("segment")
    assert (end["kind"], end["hint"]) == (
        "hung",
        f"The disk of {engine.scratch} is full: make room and try again.",
    )


def test_a_missing_package_points_to_repair(tmp_path):
    end = Ear(Engine([sys.executable, "-m", "no_such_engine", "worker"], tmp_path)).ask("hello")
    assert end["kind"] == "died"
    assert "No module named no_such_engine" in end["message"]
    assert "Repair" in end["hint"]


def test_a_full_disk_is_one_clear_line(make_engine, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    engine = make_engine("good")
    with monkeypatch.context() as patch:
        patch.setattr(childprocess.tempfile, "mkstemp", full)
        end = Ear(engine).ask("segment")
    assert end["kind"] == "user"
    assert end["message"] == "the engine could not be started: the disk is full"
    assert end["hint"] == "Make room on this disk and try again."
    assert heal(engine)["event"] == "done"


def processes_naming(folder):
    """Processes that have this folder as their working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                place = os.readlink(entry / "cwd")
            except OSError:  # ended meanwhile, or not ours
                continue
            if place == folder:
                found.append(entry.name)
    return found
