"""Automatic organ segmentation with prototype-guided prompts: the module as 3D Slicer loads it.

The work is done by the engine, in a process of its own; what is here and in PGPSAMSegmentLib runs in Slicer's Python
and needs nothing but Slicer. Nothing is installed, downloaded or started before the user asks for it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from PGPSAMSegmentLib import install, nodes, overlay, suggestions
from PGPSAMSegmentLib.adaptpanel import AdaptPanel
from PGPSAMSegmentLib.choicespanel import ChoicesPanel
from PGPSAMSegmentLib.engine import Engine, Event
from PGPSAMSegmentLib.enginepanel import EnginePanel
from PGPSAMSegmentLib.logic import SegmentLogic
from PGPSAMSegmentLib.panel import problem, read, sentence, slot
from PGPSAMSegmentLib.parameters import parameters_of
from PGPSAMSegmentLib.resultpanel import ResultPanel
from PGPSAMSegmentLib.reviewpanel import ReviewPanel
from PGPSAMSegmentLib.segmentpanel import SegmentPanel

SAMPLE_SHA256 = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"
SAMPLE_URL = f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{SAMPLE_SHA256}"
POLL_MS = 100
KEYS = "PGPSAMSegmentKey"  # the name of each shortcut


class PGPSAMSegment(ScriptedLoadableModule):
    """The module's description."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("PGPSAM Segment")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["PGPSAMSegment contributors"]
        parent.helpText = _(
            "Segments organs in abdominal CT on this computer. Select a volume, tick organs, press Auto-segment. The "
            "model finds its own prompts, shows where it looked and how sure it is, and lists the slices to check "
            "first; corrected slices can train a model of your own. The first use installs an engine (section Engine) "
            "into a folder of its own; Slicer's packages stay as they are. For research, not for clinical use."
        )
        parent.acknowledgementText = _(
            "The methods follow PG-SAM (Prior-Guided SAM with Medical for multi-organ segmentation, arXiv:2503.18227), "
            "the default, and PGP-SAM (Prototype-Guided Prompt learning for efficient few-shot medical image "
            "segmentation, ISBI 2025, arXiv:2501.06692), on the Segment Anything Model and LiteMedSAM."
        )
        slicer.app.connect("startupCompleted()", register_sample_data)


def register_sample_data() -> None:
    """Offers an abdominal CT in the module Sample Data: Medical Segmentation Decathlon, liver_100, CC BY-SA 4.0."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="PGPSAMSegment",
        sampleName="PGPSAMSegmentCT",
        uris=SAMPLE_URL,
        fileNames="CTLiver.nrrd",
        nodeNames="CTLiver",
        checksums=f"SHA256:{SAMPLE_SHA256}",
    )


class PGPSAMSegmentLogic(ScriptedLoadableModuleLogic, SegmentLogic):
    """Segmentation and training without a panel: `segment`, `adapt`, `poll`, `cancel`; `segmentAndWait` for scripts.

    Args:
        engineFactory: makes the `Engine`; None for the one that is installed in `engineFolder`.
    """

    def __init__(self, engineFactory: Callable[[], Engine] | None = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        SegmentLogic.__init__(self, engineFactory)

    def getParameterNode(self) -> Any:
        """The scene's `Parameters`."""
        return parameters_of(super().getParameterNode())


class PGPSAMSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel. Its parts are in PGPSAMSegmentLib; here are the log and what holds the parts together."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None  # made in `setup`, unless somebody has put one here
        self.parameters: Any = None
        self._guiTag: Any = None
        self._updating = False
        self._shortcuts: list[Any] = []
        self._window: Any = None  # whose the shortcuts are
        self._leaving: list[Any] = []  # nodes that follow the segmentation that is just being removed
        self._told: set[str] = set()  # of the engine's words, those in the log
        self._greeting = False  # whether the line below the button says that the engine starts

    # ------------------------------------------------------------------------------------- Slicer's own occasions

    def setup(self) -> None:
        import qt

        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/PGPSAMSegment.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = self.logic or PGPSAMSegmentLogic()
        self.timer = qt.QTimer()
        self.timer.setInterval(POLL_MS)
        self.timer.timeout.connect(self.onTimer)
        self.choices, self.result, self.review = ChoicesPanel(self), ResultPanel(self), ReviewPanel(self)
        self.training, self.engine, self.segmenting = AdaptPanel(self), EnginePanel(self), SegmentPanel(self)
        self.ui.copyLogButton.clicked.connect(self.onCopyLog)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneLeaves)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneLeaves)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneChanged)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneChanged)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndBatchProcessEvent, self.takeVolume)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.onNodeRemoved)
        self.addShortcuts()
        self.connectParameters()

    def enter(self) -> None:
        """The module was opened: looks what is installed, and greets the engine to list models and devices.

        Each time anew: a model's folder may have been copied there meanwhile.
        """
        self.connectParameters()
        self.takeKeys()
        self.result.enter()
        self.refresh()
        if self.logic.ready and not self.logic.waiting:
            self.greet(quietly=bool(self.logic.facts))

    def exit(self) -> None:
        """Another module was opened. What runs goes on, and the shortcuts of the review go on to work."""

    def cleanup(self) -> None:
        """Slicer ends, or the module is loaded anew: nothing of ours runs on."""
        self.timer.stop()
        self.engine.close()
        self.logic.close()
        self.disconnectParameters()
        self.removeObservers()
        self.giveKeys()

    def onReload(self) -> None:
        """Developer mode: the parts of the panel are loaded anew as well."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "PGPSAMSegmentLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneLeaves(self, caller: Any = None, event: Any = None) -> None:
        """The scene is closed, or another one is loaded into it, which brings its own choices.

        Slicer's wrapper keeps what it has read: one that lives through a loading would go on without the nodes that
        come after the parameter node. What runs goes on: a training needs nothing of the scene, and a segmentation ends
        with its volume.
        """
        self.disconnectParameters()

    def onSceneChanged(self, caller: Any = None, event: Any = None) -> None:
        self.connectParameters()
        self.parameters.overwrite = False  # it was meant for a run in the session that saved the scene

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller: Any, event: Any, node: Any) -> None:
        if node.IsA("vtkMRMLScalarVolumeNode"):
            self.takeVolume()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller: Any, event: Any, node: Any) -> None:
        if slicer.mrmlScene.IsClosing():
            return
        if node.IsA("vtkMRMLSegmentationNode"):
            self._leaving += overlay.withdraw(node)
        elif node.IsA("vtkMRMLScalarVolumeNode"):
            self._leaving += suggestions.withdraw(node)
            if nodes.is_confidence(node):
                overlay.take_off(node)

    def onNodeRemoved(self, caller: Any = None, event: Any = None) -> None:
        leaving, self._leaving = self._leaving, []
        nodes.remove(leaving)

    def connectParameters(self) -> None:
        """Binds the widgets to the scene's parameter node."""
        node = self.logic.getParameterNode()
        if self.parameters is not None and self.parameters.parameterNode is node.parameterNode:
            self.takeVolume()
            self.choices.show_engine()  # a scene that was loaded may name a model that is not here
            self.update()
            return
        self.disconnectParameters()
        self.parameters = node
        # Not `connectGui`, which returns no tag: what it has bound can never be unbound (Slicer 5.10).
        named = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
        self._guiTag = node.connectParametersToGui({name: widget for name, widget in named.items() if name})
        self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.update)
        self.takeVolume()
        self.choices.show_engine()
        self.update()

    def takeVolume(self, caller: Any = None, event: Any = None) -> None:
        """Selects an image where no input is: one that is loaded while the panel is open, for example.

        A scene that is being loaded brings its own choice.
        """
        if self.parameters is None or self.parameters.inputVolume is not None or slicer.mrmlScene.IsBatchProcessing():
            return
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")  # label maps among them
        images = [each for each in volumes if each.GetClassName() == "vtkMRMLScalarVolumeNode"]
        self.parameters.inputVolume = next((each for each in images if not nodes.is_confidence(each)), None)

    def disconnectParameters(self) -> None:
        if self.parameters is not None:
            self.parameters.disconnectGui(self._guiTag)
            self.removeObserver(self.parameters, vtk.vtkCommand.ModifiedEvent, self.update)
            self.parameters = None

    def addShortcuts(self) -> None:
        """In every window: the review goes on while the user corrects in the Segment Editor, on a second screen, too.

        Slicer's own keys are to be spared, such as Ctrl+Shift and an arrow, which turn a sequence's frames.
        """
        import qt

        self._window = slicer.util.mainWindow() or self.parent
        for keys, call in (
            ("Ctrl+Shift+G", self.segmenting.onAutoSegment),
            ("Ctrl+Shift+N", self.review.onNext),
            ("Ctrl+Shift+P", self.review.onPrevious),
            ("Ctrl+Shift+K", self.review.onChecked),
        ):
            shortcut = qt.QShortcut(qt.QKeySequence(keys), self._window)
            shortcut.setObjectName(KEYS)
            shortcut.setContext(qt.Qt.ApplicationShortcut)
            shortcut.activated.connect(call)
            self._shortcuts.append(shortcut)
        self.takeKeys()

    def takeKeys(self) -> None:
        """Of several widgets of this module, the one that was made or opened last has the keys: Qt gives a key that
        two have to neither.
        """
        for shortcut in self._keys():
            shortcut.setEnabled(False)
        for shortcut in self._shortcuts:
            shortcut.setEnabled(True)

    def giveKeys(self) -> None:
        """This widget is closed: if it has the keys, the one that was made last of those that are left gets them."""
        shortcuts, self._shortcuts = self._shortcuts, []
        had = any(shortcut.property("enabled") for shortcut in shortcuts)
        for shortcut in shortcuts:
            shortcut.setObjectName("")  # it is the window's until Qt deletes it
            shortcut.setEnabled(False)
            shortcut.deleteLater()
        for shortcut in self._keys()[-len(shortcuts) :] if had else []:
            shortcut.setEnabled(True)

    def _keys(self) -> list[Any]:
        """The shortcuts of all widgets of this module, in the order in which they were made."""
        return [child for child in self._window.children() if read(child, "objectName") == KEYS]

    # ----------------------------------------------------------------------------------------- what the parts use

    @property
    def device(self) -> str:
        return self.choices.device

    def say(self, line: str) -> None:
        """A line for the log."""
        self.ui.logText.appendPlainText(f"{time.strftime('%H:%M:%S')}  {line}")

    def say_once(self, line: str) -> None:
        """What the engine tells at each greeting."""
        if line not in self._told:
            self._told.add(line)
            self.say(line)

    def report(self, event: Event) -> None:
        """An error that the user can mend, below the button and in the log."""
        self.segmenting.report(event)

    def log_error(self, event: Event) -> None:
        """An error event for the log, with the last lines of the engine's own one."""
        self.say(sentence(event))
        for line in event.get("log") or []:
            self.say(f"    {line}")
        if event.get("log_path"):
            self.say(_("The whole log: {path}").format(path=event["log_path"]))

    def watch(self) -> None:
        """Polls from now on, as long as anything runs."""
        self.timer.start()
        self.refresh()

    def greet(self, quietly: bool = False) -> None:
        """Asks the engine for its models and devices.

        Args:
            quietly: the line below the button stays: it says how a job ended.
        """
        try:
            self.logic.hello(self._on_hello, self._on_no_hello)
        except install.InstallError as error:
            self.report(problem(error))
            return
        if not quietly and not self.segmenting.view.running:
            self.segmenting.view.tell(_("Starting the engine"))
            self._greeting = True
        self.watch()

    def refresh(self) -> None:
        """After anything began or ended."""
        self.engine.refresh()
        self.update()

    def show_training(self) -> None:
        """Opens the section that a button elsewhere has filled."""
        self.ui.adaptSection.collapsed = False
        self.training.update()

    def update(self, caller: Any = None, event: Any = None) -> None:
        """Shows what the parameter node and the engine say."""
        if self._updating or self.parameters is None or slicer.mrmlScene.IsImporting():
            return
        self._updating = True
        try:
            for part in (self.choices, self.result, self.review, self.training, self.segmenting):
                part.update()
        finally:
            self._updating = False

    # ------------------------------------------------------------------------------------------- the user's clicks

    @slot
    def onCopyLog(self) -> None:
        self.ui.logText.selectAll()
        self.ui.logText.copy()

    @slot
    def onTimer(self) -> None:
        self.logic.poll()
        self.engine.poll()
        if self.choices.stale:
            self.refresh()
        if not (self.logic.waiting or self.engine.busy):
            self.timer.stop()
            self.refresh()

    def _on_hello(self, event: Event) -> None:
        device = event["default_device"]
        self.say_once(_("Engine {version} is ready, device {device}.").format(version=event["version"], device=device))
        if self._greeting and not self.segmenting.view.running:
            self.segmenting.view.tell("")
        self._greeting = False
        self.refresh()
        self.segmenting.greeted()

    def _on_no_hello(self, event: Event) -> None:
        self._greeting = False
        if not self.segmenting.view.running:  # a job that waited for the greeting tells it itself
            self.report(event)
        self.refresh()
        self.segmenting.greeted()


