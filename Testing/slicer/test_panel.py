"""The panel under PySide6: every control drives the real Logic over real MRML, with a stand-in worker beside it.

The widgets of Slicer and CTK are stand-ins (qt_stand_ins.py); only the application itself can show the real ones.
"""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import standin_model_worker as standin
import vtk
from made_results import add_volume, mask_of, names, paint
from panel_bench import CHECKED, UNCHECKED, segmentations
from PySide6 import QtCore, QtGui, QtTest, QtWidgets

from PGPSAMSegmentLib import nodes, review
from PGPSAMSegmentLib.parameters import Layers

# ------------------------------------------------------------------------------------------------------ the whole way


def test_one_click_segments_and_shows_everything(bench):
    seen = []
    bench.ui.progressBar.valueChanged.connect(seen.append)
    assert bench.ui.autoSegmentButton.text() == "Auto-segment"
    assert bench.parameters.inputVolume is bench.volume
    bench.ui.autoSegmentButton.click()
    assert bench.ui.autoSegmentButton.text() == "Cancel"
    assert not bench.ui.progressBar.isHidden()
    bench.wait_idle()
    node = bench.parameters.outputSegmentation
    assert names(node) == ["liver", "spleen"]
    labels = standin.boxes(slicer.util.arrayFromVolume(bench.volume).shape, standin.ORGANS)
    np.testing.assert_array_equal(mask_of(node, "liver", bench.volume), labels == 6)
    assert bench.ui.autoSegmentButton.text() == "Auto-segment"
    assert bench.ui.progressBar.isHidden()
    assert "2 of 2 organs found in" in bench.status
    assert seen[:1] == [44]  # 4 of 9 slices
    assert [row[0] for row in bench.table()] == ["liver", "spleen"]
    assert bench.ui.outputSegmentation.currentNode() is node
    assert bench.ui.reviewList.count() == 2
    assert bench.status in bench.log


def test_progress_says_stage_slices_and_time(make_bench, host):
    bench = make_bench("slow")
    add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "4 of 9" in bench.status)
    assert bench.status == "Segmenting slices: 4 of 9, about 9 s left"
    bench.wait(lambda: "CT (segmenting)" in segmentations(), "a preview")
    assert bench.ui.outputSegmentation.nodeCount() == 0  # nobody can choose what is gone in a moment
    assert slicer.util.getNode("CT (segmenting)").GetDisplayVisibility()
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()
    assert bench.status == "Cancelled; the scene is as before."
    assert segmentations() == []
    assert bench.ui.autoSegmentButton.text() == "Auto-segment"
    assert bench.ui.autoSegmentButton.isEnabled()


def test_nothing_starts_before_the_user_opens_the_module(make_bench, host):
    bench = make_bench()
    add_volume(host)
    QtWidgets.QApplication.processEvents()
    assert not bench.widget.timer.isActive()
    assert bench.logic.facts == {}
    assert not bench.logic._session.engine.running


def test_the_button_says_what_is_missing(bench, host):
    assert bench.ui.hintLabel.isHidden()
    bench.ui.noOrgansButton.click()
    assert not bench.ui.autoSegmentButton.isEnabled()
    assert bench.ui.hintLabel.text() == "Tick at least one organ."
    bench.ui.allOrgansButton.click()
    assert bench.ui.autoSegmentButton.isEnabled()
    slicer.mrmlScene.RemoveNode(bench.volume)
    assert bench.ui.hintLabel.text() == "Load a CT and select it as the input volume."


def test_a_confidence_map_never_becomes_the_input_by_itself(bench, host):
    node = bench.segment()
    slicer.mrmlScene.RemoveNode(bench.volume)
    assert nodes.companion(node, nodes.CONFIDENCE).GetScene() is not None
    assert bench.parameters.inputVolume is bench.ui.inputVolume.currentNode() is None
    assert bench.ui.hintLabel.text() == "Load a CT and select it as the input volume."
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    assert bench.parameters.inputVolume is None
    volume = add_volume(host, name="next")
    assert bench.parameters.inputVolume is bench.ui.inputVolume.currentNode() is volume
    assert names(bench.segment()) == ["liver", "spleen"]


