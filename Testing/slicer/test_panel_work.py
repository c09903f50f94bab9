"""The panel after a run: going through the slices to check, correcting, training a model on that."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
import standin_model_worker as standin
from made_results import add_volume, mask_of, names, paint
from panel_bench import press, segmentations
from PySide6 import QtCore, QtTest

from PGPSAMSegment import PGPSAMSegmentWidget
from PGPSAMSegmentLib import corrections, nodes, review, suggestions, training

# ------------------------------------------------------------------------------------------------------------- review


def test_the_review_goes_from_place_to_place(bench, host):
    view, _ = host.add_view()
    node = bench.segment()
    assert [bench.ui.reviewList.item(n).text() for n in range(2)] == [
        "liver, slice 5: confidence 50 %",
        "spleen, slice 5: confidence 50 %",
    ]
    assert not bench.ui.checkedButton.isEnabled()
    bench.ui.nextButton.click()
    item = review.current(node)
    assert item.organ == "liver"
    assert view.GetSliceOffset() == pytest.approx(review.position(node, item)[2])
    editor = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    assert editor.GetSelectedSegmentID() == item.segment
    assert editor.GetSegmentationNode() is node
    assert editor.GetSourceVolumeNode() is bench.volume
    bench.ui.checkedButton.click()  # checks the liver, goes on to the spleen
    assert bench.ui.reviewList.item(0).text().startswith("✓ ")
    assert bench.ui.reviewProgress.text() == "1 of 2 places checked; next: spleen, slice 5"
    assert review.current(node).organ == "spleen"
    bench.ui.previousButton.click()
    assert review.current(node).organ == "spleen"  # the only one that is left
    bench.ui.checkedButton.click()
    assert bench.ui.reviewProgress.text() == "2 of 2 places checked; all done."
    assert not bench.ui.nextButton.isEnabled()


def test_a_click_in_the_list_goes_there_and_a_check_can_be_taken_back(bench):
    node = bench.segment()
    bench.ui.reviewList.setCurrentRow(1)
    assert review.current(node).organ == "spleen"
    bench.ui.checkedButton.click()
    bench.ui.reviewList.setCurrentRow(1)
    assert review.current(node).checked
    assert bench.ui.checkedButton.text() == "Not checked"
    bench.ui.checkedButton.click()
    assert [item.checked for item in review.items(node)] == [False, False]


def test_the_segment_editor_is_a_click_away(bench):
    bench.segment()
    bench.ui.editButton.click()
    assert bench.window.selected_modules == ["SegmentEditor"]


def test_what_changed_is_told_in_voxels_and_dice(bench):
    node = bench.segment()
    bench.ui.compareButton.click()
    assert bench.ui.changesText.text() == "Nothing was changed since the result came."
    liver = mask_of(node, "liver", bench.volume)
    before = liver.sum()
    liver[4, 2, 2:5] = False
    liver[0, 0, 0] = True
    paint(node, "liver", bench.volume, liver)
    bench.ui.compareButton.click()
    dice = 2 * (before - 3) / (2 * before - 2)
    expected = f"liver: 1 voxels added, 3 removed, Dice with the first result {dice:.3f}"
    assert bench.ui.changesText.text() == expected


@pytest.mark.parametrize(("keys", "organ"), [((QtCore.Qt.Key.Key_N,), "liver"), ((QtCore.Qt.Key.Key_P,), "spleen")])
def test_shortcuts_walk_through_the_review(bench, keys, organ):
    node = bench.segment()
    press(bench, keys[0])
    assert review.current(node).organ == organ
    press(bench, QtCore.Qt.Key.Key_K)
    assert [item.checked for item in review.items(node) if item.organ == organ] == [True]


def test_a_shortcut_segments_and_one_without_a_result_does_no_harm(bench):
    press(bench, QtCore.Qt.Key.Key_N)
    press(bench, QtCore.Qt.Key.Key_K)
    press(bench, QtCore.Qt.Key.Key_G)
    bench.wait_idle()
    assert names(bench.parameters.outputSegmentation) == ["liver", "spleen"]


@pytest.mark.parametrize("opened", ["first", "second"])
def test_when_a_widget_is_closed_another_has_the_keys(bench, make_logic, opened):
    node = bench.segment()
    second = PGPSAMSegmentWidget(bench.window.panel)
    second.logic = make_logic()
    second.setup()
    if opened == "first":
        bench.widget.enter()
    second.cleanup()
    press(bench, QtCore.Qt.Key.Key_N)
    assert review.current(node).organ == "liver"


def test_of_two_widgets_the_one_that_was_opened_last_has_the_keys(bench, make_logic):
    node = bench.segment()
    second = PGPSAMSegmentWidget(bench.window.panel)
    second.logic = make_logic()
    second.setup()
    try:
        for widget, organ in ((second, "liver"), (bench.widget, "spleen")):
            widget.enter()
            press(bench, QtCore.Qt.Key.Key_N)
            assert review.current(node).organ == organ
        press(bench, QtCore.Qt.Key.Key_G)
        assert bench.ui.autoSegmentButton.text() == "Cancel"
        assert second.ui.autoSegmentButton.text() == "Auto-segment"
        bench.wait_idle()
    finally:
        second.cleanup()
    press(bench, QtCore.Qt.Key.Key_P)
    assert review.current(node).organ == "spleen"  # the last of the new run's list


# ----------------------------------------------------------------------------------------------------------- training


def test_corrected_slices_make_a_new_model_that_is_then_chosen(bench):
    node = bench.segment()
    bench.ui.useCorrectedButton.click()
    assert "nothing was corrected" in bench.status.lower()
    liver = mask_of(node, "liver", bench.volume)
    liver[4, 2, 2:5] = False
    paint(node, "liver", bench.volume, liver)
    bench.ui.useCorrectedButton.click()
    assert bench.ui.adaptSection.collapsed is False
    assert bench.ui.cases.item(0).text() == f"corrected slices of {node.GetName()}"
    assert not bench.ui.adaptButton.isEnabled()
    bench.ui.newModel.setText("mine")
    bench.ui.steps.setValue(30)
    bench.ui.followCases.setChecked(True)
    assert (bench.parameters.steps, bench.parameters.followCases) == (30, True)
    bench.ui.adaptButton.click()
    assert bench.ui.adaptButton.text() == "Cancel"
    assert not bench.ui.autoSegmentButton.isEnabled()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "The model 'mine' is ready and chosen."
    assert bench.ui.adaptButton.text() == "Train new model"
    assert bench.parameters.model == "mine"
    told = json.loads((training.models_folder() / "mine" / "told.json").read_text(encoding="utf-8"))
    assert (told["iterations"], told["settings"]) == (30, {"start_share": 0.0})
    assert [bench.ui.model.itemData(n) for n in range(bench.ui.model.count())] == ["abdomen-ct", "mine"]
    assert bench.ui.autoSegmentButton.isEnabled()


def test_pairs_of_the_scene_are_added_and_removed(bench):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.SetReferenceImageGeometryParameterFromVolumeNode(bench.volume)
    assert not bench.ui.addCaseButton.isEnabled()
    bench.ui.trainingVolume.setCurrentNode(bench.volume)
    bench.ui.trainingSegmentation.setCurrentNode(node)
    bench.ui.addCaseButton.click()
    assert "has no segments" in bench.ui.adaptStatus.text()
    paint(node, "lesion", bench.volume, np.ones(slicer.util.arrayFromVolume(bench.volume).shape, bool))
    bench.ui.addCaseButton.click()
    assert bench.ui.cases.item(0).text() == "drawn on CT"
    bench.ui.cases.setCurrentRow(0)
    bench.ui.removeCaseButton.click()
    assert bench.ui.cases.count() == 0
    assert "drawn" in segmentations()


def drawn_case(volume, organ="lesion"):
    """A case of the user's own."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    paint(node, organ, volume, np.ones(slicer.util.arrayFromVolume(volume).shape, bool))
    training.add(node, volume)
    return node


