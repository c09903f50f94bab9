"""What all command lines share: exit codes, one clear line for errors, progress on the terminal."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from pgpsam.errors import Cancelled, UserError, of_system
from pgpsam.looks import LOOKS
from pgpsam.memory import is_memory_error, keep_freed_memory


class _Console(Console):
    """Shows names that hold [brackets] as they are, and leaves it to `run` that nobody reads any more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError that it is called for


console = _Console(stderr=True)


def run(main: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Exit code of a command: 0; 2 and one line for what the user can mend; 130 on cancel; 141 if nobody reads it.

    `--debug` shows the traceback as well.
    """
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name may hold letters that the encoding lacks; a line is there once it is said, in a file, too.
            stream.reconfigure(errors="replace", line_buffering=True)
    try:
        main(options)
    except BrokenPipeError:  # the reader has gone, as `head -1` does
        _forget_unsaid()
        return 141
    except UserError as error:
        if options.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        if options.debug:
            traceback.print_exc()
        print("error: not enough memory. Close other programs, or crop the volume.", file=sys.stderr)
        return 2
    except OSError as error:
        if options.debug:
            traceback.print_exc()
        _forget_unsaid()
        print(f"error: {of_system(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Cancelled) as stop:
        print(f"cancelled{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    return 0


def _forget_unsaid() -> None:
    """Leaves out what standard output does not take: Python would try it again at its end, and complain."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ProgressReporter:
    """Progress as a bar, as JSON lines on standard error, or not at all.

    Args:
        kind: 'bar', 'json' or 'none'.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.bars: RichProgress | None = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> ProgressReporter:
        if self.kind == "bar":
            self.bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                redirect_stdout=sys.stdout.isatty(),  # what goes to a file or another program is not for this terminal
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.bars and self.tasks:
            self.bars.stop()

    def __call__(self, stage: str, done: int, total: int, eta_seconds: float, note: str = "") -> None:
        if self.kind == "json":
            values = {
                "stage": stage,
                "done": done,
                "total": total,
                "eta_s": round(eta_seconds, 1),
                "note": note,
            }
            print(json.dumps(values), file=sys.stderr, flush=True)
        elif self.bars:
            self.bars.start()  # only now: bars that never had anything to show would leave an empty line
            if stage not in self.tasks:
                for old in self.bars.tasks[:-3]:  # of a long list of volumes, the last few stay in sight
                    self.bars.update(old.id, visible=not old.finished)
                self.tasks[stage] = self.bars.add_task(stage, total=total, note="")
            self.bars.update(self.tasks[stage], completed=done, total=total, note=note)

    def each(self, doing: str) -> Callable[[str, Any], None]:
        """What shows the steps of segmenting case after case: called with a case's name and its `segmenter.Step`."""
        return lambda case, step: self(f"{doing} {case}", step.done, step.total, step.eta_seconds)


def given(text: str) -> str:
    """A file, folder or model as the command line names it, for argparse.

    Raises:
        ArgumentTypeError: it is empty, as of a shell variable that is not set; that would mean the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"'{text}' names no file or folder")
    return text


def given_path(text: str) -> Path:
    """`given`, as a path."""
    return Path(given(text))


def add_common(parser: argparse.ArgumentParser) -> None:
    """--device, --progress and --debug."""
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu (default: auto)")
    kinds = ("bar", "json", "none")
    parser.add_argument("--progress", choices=kinds, default="bar", help="how progress is shown (default: bar)")
    add_debug(parser)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """--debug."""
    parser.add_argument("--debug", action="store_true", help="show a traceback with errors")


def add_looks(parser: argparse.ArgumentParser) -> None:
    """--looks."""
    parser.add_argument(
        "--looks",
        type=int,
        choices=range(1, len(LOOKS) + 1),
        default=len(LOOKS),
        help=f"how often every slice is looked at: 1 is faster, {len(LOOKS)} more accurate (default: {len(LOOKS)})",
    )


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; the first column is text, the others are numbers."""
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    shown = _Console()
    if not shown.is_terminal:  # a file or another program gets every cell whole
        shown.width = sys.maxsize
    shown.print(table)


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a table; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"
