"""For tests of the engine: what a request's caller hears, and whether processes have really ended."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Ear:
    """Keeps a request's events and waits for its end by polling, as a timer does in Slicer."""

    def __init__(self, engine):
        self.engine = engine
        self.events = []

    def __call__(self, event):
        self.events.append(event)

    def names(self):
        return [event["event"] for event in self.events]

    def ask(self, do, patience_s=60.0, **request):
        self.engine.submit({"do": do, **request}, self)
        return self.end(patience_s)

    def end(self, patience_s=60.0):
        limit = time.monotonic() + patience_s
        while self.engine.busy:
            self.engine.poll()
            assert time.monotonic() < limit, f"no end after {patience_s} s; so far: {self.events}"
            time.sleep(0.02)
        return self.events[-1]


def is_alive(pid):
    """Whether a process runs (one that has ended and was not asked after yet does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_end(pid, patience_s=20.0):
    limit = time.monotonic() + patience_s
    while is_alive(pid):
        assert time.monotonic() < limit, f"process {pid} still runs"
        time.sleep(0.05)
