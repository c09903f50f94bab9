"""A program that runs beside Slicer: started in a process group of its own, read without blocking, ended whole.

Its standard output goes to a file that is read as it grows. A pipe would need a thread or a select call, and
select does not know pipes on Windows; a file is the same on every system and never blocks either side.

It must not know what the program is for: `engine.py` and `install.py` do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LOG_LIMIT = 2_000_000  # bytes; a longer log is moved aside at the next start
LINE_LIMIT = 16_000_000  # bytes; more without a newline is not a line of text

# What Slicer sets for itself; it would make another Python load Slicer's libraries.
SLICERS_OWN = ("LD_LIBRARY_PATH", "LD_PRELOAD", "ITK_AUTOLOAD_PATH", "SLICER_HOME", "TCLLIBPATH", "TCL_LIBRARY")
SLICERS_PREFIXES = ("DYLD_", "QT_", "QML", "PYTHONQT")
# What points any Python, pip or Matplotlib elsewhere, whoever has set it.
ELSEWHERE = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR"),
    *("PYTHONUSERBASE", "PYTHONWARNINGS", "PYTHONDEBUG", "PYTHONVERBOSE", "PYTHONSAFEPATH", "__PYVENV_LAUNCHER__"),
    *("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "VIRTUAL_ENV", "MPLBACKEND"),
)
# pip's go before the user's pip.conf, which may ask for what does not go with a folder of our own.
OVERRIDES = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
OVERRIDES |= {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables for a Python beside Slicer.

    Args:
        environment: what Slicer was started with (`slicer.util.startupEnvironment()`): it is kept except for
            what points Python or pip elsewhere. None: this process's own, without what Slicer has set in it.
    """
    kept = dict(os.environ if environment is None else environment)
    for name in list(kept):
        slicers = environment is None and (name in SLICERS_OWN or name.startswith(SLICERS_PREFIXES))
        if slicers or name.upper() in ELSEWHERE:
            del kept[name]
    if kept.get("LC_ALL") in ("C", "POSIX"):  # such a locale lacks the letters that a path may hold
        kept["LC_ALL"] = "C.UTF-8"
    return {**kept, **OVERRIDES}


def ask(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Waits for a program that answers at once and ends.

    Raises:
        OSError: it does not start.
        subprocess.TimeoutExpired: it does not end within so many seconds.
    """
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        env=dict(environment),
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )


class ChildProcess:
    """A running program; reading from it and asking after it never block.

    Args:
        command: program and arguments.
        folder: where its output file and its log are kept; made if absent.
        environment: all its variables, as `clean_environment` returns them.
        name: the log is `<folder>/<name>.log`.

    Raises:
        OSError: the folder cannot be written, or the program cannot be started.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"{name}.log"
        _move_long_log_aside(self.log_path)
        handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".out", dir=folder)
        self._output_path = Path(path)
        self._reader = self._output_path.open("rb")
        self._unfinished = b""
        try:
            with self.log_path.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.PIPE,
                    stdout=handle,
                    stderr=log,
                    cwd=folder,
                    env=dict(environment),
                    bufsize=0,
                    **_own_group(),  # type: ignore[call-overload]
                )
        except BaseException:
            self._forget_output()
            raise
        finally:
            os.close(handle)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def exit_code(self) -> int | None:
        """None while it runs; afterwards its exit status, or minus the signal that ended it (not on Windows)."""
        code = self._process.poll()
        return None if code is None else int(code)

    def send(self, data: bytes) -> None:
        """Writes to its standard input.

        Raises:
            OSError: it no longer listens.
        """
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            raise BrokenPipeError(errno.EPIPE, "its standard input is closed")
        rest = memoryview(data)
        while rest:
            rest = rest[pipe.write(rest) or 0 :]

    def lines(self) -> list[bytes]:
        """The whole lines that it has written since the last call, without newlines; half a line waits.

        Raises:
            ValueError: it writes on and on without a newline.
        """
        if self._reader.closed:
            return []
        *whole, self._unfinished = (self._unfinished + self._reader.read()).split(b"\n")
        if len(self._unfinished) > LINE_LIMIT:
            raise ValueError("a line without an end")
        return whole

    def log_tail(self, count: int = 20) -> list[str]:
        """The last lines that this run has written to its log, without blank ones."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - 65536) if end >= self._log_start else 0)
                text = log.read().decode("utf-8", "replace")
        except OSError:  # the log was removed: there is nothing to tell
            return []
        return [line.strip() for line in text.splitlines() if line.strip()][-count:]

    def hang_up(self, patience_s: float = 0.0) -> None:
        """Closes its standard input, which is how it knows that nobody needs it, and waits a moment for its end."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)

    def kill(self) -> None:
        """Ends it and every process that it has started, and removes its output file. Safe to call again."""
        kill_tree(self._process)
        self.hang_up()
        self._forget_output()

    def _forget_output(self) -> None:
        self._reader.close()
        with contextlib.suppress(OSError):  # Windows refuses for a moment after the end: the folder is temporary
            self._output_path.unlink()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started: PythonSlicer is a launcher, and its child is what computes."""
    if sys.platform == "win32":
        if process.poll() is None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    ["taskkill", "/T", "/F", "/PID", str(process.pid)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    creationflags=subprocess.CREATE_NO_WINDOW,
                    timeout=5,
                )
    else:
        # The group outlives its leader while it has members, so this also finds what a dead worker has left.
        # macOS answers "not permitted" for a group of which only an ended process is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: the system ends it when it can
        process.wait(2)


def describe_exit(code: int) -> str:
    """An exit status in words: "signal 9 (SIGKILL)", "exit code 3"."""
    if code >= 0:
        return f"exit code {code}" if code < 0x80000000 else f"exit code 0x{code:08X}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"


def explain_os_error(error: OSError, what: str) -> tuple[str, str]:
    """(what is wrong, what to do) for a file, folder or program that could not be used.

    Args:
        error: as it was raised.
        what: what was being done, for the message: "the engine could not be started".
    """
    place = str(error.filename or "")
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return f"{what}: the disk is full{f' ({place})' if place else ''}", "Make room on this disk and try again."
    if isinstance(error, FileNotFoundError):
        return f"{what}: there is no {place or 'such file'}", "Install or repair the engine, or choose another Python."
    if isinstance(error, PermissionError):
        return f"{what}: no permission for {place or 'this file'}", "Choose a folder that you may write to."
    return f"{what}: {error.strerror or error}{f' ({place})' if place else ''}", "Repair the engine and try again."


def _own_group() -> dict[str, object]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _move_long_log_aside(path: Path) -> None:
    with contextlib.suppress(OSError):  # in use on Windows: it is moved at a later start
        if path.stat().st_size > LOG_LIMIT:
            os.replace(path, path.with_name(f"{path.name}.1"))