def test_the_panel_says_what_a_training_would_make_before_it_starts(bench):
    node = bench.segment()
    liver = mask_of(node, "liver", bench.volume)
    liver[4, 2, 2:5] = False
    paint(node, "liver", bench.volume, liver)
    bench.ui.useCorrectedButton.click()
    assert bench.ui.adaptStatus.text() == "It goes on from 'abdomen-ct'."
    case = drawn_case(bench.volume)
    bench.widget.update()
    assert "has no segment" in bench.ui.adaptStatus.text()
    slicer.mrmlScene.RemoveNode(case)
    paint(node, "Segment_1", bench.volume, ~liver)
    bench.ui.cases.setCurrentRow(0)
    bench.ui.removeCaseButton.click()
    assert bench.ui.adaptStatus.text() == ""
    bench.ui.useCorrectedButton.click()
    line = "It goes on from 'abdomen-ct'; new to it: Segment_1."
    assert bench.ui.adaptStatus.text() == line
    bench.ui.newModel.setText("mine")
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert f"Training 'mine' on 1 case. {line}" in bench.log
    assert bench.ui.adaptStatus.text() == "The model 'mine' is ready and chosen."


def test_organs_that_a_new_model_would_not_find_are_told(bench):
    drawn_case(bench.volume, "liver")
    bench.widget.update()
    line = "It goes on from 'abdomen-ct'. The new model will find only: liver."
    assert bench.ui.adaptStatus.text() == line