# ------------------------------------------------------------------------------------------------- the other controls


def test_the_models_organs_card_and_score_are_a_click_away(bench):
    assert bench.ui.model.currentText() == "abdomen-ct: 2 organs"
    assert bench.ui.modelText.isHidden()
    bench.ui.modelAboutButton.click()
    text = bench.ui.modelText.toPlainText()
    for part in ("Organs: liver, spleen", "Score: Dice 0.81", "A stand-in's card.", "lite_medsam"):
        assert part in text
    assert not bench.ui.modelText.isHidden()
    bench.ui.modelAboutButton.click()
    assert bench.ui.modelText.isHidden()


def test_another_model_brings_its_own_organs(make_bench, host):
    bench = make_bench()
    standin.add_model(bench.models, "spleens", [standin.ORGANS[1]])
    add_volume(host)
    bench.open()
    bench.ui.model.setCurrentIndex(bench.ui.model.findData("spleens"))
    assert bench.parameters.model == "spleens"
    assert [item.text() for item in bench.organ_items()] == ["spleen"]
    assert names(bench.segment()) == ["spleen"]


def test_ticks_choose_organs_and_are_the_scenes(bench):
    spleen = bench.organ_items()[1]
    spleen.setCheckState(UNCHECKED)
    assert list(bench.parameters.skippedOrgans) == ["spleen"]
    assert bench.ui.organCount.text() == "1 of 2 organs"
    assert names(bench.segment()) == ["liver"]
    bench.ui.noOrgansButton.click()
    assert [item.checkState() for item in bench.organ_items()] == [UNCHECKED, UNCHECKED]
    bench.parameters.skippedOrgans = ["liver"]
    assert [item.checkState() for item in bench.organ_items()] == [UNCHECKED, CHECKED]
    bench.ui.allOrgansButton.click()
    assert list(bench.parameters.skippedOrgans) == []


def test_devices_say_what_was_found_and_why_not(bench):
    texts = [bench.ui.device.itemText(n) for n in range(bench.ui.device.count())]
    assert texts == ["Automatic (CPU, 2 cores)", "CPU, 2 cores, 8 GB of memory"]
    assert bench.ui.deviceNote.text() == "No GPU is used. The engine's torch was built without CUDA."
    bench.ui.device.setCurrentIndex(1)
    assert QtCore.QSettings().value("PGPSAMSegment/device") == "cpu"
    bench.widget.choices.show_engine()
    assert bench.widget.device == "cpu"


def test_the_remembered_device_holds_for_a_click_before_the_engine_has_answered(make_bench, host):
    bench = make_bench()
    add_volume(host)
    bench.open()
    bench.ui.device.setCurrentIndex(bench.ui.device.findData("cpu"))
    again = make_bench()
    asked = []
    ask, again.logic.segment = again.logic.segment, lambda *given, **more: (asked.append(more), ask(*given, **more))
    again.widget.enter()
    again.ui.autoSegmentButton.click()
    assert [more["device"] for more in asked] == ["cpu"]
    again.wait_idle()
    assert again.widget.device == "cpu"


def test_how_often_a_slice_is_looked_at_is_remembered_and_asked_for(bench):
    asked = []
    ask, bench.logic.segment = bench.logic.segment, lambda *given, **more: (asked.append(more), ask(*given, **more))
    assert bench.ui.lookTwice.isChecked()
    bench.segment()
    bench.ui.lookTwice.click()
    assert QtCore.QSettings().value("PGPSAMSegment/looks") == "1"
    bench.segment()
    assert [more["looks"] for more in asked] == [2, 1]


def test_a_graphics_card_is_named_with_its_memory(bench):
    facts = dict(bench.logic.facts, default_device="cuda:0", device_note="")
    facts["devices"] = [facts["devices"][0], {**facts["devices"][1], "available": True, "why": ""}]
    bench.logic._session.hello = facts
    bench.widget.choices.show_engine()
    assert bench.ui.deviceNote.text() == "GPU: Stand-in GPU, 24.0 GB of memory."
    assert bench.ui.device.itemText(0) == "Automatic (Stand-in GPU)"


