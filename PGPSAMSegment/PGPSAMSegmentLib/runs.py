"""Jobs of the user's, from the engine's events to the scene or a model folder, and to one end for whoever asked."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import scene, suggestions
from .engine import Event
from .enginefolder import try_lock
from .nodes import SceneError
from .undo import RunHistory

LOCK = ".pgpsam-lock"  # ends the name of the file beside a folder that is in use


class Run:
    """Hears a job's events and calls back; exactly one of `on_done` and `on_error` is the end.

    Args:
        folder: of the files exchanged with the engine; it is removed at the end.
        on_progress: gets each "progress" event.
        on_done: gets what `finish` returns, and the "done" event.
        on_error: gets an event {"kind", "message", "hint", ...}; kind is the engine's, or "scene".
    """

    def __init__(
        self,
        folder: Path,
        on_progress: Callable[[Event], None] | None,
        on_done: Callable[[Any, Event], None] | None,
        on_error: Callable[[Event], None] | None,
    ) -> None:
        self.folder = folder
        self._on_progress = on_progress or (lambda event: None)
        self._on_done = on_done or (lambda result, event: None)
        self._on_error = on_error or (lambda event: None)

    @property
    def lost(self) -> bool:
        """Whether what the job is about has gone, so that it may as well stop."""
        return False

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "progress":
            self._on_progress(event)
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
        self._on_done(result, event)

    def _fail(self, event: Event) -> None:
        self.undo()
        self._clear()
        self._on_error(event)

    def _clear(self) -> None:
        # On Windows a file that is still open stays until the folder above it is removed, at the end of the session.
        shutil.rmtree(self.folder, ignore_errors=True)


class VolumeRun(Run):
    """A job on a volume of the scene: without the volume it may as well stop.

    Args:
        volume: the input's node.
    """

    def __init__(
        self,
        volume: Any,
        folder: Path,
        on_progress: Callable[[Event], None] | None,
        on_done: Callable[[Any, Event], None] | None,
        on_error: Callable[[Event], None] | None,
    ) -> None:
        super().__init__(folder, on_progress, on_done, on_error)
        self.volume = volume

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


class SegmentRun(VolumeRun):
    """A segmentation: partial results while it runs, then segments, prompts, confidence and figures at once.

    Args:
        volume: the input's node.
        segmentation: the node to write to, or None for a new one.
        organs: names, or None for all of the model's.
        label_set: gives the model's organs as soon as the engine has told them, [] for an unknown model.
        overwrite: see `scene.show_result`.
        history: remembers the run for an undo.
    """

    def __init__(
        self,
        volume: Any,
        segmentation: Any,
        organs: Sequence[str] | None,
        label_set: Callable[[], Sequence[dict[str, Any]]],
        overwrite: bool,
        history: RunHistory,
        folder: Path,
        on_progress: Callable[[Event], None] | None,
        on_done: Callable[[Any, Event], None] | None,
        on_error: Callable[[Event], None] | None,
    ) -> None:
        super().__init__(volume, folder, on_progress, on_done, on_error)
        self.segmentation, self.organs = segmentation, organs
        self.label_set, self.overwrite, self.history = label_set, overwrite, history

    def partial(self) -> None:
        label_set = self.label_set()
        if self.lost or not label_set:
            return
        try:
            scene.show_partial(self.volume, self.folder / "labels.npy", label_set, self.organs)
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
        scene.discard_partial(self.volume)

    def _target(self) -> tuple[Any, str]:
        """The chosen segmentation; or None where it can no longer take the result, which is then not lost, and why."""
        try:
            scene.check_target(self.segmentation, self.volume)
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


class AdaptRun(Run):
    """A training: its result is a model folder. One that was finished when the cancel came is not cancelled any more.

    Args:
        out: the new model's folder, which was made for it and is empty.
    """

    def __init__(
        self,
        out: Path,
        folder: Path,
        on_progress: Callable[[Event], None] | None,
        on_done: Callable[[Any, Event], None] | None,
        on_error: Callable[[Event], None] | None,
    ) -> None:
        super().__init__(folder, on_progress, on_done, on_error)
        self._out = HeldFolder(out)

    def finish(self, event: Event) -> Any:
        self._out.let_go()
        return self._out.path.name

    def undo(self) -> None:
        self._out.remove()

    def _fail(self, event: Event) -> None:
        if event["kind"] == "cancelled" and _is_finished(self._out.path):
            path = self._out.path
            self._end({"event": "done", "folder": str(path), "model": path.name, "score": "", "scores": None})
        else:
            super()._fail(event)


class HeldFolder:
    """A folder in use, which `sweep` leaves alone until this process lets go of it or ends.

    Args:
        folder: it exists; the lock is a file beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._lock = folder.with_name(folder.name + LOCK).open("ab")
        if not try_lock(self._lock):  # the file system knows no locks, or a sweep has it: without it none touches us
            self.let_go()

    def let_go(self) -> None:
        """Leaves the folder to whoever wants it."""
        self._lock.close()
        with contextlib.suppress(OSError):
            Path(self._lock.name).unlink()

    def remove(self) -> None:
        """Lets go of the folder, which goes as well unless it is a finished model."""
        _remove_unfinished(self.path)
        self.let_go()


def sweep(parent: Path) -> None:
    """Removes the folders whose process has ended, most likely in a crash, before it let go; finished models stay."""
    for path in parent.glob(f"?*{LOCK}"):
        with contextlib.suppress(OSError):  # it is another user's
            with path.open("r+b") as lock:
                # Another one may have swept meanwhile, and have made a folder and a lock of the same name.
                free = try_lock(lock) and os.path.samestat(os.fstat(lock.fileno()), path.stat())
                if free:
                    _remove_unfinished(path.with_name(path.name.removesuffix(LOCK)))
            if free:
                path.unlink()


def _is_finished(folder: Path) -> bool:
    return (folder / "model.json").exists()  # a trained state without a model is of no use here


def _remove_unfinished(folder: Path) -> None:
    if not _is_finished(folder):
        shutil.rmtree(folder, ignore_errors=True)  # what is still open on Windows stays


def _error(kind: str, message: str, hint: str) -> Event:
    return {"event": "error", "kind": kind, "message": message, "hint": hint}
