"""The panel as written down: the .ui file, how the code reads widgets, what the module says of itself."""

from __future__ import annotations

import ast
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import slicer
from made_results import add_volume
from panel_bench import segmentations

import PGPSAMSegment as module
from pgpsam.training.recipes import ONWARDS, ONWARDS_NEW
from PGPSAMSegment import SAMPLE_SHA256, PGPSAMSegment
from PGPSAMSegmentLib.parameters import DEFAULT_STEPS

MODULE = Path(__file__).resolve().parents[2] / "PGPSAMSegment"
UI = MODULE / "Resources" / "UI" / "PGPSAMSegment.ui"


# ------------------------------------------------------------------------------------------------------- the .ui file


def ui_widgets():
    return list(ElementTree.parse(UI).getroot().iter("widget"))


def properties(widget):
    return {each.get("name"): "".join(each.itertext()).strip() for each in widget.findall("property")}


def test_every_control_has_a_help_text():
    silent = {"QLabel", "QProgressBar", "ctkCollapsibleButton", "qMRMLWidget"}
    controls = [widget for widget in ui_widgets() if widget.get("class") not in silent]
    assert len(controls) > 30
    assert [w.get("name") for w in controls if not properties(w).get("toolTip")] == []


def test_labels_lead_to_their_fields_and_no_mnemonic_is_used_twice_in_a_section():
    names_ = {widget.get("name") for widget in ui_widgets()}
    for section in [w for w in ui_widgets() if w.get("class") == "ctkCollapsibleButton"]:
        labels = [w for w in section.iter("widget") if w.get("class") == "QLabel" and "&" in properties(w)["text"]]
        assert all(properties(label)["buddy"] in names_ for label in labels)
        keys = [properties(label)["text"].partition("&")[2][0].lower() for label in labels]
        assert len(keys) == len(set(keys)), section.get("name")


def test_the_tab_key_goes_through_all_fields_in_their_order():
    stops = [stop.text for stop in ElementTree.parse(UI).getroot().iter("tabstop")]
    passive = {"QLabel", "QProgressBar", "ctkCollapsibleButton", "qMRMLWidget"}
    assert stops == [w.get("name") for w in ui_widgets() if w.get("class") not in passive]


def test_how_long_a_training_takes_is_said_alike_everywhere():
    (steps,) = [properties(widget) for widget in ui_widgets() if widget.get("name") == "steps"]
    assert int(steps["value"]) == int(steps["minimum"]) == DEFAULT_STEPS, "what the special text stands for"
    guide = " ".join((MODULE.parent / "docs" / "slicer.md").read_text(encoding="utf-8").split())
    for count, duration in ((ONWARDS, "about three minutes on two CPU cores"), (ONWARDS_NEW, "three to five minutes")):
        assert str(count) in steps["toolTip"]
        assert duration in steps["toolTip"]
        assert f"{count} steps, {duration}" in guide


def test_every_parameter_of_a_widget_exists(bench):
    bound = {widget.property("SlicerParameterName") for widget in vars(bench.ui).values()} - {None}
    assert bound <= set(bench.parameters.allParameters)
    # Lists and boxes that the engine fills show the first two, and the panel itself sees to the third.
    assert set(bench.parameters.allParameters) - bound == {"model", "skippedOrgans", "newModel"}


def test_the_code_reads_qts_properties_in_the_one_way_that_works_everywhere():
    """`w.text()` fails in PythonQt, and `w.text` is a method in PySide: both go through `panel.read`."""
    getters = {
        "text",
        "value",
        "checked",
        "currentIndex",
        "currentRow",
        "currentText",
        "currentData",
        "count",
        "enabled",
    }
    getters |= {"visible", "maximum", "minimum", "currentPath", "plainText", "toolTip", "title", "currentNodeID"}
    writable = {"collapsed", "filters"}  # of stand-ins that have them as PythonQt does
    found = []
    for path in [MODULE / "PGPSAMSegment.py", *(MODULE / "PGPSAMSegmentLib").glob("*panel.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and is_widget(node.value):
                wrong = node.attr in getters or (isinstance(node.ctx, ast.Store) and node.attr not in writable)
                if wrong:
                    found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def is_widget(node):
    """`ui.name`, `self.ui.name`, and the local names that the panels give to widgets."""
    text = ast.unparse(node)
    return text.rpartition(".")[0] in ("ui", "self.ui") or text in (
        "box",
        "button",
        "widget",
        "self.button",
        "self.bar",
    )


def test_the_module_describes_itself_and_offers_the_sample_with_its_checksum(bench, host, monkeypatch):
    parent = types.SimpleNamespace()
    PGPSAMSegment(parent)
    assert parent.title == "PGPSAM Segment"
    assert parent.categories == ["Segmentation"]
    assert "not for clinical use" in parent.helpText
    assert "arXiv:2501.06692" in parent.acknowledgementText
    ((signal, register),) = host.app.started
    assert signal == "startupCompleted()"
    told = {}
    logic = types.SimpleNamespace(registerCustomSampleDataSource=lambda **source: told.update(source))
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=logic))
    register()
    assert told["checksums"] == f"SHA256:{SAMPLE_SHA256}"
    assert told["uris"].endswith(SAMPLE_SHA256)


def test_the_self_test_that_users_run_passes(bench, make_logic, monkeypatch):
    """`PGPSAMSegmentTest`, with the stand-in worker for the engine and a made volume for the downloaded one."""

    def made(name):
        assert name == "PGPSAMSegmentCT"
        return add_volume(bench.host, np.diag([15.0, 15.0, 15.0, 1.0]), name="sample")  # a liver of one litre

    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: bench.widget)
    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(downloadSample=made))
    monkeypatch.setattr(module, "PGPSAMSegmentLogic", make_logic)
    module.PGPSAMSegmentTest().runTest()
    assert "sample segmentation" in segmentations()
