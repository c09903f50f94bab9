"""Slicer's side of the worker: starts it, sends requests, hands its events on, cancels, and survives its end.

Nothing here blocks and nothing runs in a thread: events are delivered only from inside `Engine.poll`, which
the caller calls from a timer. What an event means to the scene is not known here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .childprocess import ChildProcess, clean_environment, describe_exit, explain_os_error

PROTOCOL = 1
HANG_S = 300.0
ASLEEP_S = 10.0  # polls so far apart mean that Slicer stood still or the computer slept, and the engine with it
CANCEL_S = 1.5
ROOM = 1 << 20  # bytes; a disk with less counts as full
REQUEST_LIMIT = 60_000  # bytes; a longer line may not fit into the pipe, and writing it could block Slicer

Event = dict[str, Any]

LESS_MEMORY = "Close other programs, choose fewer organs or the CPU, or crop the volume, and try again."
REPAIR = "Open the module's Engine section and press Repair."
OWN_REPAIR = (
    "Install pgpsam in this Python again (setup_env.py install, or pip install); "
    "or press Remove, then Install, in the module's Engine section."
)
AGAIN = "Try again: a new engine starts by itself. If it happens again, see the engine's log."

# What the log or the exit status of a process says that was refused memory or was ended for the lack of it.
# 137 is what a shell or launcher makes of signal 9; the others are Windows' own.
MEMORY_EXITS = (-9, 137, 0xC0000017, 0xC000012D)
MEMORY_WORDS = ("memoryerror", "bad_alloc", "out of memory", "cannot allocate memory", "can't allocate memory")


class EngineBusy(RuntimeError):
    """A request was made while another one runs; nothing was sent."""


@dataclass
class _Request:
    id: int
    do: str
    on_event: Callable[[Event], None]
    heard_at: float
    polled_at: float
    cancelled_at: float | None = None


class Engine:
    """The worker process and the one request that it may be busy with.

    Every accepted request ends in exactly one event "done" or "error". An error event holds "kind" (the worker's
    own: user, memory, internal or cancelled; of this side, also died, hung, or protocol for what is no answer of such
    a worker), "message" (one line), "hint" (what to do), "log_path" where the log may say more, and "log" (its last
    lines) when the process ended. After any error the next request works: it starts a new worker if there is none.

    Args:
        command: starts the worker, for example [python, "-m", "pgpsam", "worker"].
        scratch: folder for exchanged files and what the worker writes to standard error; it is made if absent.
        environment: what Slicer was started with (`slicer.util.startupEnvironment()`), or None to clean the
            present one.
        hang_s: seconds without any event after which a working engine counts as hung.
        cancel_s: seconds that the worker has to answer a cancel before it is ended.
        log: the file to which the command makes the worker log and which outlasts `scratch`, or None.
        repair: what to do about an engine that lacks something.
    """

    def __init__(
        self,
        command: Sequence[str],
        scratch: str | Path,
        environment: Mapping[str, str] | None = None,
        hang_s: float = HANG_S,
        cancel_s: float = CANCEL_S,
        log: Path | None = None,
        repair: str = REPAIR,
    ) -> None:
        self.command = list(command)
        self.scratch = Path(scratch)
        self.environment = environment
        self.hang_s = hang_s
        self.cancel_s = cancel_s
        self.log = log
        self.repair = repair
        self._process: ChildProcess | None = None
        self._request: _Request | None = None
        self._ending: Event | None = None  # decided outside `poll`, delivered by it
        self._last_id = 0
        _engines.add(self)

    @property
    def busy(self) -> bool:
        """Whether a request has not ended yet."""
        return self._request is not None

    @property
    def running(self) -> bool:
        """Whether a worker process is alive, so that the next request needs no start."""
        return self._process is not None and self._process.exit_code() is None

    @property
    def log_path(self) -> Path:
        """The log that outlasts the worker, or else where its standard error goes."""
        return self.log or self.scratch / "worker.log"

    def submit(self, request: Mapping[str, Any], on_event: Callable[[Event], None]) -> int:
        """Sends a request, after starting the worker if none runs, and returns its id.

        Args:
            request: as the protocol has it, with "do" and without "id".
            on_event: called from `poll` with each event; the last one is "done" or "error".

        Raises:
            EngineBusy: another request runs.
            ValueError: the request is not JSON or is too long.
        """
        if self._request is not None:
            raise EngineBusy(f"the engine is busy with '{self._request.do}': wait for it or cancel it")
        line = json.dumps({**request, "id": self._last_id + 1}, ensure_ascii=True).encode("ascii") + b"\n"
        if len(line) > REQUEST_LIMIT:
            raise ValueError(f"a request of {len(line)} bytes: pass long lists in a file")
        self._last_id += 1
        now = time.monotonic()
        self._request = _Request(self._last_id, str(request.get("do", "")), on_event, now, now)
        self._discard_dead()
        try:
            if self._process is None:
                self._process = self._start()
            self._process.send(line)
        except OSError as error:
            if self._process is None:
                message, hint = explain_os_error(error, "the engine could not be started")
                self._ending = _error("user", message, hint)
            # Otherwise it died just now, and `poll` tells that with the log's last lines.
        return self._last_id

    def cancel(self, request_id: int) -> None:
        """Asks the worker to stop; within two seconds the request ends as "cancelled", if need be by force.

        An id that has ended already is ignored: its end and the user's click have crossed.
        """
        request = self._request
        if request is None or request.id != request_id or request.cancelled_at is not None:
            return
        request.cancelled_at = time.monotonic()
        self._last_id += 1
        self._say({"id": self._last_id, "do": "cancel", "target": request_id})

    def poll(self) -> None:
        """Delivers what has happened since the last call; call it a few times a second."""
        if self._ending is not None:
            self._finish(self._ending)
            return
        process = self._process
        if process is None:
            return
        exit_code = process.exit_code()  # before reading: what it wrote before its end is then all there
        try:
            lines = process.lines()
        except ValueError as error:
            self._garbage(str(error))
            return
        for line in lines:
            self._read(line)
            if self._process is not process:  # the line was garbage, or the callback has closed the engine
                return
        if exit_code is not None:
            self._died(process, exit_code)
        elif self._request is not None:
            self._check_time(self._request)

    def close(self) -> None:
        """Ends the worker and all that it has started; waits half a second for it to leave by itself."""
        if self._request is not None and self._ending is None:
            self._ending = _error("cancelled", "the engine was closed", "")
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            if self._request is None and process.exit_code() is None:
                process.send(b'{"id": %d, "do": "bye"}\n' % (self._last_id + 1))
                process.hang_up(0.5)
        except OSError:  # it has ended already
            pass
        finally:
            process.kill()

    def _start(self) -> ChildProcess:
        return ChildProcess(self.command, self.scratch, clean_environment(self.environment), "worker")

    def _say(self, request: Event) -> None:
        try:
            if self._process is not None:
                self._process.send(json.dumps(request).encode("ascii") + b"\n")
        except OSError:  # it died just now: `poll` finds that out
            pass

    def _discard_dead(self) -> None:
        """Drops a worker that ended while nothing was asked of it, or lost its folder to a clean-up of the system."""
        if self._process is not None and (self._process.exit_code() is not None or not self.scratch.is_dir()):
            self._end_process()

    def _read(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            event = json.loads(line)
        except ValueError:  # json's and the decoder's errors
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            self._garbage(line[:80].decode("utf-8", "replace"))
            return
        request = self._request
        # An error without an id is about a line that the worker could not read: ours, as there is no other.
        nameless = event["event"] == "error" and event.get("id") is None
        if request is None or not (nameless or event.get("id") == request.id):
            return  # the answer to a cancel or a bye, or a late word on a request that has ended
        request.heard_at = time.monotonic()
        ends = event["event"] in ("done", "error")
        if request.cancelled_at is not None:
            if ends:  # also a result that has crossed the cancel: the user no longer wants it
                self._finish(_cancelled())
        elif ends:
            self._finish(self._checked(request, event))
        else:
            request.on_event(event)

    def _checked(self, request: _Request, event: Event) -> Event:
        """The last event of a request, as it is handed on."""
        if event["event"] == "error":
            event = {**_error("internal", "the engine gave no reason", AGAIN), **event}
            if event["kind"] == "memory" and "memory" not in str(event["message"]).lower():
                event["message"] = f"not enough memory: {event['message']}"
            return {**event, "log_path": str(self.log_path)} if event["kind"] in ("internal", "memory") else event
        if request.do == "hello" and event.get("protocol") != PROTOCOL:
            self._end_process()
            return _error(
                "protocol",
                f"the engine speaks protocol {event.get('protocol')}, and this module speaks {PROTOCOL}: "
                "they are of different versions",
                self.repair,
            )
        return event

    def _garbage(self, text: str) -> None:
        tail = self._end_process()
        message = f"the engine wrote something that is no message: {text!r}"
        self._finish(self._last_words("protocol", message, AGAIN, tail))

    def _died(self, process: ChildProcess, exit_code: int) -> None:
        tail = self._end_process()
        request = self._request
        if request is None:
            return  # it ended while idle; the next request starts a new one
        if request.cancelled_at is not None:
            self._finish(_cancelled())
            return
        end = describe_exit(exit_code)
        last_words = tail[-1] if tail else ""
        said_memory = any(word in "\n".join(tail).lower() for word in MEMORY_WORDS)
        if exit_code in MEMORY_EXITS or said_memory:
            message = f"the engine was stopped, most likely for lack of memory ({end})"
            event = self._last_words("memory", message, LESS_MEMORY, tail)
        else:
            message = f"the engine ended unexpectedly ({end}){': ' if last_words else ''}{last_words}"
            hint = AGAIN
            if "No module named" in last_words or "ImportError" in last_words:
                hint = self.repair
            elif "exit abnormally" in last_words:  # Slicer's launcher hides the signal that ended its child
                hint = f"It may have lacked memory. {LESS_MEMORY}"
            event = self._last_words("died", message, hint, tail)
        self._finish(event)

    def _check_time(self, request: _Request) -> None:
        now = time.monotonic()
        pause, request.polled_at = now - request.polled_at, now
        if pause >= ASLEEP_S:
            request.heard_at = min(now, request.heard_at + pause)
        if request.cancelled_at is not None:
            if now - request.cancelled_at >= self.cancel_s:
                self._end_process()
                self._finish(_cancelled())
        elif now - request.heard_at >= self.hang_s:
            tail = self._end_process()
            message = f"the engine has said nothing for {self.hang_s:g} seconds and was stopped"
            self._finish(self._last_words("hung", message, self._after_silence(), tail))

    def _after_silence(self) -> str:
        """What to do: a worker's words go into a file, for which there may be no room."""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.scratch).free < ROOM:
                return f"The disk of {self.scratch} is full: make room and try again."
        return AGAIN

    def _end_process(self) -> list[str]:
        """Ends the process tree and returns the last lines of its log."""
        process, self._process = self._process, None
        if process is None:
            return []
        process.kill()
        return process.log_tail()

    def _last_words(self, kind: str, message: str, hint: str, tail: list[str]) -> Event:
        """The error of a worker that has ended. Its log gets the tail: a crash's words are in standard error alone."""
        if self.log is not None:
            with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8", errors="replace") as file:
                file.write("\n".join([f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}. Its last lines:", *tail, ""]))
        return {**_error(kind, message, hint), "log": tail, "log_path": str(self.log_path)}

    def _finish(self, event: Event) -> None:
        request, self._request, self._ending = self._request, None, None
        if request is not None:
            request.on_event({**event, "id": request.id})


def _error(kind: str, message: str, hint: str) -> Event:
    return {"event": "error", "kind": kind, "message": message, "hint": hint}


def _cancelled() -> Event:
    return _error("cancelled", "cancelled", "")


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for engine in list(_engines):
        engine.close()