def test_finished_work_is_kept_and_the_box_to_replace_it_goes_off_again(bench):
    node = bench.segment()
    mine = np.zeros(slicer.util.arrayFromVolume(bench.volume).shape, bool)
    mine[4, 4, 4] = True
    paint(node, "liver", bench.volume, mine)
    assert bench.segment() is node
    assert names(node) == ["liver", "spleen", "liver (2)"]
    assert bench.status.endswith(" Left as it was, with the new result beside it: 'liver'.")
    assert bench.status in bench.log
    bench.ui.overwrite.setChecked(True)
    assert bench.parameters.overwrite
    bench.segment()
    assert "Left as it was" not in bench.status
    assert mask_of(node, "liver", bench.volume).sum() > 1
    assert not bench.ui.overwrite.isChecked()


def test_the_box_to_replace_finished_work_holds_for_one_run_also_if_that_is_cancelled(make_bench, host):
    bench = make_bench("slow")
    add_volume(host)
    bench.open()
    bench.ui.overwrite.setChecked(True)
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "4 of 9" in bench.status)
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()
    assert bench.status == "Cancelled; the scene is as before."
    assert not bench.ui.overwrite.isChecked()


def test_the_box_to_replace_finished_work_does_not_come_back_with_a_scene(bench, tmp_path):
    bench.ui.overwrite.setChecked(True)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert not bench.ui.overwrite.isChecked()
    assert not bench.parameters.overwrite


def test_ticks_are_remembered_for_each_model(make_bench, host):
    bench = make_bench()
    standin.add_model(bench.models, "spleens", [standin.ORGANS[1]])
    add_volume(host)
    bench.open()
    for model, row in (("abdomen-ct", 0), ("spleens", 0)):
        bench.ui.model.setCurrentIndex(bench.ui.model.findData(model))
        bench.organ_items()[row].setCheckState(UNCHECKED)
    bench.ui.allOrgansButton.click()
    assert bench.ui.organCount.text() == "1 of 1 organs"
    bench.ui.model.setCurrentIndex(bench.ui.model.findData("abdomen-ct"))
    assert [item.checkState() for item in bench.organ_items()] == [UNCHECKED, CHECKED]


def test_the_last_run_can_be_undone(bench):
    assert not bench.ui.undoButton.isEnabled()
    bench.segment()
    assert bench.ui.undoButton.isEnabled()
    bench.ui.undoButton.click()
    assert bench.status == "The last run was undone: 'CT segmentation'."
    assert segmentations() == []
    assert bench.parameters.outputSegmentation is None
    assert not bench.ui.undoButton.isEnabled()


def test_undo_while_another_volume_is_selected_leaves_its_output(bench, host):
    first, other = bench.segment(), add_volume(host, name="next")
    bench.ui.inputVolume.setCurrentNode(other)
    second = bench.segment()
    bench.segment()
    bench.ui.inputVolume.setCurrentNode(bench.volume)
    for there in (True, False):  # the second run on "next", and the one that made its result
        bench.ui.undoButton.click()
        assert bench.status == "The last run was undone: 'next segmentation'."
        assert (bench.parameters.outputSegmentation is first, second.GetScene() is not None) == (True, there)
    bench.ui.inputVolume.setCurrentNode(other)
    assert bench.parameters.outputSegmentation is None


def test_an_undo_that_would_lose_edits_says_so(bench):
    node = bench.segment()
    bench.segment()
    paint(node, "liver", bench.volume, np.ones(slicer.util.arrayFromVolume(bench.volume).shape, bool))
    bench.ui.undoButton.click()
    assert "was edited after the run" in bench.status
    assert names(node) == ["liver", "spleen"]