class PGPSAMSegmentTest(ScriptedLoadableModuleTest):
    """The self-test in Slicer (Developer mode: Reload and Test): an abdominal CT, the installed engine, a result."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        self.setUp()
        self.test_panel()
        self.setUp()
        self.test_segmentation()

    def test_panel(self) -> None:
        """Real qMRML widgets: a volume that is loaded is selected, and the choice lives in the parameter node."""
        import numpy as np

        widget = slicer.util.getModuleWidget("PGPSAMSegment")
        volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.int16), name="zeros")
        widget.ui.inputVolume.setCurrentNode(volume)
        assert widget.parameters.inputVolume is volume
        widget.parameters.confidenceOverlay = True
        assert widget.ui.confidenceOverlay.isChecked()
        widget.parameters.confidenceOverlay = False

    def test_segmentation(self) -> None:
        """Every part of a result is in the scene and lies on the volume's grid."""
        logic = PGPSAMSegmentLogic()
        logic.engineFolder = slicer.util.getModuleWidget("PGPSAMSegment").logic.engineFolder
        if not logic.ready:
            message = _("The engine is not installed: install it in the section Engine, then test again.")
            logging.warning(message)
            self.delayDisplay(message)
            return
        import SampleData

        self.delayDisplay(_("Segmenting an abdominal CT; this takes a minute or two"))
        volume = SampleData.downloadSample("PGPSAMSegmentCT")
        try:
            node = logic.segmentAndWait(volume, organs=["liver", "spleen"])
        finally:
            logic.close()
        segmentation = node.GetSegmentation()
        names = [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())]
        assert "liver" in names, names
        liver = slicer.util.arrayFromSegmentBinaryLabelmap(
            node, segmentation.GetSegmentIdBySegmentName("liver"), volume
        )
        assert liver.shape == slicer.util.arrayFromVolume(volume).shape
        litres = liver.sum() * float(volume.GetSpacing()[0] * volume.GetSpacing()[1] * volume.GetSpacing()[2]) / 1e6
        assert 0.5 < litres < 4, f"a liver of {litres:.2f} litres"
        for role in nodes.COMPANIONS:
            assert nodes.companion(node, role) is not None, role
        self.delayDisplay(_("Test passed"))
