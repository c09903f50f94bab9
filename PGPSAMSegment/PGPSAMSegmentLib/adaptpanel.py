"""Training on the user's own annotations: the cases, the new model's name, start and cancel."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from . import training
from .engine import Event
from .panel import JobView, Panel, progress, read, sentence, slot


class AdaptPanel(Panel):
    """Cases of `training` as a list, and the run that makes a model of them."""

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        ui = self.ui
        self.view = JobView(ui.adaptButton, ui.adaptBar, ui.adaptStatus)
        self._listed: list[training.Case] = []
        ui.addCaseButton.clicked.connect(self.onAdd)
        ui.removeCaseButton.clicked.connect(self.onRemove)
        ui.adaptButton.clicked.connect(self.onAdapt)

    @slot
    def update(self) -> None:
        parameters = self.parameters
        pair = parameters.trainingVolume is not None and parameters.trainingSegmentation is not None
        self.ui.addCaseButton.setEnabled(pair)
        self._fill()
        self.enable()

    def enable(self) -> None:
        """Whether the button can be pressed; another job or a missing engine forbids it."""
        ready = self.logic.ready and bool(self._listed) and bool(self.parameters.newModel.strip())
        self.ui.adaptButton.setEnabled(self.view.running or (ready and not self.logic.busy))

    def _fill(self) -> None:
        found = training.cases()
        if found == self._listed:
            return
        self._listed = found
        self.ui.cases.clear()
        for case in found:
            line = _("corrected slices of {segmentation}") if case.corrected else _("{segmentation} on {volume}")
            self.ui.cases.addItem(line.format(segmentation=case.segmentation.GetName(), volume=case.volume.GetName()))

    # ------------------------------------------------------------------------------------------ the user's clicks

    @slot
    def onAdd(self) -> None:
        training.add(self.parameters.trainingSegmentation, self.parameters.trainingVolume)
        self.update()

    @slot
    def onRemove(self) -> None:
        row = read(self.ui.cases, "currentRow")
        if 0 <= row < len(self._listed):
            training.remove(self._listed[row].segmentation)
            self.update()

    @slot
    def onAdapt(self) -> None:
        if self.view.running:
            self.logic.cancel()
            return
        name = self.parameters.newModel.strip()
        self.logic.adapt(
            name,
            self.parameters.model,
            steps=self.parameters.steps,
            device=self.host.device,
            onProgress=self._on_progress,
            onDone=self._on_done,
            onError=self._on_error,
        )
        self.view.begin(_("Starting"))
        self.host.say(_("Training '{name}' on {n} cases.").format(name=name, n=len(self._listed)))
        self.host.watch()

    def _on_progress(self, event: Event) -> None:
        self.view.show(*progress(event))

    def _on_done(self, model: str, event: Event) -> None:
        text = _("The model '{name}' is ready and chosen.").format(name=model)
        self.view.end(text)
        self.host.say(text)
        self.parameters.newModel = ""
        self.parameters.model = model
        self.host.greet()

    def _on_error(self, event: Event) -> None:
        cancelled = event["kind"] == "cancelled"
        self.view.end(_("Cancelled; no model was made.") if cancelled else sentence(event), error=not cancelled)
        self.host.log_error(event)
        self.host.refresh()
