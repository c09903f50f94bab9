"""A request under way, and what the worker does with a trained model: segment, and suggest slices to annotate.

A job reads its request's files, works, and returns its "done" event; how both travel is `worker`'s affair.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pgpsam import exchange
from pgpsam.errors import Cancelled, UserError
from pgpsam.hello import best_device, list_devices
from pgpsam.looks import LOOKS
from pgpsam.models.lookup import find_model
from pgpsam.models.spec import SPEC_FILE
from pgpsam.volume import Volume

if TYPE_CHECKING:  # torch takes seconds to import, and "hello" must not wait for all that stands on it
    from pgpsam.segmenter import Segmenter

PARTIAL_SECONDS = 1.0
SUGGESTIONS = 8

T = TypeVar("T")


class ProtocolError(Exception):
    """A request that is not one: a fault of the program that sent it, not of its user."""


@dataclass(frozen=True)
class Job:
    """A request under way.

    Attributes:
        id: the request's.
        do: its action.
        request: all that it said.
        tell: sends an event; the id is added.
        stop: set when the job was cancelled.
    """

    id: int
    do: str
    request: dict[str, Any]
    tell: Callable[[dict[str, Any]], None]
    stop: threading.Event = field(default_factory=threading.Event)

    def progress(self, stage: str, done: int, total: int, eta_seconds: float = 0.0, note: str = "") -> None:
        """Send a progress event; an `eta_s` of 0 with `done` below `total` is not known."""
        event = {"event": "progress", "stage": stage, "done": done, "total": total, "eta_s": round(eta_seconds, 1)}
        self.tell({**event, "note": note} if note else event)

    def check(self) -> None:
        """Stop here if the job was cancelled.

        Raises:
            Cancelled: it was.
        """
        if self.stop.is_set():
            raise Cancelled("cancelled")

    def need(self, name: str, kind: type[T]) -> T:
        """A field of the request.

        Raises:
            ProtocolError: it is missing or of another kind.
        """
        return checked(self.request, name, kind, self.do)

    def get(self, name: str, kind: type[T], default: T) -> T:
        """A field of the request that may be missing or null.

        Raises:
            ProtocolError: it is of another kind.
        """
        return default if self.request.get(name) is None else self.need(name, kind)


def checked(item: Any, name: str, kind: type[T], where: str) -> T:
    """`item[name]`, which must be of a kind.

    Raises:
        ProtocolError: it is missing or of another kind, or `item` is no object.
    """
    value = item.get(name) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ProtocolError(f"{where}: field '{name}' is {value!r:.60}, not of the kind {kind.__name__}")
    return value


class Warm:
    """The last model that was used, ready for the next request, and the device that 'auto' means.

    One only: two models would not fit beside each other on a small graphics card.
    """

    def __init__(self) -> None:
        self.key: tuple[Path, int, str] | None = None
        self.model: Segmenter | None = None
        self.auto = ""

    def device(self, name: str) -> str:
        """A device's name; 'auto' becomes the first one that works."""
        if name == "auto":
            self.auto = self.auto or best_device(list_devices()[0])
            return self.auto
        return name

    def segmenter(self, job: Job) -> Segmenter:
        """The request's model on its device, read again only if its folder changed.

        Raises:
            UserError: no such model or device, or a damaged model.
        """
        folder = find_model(job.need("model", str)).resolve()
        device = job.get("device", str, "auto")
        written = (folder / SPEC_FILE).stat().st_mtime_ns
        if self.model is None or self.key != (folder, written, self.auto if device == "auto" else device):
            job.progress("load", 0, 1)
            from pgpsam.device import choose_device
            from pgpsam.segmenter import Segmenter

            device = self.device(device)
            choose_device(device)  # a device that is not there must not cost the model that is
            self.clear()
            self.model = Segmenter.load(folder, device)
            self.key = (folder, written, device)
            job.progress("load", 1, 1)
            job.check()
        return self.model

    def clear(self) -> None:
        """Give the model's memory back."""
        self.key = self.model = None
        gc.collect()
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------- segment


def segment(job: Job, warm: Warm) -> dict[str, Any]:
    """ "segment": results in the folder "out", on the input's own grid."""
    folder = Path(job.need("out", str))
    job.need("volume", str)
    organs = None if job.request.get("organs") is None else job.need("organs", list)
    started = time.monotonic()
    segmenter = warm.segmenter(job)
    loaded = time.monotonic() - started
    with noted() as warnings:
        volume = read_volume(job)
    exchange.remove_results(folder)
    try:
        result = segmenter.segment(
            volume,
            organs,
            progress=lambda step: job.progress(step.stage, step.done, step.total, step.eta_seconds),
            cancelled=job.stop.is_set,
            partial=Partials(job, volume, folder) if job.get("partial", bool, True) else None,
            looks=job.get("looks", int, len(LOOKS)),
        )
        job.check()
        job.progress("write", 0, 1)
        started = time.monotonic()
        exchange.write_result(folder, volume, result)
    except BaseException:
        exchange.remove_results(folder)
        raise
    return {
        "labels": exchange.LABELS,
        "confidence": exchange.CONFIDENCE,
        "regions": exchange.REGIONS,
        "points": exchange.POINTS,
        "device": result.device,
        "model": result.model,
        "warnings": warnings,
        "label_set": exchange.organs_json(result.label_set),
        "organs": exchange.organs_measured(volume, result),
        "seconds": {"load": loaded, **result.seconds, "write": time.monotonic() - started},
    }


@contextmanager
def noted() -> Iterator[list[str]]:
    """The warnings that are logged meanwhile: who clicked does not read the log."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("pgpsam")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def read_volume(job: Job) -> Volume:
    """The request's volume, after saying so: a large one takes a moment to turn."""
    job.progress("prepare", 0, 1)
    name = job.get("name", str, "volume")
    return exchange.read_volume_array(job.need("volume", str), job.need("affine", list), name)


class Partials:
    """Writes the label volume so far, about once a second, and tells of it."""

    def __init__(self, job: Job, volume: Volume, folder: Path) -> None:
        self.job, self.volume, self.folder = job, volume, folder
        self.due = 0.0

    def __call__(self, labels: NDArray[np.uint8], done: int) -> None:
        if time.monotonic() < self.due:
            return
        exchange.write_files(self.folder, {exchange.LABELS: self.volume.restore(labels)})
        self.job.tell({"event": "partial", "done": done})
        self.due = time.monotonic() + PARTIAL_SECONDS


# ---------------------------------------------------------------------------------------------------- suggest


def suggest(job: Job, warm: Warm) -> dict[str, Any]:
    """ "suggest": the slices to annotate, the most useful first, counted along the input's axial axis."""
    count = job.get("count", int, SUGGESTIONS)
    if count < 1:
        raise UserError(f"{count} slices are none", "Ask for at least one.")
    segmenter = warm.segmenter(job)
    volume = read_volume(job)
    from pgpsam.training.suggest import suggest_slices

    started = time.monotonic()

    def step(done: int, total: int) -> None:
        job.progress("slices", done, total, (time.monotonic() - started) / done * (total - done))

    chosen = suggest_slices(segmenter, volume, count, step, job.stop.is_set)
    return {"slices": [volume.grid.axial_index(z) for z in chosen], "slices_axis": volume.grid.axial_axis}