def test_the_line_about_a_training_follows_the_names_of_the_segments(bench):
    segmentation = drawn_case(bench.volume, "Segment_1").GetSegmentation()
    bench.widget.update()
    assert "new to it: Segment_1" in bench.ui.adaptStatus.text()
    segmentation.GetNthSegment(0).SetName("lesion")
    bench.widget.update()
    assert "new to it: lesion" in bench.ui.adaptStatus.text()


def test_no_training_before_the_engine_has_told_its_models(make_bench, host):
    bench = make_bench()
    drawn_case(add_volume(host))
    bench.widget.enter()
    bench.ui.newModel.setText("mine")
    assert not bench.ui.adaptButton.isEnabled()
    assert bench.ui.adaptButton.toolTip() == "Wait until the engine has told its models."
    bench.wait_idle()
    assert bench.ui.adaptButton.isEnabled()
    assert bench.ui.adaptButton.toolTip().startswith("Trains a model on these cases.")
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert bench.parameters.model == "mine"


def test_a_case_whose_segmentation_is_deleted_leaves_the_list(bench):
    node = drawn_case(bench.volume)
    bench.ui.newModel.setText("mine")
    assert not bench.ui.removeCaseButton.isEnabled()
    bench.ui.cases.setCurrentRow(0)
    assert bench.ui.removeCaseButton.isEnabled()
    slicer.mrmlScene.RemoveNode(node)
    assert bench.ui.cases.count() == 0
    assert not bench.ui.removeCaseButton.isEnabled()
    assert not bench.ui.adaptButton.isEnabled()
    assert bench.ui.adaptButton.toolTip() == "Add a case first."


def test_a_case_whose_volume_is_deleted_is_left_out_and_the_list_says_so(bench, host):
    other = add_volume(host, name="other")
    drawn_case(bench.volume)
    drawn_case(other).SetName("kept")
    bench.ui.newModel.setText("mine")
    slicer.mrmlScene.RemoveNode(bench.volume)
    lines = [bench.ui.cases.item(n).text() for n in range(bench.ui.cases.count())]
    assert lines == ["drawn: its volume was removed, so it is left out", "kept on other"]
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert "Training 'mine' on 1 case." in bench.log
    slicer.mrmlScene.RemoveNode(other)
    assert bench.ui.adaptButton.toolTip() == "Add a case first."
    for _ in lines:
        bench.ui.cases.setCurrentRow(0)
        bench.ui.removeCaseButton.click()
    assert bench.ui.cases.count() == 0
    assert segmentations() == ["drawn", "kept"]


def training_bench(make_bench, host):
    """A bench whose panel trains the model "lesions" from one case, at the first of 200 steps."""
    bench = make_bench("slow")
    volume = add_volume(host)
    bench.open()
    drawn_case(volume)
    bench.ui.newModel.setText("lesions")
    bench.ui.adaptButton.click()
    bench.wait(lambda: "1 of 200" in bench.ui.adaptStatus.text())
    return bench


def test_a_training_can_be_cancelled(make_bench, host):
    bench = training_bench(make_bench, host)
    assert bench.ui.adaptStatus.text() == "Training: 1 of 200, loss 1.0, about 60 s left"
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "Cancelled; no model was made."
    assert not (bench.models / "lesions").exists()


def test_a_cancel_that_comes_too_late_ends_with_the_model(make_bench, host):
    bench = training_bench(make_bench, host)
    standin.add_model(bench.models, "lesions", standin.ORGANS)  # written, and not yet told
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "The model 'lesions' is ready and chosen."
    assert bench.parameters.model == "lesions"
    assert [bench.ui.model.itemData(n) for n in range(bench.ui.model.count())] == ["abdomen-ct", "lesions"]


def test_the_next_models_name_can_be_typed_during_a_training(make_bench, host):
    bench = training_bench(make_bench, host)
    bench.ui.newModel.setText("next")
    (bench.models.parent / "go on").touch()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "The model 'lesions' is ready and chosen."
    assert bench.ui.newModel.text() == "next"


