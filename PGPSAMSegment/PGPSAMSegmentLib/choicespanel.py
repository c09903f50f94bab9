"""Model, organs and device: what the engine has, and what the user takes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from .panel import Panel, read, slot
from .settings import setting, store

DEVICE = "device"
AUTOMATIC = "auto"
LOOKS = "looks"


class ChoicesPanel(Panel):
    """Boxes that are filled from the engine's greeting.

    Which model and organs are chosen is the scene's (`Parameters`); the device and how often a slice is
    looked at are this machine's (settings).
    """

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        ui = self.ui
        self._filling = False
        self._listed: list[str] = []
        self._shown: Any = None  # the greeting that the boxes are filled from
        ui.modelText.setVisible(False)
        ui.model.currentIndexChanged.connect(self.onModel)
        ui.modelAboutButton.clicked.connect(self.onAbout)
        ui.organs.itemChanged.connect(self.onTick)
        ui.allOrgansButton.clicked.connect(self.onAll)
        ui.noOrgansButton.clicked.connect(self.onNone)
        ui.device.currentIndexChanged.connect(self.onDevice)
        ui.lookTwice.setChecked(setting(LOOKS, "2") == "2")
        ui.lookTwice.toggled.connect(self.onLooks)
        self.show_engine()

    # ----------------------------------------------------------------------------------------- what is chosen

    @property
    def model(self) -> dict[str, Any] | None:
        """The chosen model of the engine's list."""
        models = self.logic.models
        return next((model for model in models if model["name"] == self.parameters.model), None)

    @property
    def organs(self) -> list[str]:
        """Names of the ticked organs."""
        skipped = set(self.parameters.skippedOrgans)
        return [organ["name"] for organ in (self.model or {"organs": []})["organs"] if organ["name"] not in skipped]

    @property
    def device(self) -> str:
        if not self.logic.facts:  # the box lists the devices only after the greeting
            return setting(DEVICE, AUTOMATIC)
        return str(self.ui.device.itemData(read(self.ui.device, "currentIndex")) or AUTOMATIC)

    @property
    def looks(self) -> int:
        """How often every slice is looked at."""
        return 2 if self.ui.lookTwice.isChecked() else 1

    # ------------------------------------------------------------------------------------------ what is there

    def show_engine(self) -> None:
        """Fills the boxes anew, after a greeting or when the engine is gone."""
        self._filling = True
        self._shown = self.logic.facts
        try:
            self._fill_models()
            self._fill_devices()
        finally:
            self._filling = False
        if self.parameters is not None:
            if self.logic.models and self.model is None:
                first = self.logic.models[0]["name"]
                line = _("The model '{missing}' is not installed: '{first}' is chosen instead.")
                self.host.say(line.format(missing=self.parameters.model, first=first))
                self.parameters.model = first
            self.update()

    @property
    def stale(self) -> bool:
        """Whether the engine has told more since, before a job, say, or has gone."""
        return self._shown is not self.logic.facts

    def update(self) -> None:
        if self.stale:
            self.show_engine()  # comes back here
            return
        self._filling = True
        try:
            self.ui.model.setCurrentIndex(self.ui.model.findData(self.parameters.model))
            self._fill_organs()
        finally:
            self._filling = False
        self._describe_model()

    def _fill_models(self) -> None:
        self.ui.model.clear()
        for model in self.logic.models:
            self.ui.model.addItem(model["title"], model["name"])

    def _fill_devices(self) -> None:
        box, facts = self.ui.device, self.logic.facts
        box.clear()
        devices = facts.get("devices", [])
        best = next((each for each in devices if each["name"] == facts["default_device"]), None)
        automatic = _("Automatic ({device})").format(device=best["title"]) if best else _("Automatic")
        box.addItem(automatic, AUTOMATIC)
        for each in devices:
            if each["available"]:
                memory = _("{title}, {n} GB of memory").format(title=each["title"], n=f"{each['memory_gb']:.0f}")
                box.addItem(memory, each["name"])
        box.setCurrentIndex(max(0, box.findData(setting(DEVICE, AUTOMATIC))))
        note = ""
        if best and best["name"] != "cpu":
            note = _("GPU: {title}, {n} GB of memory.").format(title=best["title"], n=f"{best['memory_gb']:.1f}")
        elif best:
            note = _("No GPU is used. {why}").format(why=facts["device_note"])
        self.ui.deviceNote.setText(note)
        self.ui.deviceNote.setVisible(bool(note))

    def _fill_organs(self) -> None:
        import qt

        box, model = self.ui.organs, self.model
        organs = model["organs"] if model else []
        if self._listed != [organ["name"] for organ in organs]:
            box.clear()
            self._listed = [organ["name"] for organ in organs]
            for row, organ in enumerate(organs):
                box.addItem(organ["name"])
                item = box.item(row)
                swatch = qt.QPixmap(12, 12)
                swatch.fill(qt.QColor(*organ["color"]))
                item.setIcon(qt.QIcon(swatch))
        ticked = set(self.organs)
        for n, name in enumerate(self._listed):
            box.item(n).setCheckState(qt.Qt.Checked if name in ticked else qt.Qt.Unchecked)
        count = _("{n} of {total} organs").format(n=len(ticked), total=len(organs)) if organs else ""
        self.ui.organCount.setText(count)

    def _describe_model(self) -> None:
        model = self.model
        if model is None or not self.ui.modelAboutButton.isChecked():
            self.ui.modelText.setVisible(False)
            return
        score = model["score"] or _("not scored on cases that it was not trained on")
        parts = [
            f"**{model['title']}**",
            model["description"],
            _("Organs: {names}").format(names=", ".join(organ["name"] for organ in model["organs"])),
            _("Score: {score}").format(score=score),
            _("Method {method}, backbone {backbone}").format(method=model["method"], backbone=model["backbone"]),
            _("Folder: {folder}").format(folder=model["folder"]),
        ]
        if model["card"] and Path(model["card"]).is_file():
            parts += ["---", Path(model["card"]).read_text(encoding="utf-8", errors="replace")]
        self.ui.modelText.setMarkdown("\n\n".join(part for part in parts if part))
        self.ui.modelText.setVisible(True)

    # ------------------------------------------------------------------------------------------ the user's clicks

    @slot
    def onModel(self) -> None:
        name = self.ui.model.itemData(read(self.ui.model, "currentIndex"))
        if not self._filling and name:
            self.parameters.model = str(name)

    @slot
    def onAbout(self) -> None:
        self._describe_model()

    @slot
    def onTick(self) -> None:
        import qt

        if not self._filling:
            items = [self.ui.organs.item(n) for n in range(len(self._listed))]
            self._skip([item.text() for item in items if item.checkState() != qt.Qt.Checked])

    @slot
    def onAll(self) -> None:
        self._skip([])

    @slot
    def onNone(self) -> None:
        self._skip(self._listed)

    @slot
    def onDevice(self) -> None:
        if not self._filling:
            store(DEVICE, self.device)

    @slot
    def onLooks(self) -> None:
        store(LOOKS, str(self.looks))

    def _skip(self, organs: list[str]) -> None:
        """Takes the ticks off these organs of the model; what other models have besides stays as it is."""
        others = [name for name in self.parameters.skippedOrgans if name not in self._listed]
        self.parameters.skippedOrgans = [*others, *organs]
