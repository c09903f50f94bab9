"""Auto-segment: the button that becomes Cancel, progress, the end, and undo."""

from __future__ import annotations

import time
from typing import Any

from slicer.i18n import tr as _

from . import output
from .engine import Event
from .grid import frame_of
from .nodes import VOLUME
from .panel import JobPanel, JobView, duration, progress, sentence, slot


class SegmentPanel(JobPanel):
    """Starts, cancels and takes back segmentations."""

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        self.view = JobView(self.ui.autoSegmentButton, self.ui.progressBar, self.ui.statusLabel)
        self._began = 0.0
        self._target: Any = None  # the output when the run began
        self._waits = False  # a click that came before the engine had told its organs
        self.ui.autoSegmentButton.clicked.connect(self.onAutoSegment)
        self.ui.undoButton.clicked.connect(self.onUndo)

    @slot
    def update(self) -> None:
        obstacle = "" if self.view.running else self.obstacle()
        self.ui.autoSegmentButton.setEnabled(not obstacle)
        hint = obstacle or self._engine_hint()
        self.ui.hintLabel.setText(hint)
        self.ui.hintLabel.setVisible(bool(hint))
        self.ui.undoButton.setEnabled(self.logic.history.can_undo and not self.logic.busy)

    def _engine_hint(self) -> str:
        status = self.logic.engineStatus()
        texts = {
            "missing": _("The engine is not installed: Auto-segment offers to do it."),
            "broken": _("The engine cannot be used: {why}."),
            "ready": "",
        }
        return texts[status.state].format(why=status.why)

    def obstacle(self) -> str:
        """What is missing for Auto-segment, "" if nothing is; the engine can be installed by it."""
        if self.logic.busy or self.host.engine.busy:
            return _("Wait for the job that runs to end, or cancel it.")
        if not self.logic.ready:
            return ""
        if self.parameters.inputVolume is None:
            return _("Load a CT and select it as the input volume.")
        if self.logic.models and not self.host.choices.organs:
            return _("Tick at least one organ.")
        return ""

    @slot
    def onAutoSegment(self) -> None:
        if self.view.running:
            self.logic.cancel()
            self.view.tell(_("Cancelling"))
            return
        obstacle = self.obstacle()
        if obstacle:  # by the shortcut: the button cannot be pressed now
            self.view.tell(obstacle, error=True)
            return
        if not self.logic.ready:
            self.host.engine.offer()
            return
        if self.parameters.skippedOrgans and not self.logic.models:  # which are ticked, only the greeting tells
            self._waits = True
            self.host.greet()
            return
        parameters, organs = self.parameters, self.host.choices.organs
        self.logic.segment(
            parameters.inputVolume,
            self._output(),
            organs=organs if self.logic.models else None,
            model=parameters.model,
            device=self.host.device,
            overwrite=parameters.overwrite,
            looks=self.host.choices.looks,
            onProgress=self._on_progress,
            onDone=self._on_done,
            onError=self._on_error,
        )
        self._began, self._target = time.monotonic(), parameters.outputSegmentation
        self.host.result.expect()
        self.view.begin(_("Starting"))
        line = _("Segmenting '{volume}' with '{model}' on '{device}'.")
        volume = parameters.inputVolume.GetName()
        self.host.say(line.format(volume=volume, model=parameters.model, device=self.host.device))
        self.host.watch()

    def _output(self) -> Any:
        volume, chosen = self.parameters.inputVolume, self.parameters.outputSegmentation
        return output.output_of(volume) if chosen is None and frame_of(volume) else output.output_at(volume, chosen)

    def greeted(self) -> None:
        """The engine has told what it has, or has failed to: a click that waited for it is done now."""
        for why in self.logic.facts.get("left_out", []):
            self.host.say_once(_("A model is left out. {why}").format(why=why))
        waited, self._waits = self._waits, False
        if waited and self.logic.models:
            self.onAutoSegment()

    @slot
    def onUndo(self) -> None:
        parameters, undone = self.parameters, self.logic.history.last
        name, volume = undone.GetName(), undone.GetNodeReference(VOLUME)
        selected = undone is parameters.outputSegmentation
        left = self.logic.undo()
        if selected or (left is not None and volume is parameters.inputVolume):
            parameters.outputSegmentation = left
        text = _("The last run was undone: '{name}'.").format(name=name)
        self.view.tell(text)
        self.host.say(text)
        self.host.refresh()

    def _on_progress(self, event: Event) -> None:
        self.view.show(*progress(event))

    def _on_done(self, node: Any, event: Event) -> None:
        found = [organ["name"] for organ in event["organs"] if organ["volume_ml"]]
        text = _("{found} of {total} organs found in {time} on {device}.")
        seconds = duration(time.monotonic() - self._began)
        text = text.format(found=len(found), total=len(event["organs"]), time=seconds, device=event["device"])
        volume = node.GetNodeReference(VOLUME)
        if volume is not self.parameters.inputVolume:  # the user has gone on to another one
            text = f"'{volume.GetName()}': {text}"
        kept = ", ".join(f"'{name}'" for _id, name in output.kept(node, found))
        if kept:
            text += " " + _("Left as it was, with the new result beside it: {names}.").format(names=kept)
        text = " ".join([text, *(f"{line}." for line in event.get("warnings", []))])
        self.parameters.overwrite = False
        if not self.host.result.show_fresh(node, self._target):
            line = _("The result is in '{name}'; your choice of another output stays.")
            text += " " + line.format(name=node.GetName())
        self.view.end(text)
        self.host.say(text)
        self.host.refresh()

    def _on_error(self, event: Event) -> None:
        cancelled = event["kind"] == "cancelled"
        self.view.end(_("Cancelled; the scene is as before.") if cancelled else sentence(event), error=not cancelled)
        if self.parameters is not None:  # the scene is just being closed
            self.parameters.overwrite = False
        self.host.log_error(event)
        self.host.refresh()
        if event["kind"] == "user":
            self.host.greet(quietly=True)  # the model may have been removed: the list is read anew