def test_the_switches_show_3d_prompts_and_confidence(bench, host):
    _, composite = host.add_view()
    node = bench.segment()
    surfaces = lambda: node.GetSegmentation().ContainsRepresentation("Closed surface")  # noqa: E731
    assert not surfaces()
    bench.ui.show3D.setChecked(True)
    assert surfaces()
    assert node.GetDisplayNode().GetVisibility3D()
    bench.ui.show3D.setChecked(False)
    assert not surfaces()
    texts = [bench.ui.layers.itemText(n) for n in range(3)]
    assert texts == ["Masks", "Prompts", "Both"]
    prompts = nodes.companion(node, nodes.PROMPTS)
    for text, shown in zip(texts, ((1, 0), (0, 1), (1, 1)), strict=True):
        bench.ui.layers.setCurrentText(text)
        assert (node.GetDisplayVisibility(), prompts.GetDisplayVisibility()) == shown
    bench.ui.confidenceOverlay.setChecked(True)
    assert composite.GetForegroundVolumeID() == nodes.companion(node, nodes.CONFIDENCE).GetID()
    bench.ui.confidenceOverlay.setChecked(False)
    assert composite.GetForegroundVolumeID() is None


def test_a_segmentation_of_surfaces_is_hidden_in_3d_and_never_emptied(bench):
    """As one of an STL file: there is nothing that its surfaces could be made from again."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "implant")
    node.CreateDefaultDisplayNodes()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    source = vtk.vtkSphereSource()
    source.Update()
    segment_id = node.AddSegmentFromClosedSurfaceRepresentation(source.GetOutput(), "screw", [1.0, 0.0, 0.0])
    bench.ui.outputSegmentation.setCurrentNode(node)
    assert bench.ui.show3D.isChecked()
    bench.ui.show3D.setChecked(False)
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation(segment_id, surface)
    assert surface.GetNumberOfPoints() == source.GetOutput().GetNumberOfPoints()
    assert not node.GetDisplayNode().GetVisibility3D()
    bench.ui.outputSegmentation.setCurrentNode(None)
    bench.ui.show3D.setChecked(True)
    bench.ui.outputSegmentation.setCurrentNode(node)
    assert not bench.ui.show3D.isChecked()  # the switch follows what is shown of it
    bench.ui.show3D.setChecked(True)
    assert node.GetDisplayNode().GetVisibility3D()


def test_surfaces_that_the_user_made_survive_the_next_run(bench):
    """Made with the Segment Editor's button, so that the module's own switch is off."""
    node = bench.segment()
    node.CreateClosedSurfaceRepresentation()
    assert not bench.ui.show3D.isChecked()
    assert bench.segment() is node
    assert bench.ui.show3D.isChecked()
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_the_switches_follow_what_was_done_in_other_modules(bench, host):
    _, composite = host.add_view()
    node, other = bench.segment(), add_volume(host, name="PET")
    bench.ui.show3D.setChecked(True)
    bench.ui.layers.setCurrentText("Both")
    bench.ui.confidenceOverlay.setChecked(True)
    bench.open()
    assert composite.GetForegroundVolumeID() == nodes.companion(node, nodes.CONFIDENCE).GetID()
    node.RemoveClosedSurfaceRepresentation()  # as the Segment Editor's own button does it
    for each in (node, nodes.companion(node, nodes.PROMPTS), nodes.companion(node, nodes.POINTS)):
        each.SetDisplayVisibility(False)
    composite.SetForegroundVolumeID(other.GetID())
    bench.open()
    assert (bench.ui.show3D.isChecked(), bench.ui.confidenceOverlay.isChecked()) == (False, False)
    assert bench.ui.layers.currentText() == "Masks"
    assert composite.GetForegroundVolumeID() == other.GetID()
    assert not node.GetDisplayVisibility()  # the user hid it: to look at the switches shows nothing
    bench.ui.show3D.setChecked(True)
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")


def test_switches_that_are_set_before_a_run_hold_for_its_result(bench, host):
    _, composite = host.add_view()
    bench.ui.show3D.setChecked(True)
    bench.ui.confidenceOverlay.setChecked(True)
    node = bench.segment()
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    assert composite.GetForegroundVolumeID() == nodes.companion(node, nodes.CONFIDENCE).GetID()


def test_selecting_another_segmentation_changes_nothing_in_it(bench, host):
    _, composite = host.add_view()
    node = bench.segment()
    bench.ui.confidenceOverlay.setChecked(True)
    bench.ui.layers.setCurrentText("Prompts")
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "of the user's")
    other.CreateDefaultDisplayNodes()
    other.SetReferenceImageGeometryParameterFromVolumeNode(bench.volume)
    paint(other, "bone", bench.volume, np.ones(slicer.util.arrayFromVolume(bench.volume).shape, bool))
    other.CreateClosedSurfaceRepresentation()
    bench.ui.outputSegmentation.setCurrentNode(other)
    assert other.GetSegmentation().ContainsRepresentation("Closed surface")
    assert other.GetDisplayVisibility()
    assert bench.ui.show3D.isChecked()
    assert bench.parameters.layers is Layers.MASKS
    assert composite.GetForegroundVolumeID() is None
    assert not bench.ui.layers.isEnabled()
    assert bench.ui.resultsTable.mrmlTableNode() is None
    bench.ui.outputSegmentation.setCurrentNode(node)
    assert bench.parameters.layers is Layers.PROMPTS
    assert len(bench.table()) == 2


def test_each_volume_has_its_own_output(bench, host):
    """Two phases of one scan: they lie on one grid, so one result would fit the other."""
    first = bench.segment()
    before = mask_of(first, "liver", bench.volume)
    second_volume = add_volume(host, name="portal")
    bench.ui.inputVolume.setCurrentNode(second_volume)
    assert bench.parameters.outputSegmentation is None
    second = bench.segment()
    assert second is not first
    assert [node.GetNodeReference(nodes.VOLUME) for node in (first, second)] == [bench.volume, second_volume]
    np.testing.assert_array_equal(mask_of(first, "liver", bench.volume), before)
    bench.ui.inputVolume.setCurrentNode(bench.volume)
    assert bench.ui.outputSegmentation.currentNode() is first
    assert len(bench.table()) == 2
    bench.ui.inputVolume.setCurrentNode(second_volume)
    assert bench.parameters.outputSegmentation is second
    bench.ui.outputSegmentation.setCurrentNode(first)
    bench.ui.autoSegmentButton.click()
    assert bench.status.startswith(f"The segmentation '{first.GetName()}' holds results of another volume, 'CT'.")


def test_the_output_that_was_chosen_for_a_volume_is_kept(bench, host, tmp_path):
    first = bench.segment()
    bench.ui.outputSegmentation.setCurrentNode(None)
    second = bench.segment()
    other = add_volume(host, name="next")

    def on_return():
        bench.ui.inputVolume.setCurrentNode(other)
        bench.ui.inputVolume.setCurrentNode(slicer.util.getNode("CT"))
        return bench.parameters.outputSegmentation

    assert on_return() is second
    bench.ui.outputSegmentation.setCurrentNode(first)
    assert on_return() is first
    bench.ui.outputSegmentation.setCurrentNode(None)
    assert on_return() is None  # a new one was asked for
    bench.open()
    assert bench.parameters.outputSegmentation is None
    bench.ui.outputSegmentation.setCurrentNode(first)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert on_return().GetName() == "CT segmentation"
    slicer.mrmlScene.RemoveNode(bench.parameters.outputSegmentation)
    assert on_return().GetName() == second.GetName()


def test_a_result_of_a_script_is_the_output_when_the_module_is_opened(make_bench, host):
    bench = make_bench()
    volume = add_volume(host)
    node = bench.logic.segmentAndWait(volume)
    bench.open()
    assert bench.parameters.outputSegmentation is node
    assert bench.segment() is node
    assert segmentations() == ["CT segmentation", "CT segmentation prompts"]


def test_an_output_chosen_before_there_is_a_volume_is_kept_for_the_first_one(make_bench, host):
    bench = make_bench().open()
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    bench.ui.outputSegmentation.setCurrentNode(mine)
    bench.ui.inputVolume.setCurrentNode(add_volume(host))
    assert bench.segment() is mine
    bench.ui.inputVolume.setCurrentNode(add_volume(host, name="next"))
    assert bench.parameters.outputSegmentation is None


def test_the_result_of_a_deleted_volume_is_not_the_output_of_the_next_one(bench, host):
    node = bench.segment()
    slicer.mrmlScene.RemoveNode(bench.volume)
    bench.ui.inputVolume.setCurrentNode(None)
    bench.ui.outputSegmentation.setCurrentNode(node)
    bench.ui.inputVolume.setCurrentNode(add_volume(host, name="next"))
    assert bench.parameters.outputSegmentation is None


def test_a_result_that_comes_while_another_volume_is_selected_waits_for_its_own(make_bench, host):
    bench = make_bench("slow")
    volume = add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "4 of 9" in bench.status)
    bench.ui.inputVolume.setCurrentNode(add_volume(host, name="next"))
    (bench.models.parent / "go on").touch()
    bench.wait_idle()
    assert bench.status.startswith("'CT': 2 of 2 organs found")
    assert bench.parameters.outputSegmentation is None
    bench.ui.inputVolume.setCurrentNode(volume)
    assert names(bench.parameters.outputSegmentation) == ["liver", "spleen"]


@pytest.mark.parametrize("leaves", [False, True])
def test_another_output_that_is_chosen_during_a_run_stays_chosen(make_bench, host, leaves):
    """Also if the user has gone on to another volume by then."""
    bench = make_bench("slow")
    volume = add_volume(host)
    bench.open()
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    for other in (mine, None):  # the run is started for a new one, and then for `mine`
        bench.ui.autoSegmentButton.click()
        bench.wait(lambda: "4 of 9" in bench.status)
        bench.ui.outputSegmentation.setCurrentNode(other)
        if leaves:
            bench.ui.inputVolume.setCurrentNode(add_volume(host, name="next"))
        (bench.models.parent / "go on").touch()
        bench.wait_idle()
        (bench.models.parent / "go on").unlink()
        result = "mine" if other is None else "CT segmentation"
        assert bench.status.endswith(f" The result is in '{result}'; your choice of another output stays.")
        assert names(slicer.util.getNode(result)) == ["liver", "spleen"]
        bench.ui.inputVolume.setCurrentNode(volume)
        assert bench.parameters.outputSegmentation is other
        bench.ui.outputSegmentation.setCurrentNode(mine)


def test_an_output_that_is_chosen_during_a_run_and_deleted_gives_way_to_the_result(make_bench, host):
    bench = make_bench("slow")
    add_volume(host)
    bench.open()
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "4 of 9" in bench.status)
    bench.ui.outputSegmentation.setCurrentNode(mine)
    slicer.mrmlScene.RemoveNode(mine)
    (bench.models.parent / "go on").touch()
    bench.wait_idle()
    assert names(bench.parameters.outputSegmentation) == ["liver", "spleen"]
    assert "your choice" not in bench.status


def test_a_result_that_is_deleted_leaves_nothing_hidden_and_no_overlay(bench, host):
    _, composite = host.add_view()
    other = add_volume(host, name="PET")
    composite.SetForegroundVolumeID(other.GetID())
    node = bench.segment()
    bench.ui.confidenceOverlay.setChecked(True)
    copy = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    copy.Copy(node)  # as the Data module's Clone does it: it shares what belongs to the result
    first = nodes.companion(node, nodes.FIRST)
    slicer.mrmlScene.RemoveNode(copy)
    assert nodes.companion(node, nodes.FIRST) is first
    assert composite.GetForegroundVolumeID() == nodes.companion(node, nodes.CONFIDENCE).GetID()
    slicer.mrmlScene.RemoveNode(node)
    assert slicer.util.getNodesByClass("vtkMRMLTextNode") == []
    assert composite.GetForegroundVolumeID() == other.GetID()
    assert slicer.util.getNode("CT segmentation confidence")  # the lists show it: it is the user's to delete


def test_a_confidence_volume_that_is_deleted_leaves_the_slices_as_they_were_before_it(bench, host):
    _, composite = host.add_view()
    other = add_volume(host, name="PET")
    composite.SetForegroundVolumeID(other.GetID())
    composite.SetForegroundOpacity(0.7)
    node = bench.segment()
    bench.ui.confidenceOverlay.setChecked(True)
    slicer.mrmlScene.RemoveNode(nodes.companion(node, nodes.CONFIDENCE))
    assert (composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()) == (other.GetID(), 0.7)
    bench.open()
    assert not bench.ui.confidenceOverlay.isChecked()
    assert bench.segment() is node
    assert composite.GetForegroundVolumeID() == other.GetID()


# ---------------------------------------------------------------------------------------------------- the review's list


def test_keys_of_the_review_work_in_every_window_and_beside_slicers_own(bench):
    node = bench.segment()
    frames = QtWidgets.QToolBar("Sequence Browser", bench.window)
    bench.window.addToolBar(frames)
    for keys in ("Left", "Right", "Down"):  # qMRMLSequenceBrowserToolBar's
        QtGui.QShortcut(QtGui.QKeySequence(f"Ctrl+Shift+{keys}"), frames)
    second_screen = QtWidgets.QWidget()
    bench.window.show()
    second_screen.show()
    modifiers = QtCore.Qt.KeyboardModifier.ControlModifier | QtCore.Qt.KeyboardModifier.ShiftModifier
    try:
        for window, key, organ in (
            (bench.window, "N", "liver"),
            (second_screen, "N", "spleen"),
            (second_screen, "P", "liver"),
        ):
            window.activateWindow()
            assert QtTest.QTest.qWaitForWindowActive(window)
            QtTest.QTest.keyClick(window, getattr(QtCore.Qt.Key, f"Key_{key}"), modifiers)
            assert review.current(node).organ == organ
    finally:
        second_screen.close()


def test_a_press_on_the_current_place_goes_there_again(bench, host):
    view, _ = host.add_view()
    bench.segment()
    bench.window.resize(600, 2000)
    bench.window.show()
    box = bench.ui.reviewList
    for row in (1, 1, 0):
        view.SetSliceOffset(0.0)
        box.scrollToItem(box.item(row))
        QtTest.QTest.mouseClick(box.viewport(), QtCore.Qt.LeftButton, pos=box.visualItemRect(box.item(row)).center())
        assert view.GetSliceOffset() == 4 * 2.5
        assert box.currentRow() == row


def test_the_list_follows_segments_that_are_renamed_and_removed(bench):
    node = bench.segment()
    segmentation = node.GetSegmentation()
    lines = lambda: [bench.ui.reviewList.item(n).text() for n in range(bench.ui.reviewList.count())]  # noqa: E731
    segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("liver")).SetName("graft")
    bench.open()
    assert lines() == ["graft, slice 5: confidence 50 %", "spleen, slice 5: confidence 50 %"]
    segmentation.RemoveSegment(segmentation.GetSegmentIdBySegmentName("spleen"))
    bench.ui.reviewList.setCurrentRow(1)
    assert "the segment of 'spleen' is no longer there" in bench.status.lower()
    assert lines() == ["graft, slice 5: confidence 50 %"]
    segmentation.RemoveAllSegments()
    bench.ui.nextButton.click()
    assert lines() == []
    assert not bench.ui.nextButton.isEnabled()


def test_what_changed_is_told_only_as_long_as_it_is_so(bench):
    node = bench.segment()
    liver = mask_of(node, "liver", bench.volume)
    liver[4, 2, 2:5] = False
    paint(node, "liver", bench.volume, liver)
    bench.ui.compareButton.click()
    assert "3 removed" in bench.ui.changesText.text()
    bench.open()
    assert "3 removed" in bench.ui.changesText.text()
    bench.ui.overwrite.setChecked(True)
    bench.segment()
    assert bench.ui.changesText.text() == ""
    assert bench.ui.changesText.isHidden()


def test_corrected_slices_are_used_with_a_volume_that_was_loaded_again(bench, host):
    node = bench.segment()
    liver = mask_of(node, "liver", bench.volume)
    liver[4, 2, 2:5] = False
    paint(node, "liver", bench.volume, liver)
    slicer.mrmlScene.RemoveNode(bench.volume)
    volume = add_volume(host, name="again")
    assert bench.parameters.inputVolume is volume
    bench.ui.outputSegmentation.setCurrentNode(node)
    bench.ui.useCorrectedButton.click()
    assert bench.ui.cases.item(0).text() == f"corrected slices of {node.GetName()}"
    assert node.GetNodeReference(nodes.VOLUME) is volume


def test_the_log_can_be_copied(bench):
    assert "Engine 0.1.0 is ready, device cpu." in bench.log
    bench.ui.copyLogButton.click()
    assert QtWidgets.QApplication.clipboard().text().strip() == bench.log.strip()


# ------------------------------------------------------------------------------------------ the scene keeps the state


def test_the_state_survives_saving_and_loading(bench, host, tmp_path):
    node = bench.segment()
    bench.ui.show3D.setChecked(True)
    bench.ui.layers.setCurrentText("Both")
    bench.organ_items()[1].setCheckState(UNCHECKED)
    bench.ui.steps.setValue(77)
    bench.ui.newModel.setText("later")
    bench.ui.nextButton.click()
    bench.ui.checkedButton.click()
    name, path = node.GetName(), str(tmp_path / "scene.mrb")
    assert bench.ui.undoButton.isEnabled()
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear()
    assert not bench.ui.show3D.isChecked()
    assert bench.ui.newModel.text() == ""
    slicer.util.loadScene(path)
    assert bench.parameters.outputSegmentation.GetName() == name
    assert bench.parameters.inputVolume.GetName() == "CT"
    assert bench.ui.show3D.isChecked()
    assert bench.ui.layers.currentText() == "Both"
    assert [item.checkState() for item in bench.organ_items()] == [CHECKED, UNCHECKED]
    assert (bench.ui.steps.value(), bench.ui.newModel.text()) == (77, "later")
    assert bench.ui.reviewProgress.text().startswith("1 of 2 places checked")
    assert len(bench.table()) == 2
    assert not bench.ui.undoButton.isEnabled()  # like the Segment Editor's, it ends with the scene


@pytest.mark.parametrize("steps", ["-5", "90000", "many"])
def test_a_scene_whose_choices_were_spoilt_by_hand_has_the_defaults_instead(bench, host, tmp_path, steps):
    path = tmp_path / "scene.mrml"
    bench.ui.steps.setValue(77)
    bench.ui.newModel.setText("mine")
    bench.ui.layers.setCurrentText("Both")
    assert slicer.util.saveScene(str(path))
    text = path.read_text(encoding="utf-8")
    for good, bad in (("steps 77", f"steps {steps}"), ("layers BOTH", "layers ALL")):
        assert good in text
        text = text.replace(good, bad)
    path.write_text(text, encoding="utf-8")
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(path))
    assert (bench.parameters.steps, bench.ui.steps.value()) == (0, 0)
    assert bench.parameters.layers == Layers.MASKS
    assert bench.ui.newModel.text() == "mine"
    bench.open()
    assert bench.status == ""


def test_a_scene_that_is_loaded_keeps_its_choice_of_volume_and_output(bench, host, tmp_path):
    """Also one that the module would not have selected itself: a segmentation of the user's, not yet used."""
    bench.segment()
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    bench.ui.outputSegmentation.setCurrentNode(mine)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    add_volume(host, name="between")
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert bench.parameters.inputVolume.GetName() == "CT"
    assert bench.parameters.outputSegmentation.GetName() == "mine"


def test_a_scene_whose_model_is_not_here_takes_one_that_is(bench, tmp_path):
    bench.parameters.model = "of-a-colleague"
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert "The model 'of-a-colleague' is not installed: 'abdomen-ct' is chosen instead." in bench.log
    assert bench.ui.model.currentText() == "abdomen-ct: 2 organs"
    assert bench.ui.hintLabel.isHidden()
    assert bench.ui.autoSegmentButton.isEnabled()


def test_after_a_scene_was_cleared_the_widgets_belong_to_the_new_one(bench):
    old = bench.parameters.parameterNode
    slicer.mrmlScene.Clear(True)  # takes the parameter node away as well
    assert bench.parameters.parameterNode is not old
    bench.ui.steps.setValue(55)
    bench.ui.show3D.setChecked(True)
    assert (bench.parameters.steps, bench.parameters.show3D) == (55, True)
    assert old.GetParameter("steps") != "55"