def test_the_new_models_name_can_be_typed_from_the_middle_on(bench):
    field = bench.ui.newModel
    field.setText("my-liver")
    field.setCursorPosition(3)
    QtTest.QTest.keyClicks(field, "big-")
    assert (field.text(), field.cursorPosition(), bench.parameters.newModel) == ("my-big-liver", 7, "my-big-liver")
    bench.parameters.newModel = "from-a-script"
    assert field.text() == "from-a-script"


def test_a_training_outlives_the_scene_that_it_was_started_from(make_bench, host):
    bench = training_bench(make_bench, host)
    slicer.mrmlScene.Clear()
    assert bench.ui.cases.count() == 0
    assert bench.ui.adaptButton.text() == "Cancel"
    (bench.models.parent / "go on").touch()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "The model 'lesions' is ready and chosen."
    assert bench.parameters.model == "lesions"


# -------------------------------------------------------------------------------------------------- slices to annotate


def test_slices_to_annotate_are_listed_and_a_click_goes_there(bench, host, tmp_path):
    view, _ = host.add_view()
    assert bench.ui.suggestions.isHidden()
    bench.ui.suggestButton.click()
    assert bench.ui.suggestButton.text() == "Cancel"
    assert not bench.ui.autoSegmentButton.isEnabled()
    bench.wait_idle()
    assert bench.ui.suggestButton.text() == "Suggest slices to annotate"
    assert bench.parameters.trainingVolume is bench.volume
    listed = [bench.ui.suggestions.item(n).text() for n in range(bench.ui.suggestions.count())]
    assert listed == ["slice 9", "slice 5"]
    assert not bench.ui.suggestions.isHidden()
    assert bench.ui.suggestStatus.text() == "Draw the organs completely in these 2 slices; a click shows one."
    assert "the most useful first: 9, 5." in bench.log
    for row, height in ((0, 8 * 2.5), (1, 4 * 2.5)):
        bench.ui.suggestions.setCurrentRow(row)
        assert view.GetSliceOffset() == pytest.approx(height)
    other = add_volume(host, name="other")
    bench.ui.trainingVolume.setCurrentNode(other)
    assert bench.ui.suggestions.isHidden()
    assert bench.ui.suggestStatus.text() == ""
    bench.ui.trainingVolume.setCurrentNode(bench.volume)
    assert bench.ui.suggestions.count() == 2
    assert bench.ui.suggestStatus.text() == "Draw the organs completely in these 2 slices; a click shows one."
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert [place.slice for place in suggestions.of(bench.parameters.trainingVolume)] == [8, 4]
    assert bench.ui.suggestions.count() == 2


def test_the_look_for_slices_can_be_cancelled_and_ends_with_its_volume(make_bench, host):
    bench = make_bench("slow")
    volume = add_volume(host)
    bench.open()
    bench.ui.suggestButton.click()
    bench.wait(lambda: "1 of 9" in bench.ui.suggestStatus.text())
    assert bench.ui.suggestStatus.text() == "Comparing slices: 1 of 9, about 3 s left"
    bench.ui.suggestButton.click()
    bench.wait_idle()
    assert bench.ui.suggestStatus.text() == "Cancelled."
    assert bench.ui.suggestions.isHidden()
    bench.ui.suggestButton.click()
    bench.wait(lambda: "1 of 9" in bench.ui.suggestStatus.text())
    slicer.mrmlScene.RemoveNode(volume)
    bench.wait_idle()
    message = "The volume 'CT' was removed while its slices were compared. Select another one, or load it again"
    assert bench.ui.suggestStatus.text() == message


def test_suggestions_for_a_turned_volume_under_a_transform_lead_to_their_place(host):
    view, _ = host.add_view()
    turned = np.array([[0, 0, -2.0, 40], [0.7, 0, 0, 5], [0, 1.3, 0, -9], [0, 0, 0, 1]])
    volume = add_volume(host, turned)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    shift = np.eye(4)
    shift[0, 3] = 100
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shift))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    (place, _beyond) = suggestions.keep(volume, {"slices": [3, 5], "slices_axis": 0})
    suggestions.jump(volume, place)
    centre = [view.GetSliceToRAS().GetElement(row, 3) for row in range(3)]
    assert centre == pytest.approx([40 - 2.0 * 3 + 100, 5 + 0.7 * 7, -9 + 1.3 * 5.5])
    assert suggestions.of(None) == []


