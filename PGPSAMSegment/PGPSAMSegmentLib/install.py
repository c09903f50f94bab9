"""Installs the engine's packages in a process of its own, without blocking Slicer and without touching its packages.

The packages lie in a folder of the user's (enginefolder.py), and a Python (Slicer's, or another that the user
names) runs the engine with this folder in place of its own packages: enginestart.py says how, and why it is no
virtual environment. installplan.py decides what is to be done, installsteps.py does it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .childprocess import ChildProcess, clean_environment, describe_exit, explain_os_error
from .enginefolder import (
    LIB,
    InstallError,
    Status,
    claim,
    default_folder,
    own_worker_command,
    remove,
    status,
    use_python,
    worker_command,
    worker_log,
)
from .installhints import explain
from .installplan import Plan, find_base_python, make_plan

__all__ = [
    "InstallError",
    "Installation",
    "Plan",
    "Status",
    "default_folder",
    "find_base_python",
    "make_plan",
    "own_worker_command",
    "remove",
    "start",
    "status",
    "use_python",
    "worker_command",
    "worker_log",
]

PROBE = "import torch, torchvision, segment_anything, pgpsam.segmenter"


def start(
    plan: Plan, on_event: Callable[[dict[str, Any]], None], environment: Mapping[str, str] | None = None
) -> Installation:
    """Starts what the plan says; the same as `Installation`."""
    return Installation(plan, on_event, environment)


class Installation:
    """A running installation; `poll` it from a timer.

    It ends in exactly one event "done" or "error", which comes only from `poll`. An unfinished one leaves no
    marker: `status` then says "broken", and installing again repairs it. A repair is an installation as well.

    Args:
        plan: as `make_plan` has made it.
        on_event: called with {"event": "progress", "stage": "clean|download|install|check", "fraction": 0..1,
            "package": name or ""}, then {"event": "done"} or {"event": "error", "kind", "message", "hint"}.
        environment: `slicer.util.startupEnvironment()`; proxies and certificates come from it.
        probe: the statement that shows whether the engine starts.

    Raises:
        InstallError: the plan has problems.
    """

    def __init__(
        self,
        plan: Plan,
        on_event: Callable[[dict[str, Any]], None],
        environment: Mapping[str, str] | None = None,
        probe: str = PROBE,
    ) -> None:
        for message, hint in plan.problems:
            raise InstallError(message, hint)
        self.plan = plan
        self._on_event = on_event
        self._process: ChildProcess | None = None
        self._ending: dict[str, Any] | None = None
        self._failed_step = ""
        try:
            claim(plan.folder)
            order = json.dumps({**plan.order(), "probe": probe}, default=str)
            command = [plan.python, "-s", str(LIB / "installsteps.py")]
            self._process = ChildProcess(command, plan.folder, clean_environment(environment), "install")
            with contextlib.suppress(OSError):  # it has died just now, and `poll` tells that
                self._process.send(f"{order}\n".encode())
        except OSError as error:
            message, hint = explain_os_error(error, "the installation could not be started")
            self._ending = {"event": "error", "kind": "user", "message": message, "hint": hint}

    @property
    def busy(self) -> bool:
        """Whether its end was not delivered yet."""
        return self._process is not None or self._ending is not None

    @property
    def log_path(self) -> Path:
        """What pip has said."""
        return self.plan.folder / "install.log"

    def log_tail(self, count: int = 20) -> list[str]:
        """The last lines of the log, to show what happens just now."""
        return self._process.log_tail(count) if self._process else []

    def poll(self) -> None:
        """Delivers what has happened since the last call."""
        process = self._process
        if process is not None:
            exit_code = process.exit_code()  # before reading: what it said before its end is then all there
            for line in process.lines():
                self._read(line)
            if exit_code is not None and self._ending is None:
                self._fail(process, exit_code)
        if self._ending is not None:
            ending, self._ending = self._ending, None
            self._end_process()
            self._on_event(ending)

    def cancel(self) -> None:
        """Ends the installation and all of its processes at once; the "cancelled" comes with the next poll."""
        if self._process is not None:
            self._end_process()
            shutil.rmtree(self.plan.folder / "temp", ignore_errors=True)  # gigabytes that nobody needs any more
            hint = "Install again to go on; packages that were downloaded whole are kept by pip."
            self._ending = {"event": "error", "kind": "cancelled", "message": "cancelled", "hint": hint}

    def _read(self, line: bytes) -> None:
        event = json.loads(line)
        if event["event"] == "failed":
            self._failed_step = event["step"]
        elif event["event"] == "done":
            self._ending = event
        else:
            self._on_event(event)

    def _fail(self, process: ChildProcess, exit_code: int) -> None:
        log = "\n".join(process.log_tail(400))
        plan = self.plan
        message, hint = explain(log, self._failed_step, plan.wheels, plan.torch_index, plan.python_version)
        if not self._failed_step:
            message += f" ({describe_exit(exit_code)})"
        self._ending = {"event": "error", "kind": "user", "message": message, "hint": hint}
        self._ending |= {"log": process.log_tail(), "log_path": str(process.log_path)}

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
