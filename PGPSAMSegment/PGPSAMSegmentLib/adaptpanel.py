"""Training on the user's own annotations: slices worth drawing, the cases, the new model's name, start and cancel."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from . import suggestions, training
from .engine import Event
from .panel import JobPanel, JobView, progress, read, sentence, slot


class AdaptPanel(JobPanel):
    """Cases of `training` as a list, and the run that makes a model of them."""

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        ui = self.ui
        self.view = JobView(ui.adaptButton, ui.adaptBar, ui.adaptStatus)
        self.suggesting = JobView(ui.suggestButton, ui.suggestBar, ui.suggestStatus)
        self._listed: list[training.Case] = []
        self._suggested: list[suggestions.Place] = []
        self._filling = False
        ui.suggestions.currentRowChanged.connect(self.onSuggestion)
        ui.suggestButton.clicked.connect(self.onSuggest)
        ui.addCaseButton.clicked.connect(self.onAdd)
        ui.removeCaseButton.clicked.connect(self.onRemove)
        ui.adaptButton.clicked.connect(self.onAdapt)

    @slot
    def update(self) -> None:
        parameters = self.parameters
        pair = parameters.trainingVolume is not None and parameters.trainingSegmentation is not None
        self.ui.addCaseButton.setEnabled(pair)
        self._fill()
        self._fill_suggestions()
        self.enable()

    @property
    def volume(self) -> Any:
        """Where slices are to be drawn: this section's volume, else the one to be segmented."""
        return self.parameters.trainingVolume or self.parameters.inputVolume

    def enable(self) -> None:
        """Which buttons can be pressed; another job or a missing engine forbids them."""
        idle = self.logic.ready and not self.logic.busy
        named = bool(self._listed) and bool(self.parameters.newModel.strip())
        self.ui.adaptButton.setEnabled(self.view.running or (idle and named))
        self.ui.suggestButton.setEnabled(self.suggesting.running or (idle and self.volume is not None))

    def _fill(self) -> None:
        found = training.cases()
        if found == self._listed:
            return
        self._listed = found
        self.ui.cases.clear()
        for case in found:
            line = _("corrected slices of {segmentation}") if case.corrected else _("{segmentation} on {volume}")
            self.ui.cases.addItem(line.format(segmentation=case.segmentation.GetName(), volume=case.volume.GetName()))

    def _fill_suggestions(self) -> None:
        box, found = self.ui.suggestions, suggestions.of(self.volume)
        box.setVisible(bool(found))
        if found == self._suggested:
            return
        self._suggested = found
        self._filling = True
        try:
            box.clear()
            for place in found:
                box.addItem(_("slice {n}").format(n=place.slice + 1))
        finally:
            self._filling = False

    # ------------------------------------------------------------------------------------------ the user's clicks

    @slot
    def onSuggest(self) -> None:
        if self.suggesting.running:
            self.logic.cancel()
            return
        volume = self.volume
        self.logic.suggest(
            volume,
            model=self.parameters.model,
            device=self.host.device,
            onProgress=self._on_look,
            onDone=self._on_suggested,
            onError=self._on_no_suggestion,
        )
        self.suggesting.begin(_("Starting"))
        self.host.say(_("Looking for slices of '{volume}' to annotate.").format(volume=volume.GetName()))
        self.parameters.trainingVolume = volume
        self.host.watch()

    @slot
    def onSuggestion(self) -> None:
        row = read(self.ui.suggestions, "currentRow")
        if not self._filling and 0 <= row < len(self._suggested):
            suggestions.jump(self.volume, self._suggested[row])

    def _on_look(self, event: Event) -> None:
        compared = event["stage"] == "slices"
        self.suggesting.show(*progress({**event, "stage": "compare"} if compared else event))

    def _on_suggested(self, places: list[suggestions.Place], event: Event) -> None:
        line = _("Draw the organs completely in these {n} slices; a click shows one.").format(n=len(places))
        self.suggesting.end(line)
        found = ", ".join(str(place.slice + 1) for place in places)
        self.host.say(_("Slices to annotate, the most useful first: {slices}.").format(slices=found))
        self.host.refresh()

    def _on_no_suggestion(self, event: Event) -> None:
        cancelled = event["kind"] == "cancelled"
        self.suggesting.end(_("Cancelled.") if cancelled else sentence(event), error=not cancelled)
        self.host.log_error(event)
        self.host.refresh()

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
