"""A panel on a test bench: real Logic, real MRML, a stand-in worker, PySide6, and what a user does with all that."""

from __future__ import annotations

import time
from pathlib import Path

import slicer
from PySide6 import QtCore, QtTest, QtWidgets

from PGPSAMSegment import PGPSAMSegmentWidget

WORKER = Path(__file__).resolve().parent / "standin_model_worker.py"
CHECKED, UNCHECKED = QtCore.Qt.CheckState.Checked, QtCore.Qt.CheckState.Unchecked
PATIENCE_S = 120.0


class Bench:
    """A panel in a main window, and its user.

    Args:
        host: see `host.make_host`.
        window: a StandInMainWindow.
        models: the folder of the worker's models.
        logic: the panel's; None for its own, whose engine is not installed.
    """

    def __init__(self, host, window, models, logic):
        self.host, self.window, self.models = host, window, models
        self.widget = PGPSAMSegmentWidget(window.panel)
        self.widget.logic = logic
        self.widget.setup()
        self.ui, self.logic = self.widget.ui, self.widget.logic

    @property
    def parameters(self):
        return self.widget.parameters

    @property
    def status(self):
        return self.ui.statusLabel.text()

    @property
    def log(self):
        return self.ui.logText.toPlainText()

    @property
    def pid(self):
        return self.logic.facts["pid"]

    def wait(self, until, what="the end"):
        """Turns Qt's event loop, as the application does, until something is so."""
        limit = time.monotonic() + PATIENCE_S
        while not until():
            QtWidgets.QApplication.processEvents()
            assert time.monotonic() < limit, f"waited for {what}; the log says:\n{self.log}"
            time.sleep(0.02)

    def wait_idle(self):
        self.wait(lambda: not self.widget.timer.isActive(), "the timer to stop")

    def open(self):
        """The user opens the module, and the engine answers."""
        self.widget.enter()
        self.wait_idle()
        return self

    def segment(self):
        """A press of the button, until the result is there."""
        self.ui.autoSegmentButton.click()
        self.wait_idle()
        return self.parameters.outputSegmentation

    def organ_items(self):
        return [self.ui.organs.item(n) for n in range(self.ui.organs.count())]

    def table(self):
        model = self.ui.resultsTable.model()
        return [
            [model.index(row, column).data() for column in range(model.columnCount())]
            for row in range(model.rowCount())
        ]


def segmentations():
    """Names of the scene's segmentations."""
    return [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]


def press(bench, key):
    modifiers = QtCore.Qt.KeyboardModifier.ControlModifier | QtCore.Qt.KeyboardModifier.ShiftModifier
    bench.window.show()
    bench.window.activateWindow()
    assert QtTest.QTest.qWaitForWindowActive(bench.window)
    QtTest.QTest.keyClick(bench.window, key, modifiers)
