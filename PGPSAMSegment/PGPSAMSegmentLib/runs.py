"""Jobs of the user's, from the engine's events to the scene or a model folder, and to one end for whoever asked."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import output, preview, scene, suggestions
from .engine import Event
from .heldfolder import HeldFolder, is_finished
from .nodes import SceneError
from .undo import RunHistory


@dataclass(frozen=True)
class Callbacks:
    """What whoever started a job is told of it; exactly one of `done` and `error` is the end.

    Attributes:
        progress: gets each "progress" event.
        done: gets what `Run.finish` returns, and the "done" event.
        error: gets an event {"kind", "message", "hint", ...}; kind is the engine's, or "scene".
    """

    progress: Callable[[Event], None] | None
    done: Callable[[Any, Event], None] | None
    error: Callable[[Event], None] | None


@dataclass(eq=False)
class Run:
    """Hears a job's events and calls back.

    Attributes:
        folder: of the files exchanged with the engine; it is removed at the end.
    """

    folder: Path
    callbacks: Callbacks

    @property
    def lost(self) -> bool:
        """Whether what the job is about has gone, so that it may as well stop."""
        return False

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "progress" and self.callbacks.progress:
            self.callbacks.progress(event)
        elif kind == "partial":
            self.partial()
        elif kind == "error":
            self._fail(event)
        elif kind == "done":
            self._end(event)

    def partial(self) -> None:
        """Shows what is finished so far."""

    def finish(self, event: Event) -> Any:
        """Makes the result of a "done" event the user's.

        Raises:
            SceneError: it cannot be.
        """
        raise NotImplementedError

    def undo(self) -> None:
        """Takes back what an unfinished job has left."""

    def _end(self, event: Event) -> None:
        try:
            result = self.finish(event)
        except SceneError as error:
            self._fail(_error("scene", error.message, error.hint))
            return
        except Exception as error:  # a fault of ours: one line for the user, the rest for the application's log
            logging.exception("PGPSAMSegment: the result could not be used")
            hint = "This is a fault of the module: please report it with the application's log."
            self._fail(_error("internal", f"the result could not be used: {type(error).__name__}: {error}", hint))
            return
        self._clear()
        if self.callbacks.done:
            self.callbacks.done(result, event)

    def _fail(self, event: Event) -> None:
        self.undo()
        self._clear()
        if self.callbacks.error:
            self.callbacks.error(event)

    def _clear(self) -> None:
        # On Windows a file that is still open stays until the folder above it is removed, at the end of the session.
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(eq=False)
class VolumeRun(Run):
    """A job on a volume of the scene: without the volume it may as well stop.

    Attributes:
        volume: the input's node.
    """

    volume: Any

    @property
    def lost(self) -> bool:
        return self.volume.GetScene() is None

    def gone(self) -> tuple[str, str]:
        """(what is wrong, what to do) when the volume was removed."""
        raise NotImplementedError

    def _fail(self, event: Event) -> None:
        if self.lost and event["kind"] == "cancelled":
            event = _error("scene", *self.gone())
        super()._fail(event)


@dataclass(eq=False)
class SegmentRun(VolumeRun):
    """A segmentation: partial results while it runs, then segments, prompts, confidence and figures at once.

    Attributes:
        segmentation: the node to write to, or None for a new one.
        organs: names, or None for all of the model's.
        label_set: gives the model's organs as soon as the engine has told them, [] for an unknown model.
        overwrite: see `scene.show_result`.
        history: remembers the run for an undo.
    """

    segmentation: Any
    organs: Sequence[str] | None
    label_set: Callable[[], Sequence[dict[str, Any]]]
    overwrite: bool
    history: RunHistory

    def partial(self) -> None:
        label_set = self.label_set()
        if self.lost or not label_set:
            return
        try:
            preview.show_partial(self.volume, self.folder / "labels.npy", label_set, self.organs)
        except SceneError as error:  # the run goes on, and its end says what the matter is
            logging.warning("PGPSAMSegment: no preview: %s", error)
        except Exception:  # a fault of ours: the panel has to hear of the end all the same
            logging.exception("PGPSAMSegment: no preview")

    def finish(self, event: Event) -> Any:
        if self.lost:
            raise SceneError(*self.gone())
        scene.check_unchanged(self.volume, self.folder)
        target, why = self._target()
        node = scene.show_result(
            self.volume,
            event,
            target,
            self.organs,
            overwrite=self.overwrite,
            history=self.history,
            folder=self.folder,
        )
        if why:
            line = f"The result is in a new segmentation, '{node.GetName()}': {why}"
            event["warnings"] = [*event.get("warnings", []), line]
        return node

    def undo(self) -> None:
        preview.discard_partial(self.volume)

    def _target(self) -> tuple[Any, str]:
        """The chosen segmentation; or None where it can no longer take the result, which is then not lost, and why."""
        try:
            output.check_target(self.segmentation, self.volume)
        except SceneError as error:
            logging.warning("PGPSAMSegment: the result goes into a new segmentation: %s", error)
            return None, error.message
        return self.segmentation, ""

    def gone(self) -> tuple[str, str]:
        name = self.volume.GetName()
        return (
            f"the volume '{name}' was removed while it was segmented",
            "Its result was discarded; the scene is as it is",
        )


class SuggestRun(VolumeRun):
    """A look at all slices for those to annotate; its result are these `suggestions.Place`s."""

    def finish(self, event: Event) -> Any:
        if self.lost:
            raise SceneError(*self.gone())
        return suggestions.keep(self.volume, event)

    def gone(self) -> tuple[str, str]:
        name = self.volume.GetName()
        return f"the volume '{name}' was removed while its slices were compared", "Select another one, or load it again"


@dataclass(eq=False)
class AdaptRun(Run):
    """A training: its result is a model folder. One that was finished when the cancel came is not cancelled any more.

    Attributes:
        out: the new model's folder, which was made for it and is empty.
    """

    out: HeldFolder

    def finish(self, event: Event) -> Any:
        self.out.let_go()
        return self.out.path.name

    def undo(self) -> None:
        self.out.remove()

    def _fail(self, event: Event) -> None:
        if event["kind"] == "cancelled" and is_finished(self.out.path):
            path = self.out.path
            self._end({"event": "done", "folder": str(path), "model": path.name, "score": "", "scores": None})
        else:
            super()._fail(event)


def _error(kind: str, message: str, hint: str) -> Event:
    return {"event": "error", "kind": kind, "message": message, "hint": hint}
