"""What the command lines leave on a terminal and in the files that their output goes to."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from pgpsam.errors import UserError
from pgpsam.terminal import ProgressReporter

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
