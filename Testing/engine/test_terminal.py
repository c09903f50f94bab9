"""What the command lines leave on a terminal and in the files that their output goes to."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from pgpsam import cli
from pgpsam.errors import UserError
from pgpsam.terminal import ProgressReporter
from pgpsam.training import commands, describing

TALKING = """
from pgpsam.terminal import ProgressReporter
with ProgressReporter("bar") as report:
    report("case_1", 1, 2, 1.0)
    print("case_1: its header is in metres")
"""


@pytest.mark.parametrize("kind", ["bar", "json", "none"])
def test_what_ends_before_its_first_step_leaves_no_empty_line(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    with pytest.raises(UserError), ProgressReporter(kind):
        raise UserError("there is no such model")
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal_do_not_swallow_what_goes_to_a_file() -> None:
    """As with `pgpsam cohort scans/*.nii.gz -o results > log.txt`."""
    ours, terminal = pty.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", TALKING], stdout=subprocess.PIPE, stderr=terminal, check=True)
        shown = os.read(ours, 100_000)
    finally:
        os.close(terminal)
        os.close(ours)
    assert done.stdout == b"case_1: its header is in metres\n"
    assert b"1/2" in shown
    assert b"metres" not in shown


WORDY = """
import argparse, subprocess, sys
from pgpsam.terminal import print_table, run
def table(_):
    print_table("models", ["name"], [[f"model {n}"] for n in range(5000)])
def child(_):
    print("run 1 ...")
    subprocess.run([sys.executable, "-c", "print('scores of run 1')"], check=True)
    print("wrote the table")
def lines(_):
    for n in range(5000):
        print("volume", n)
def line(_):
    print("wrote organs.nii.gz")
sys.exit(run(globals()[sys.argv[1]], argparse.Namespace(debug=False)))
"""


def talk(what: str, output: BinaryIO) -> tuple[int, bytes]:
    """Exit code and standard error of a command that writes to `output`."""
    command = [sys.executable, "-c", WORDY, what]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=buffered, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("what", ["table", "lines", "line"])
def test_a_reader_that_has_gone_is_no_error(what: str) -> None:
    """As with `pgpsam info abdomen-ct | head -1`: the exit code is that of a program which SIGPIPE ends."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        assert talk(what, gone) == (141, b"")


@pytest.mark.parametrize("what", ["table", "lines", "line"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
def test_a_full_disk_under_the_output_is_one_line(what: str) -> None:
    with open("/dev/full", "wb") as full:
        line = b"error: No space left on device. Check the path, its permissions and the disk.\n"
        assert talk(what, full) == (2, line)


def test_a_line_in_a_file_is_there_as_soon_as_it_is_said(tmp_path: Path) -> None:
    """Before what a run that it starts says, and before a power cut."""
    log = tmp_path / "log.txt"
    with log.open("wb") as output:
        assert talk("child", output) == (0, b"")
    assert log.read_text().splitlines() == ["run 1 ...", "scores of run 1", "wrote the table"]


PATHS = [
    (cli.main, ["segment", "EMPTY", "-o", "out.nii.gz"]),
    (cli.main, ["segment", "ct.nii.gz", "-o", "out.nii.gz", "--report", "EMPTY"]),
    (cli.main, ["cohort", "ct.nii.gz", "EMPTY", "-o", "out"]),
    (cli.main, ["cohort", "ct.nii.gz", "-o", "EMPTY"]),
    (cli.main, ["info", "EMPTY"]),
    (commands.finetune_main, ["--data", "EMPTY", "--out", "out"]),
    (commands.finetune_main, ["--data", "data", "--out", "EMPTY", "--overwrite"]),
    (commands.finetune_main, ["--data", "data", "--out", "out", "--start-from", "EMPTY"]),
    (commands.refine_main, ["--model", "EMPTY", "--data", "data"]),
    (commands.evaluate_main, ["--model", "EMPTY", "--data", "data", "--out", "out"]),
    (commands.ship_main, ["--model", "model", "--out", "EMPTY"]),
    (commands.ship_main, ["--model", "model", "--out", "out", "--average-with", "EMPTY"]),
    (commands.ship_main, ["--model", "model", "--out", "out", "--scores-of", "EMPTY"]),
    (commands.benchmark_main, ["--data", "data", "--out", "out", "--page", "EMPTY"]),
    (describing.main, ["--vectors", "EMPTY"]),
]


@pytest.mark.parametrize(("command", "words"), PATHS, ids=lambda one: " ".join(one) if isinstance(one, list) else "")
def test_an_empty_name_is_not_the_folder_one_stands_in(
    command: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a shell variable that is not set: the DICOM series that happens to lie there would be segmented."""
    with pytest.raises(SystemExit) as ended:
        command([word.replace("EMPTY", "") for word in words])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(": '' names no file or folder\n")
