"""Segmentation and training without a panel: what the module's Logic can do, in Slicer, in scripts, in a browser."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from . import install, output, runs, scene, segments, suggestions, training
from .engine import OWN_REPAIR, REPAIR, Engine, Event
from .heldfolder import HeldFolder, sweep
from .nodes import SceneError
from .parameters import DEFAULT_MODEL, DEFAULT_STEPS
from .session import JobError, Session
from .undo import RunHistory

POLL_S = 0.1
SUGGESTIONS = 8


class SegmentLogic:
    """The engine's jobs on the scene; see `segmentAndWait` for scripts.

    Callbacks come only from `poll`, which whoever started a job calls about every 100 ms. A job ends in exactly one of
    onDone and onError; onError gets {"kind", "message", "hint", ...}, kind "cancelled" for a cancelled one.

    Args:
        engineFactory: makes the `Engine`; None for the one that is installed in `engineFolder`.
    """

    def __init__(self, engineFactory: Callable[[], Engine] | None = None) -> None:
        self.history = RunHistory()
        self.engineFolder = install.default_folder()
        self._madeFrom: Path | None = None  # the folder of the engine that was started last
        self._given = engineFactory
        self._session = Session(engineFactory or self._installed)
        self._run: runs.Run | None = None
        self._numbers = itertools.count(1)
        self._scratch: HeldFolder | None = None

    # ------------------------------------------------------------------------------------------------ the engine

    @property
    def facts(self) -> dict[str, Any]:
        """The engine's last greeting: version, devices, models; {} before the first one."""
        return self._session.hello

    @property
    def models(self) -> list[dict[str, Any]]:
        """{"name", "title", "organs", "score", "card", ...} each, [] before the first greeting."""
        return list(self.facts.get("models", []))

    @property
    def busy(self) -> bool:
        """Whether a segmentation or a training runs."""
        return self._session.working

    @property
    def waiting(self) -> bool:
        """Whether `poll` has anything to do."""
        return self._session.busy

    @property
    def ready(self) -> bool:
        return self.engineStatus().state == "ready"

    def engineStatus(self) -> install.Status:
        """What is installed; a given engine counts as ready."""
        return (
            install.status(self.engineFolder)
            if self._given is None
            else install.Status("ready", python=_("given"), own=True)
        )

    def hello(
        self,
        onDone: Callable[[Event], None] | None = None,
        onError: Callable[[Event], None] | None = None,
    ) -> None:
        """Starts the engine if need be and asks what it has.

        Raises:
            InstallError: it is not installed.
        """

        def heard(event: Event) -> None:
            call = onDone if event["event"] == "done" else onError
            if call:
                call(event)

        self._session.greet(heard)

    def useFolder(self, folder: Path) -> None:
        """Takes the engine in this folder from now on.

        The one that is warm ends only if there is one: a path that is typed letter by letter costs none.
        """
        self.engineFolder = folder
        if self.ready and self._madeFrom not in (None, folder):
            self.closeEngine()

    def closeEngine(self) -> None:
        """Ends the engine, for example before it is repaired; the next job starts it anew."""
        run, self._run = self._run, None
        self._session.close()
        if run is not None:
            run({"event": "error", "kind": "cancelled", "message": "cancelled", "hint": ""})

    def close(self) -> None:
        """Ends all that runs, without a callback, and removes the exchanged files."""
        run, self._run = self._run, None
        self._session.close()
        if run is not None:
            run.undo()
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None

    # -------------------------------------------------------------------------------------------------- the jobs

    def segment(
        self,
        volumeNode: Any,
        segmentationNode: Any = None,
        organs: Sequence[str] | None = None,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        overwrite: bool = False,
        looks: int = 2,
        onProgress: Callable[[Event], None] | None = None,
        onDone: Callable[[Any, Event], None] | None = None,
        onError: Callable[[Event], None] | None = None,
    ) -> None:
        """Starts a segmentation.

        Args:
            segmentationNode: where the segments go; None for a new one. Only segments of this module that nobody has
                edited, renamed or checked are replaced.
            organs: names; None for all that the model knows.
            model: its name, or its folder.
            device: "auto", "cpu", "cuda:0", ..., as `facts` lists them.
            overwrite: replace also segments of this module that were edited or checked, but of a sequence's other
                frames and of other volumes none.
            looks: how often every slice is looked at: 2 is more accurate, 1 takes 0.6 of the time.
            onProgress: gets {"stage", "done", "total", "eta_s"}.
            onDone: gets the segmentation's node and the engine's "done" event.

        Raises:
            SceneError, InstallError, EngineBusy: it cannot begin; nothing has changed.
        """
        self._session.check_ready()
        output.check_volume(volumeNode)
        output.check_target(segmentationNode, volumeNode)
        if organs is not None and not organs:
            raise SceneError(_("no organ is ticked"), _("Tick at least one"))
        folder = self._folder()
        request = {"do": "segment", "model": model, "device": device, "looks": looks}
        request |= {"out": str(folder), "partial": True}
        request |= {"organs": list(organs)} if organs is not None else {}
        request |= {"name": volumeNode.GetName(), **scene.export_volume(volumeNode, folder)}

        def label_set() -> list[dict[str, Any]]:
            return next((each["organs"] for each in self.models if model in (each["name"], each["folder"])), [])

        self._begin(
            request,
            runs.SegmentRun(
                folder,
                runs.Callbacks(onProgress, onDone, onError),
                volumeNode,
                segmentationNode,
                organs,
                label_set,
                overwrite,
                self.history,
            ),
        )

    def segmentAndWait(self, volumeNode: Any, segmentationNode: Any = None, **options: Any) -> Any:
        """For scripts: segments, and returns the segmentation's node; Slicer's window stands still meanwhile.

        Args:
            options: organs, model, device, overwrite, looks, onProgress: as for `segment`.

        Raises:
            JobError: it failed.
            SceneError, InstallError, EngineBusy: it could not begin.
        """
        end: list[Any] = []
        self.segment(
            volumeNode,
            segmentationNode,
            onDone=lambda node, event: end.append(node),
            onError=lambda event: end.append(JobError(event)),
            **options,
        )
        while not end:
            self.poll()
            time.sleep(POLL_S)
        if isinstance(end[0], JobError):
            raise end[0]
        return end[0]

    def adapt(
        self,
        name: str,
        model: str = DEFAULT_MODEL,
        cases: Sequence[training.Case] | None = None,
        steps: int = DEFAULT_STEPS,
        device: str = "auto",
        follow: bool = False,
        onProgress: Callable[[Event], None] | None = None,
        onDone: Callable[[str, Event], None] | None = None,
        onError: Callable[[Event], None] | None = None,
    ) -> None:
        """Starts a training on annotated cases; its result is a model of that name, which `hello` then lists.

        Args:
            name: of the new model.
            model: what to start from, of `models`; see `training.plan`.
            cases: None for those that are marked in the scene.
            steps: 0 for as many as serve: fewer where the model knows all organs.
            follow: keep nothing of the model that is not what the cases teach; otherwise, where it knows all organs,
                the new one is the mean of before and after.
            onDone: gets the new model's name and the "done" event.

        Raises:
            SceneError, InstallError, EngineBusy: it cannot begin, for one before the first `hello` is answered; nothing
                has changed.
        """
        self._session.check_ready()
        if not self.models:
            raise SceneError(_("the engine has not told yet which models it has"), _("Wait until it is ready"))
        known = next((each for each in self.models if each["name"] == model), None)
        if known is None:
            raise SceneError(_("there is no model '{name}' to start from").format(name=model), _("Select another one"))
        chosen = training.cases() if cases is None else cases
        segments.check_names(organ for case in chosen for organ in case.organs)
        folder = self._folder()
        sweep(training.models_folder())
        out = training.make_folder(name, self.models)
        request: dict[str, Any] = {"do": "finetune", "name": name, "out": str(out), "device": device}
        if steps:
            request["iterations"] = steps
        if follow:
            request["settings"] = {"start_share": 0.0}
        run = runs.AdaptRun(folder, runs.Callbacks(onProgress, onDone, onError), HeldFolder(out))
        try:
            self._begin(request | training.request(chosen, folder, known), run)
        except BaseException:
            run.undo()
            raise

    def suggest(
        self,
        volumeNode: Any,
        count: int = SUGGESTIONS,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        onProgress: Callable[[Event], None] | None = None,
        onDone: Callable[[list[suggestions.Place], Event], None] | None = None,
        onError: Callable[[Event], None] | None = None,
    ) -> None:
        """Starts looking for the slices to annotate: few that together look like all the others; no labels needed.

        Args:
            count: how many; a volume of few slices gives fewer.
            model: whose encoder looks at the slices.
            onDone: gets the places, the most useful first, which the volume now keeps, and the "done" event.

        Raises:
            SceneError, InstallError, EngineBusy: it cannot begin; nothing has changed.
        """
        self._session.check_ready()
        output.check_volume(volumeNode)
        folder = self._folder()
        request = {"do": "suggest", "model": model, "device": device, "count": count, "name": volumeNode.GetName()}
        request |= scene.export_volume(volumeNode, folder)
        self._begin(request, runs.SuggestRun(folder, runs.Callbacks(onProgress, onDone, onError), volumeNode))

    def cancel(self) -> None:
        """Stops the job that runs; its onError comes within two seconds."""
        self._session.cancel()

    def poll(self) -> None:
        """Delivers what has happened."""
        if self._run is not None and self._run.lost:
            self.cancel()
        self._session.poll()

    def undo(self) -> Any:
        """Takes back the last run; returns the segmentation, or None if the run had made it.

        Raises:
            SceneError: there is none, or its segments were edited since.
        """
        return self.history.undo()

    def _begin(self, request: dict[str, Any], run: runs.Run) -> None:
        def heard(event: Event) -> None:
            if event["event"] in ("done", "error"):
                self._run = None
            run(event)

        self._session.ask(request, heard)
        self._run = run

    def _installed(self) -> Engine:
        status = self.engineStatus()
        log = install.worker_log(self.engineFolder) if status.state == "ready" else None  # no file without an engine
        command = install.worker_command(self.engineFolder, log)
        repair = OWN_REPAIR if status.own else REPAIR
        self._madeFrom = self.engineFolder
        return Engine(command, self._temporary() / "engine", slicer.util.startupEnvironment(), log=log, repair=repair)

    def _temporary(self) -> Path:
        if self._scratch is None:
            parent = Path(slicer.app.temporaryPath)
            for folder in (parent, training.models_folder()):
                sweep(folder)
            self._scratch = HeldFolder(Path(tempfile.mkdtemp(prefix="PGPSAMSegment-", dir=parent)))
        self._scratch.path.mkdir(0o700, parents=True, exist_ok=True)  # the system may have cleaned up meanwhile
        return self._scratch.path

    def _folder(self) -> Path:
        """For one job's files."""
        return self._temporary() / f"job-{next(self._numbers)}"
