"""`pgpsam worker`: one warm process that serves 3D Slicer with JSON lines on standard input and output.

Requests: hello, segment, finetune, suggest, cancel, bye. A thread reads them at all times, so that cancel works; the
jobs run one after the other in the main thread, and each ends in exactly one "done" or "error" event. Standard output
belongs to the protocol alone. When standard input ends, the parent has gone, and so does this process.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, BinaryIO

from pgpsam.errors import Cancelled, UserError, of_system, reason
from pgpsam.finetune_job import finetune
from pgpsam.hello import hello
from pgpsam.jobs import Job, ProtocolError, Warm, segment, suggest
from pgpsam.memory import give_back_freed_memory, is_memory_error, keep_freed_memory

JOBS: dict[str, Callable[[Job, Warm], dict[str, Any]]] = {
    "hello": lambda job, warm: hello(),
    "segment": segment,
    "finetune": finetune,
    "suggest": suggest,
}
GRACE_SECONDS = 5.0  # for the running job to notice that all is over
RETRY_SECONDS = 1.0
NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no EDQUOT
LOG_BYTES, LOG_FILES = 1 << 20, 3
_log = logging.getLogger(__name__)


class ParentGone(BaseException):
    """Nobody reads our answers any more; no job may catch this."""


class Answers:
    """Sends events, whole lines, from any thread.

    Slicer's end is a file, whose disk may be full: what finds no room waits, and what only tells how far a job is falls
    out meanwhile.

    Args:
        stream: unbuffered.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.lock = stream, threading.Lock()
        self.waiting = b""

    def send(self, event: dict[str, Any] | None) -> None:
        """What waits, then one event; None for no more.

        Raises:
            ParentGone: the other end of the pipe is closed.
            ValueError, TypeError: the event is not plain JSON.
        """
        with self.lock:
            if event and not (self.waiting and event.get("event") in ("progress", "partial")):
                self.waiting += json.dumps(event, allow_nan=False).encode("ascii") + b"\n"
            try:
                while self.waiting:
                    self.waiting = self.waiting[self.stream.write(self.waiting) :]
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise ParentGone from error


