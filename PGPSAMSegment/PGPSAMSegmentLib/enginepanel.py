"""The engine's own section: what is installed, install, repair, remove, another Python, wheels for offline use."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from . import install
from .engine import OWN_REPAIR, Engine, Event
from .panel import JobPanel, JobView, problem, read, sentence, slot
from .settings import setting, store

FOLDER, WHEELS = "engineFolder", "wheelsFolder"
TRIAL_S = 60.0  # a Python that has said nothing for so long will not do


class EnginePanel(JobPanel):
    """Installs the engine and keeps an eye on it. Nothing begins before a button is pressed and confirmed."""

    def __init__(self, host: Any) -> None:
        import ctk

        super().__init__(host)
        ui = self.ui
        self.view = JobView(ui.installButton, ui.installBar, ui.installStatus)
        self.installation: install.Installation | None = None
        self._tried: tuple[Engine, str] | None = None  # a Python of the user's that is asked whether it will do
        for widget, path in (
            (ui.engineFolder, setting(FOLDER, str(install.default_folder()))),
            (ui.wheelsFolder, setting(WHEELS)),
        ):
            widget.filters = ctk.ctkPathLineEdit.Dirs
            widget.setCurrentPath(path)
        self.logic.engineFolder = self.folder
        ui.engineFolder.currentPathChanged.connect(self.onFolder)
        ui.wheelsFolder.currentPathChanged.connect(self.onWheels)
        ui.installButton.clicked.connect(self.onInstall)
        ui.repairButton.clicked.connect(self.onRepair)
        ui.removeButton.clicked.connect(self.onRemove)
        ui.ownPythonButton.clicked.connect(self.onOwnPython)
        self.refresh()

    @property
    def folder(self) -> Path:
        return Path(read(self.ui.engineFolder, "currentPath") or install.default_folder())

    @property
    def wheels(self) -> Path | None:
        text = str(read(self.ui.wheelsFolder, "currentPath") or "").strip()
        return Path(text) if text else None

    @property
    def busy(self) -> bool:
        return self.installation is not None or self._tried is not None

    def poll(self) -> None:
        """Delivers news of an installation or of a Python that is tried."""
        if self.installation is not None:
            self.installation.poll()
        if self._tried is not None:
            self._tried[0].poll()

    def close(self) -> None:
        """Ends what runs here."""
        if self.installation is not None:
            self.installation.cancel()
            self.installation = None
        if self._tried is not None:
            self._tried[0].close()
            self._tried = None

    def refresh(self) -> None:
        """Says what is there."""
        status, ui = self.logic.engineStatus(), self.ui
        texts = {"missing": _("Not installed."), "broken": _("Not usable: {why}."), "ready": _("Ready: {what}.")}
        parts = [_("Python {version}").format(version=status.python_version)] if status.python_version else []
        if status.packages.get("torch"):
            parts.append(f"torch {status.packages['torch']}")
        if status.size_gb:
            parts.append(_("{n} GB").format(n=f"{status.size_gb:.1f}"))
        ui.engineStatus.setText(texts[status.state].format(why=status.why, what=", ".join(parts) or status.python))
        free = not self.busy and not self.logic.busy
        ui.installButton.setEnabled(self.view.running or (free and status.state != "ready"))
        ui.repairButton.setEnabled(free and status.state != "missing" and not status.own)
        ui.removeButton.setEnabled(free and status.state != "missing")
        for widget in (ui.ownPythonButton, ui.engineFolder, ui.wheelsFolder):
            widget.setEnabled(free)

    # ------------------------------------------------------------------------------------------ the user's clicks

    @slot
    def onFolder(self) -> None:
        store(FOLDER, str(self.folder))
        self.logic.useFolder(self.folder)
        self.host.refresh()
        if self.logic.ready:
            self.host.greet(quietly=bool(self.logic.facts))

    @slot
    def onWheels(self) -> None:
        store(WHEELS, str(self.wheels or ""))

    def offer(self) -> None:
        """Asks whether to install the engine, which something needs, in sight of its section."""
        self.ui.engineSection.collapsed = False
        self.onInstall()

    @slot
    def onInstall(self) -> None:
        if self.installation is not None:
            self.installation.cancel()
        elif self._tried is not None:
            self.close()
            self.view.end(_("Cancelled."))
            self.host.refresh()
        else:
            self._begin()

    @slot
    def onRepair(self) -> None:
        self._begin()

    @slot
    def onRemove(self) -> None:
        text = _("Delete the engine in {folder}? Models and scenes stay.").format(folder=self.folder)
        if slicer.util.confirmOkCancelDisplay(text, _("Remove the engine")):
            self.logic.closeEngine()
            install.remove(self.folder)
            self.host.say(_("The engine was removed."))
            self.host.refresh()

    @slot
    def onOwnPython(self) -> None:
        import qt

        title = _("Choose a Python that has pgpsam's packages")
        python = str(qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", ""))
        if not python:
            return
        scratch = Path(slicer.app.temporaryPath) / "PGPSAMSegment-trial"
        environment = slicer.util.startupEnvironment()
        command = install.own_worker_command(python)
        engine = Engine(command, scratch, environment, hang_s=TRIAL_S, repair=OWN_REPAIR)
        self._tried = (engine, python)
        engine.submit({"do": "hello"}, self._on_tried)
        self.view.begin(_("Trying {python}").format(python=python))
        self.host.watch()

    # ------------------------------------------------------------------------------------------------- their ends

    def _begin(self) -> None:
        environment = slicer.util.startupEnvironment()
        options: dict[str, Any] = {"slicers_packages": Path(sysconfig.get_path("purelib")), "environment": environment}
        if self.wheels:
            options["wheels"] = self.wheels
        plan = install.make_plan(self.folder, **options)
        for line in plan.describe():
            self.host.say(line)
        if plan.problems:
            raise install.InstallError(*plan.problems[0])
        text = _("Install the engine?") + "\n\n" + "\n".join(plan.describe())
        if not slicer.util.confirmOkCancelDisplay(text, _("Install the engine")):
            return
        self.logic.closeEngine()
        self.installation = install.Installation(plan, self._on_install, environment)
        self.view.begin(_("Starting"))
        self.host.refresh()
        self.host.watch()

    def _on_install(self, event: Event) -> None:
        if event["event"] == "progress":
            stages = {
                "clean": _("Making room"),
                "download": _("Downloading {package}"),
                "install": _("Installing"),
                "check": _("Checking"),
            }
            self.view.show(stages[event["stage"]].format(package=event["package"]), event["fraction"])
            return
        self.installation = None
        self._end(event, _("The engine is installed."))

    def _on_tried(self, event: Event) -> None:
        if event["event"] not in ("done", "error") or self._tried is None:
            return
        (engine, python), self._tried = self._tried, None
        engine.close()
        if event["event"] == "done":
            self.logic.closeEngine()
            try:
                install.use_python(python, event, self.folder)
            except (install.InstallError, OSError) as error:
                event = problem(error)
        self._end(event, _("{python} runs the engine.").format(python=python))

    def _end(self, event: Mapping[str, Any], done: str) -> None:
        if event["event"] == "done":
            self.view.end(done)
            self.host.say(done)
            self.host.refresh()
            self.host.greet()
            return
        self.view.end(sentence(event), error=event["kind"] != "cancelled")
        self.host.log_error(event)
        self.host.refresh()
