"""One engine and its jobs: greeted before its first job, given one after the other, each with exactly one end.

Knows requests and events; what they mean to the scene is the affair of `runs`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .engine import Engine, EngineBusy, Event


class JobError(Exception):
    """A job's "error" event as an exception, for scripts that wait for its end.

    Args:
        event: {"kind", "message", "hint", ...}, see `engine.Engine`.
    """

    def __init__(self, event: Mapping[str, Any]) -> None:
        self.kind, self.message, self.hint = str(event["kind"]), str(event["message"]), str(event.get("hint") or "")
        super().__init__(f"{self.message}. {self.hint}" if self.hint else self.message)


@dataclass
class _Job:
    request: Mapping[str, Any]
    on_event: Callable[[Event], None]

    @property
    def greets(self) -> bool:
        return self.request["do"] == "hello"


class Session:
    """The engine of one user.

    Args:
        engine_factory: makes an `Engine`, which is not started before the first job. May raise InstallError.

    Attributes:
        hello: the engine's answer to the last greeting, {} before; see the worker's "hello".
    """

    def __init__(self, engine_factory: Callable[[], Engine]) -> None:
        self._factory = engine_factory
        self._engine: Engine | None = None
        self._jobs: deque[_Job] = deque()  # the first one runs
        self._running_id: int | None = None
        self._refusal: Event | None = None  # why the first job could not be given to the engine; `poll` delivers it
        self.hello: dict[str, Any] = {}

    @property
    def engine(self) -> Engine:
        """The engine; made at the first use.

        Raises:
            InstallError: it is not installed.
        """
        if self._engine is None:
            self._engine = self._factory()
        return self._engine

    @property
    def busy(self) -> bool:
        """Whether anything is to be polled."""
        return bool(self._jobs)

    @property
    def working(self) -> bool:
        """Whether a job of the user's runs or waits: not a mere greeting."""
        return any(not job.greets for job in self._jobs)

    def check_ready(self) -> None:
        """Says why no job can begin now.

        Raises:
            EngineBusy: one runs.
            InstallError: there is no engine.
        """
        running = next((job.request["do"] for job in self._jobs if not job.greets), None)
        if running is not None:
            raise EngineBusy(f"the engine is busy with '{running}': wait for it or cancel it")
        self.engine  # noqa: B018  makes it, which may fail

    def greet(self, on_event: Callable[[Event], None]) -> None:
        """Asks what the engine has: devices, models. The end is one "done" or "error" event.

        Raises:
            InstallError: there is no engine.
        """
        self._add(_Job({"do": "hello"}, on_event))

    def ask(self, request: Mapping[str, Any], on_event: Callable[[Event], None]) -> None:
        """Gives the engine a job; before its first one it is greeted, which checks that it fits this module.

        Raises:
            EngineBusy: another job runs; nothing was sent.
            InstallError: there is no engine.
        """
        self.check_ready()
        if not self.hello and not self._jobs:
            self.greet(lambda event: None)  # its error also ends the job, which waits behind it
        self._add(_Job(request, on_event))

    def cancel(self) -> None:
        """Stops the job of the user's, if there is one; its end comes from `poll`, within two seconds."""
        if self.working and self._running_id is not None:
            self.engine.cancel(self._running_id)

    def poll(self) -> None:
        """Delivers events; call it a few times a second while `busy`."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self._hear(refusal)
        elif self._engine is not None:
            self._engine.poll()

    def close(self) -> None:
        """Ends the engine at once; the next job starts a new one, and is greeted anew. Jobs end without an event."""
        self._jobs.clear()
        self._running_id = None
        self._refusal = None
        self.hello = {}
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _add(self, job: _Job) -> None:
        engine = self.engine  # may raise, before anything has changed
        self._jobs.append(job)
        if not engine.busy:
            self._next()

    def _next(self) -> None:
        if self._jobs and not self.engine.busy:
            try:
                self._running_id = self.engine.submit(self._jobs[0].request, self._hear)
            except ValueError:  # the request is too long
                message = "there are more cases, or slices in them, than one job can take"
                hint = "Take fewer cases at a time."
                self._refusal = {"event": "error", "kind": "user", "message": message, "hint": hint}

    def _hear(self, event: Event) -> None:
        job = self._jobs[0]
        if event["event"] not in ("done", "error"):
            job.on_event(event)
            return
        self._running_id = None
        self._jobs.popleft()
        ended = [job]
        if job.greets and event["event"] == "done":
            self.hello = event
        elif job.greets:  # without a greeting nothing else works
            ended += self._jobs
            self._jobs.clear()
        try:
            for each in ended:
                each.on_event(event)
        finally:
            self._next()
