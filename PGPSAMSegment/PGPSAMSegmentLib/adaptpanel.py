"""Training on the user's own annotations: slices worth drawing, the cases, the new model's name, start and cancel."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from . import segments, suggestions, training
from .engine import Event
from .panel import JobPanel, JobView, progress, read, sentence, slot


class AdaptPanel(JobPanel):
    """Cases of `training` as a list, and the run that makes a model of them."""

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        ui = self.ui
        self.view = JobView(ui.adaptButton, ui.adaptBar, ui.adaptStatus)
        self.suggesting = JobView(ui.suggestButton, ui.suggestBar, ui.suggestStatus)
        self._marked: list[training.Case] = []  # as in the list
        self._listed: list[training.Case] = []  # of these, those to learn from
        self._lines: list[str] = []
        self._planned: Any = None  # what the line is about, see `_about`
        self._suggested: list[suggestions.Place] = []
        self._filling = False
        self._purpose = read(ui.adaptButton, "toolTip")
        ui.suggestions.currentRowChanged.connect(self.onSuggestion)
        ui.suggestions.itemPressed.connect(self.onSuggestion)  # the current row, again
        ui.suggestButton.clicked.connect(self.onSuggest)
        ui.addCaseButton.clicked.connect(self.onAdd)
        ui.removeCaseButton.clicked.connect(self.onRemove)
        ui.cases.currentRowChanged.connect(self.enable)
        ui.newModel.textChanged.connect(self.onName)
        ui.adaptButton.clicked.connect(self.onAdapt)
        host.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.update)  # it may have been a case

    @slot
    def update(self) -> None:
        parameters = self.parameters
        if parameters is None:  # the scene is being closed
            return
        pair = parameters.trainingVolume is not None and parameters.trainingSegmentation is not None
        self.ui.addCaseButton.setEnabled(pair)
        if read(self.ui.newModel, "text") != parameters.newModel:
            self.ui.newModel.setText(parameters.newModel)
        self._fill()
        self._fill_suggestions()
        self.enable()
        self._tell_plan()

    @property
    def volume(self) -> Any:
        """Where slices are to be drawn: this section's volume, else the one to be segmented."""
        return self.parameters.trainingVolume or self.parameters.inputVolume

    @slot
    def enable(self) -> None:
        """Which buttons can be pressed; another job or a missing engine forbids them."""
        idle = self.logic.ready and not self.logic.busy
        obstacle = "" if self.view.running else self.obstacle()
        self.ui.adaptButton.setEnabled(not obstacle)
        self.ui.adaptButton.setToolTip(obstacle or self._purpose)
        self.ui.removeCaseButton.setEnabled(read(self.ui.cases, "currentRow") >= 0)
        self.ui.suggestButton.setEnabled(self.suggesting.running or (idle and self.volume is not None))

    def obstacle(self) -> str:
        """What is missing for a training, "" if nothing is."""
        if self.logic.busy:
            return _("Wait for the job that runs to end, or cancel it.")
        if not self.logic.ready:
            return _("Install the engine first.")
        if self.host.choices.model is None:
            return _("Wait until the engine has told its models.")
        if not self._listed:
            return _("Add a case first.")
        return "" if self.parameters.newModel.strip() else _("Give the new model a name.")

    def _plan(self) -> str:
        """What the training would make of the chosen model, in words.

        Raises:
            SceneError: as `training.plan`.
        """
        model = self.host.choices.model
        plan = training.plan(self._listed, model)
        text = _("It goes on from '{model}'").format(model=model["name"])
        if plan.new:
            text += "; " + _("new to it: {organs}").format(organs=", ".join(plan.new))
        if plan.erased:
            line = _("removed, and so taught as absent: {organs}")
            text += "; " + line.format(organs=", ".join(plan.erased))
        if plan.lost:
            text += ". " + _("The new model will find only: {organs}").format(organs=", ".join(plan.ids))
        return f"{text}."

    def _about(self) -> Any:
        every = [case.segmentation.GetSegmentation() for case in self._listed]
        names = [[each.GetSegment(segment_id).GetName() for segment_id in segments.ids(each)] for each in every]
        return self._listed, names, self.parameters.model

    def _tell_plan(self) -> None:
        """Says below the button what would be trained, whenever the cases, their organs or the model have changed."""
        about = self._about()
        if self.view.running or about == self._planned or self.host.choices.model is None:
            return
        self._planned = about
        self.view.tell(self._plan() if self._listed else "")

    def _fill(self) -> None:
        self._marked, self._listed = training.marked(), training.cases()
        lines = [self._line(case) for case in self._marked]
        if lines == self._lines:
            return
        self._lines = lines
        self.ui.cases.clear()
        for line in lines:
            self.ui.cases.addItem(line)

    def _line(self, case: training.Case) -> str:
        name = case.segmentation.GetName()
        if case.volume is None:
            return str(_("{segmentation}: its volume was removed, so it is left out").format(segmentation=name))
        line = _("corrected slices of {segmentation}") if case.corrected else _("{segmentation} on {volume}")
        return str(line.format(segmentation=name, volume=case.volume.GetName()))

    def _fill_suggestions(self) -> None:
        box, found = self.ui.suggestions, suggestions.of(self.volume)
        box.setVisible(bool(found))
        if found == self._suggested:
            return
        self._suggested = found
        if not self.suggesting.running:
            self.suggesting.tell(self._instruction())
        self._filling = True
        try:
            box.clear()
            for place in found:
                box.addItem(_("slice {n}").format(n=place.slice + 1))
        finally:
            self._filling = False

    def _instruction(self) -> str:
        line = _("Draw the organs completely in these {n} slices; a click shows one.")
        return line.format(n=len(self._suggested)) if self._suggested else ""

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
        self._fill_suggestions()
        self.suggesting.end(self._instruction())  # none where another volume is chosen meanwhile
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
        if 0 <= row < len(self._marked):
            training.remove(self._marked[row].segmentation)
            self.update()

    @slot
    def onName(self) -> None:
        """Not left to Slicer's wrapper: it writes back each letter that is typed, and the cursor goes to the end."""
        if self.parameters is not None:
            self.parameters.newModel = str(read(self.ui.newModel, "text"))

    @slot
    def onAdapt(self) -> None:
        if self.view.running:
            self.logic.cancel()
            return
        name, cases = self.parameters.newModel.strip(), len(self._listed)
        self.logic.adapt(
            name,
            self.parameters.model,
            steps=self.parameters.steps,
            follow=self.parameters.followCases,
            device=self.host.device,
            onProgress=self._on_progress,
            onDone=self._on_done,
            onError=self._on_error,
        )
        self.view.begin(_("Starting"))
        line = _("Training '{name}' on 1 case.") if cases == 1 else _("Training '{name}' on {n} cases.")
        self.host.say(f"{line.format(name=name, n=cases)} {self._plan()}")
        self.host.watch()

    def _on_progress(self, event: Event) -> None:
        self.view.show(*progress(event))

    def _on_done(self, model: str, event: Event) -> None:
        text = _("The model '{name}' is ready and chosen.").format(name=model)
        if self.parameters.newModel.strip() == model:  # the next one's may have been typed meanwhile
            self.parameters.newModel = ""
        self.parameters.followCases = False  # it was meant for these cases
        self.parameters.model = model
        self._end(text)
        self.host.say(text)
        self.host.greet()

    def _on_error(self, event: Event) -> None:
        cancelled = event["kind"] == "cancelled"
        self._end(_("Cancelled; no model was made.") if cancelled else sentence(event), error=not cancelled)
        self.host.log_error(event)
        self.host.refresh()

    def _end(self, text: str, error: bool = False) -> None:
        self.view.end(text, error)
        self._planned = self._about()  # so that this line stays
