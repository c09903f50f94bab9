"""A picture of the panel with a finished result: the unmodified .ui, the real Logic, the real engine, a real CT.

    python Testing/slicer/panel_picture.py Resources/Screenshots/panel.png [--ct FILE] [--slices 88:104]

Slicer's own widgets, the node selectors and the sections' heads, are stand-ins that draw themselves plainly, and the
picture says so. It needs what the tests of the panel need: slicer-core and PySide6.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SAMPLE = Path(os.environ.get("PGPSAM_DATA") or ROOT.parent / "shared" / "data") / "samples" / "ts_abdomen_ct.nii.gz"
WIDTH = 560
PATIENCE_S = 900.0
NOTE = "Drawn outside Slicer: selectors, folder fields and section heads are stand-ins."

# As `host.py` has it: this folder's name must not be taken for a part of slicer-core.
sys.path[:0] = [str(HERE), str(ROOT / "PGPSAMSegment")]

from host import make_host  # noqa: E402, I001  it must be the first to import slicer

import qt_stand_ins  # noqa: E402
import slicer  # noqa: E402
from PySide6 import QtCore, QtGui, QtWidgets  # noqa: E402

from PGPSAMSegment import PGPSAMSegmentLogic, PGPSAMSegmentWidget  # noqa: E402
from PGPSAMSegmentLib import install  # noqa: E402
from PGPSAMSegmentLib.engine import Engine  # noqa: E402
from PGPSAMSegmentLib.grid import ijk_to_ras  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--ct", type=Path, default=SAMPLE, help="the volume to segment")
    parser.add_argument("--slices", default="88:104", help="first and last slice plus one, of [k, j, i]")
    parser.add_argument("--sections", default="", help="more sections to open: adaptSection,engineSection,logSection")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="PGPSAMSegment picture ") as temporary:
        os.environ["XDG_DATA_HOME"] = temporary  # no model of this machine's user is to be seen
        host = make_host(temporary=Path(temporary))
        window = qt_stand_ins.install_qt(host.app, Path(temporary) / "settings")
        command = install.own_worker_command(sys.executable)
        logic = PGPSAMSegmentLogic(lambda: Engine(command, Path(temporary) / "engine", hang_s=PATIENCE_S))
        widget = PGPSAMSegmentWidget(window.panel)
        widget.logic = logic
        widget.setup()
        try:
            add_volume(options.ct, slice(*map(int, options.slices.split(":"))))
            use(widget, [name for name in options.sections.split(",") if name])
            picture = drawn(window.panel)
        finally:
            widget.cleanup()
        options.out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(str(options.out))
        qt_stand_ins.remove_qt(window)
        host.close()
    print(f"{options.out}: {picture.width()} x {picture.height()}, {options.out.stat().st_size // 1000} kB")


def add_volume(path: Path, chosen: slice) -> Any:
    """Some slices of a CT, at their place."""
    whole = slicer.util.loadVolume(str(path))
    affine = ijk_to_ras(whole)
    affine[:3, 3] += chosen.start * affine[:3, 2]
    array = slicer.util.arrayFromVolume(whole)[chosen].copy()
    slicer.mrmlScene.RemoveNode(whole)
    return slicer.util.addVolumeFromArray(array, slicer.util.vtkMatrixFromArray(affine), "Abdomen CT")


def use(widget: Any, sections: list[str]) -> None:
    """What a user does: opens the module, segments, looks at the first place to check."""
    widget.enter()
    wait(widget)
    widget.ui.autoSegmentButton.click()
    wait(widget)
    if widget.parameters.outputSegmentation is None:
        raise SystemExit(widget.ui.logText.toPlainText())
    widget.ui.nextButton.click()
    for name in sections:
        getattr(widget.ui, name).collapsed = False


def wait(widget: Any) -> None:
    limit = time.monotonic() + PATIENCE_S
    while widget.timer.isActive():
        QtWidgets.QApplication.processEvents()
        if time.monotonic() > limit:
            raise SystemExit(f"no end after {PATIENCE_S} s\n{widget.ui.logText.toPlainText()}")
        time.sleep(0.02)


def drawn(panel: QtWidgets.QWidget) -> QtGui.QPixmap:
    """The panel in its natural height, with the note below."""
    note = QtWidgets.QLabel(f"<i>{NOTE}</i>")
    note.setStyleSheet("color: gray")
    note.setMargin(12)
    note.setWordWrap(True)
    panel.layout().addWidget(note)
    panel.setParent(None)
    panel.setFixedWidth(WIDTH)
    panel.show()
    for _ in range(3):  # a text that is broken into lines has its height only when its width is known
        QtWidgets.QApplication.processEvents()
        panel.resize(WIDTH, panel.layout().totalHeightForWidth(WIDTH))
    picture = panel.grab(QtCore.QRect(QtCore.QPoint(0, 0), panel.size()))
    panel.hide()
    return picture


if __name__ == "__main__":
    main()