class Worker:
    """Reads requests, queues them, and does them one after the other.

    Args:
        requests: lines of JSON.
        answers: where events go.
    """

    def __init__(self, requests: BinaryIO, answers: Answers) -> None:
        self.requests, self.answers = requests, answers
        self.warm = Warm()
        self.queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.waiting: dict[int, Job] = {}
        self.running: Job | None = None
        self.farewell: dict[str, Any] | None = None

    def run(self) -> None:
        """Serve until "bye" or the end of the requests."""
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while job := self._next():
            with self.lock:
                if job.id not in self.waiting:  # cancelled, and answered, before its turn
                    continue
                self.running = self.waiting.pop(job.id)
            event = self._do(job)
            with self.lock:
                self.running = None  # first, so that who has read a job's end cannot find it running
            job.tell(event)
            give_back_freed_memory()  # the next job may come in hours, or never
        if self.farewell:
            self.answers.send(self.farewell)

    def _next(self) -> Job | None:
        """The next job; None at the end."""
        while True:
            try:
                return self.queue.get(timeout=RETRY_SECONDS)
            except queue.Empty:
                self.answers.send(None)

    def _do(self, job: Job) -> dict[str, Any]:
        """Work, and return the event that ends the job."""
        started = time.monotonic()
        _log.info("request %d, %s: begins", job.id, job.do)
        try:
            event = {"event": "done", **JOBS[job.do](job, self.warm)}
            json.dumps(event, allow_nan=False)  # here, where a fault can still be told
        except Exception as error:
            event = describe_error(error)
            _log.log(
                logging.ERROR if event["kind"] in ("internal", "memory") else logging.INFO,
                "request %d, %s: %s",
                job.id,
                job.do,
                event["message"],
                exc_info=None if event["kind"] in ("user", "cancelled") else error,
            )
            if event["kind"] == "memory":
                self.warm.clear()
        _log.info("request %d, %s: ended after %.1f s", job.id, job.do, time.monotonic() - started)
        return event

    # ------------------------------------------------------------------------------------ the reading thread

    def _read(self) -> None:
        try:
            for line in self.requests:
                self._receive(line)
                if self.farewell:
                    break
        except (OSError, ParentGone) as error:
            _log.error("the parent process cannot be reached: %r", error)
        finally:
            self._end()

    def _receive(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._refuse({}, f"a line is not JSON: {error}")
            return
        if not isinstance(request, dict):
            self._refuse({}, f"a request is {type(request).__name__}, not an object")
            return
        number, do = request.get("id"), request.get("do")
        if not isinstance(number, int) or isinstance(number, bool):
            self._refuse({}, f"a request's id is {number!r:.60}, not a whole number")
        elif do == "bye":
            self.farewell = {"id": number, "event": "done"}
        elif do == "cancel":
            found = self._cancel(request.get("target"))
            self.answers.send({"id": number, "event": "done", "found": found})
        elif not isinstance(do, str) or do not in JOBS:
            self._refuse({"id": number}, f"unknown request {do!r:.60}: known are {', '.join(JOBS)}, cancel, bye")
        elif number in self.waiting or (self.running and self.running.id == number):
            self._refuse({}, f"request id {number} is still in use")
        else:
            self._add(Job(number, do, request, lambda event: self.answers.send({"id": number, **event})))

    def _refuse(self, name: dict[str, int], message: str) -> None:
        _log.error("%s", message)
        self.answers.send({**name, **describe_error(ProtocolError(message))})

    def _add(self, job: Job) -> None:
        with self.lock:
            self.waiting[job.id] = job
        self.queue.put(job)

    def _cancel(self, target: Any) -> bool:
        """Stop a running job, or answer one that waits; False for any other."""
        with self.lock:
            if self.running and self.running.id == target:
                self.running.stop.set()
                return True
            job = self.waiting.pop(target, None) if isinstance(target, int) else None
        if job:
            job.tell(describe_error(Cancelled()))
        return job is not None

    def _end(self) -> None:
        """Cancel everything and see to it that the process ends."""
        with self.lock:
            left = [*([self.running.id] if self.running else []), *self.waiting]
        try:
            for number in left:
                self._cancel(number)
        except ParentGone:
            self.farewell = None
        self.queue.put(None)
        time.sleep(GRACE_SECONDS)
        _log.error("the running job did not stop within %.0f seconds: leaving at once", GRACE_SECONDS)
        os._exit(1)


def describe_error(error: Exception) -> dict[str, Any]:
    """The "error" event of an exception: its kind (user, memory, internal or cancelled), one clear line, a hint."""
    kind, message, hint = "internal", f"{type(error).__name__}: {error}", "The engine's log says more."
    if isinstance(error, Cancelled):
        kind, message, hint = "cancelled", "cancelled", ""
    elif isinstance(error, ProtocolError):
        message, hint = str(error), "The engine and its caller are of different versions."
    elif is_memory_error(error):
        kind, message = "memory", error.message if isinstance(error, UserError) else "not enough memory"
        hint = "Close other programs, or choose the CPU as the device."
    elif isinstance(error, UserError):
        kind, message, hint = "user", error.message, error.hint
    elif isinstance(error, ImportError):
        kind, message, hint = "user", f"the engine is incomplete: {error}", "Install the engine again."
    elif isinstance(error, OSError):
        refused = of_system(error)
        kind, message, hint = "user", refused.message, refused.hint
    return {"event": "error", "kind": kind, "message": " ".join(message.split()), "hint": hint}


# ---------------------------------------------------------------------------------------------------- process


def serve(log: str | None = None) -> None:
    """Be the worker process; returns when it is to end.

    Args:
        log: a file that the log also goes to, beside standard error.

    Raises:
        UserError: the log cannot be written.
    """
    start_log(log)
    keep_freed_memory()
    requests, answers = take_streams()
    _log.info("worker %d begins", os.getpid())
    try:
        Worker(requests, Answers(answers)).run()
    except ParentGone:
        _log.error("nobody reads the answers any more")
    _log.info("worker %d ends", os.getpid())


def start_log(path: str | None) -> None:
    """Log to standard error and to a file that starts anew when it is full.

    Raises:
        UserError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if path:
        try:
            Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
            handlers.append(RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write the log {path}: {reason(error)}", "Give another file.") from error
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=handlers, force=True
    )
    logging.captureWarnings(True)
    faulthandler.enable()


def take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the protocol alone.

    What anybody else prints, C libraries and child processes included, goes to standard error, and nobody else can
    read a request away. Reading is unbuffered: a buffer's lock held by the reading thread would abort Python's exit.
    """
    requests = open(os.dup(0), "rb", buffering=0)  # noqa: SIM115, open until the process ends
    answers = open(os.dup(1), "wb", buffering=0)  # noqa: SIM115
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, answers