def test_what_the_editors_undo_brings_back_of_an_earlier_run_is_no_correction(bench):
    node = bench.segment()
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(node.GetSegmentation())
    history.SaveState()
    spleen = mask_of(node, "spleen", bench.volume)
    spleen[4, :, 5] = True
    paint(node, "spleen", bench.volume, spleen)
    standin.add_model(bench.models, "second", [standin.organ(6, "liver", [221, 130, 101], "10200004")])
    bench.widget.greet()
    bench.wait_idle()
    bench.parameters.model = "second"
    bench.segment()
    history.RestorePreviousState()
    assert corrections.corrected_slices(node)[0] == []


def test_follow_is_meant_for_one_training(bench):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.SetReferenceImageGeometryParameterFromVolumeNode(bench.volume)
    mask = np.zeros(slicer.util.arrayFromVolume(bench.volume).shape, bool)
    mask[3:5, 3:6, 3:6] = True
    paint(node, "liver", bench.volume, mask)
    training.add(node, bench.volume)
    node.SetName("renamed")
    bench.widget.enter()
    bench.wait_idle()
    assert bench.ui.cases.item(0).text() == "renamed on CT"
    bench.ui.newModel.setText("mine")
    bench.ui.followCases.setChecked(True)
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "The model 'mine' is ready and chosen."
    assert not bench.ui.followCases.isChecked()


def test_slices_suggested_for_a_volume_that_was_cropped_since_are_not_offered(bench):
    bench.ui.suggestButton.click()
    bench.wait_idle()
    assert suggestions.of(bench.volume)
    cropped = slicer.util.arrayFromVolume(bench.volume)[2:].copy()
    slicer.util.updateVolumeFromArray(bench.volume, cropped)
    assert suggestions.of(bench.volume) == []


def test_masks_show_again_when_the_prompts_that_alone_were_shown_are_removed(bench):
    node = bench.segment()
    bench.ui.layers.setCurrentText("Prompts")
    assert not node.GetDisplayVisibility()
    slicer.mrmlScene.RemoveNode(nodes.companion(node, nodes.PROMPTS))
    bench.widget.enter()
    bench.wait_idle()
    assert node.GetDisplayVisibility()


def test_masks_show_again_when_a_run_whose_prompts_alone_were_shown_is_undone(bench):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "own")
    node.SetReferenceImageGeometryParameterFromVolumeNode(bench.volume)
    mask = np.zeros(slicer.util.arrayFromVolume(bench.volume).shape, bool)
    mask[3:5, 3:6, 3:6] = True
    paint(node, "lesion", bench.volume, mask)
    bench.ui.outputSegmentation.setCurrentNode(node)
    bench.segment()
    bench.ui.layers.setCurrentText("Prompts")
    assert not node.GetDisplayVisibility()
    bench.ui.undoButton.click()
    assert node.GetDisplayVisibility()
    assert names(node) == ["lesion"]
    assert bench.ui.layers.currentText() == "Masks"


def test_what_the_engine_warns_of_is_said_with_the_result(bench):
    bench.volume.SetName("MR")
    bench.segment()
    assert bench.status.endswith("on cpu. MR: it looks like no CT.")
    assert "MR: it looks like no CT." in bench.log


def test_an_organ_whose_segment_was_removed_is_told_of_before_it_is_taught_as_absent(bench):
    node = bench.segment()
    segmentation = node.GetSegmentation()
    segmentation.RemoveSegment(segmentation.GetSegmentIdBySegmentName("liver"))
    bench.ui.useCorrectedButton.click()
    assert "removed, and so taught as absent: liver." in bench.ui.adaptStatus.text()


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_a_target_that_can_no_longer_take_the_result_is_told_of(make_bench, host, what):
    bench = make_bench("slow")
    volume = add_volume(host)
    bench.open()
    mine = drawn_case(volume)
    bench.ui.outputSegmentation.setCurrentNode(mine)
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "4 of 9" in bench.status)
    if what == "removed":
        slicer.mrmlScene.RemoveNode(mine)
        why = "the segmentation 'drawn' is no longer in the scene"
    else:
        mine.SetAndObserveTransformNodeID(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode").GetID())
        why = "the segmentation 'drawn' and the volume 'CT' are under different transforms"
    (bench.models.parent / "go on").touch()
    bench.wait_idle()
    assert bench.status.endswith(f" The result is in a new segmentation, 'CT segmentation': {why}.")
    assert bench.status in bench.log
    assert bench.parameters.outputSegmentation.GetName() == "CT segmentation"
    assert names(bench.parameters.outputSegmentation) == ["liver", "spleen"]
    if what == "moved":
        assert names(mine) == ["lesion"]
