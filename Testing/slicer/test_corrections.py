"""What counts as the user's own, over several runs, models, names, grids, frames and files; the table after edits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from made_results import (
    CAVA,
    KIDNEY,
    LABEL_SET,
    LIVER,
    OWN,
    SHAPE,
    add_volume,
    edited,
    labels_of,
    mask_of,
    names,
    paint,
    write_result,
)

from PGPSAMSegmentLib import corrections, firstresult, nodes, review, scene, segments, table, training, undo

MODEL = {"name": "abdomen-ct", "method": "pgp", "organs": LABEL_SET}


def changed(node: Any) -> dict[str, int]:
    return {change.organ: change.changed for change in corrections.changes(node) if change.changed}


def test_a_model_whose_ids_mean_other_organs_makes_no_corrections(host, tmp_path: Path) -> None:
    """Models that are trained here count their organs from 1, so ids of two models collide."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    own = np.zeros(SHAPE, np.uint8)
    own[5:8, 9:12, 0:5] = KIDNEY["id"]
    scene.show_result(volume, write_result(tmp_path, own, [{**LIVER, "id": KIDNEY["id"], "name": "tumour"}]), node)
    assert names(node) == ["liver", "right kidney", "inferior vena cava", "tumour"]
    assert changed(node) == {}
    with pytest.raises(nodes.SceneError, match="nothing was corrected"):
        training.add(node, volume, corrected=True)


def test_a_kept_segment_is_compared_with_what_it_was_made_from(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    edited(node, volume)
    moved = np.roll(labels, 1, axis=1)
    scene.show_result(volume, write_result(tmp_path, moved), node)
    assert "liver (2)" in names(node)
    assert changed(node) == {"liver": 1}
    assert corrections.corrected_slices(node) == ([4], 0)
    edited(node, volume, "liver (2)", 5)
    assert changed(node) == {"liver": 1, "liver (2)": 1}


def test_a_segment_that_was_only_checked_is_unchanged_after_another_run(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels, slice_confidence={"liver": {3: 0.2}}))
    review.mark(node, review.items(node)[0])
    scene.show_result(volume, write_result(tmp_path, np.roll(labels, 1, axis=1)), node)
    assert "liver (2)" in names(node)
    assert changed(node) == {}


def test_a_removed_segment_was_erased_in_all_its_slices(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("right kidney"))
    for _ in range(2):  # a later run of other organs does not disturb
        assert changed(node) == {"right kidney": 18}
        assert corrections.corrected_slices(node) == ([2, 3], 0)
        scene.show_result(volume, write_result(tmp_path, labels), node, organs=["liver"])
    table.measure(node)
    training.add(node, volume, corrected=True)
    told = training.request(training.cases(), tmp_path / "job", MODEL)
    assert told["start_from"] == "abdomen-ct", "the absent organ is known all the same"
    assert training.plan(training.cases(), MODEL).erased == ["right kidney"]
    assert told["cases"][0]["slices"] == [2, 3]
    assert np.unique(np.load(told["cases"][0]["labels"])).tolist() == [0, LIVER["id"], CAVA["id"]]


def test_what_a_later_run_does_not_find_any_more_is_nobodys_correction(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    again = np.where(labels == KIDNEY["id"], 0, labels).astype(np.uint8)
    scene.show_result(volume, write_result(tmp_path, again), node)
    assert names(node) == ["liver", "inferior vena cava"]
    assert changed(node) == {}


def test_undo_brings_the_first_result_back(host, tmp_path: Path) -> None:
    volume, labels, history = add_volume(host), labels_of(), undo.RunHistory()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    other = np.where(labels == LIVER["id"], 0, labels).astype(np.uint8)
    scene.show_result(volume, write_result(tmp_path, other), node, history=history)
    history.undo()
    assert changed(node) == {}
    edited(node, volume)
    assert changed(node) == {"liver": 1}


def test_a_scene_of_version_0_1_still_tells_edits(host, tmp_path: Path) -> None:
    """It kept one hidden label map for all runs; a kept segment may have been compared with a later run's result."""
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    nodes.remove([nodes.companion(node, nodes.FIRST)])
    old = slicer.modules.volumes.logic().CreateAndAddLabelVolume(volume, "first result")
    later = np.where(labels == CAVA["id"], 0, labels).astype(np.uint8)
    slicer.util.updateVolumeFromArray(old, later)
    old.SetHideFromEditors(True)
    node.SetNodeReferenceID(nodes.FIRST, old.GetID())
    assert changed(node) == {}
    edited(node, volume)
    assert changed(node) == {"liver": 1}
    scene.show_result(volume, write_result(tmp_path, labels), node)
    assert changed(node) == {"liver": 1}
    assert nodes.companion(node, nodes.FIRST).IsA("vtkMRMLTextNode")


def test_a_corrected_segment_counts_and_not_the_renamed_one_beside_it(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    segmentation = node.GetSegmentation()
    segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("liver")).SetName("liver of model 1")
    scene.show_result(volume, write_result(tmp_path, np.roll(labels, 1, axis=1)), node)
    mask = edited(node, volume)
    assert corrections.corrected_slices(node) == ([4], 0)
    training.add(node, volume, corrected=True)
    (case,) = training.request(training.cases(), tmp_path / "r", MODEL)["cases"]
    np.testing.assert_array_equal(np.load(case["labels"])[4] == LIVER["id"], mask[4])


def test_prompts_of_version_0_1_are_replaced(host, tmp_path: Path) -> None:
    """They bore the organ's tag and no other."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    prompts = nodes.companion(node, nodes.PROMPTS)
    for segment_id in segments.ids(prompts.GetSegmentation()):
        prompts.GetSegmentation().GetSegment(segment_id).RemoveTag(segments.CONTENT_TAG)
    scene.show_result(volume, write_result(tmp_path, labels_of()), node)
    assert names(prompts) == [organ["name"] for organ in LABEL_SET]


# ------------------------------------------------------------------------------- what the user calls it, and drew


def segment(node: Any, name: str) -> Any:
    segmentation = node.GetSegmentation()
    return segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName(name))


def learned(node: Any, tmp_path: Path) -> tuple[dict[str, np.ndarray], list[int] | None]:
    """What a training on the scene's only case would get: organ -> mask, and the slices."""
    told = training.request(training.cases(), tmp_path / "job", MODEL)
    (case,) = told["cases"]
    array = np.load(case["labels"])
    return {each["name"]: array == each["id"] for each in told["labels"]}, case.get("slices")


def test_a_result_renamed_to_another_organ_corrects_both(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    liver, kidney = labels == LIVER["id"], labels == KIDNEY["id"]
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("right kidney"))
    segment(node, "liver").SetName("right kidney")
    found = {change.organ: (change.added, change.removed) for change in corrections.changes(node)}
    assert found == {
        "right kidney": (liver.sum(), kidney.sum()), "liver": (0, liver.sum()), "inferior vena cava": (0, 0)
    }  # fmt: skip
    table.measure(node)
    assert list(table.rows(node)) == ["right kidney", "inferior vena cava"]
    assert table.rows(node)["right kidney"][0] == pytest.approx(liver.sum() * 0.7 * 1.3 * 2.5 / 1000, abs=0.005)
    training.add(node, volume, corrected=True)
    masks, slices = learned(node, tmp_path)
    assert slices == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(masks["right kidney"], liver)
    assert not masks["liver"].any()
    assert list(masks) == [organ["name"] for organ in LABEL_SET]


def test_an_edited_copy_of_another_name_does_not_stand_for_its_organ(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    copy = slicer.vtkSegment()
    copy.DeepCopy(segment(node, "liver"))
    copy.SetName("lesion")
    node.GetSegmentation().AddSegment(copy, "copy")
    lesion = np.zeros(SHAPE, bool)
    lesion[4, 4, 4:6] = True
    paint(node, "lesion", volume, lesion)
    assert changed(node) == {}
    mask = edited(node, volume)
    training.add(node, volume, corrected=True)
    masks, slices = learned(node, tmp_path)
    assert slices == [4]
    np.testing.assert_array_equal(masks["lesion"], lesion)
    np.testing.assert_array_equal(masks["liver"], mask & ~lesion)


def test_a_lesion_that_was_drawn_before_is_not_covered_by_the_organ_of_a_later_run(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.GetSegmentation().AddEmptySegment("", "lesion")
    lesion = np.zeros(SHAPE, bool)
    lesion[4, 4, 4:6] = True
    assert (labels[lesion] == LIVER["id"]).all()
    paint(node, "lesion", volume, lesion)
    scene.show_result(volume, write_result(tmp_path, labels), node)
    mask = edited(node, volume)
    training.add(node, volume, corrected=True)
    masks, _ = learned(node, tmp_path)
    np.testing.assert_array_equal(masks["lesion"], lesion)
    np.testing.assert_array_equal(masks["liver"], mask & ~lesion)


def test_a_renamed_result_is_learned_under_its_new_name_and_without_the_old_ones_codes(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(
        volume, write_result(tmp_path, np.where(labels == LIVER["id"], labels, 0).astype(np.uint8))
    )
    segment(node, "liver").SetName("my tumour")
    training.add(node, volume)
    told = training.request(training.cases(), tmp_path / "job", MODEL)
    assert [(organ["id"], organ["name"], organ["snomed"]) for organ in told["labels"]] == [(1, "my tumour", None)]


@pytest.mark.parametrize("found", [True, False], ids=["others were found", "nothing was found"])
def test_an_organ_that_the_model_missed_counts_once_it_is_drawn(host, tmp_path: Path, found: bool) -> None:
    volume, labels = add_volume(host), labels_of()
    kidney = labels == KIDNEY["id"]
    result = write_result(tmp_path, np.where(kidney | (not found), 0, labels).astype(np.uint8))
    nothing = {"volume_ml": 0.0, "mean_hu": None, "confidence": None, "slices_axis": 0, "slice_confidence": {}}
    result["organs"].append({"id": KIDNEY["id"], "name": "right kidney", **nothing})
    node = scene.show_result(volume, result)
    paint(node, "lesion", volume, labels == LIVER["id"])  # nobody has asked the model for it
    with pytest.raises(nodes.SceneError, match="nothing was corrected"):
        training.add(node, volume, corrected=True)
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("lesion"))
    paint(node, "right kidney", volume, kidney)
    assert changed(node) == {"right kidney": kidney.sum()}
    table.measure(node)
    millilitres, intensity, confidence, _slices = table.rows(node)["right kidney"]
    assert millilitres == pytest.approx(kidney.sum() * 0.7 * 1.3 * 2.5 / 1000, abs=0.005)
    assert intensity == pytest.approx(slicer.util.arrayFromVolume(volume)[kidney].mean(), abs=0.05)
    assert math.isnan(confidence)
    training.add(node, volume, corrected=True)
    masks, slices = learned(node, tmp_path)
    assert slices == ([2, 3] if found else None), "without a list the engine takes those that show an organ"
    np.testing.assert_array_equal(masks["right kidney"], kidney)


def test_an_organ_that_is_drawn_under_another_spelling_is_the_models(host, tmp_path: Path) -> None:
    """The engine refuses two organs whose names differ in case or underscores only."""
    volume, labels = add_volume(host), labels_of()
    kidney = labels == KIDNEY["id"]
    result = write_result(tmp_path, np.where(kidney, 0, labels).astype(np.uint8))
    nothing = {"volume_ml": 0.0, "mean_hu": None, "confidence": None, "slices_axis": 0, "slice_confidence": {}}
    result["organs"].append({"id": KIDNEY["id"], "name": "right kidney", **nothing})
    node = scene.show_result(volume, result)
    paint(node, "Right_Kidney", volume, kidney)
    table.measure(node)
    assert table.rows(node).keys() == {"liver", "right kidney", "inferior vena cava"}
    assert table.rows(node)["right kidney"][0] > 0
    assert changed(node) == {"Right_Kidney": kidney.sum()}
    training.add(node, volume, corrected=True)
    masks, slices = learned(node, tmp_path)
    assert (list(masks), slices) == ([organ["name"] for organ in LABEL_SET], [2, 3])
    np.testing.assert_array_equal(masks["right kidney"], kidney)


def test_what_only_the_model_says_is_no_case(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for status in (logic.NotStarted, logic.InProgress, logic.Flagged):
        logic.SetSegmentStatus(segment(node, "liver"), status)
        with pytest.raises(nodes.SceneError, match="'CT segmentation' holds only the model's own result") as caught:
            training.add(node, volume)
        assert "press 'Use corrected slices for training'" in caught.value.hint
    logic.SetSegmentStatus(segment(node, "liver"), logic.Completed)
    training.add(node, volume)
    masks, _ = learned(node, tmp_path)
    assert list(masks) == ["liver"]
    np.testing.assert_array_equal(masks["liver"], labels == LIVER["id"])
    logic.SetSegmentStatus(segment(node, "liver"), logic.NotStarted)  # a change of mind, after it was added
    with pytest.raises(nodes.SceneError, match="holds only the model's own result"):
        training.plan(training.cases(), MODEL)


def test_a_drawn_case_that_took_a_result_since_still_is_what_was_drawn(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    mine = np.zeros(SHAPE, bool)
    mine[4, 3:6, 3:6] = True
    paint(node, "liver", volume, mine)
    training.add(node, volume)
    scene.show_result(volume, write_result(tmp_path, labels), node)
    assert names(node) == ["liver", "liver (2)", "right kidney", "inferior vena cava"]
    masks, slices = learned(node, tmp_path)
    assert (list(masks), slices) == (["liver"], None)
    np.testing.assert_array_equal(masks["liver"], mine)


# ------------------------------------------------------------------------------------------- undo of a later run


def two_runs(host: Any, tmp_path: Path) -> tuple[Any, undo.RunHistory]:
    """A result, a segment of the user's own, and another liver in a second run."""
    volume, history = add_volume(host), undo.RunHistory()
    doubts = {"liver": {3: 0.2}, "right kidney": {2: 0.2}}
    node = scene.show_result(volume, write_result(tmp_path, labels_of(), slice_confidence=doubts), history=history)
    own = np.zeros(SHAPE, bool)
    own[7, 7, 7] = True
    paint(node, "lesion", volume, own)
    moved = write_result(tmp_path, np.roll(labels_of(), 1, axis=1), slice_confidence=doubts)
    scene.show_result(volume, moved, node, organs=["liver"], history=history)
    return node, history


def test_what_a_run_did_not_write_keeps_name_colour_and_checks_when_it_is_undone(host, tmp_path: Path) -> None:
    node, history = two_runs(host, tmp_path)
    logic, lesion = slicer.vtkSlicerSegmentationsModuleLogic, segment(node, "lesion")
    lesion.SetName("metastasis")
    lesion.SetColor(1.0, 0.0, 0.5)
    lesion.SetTag(lesion.GetTerminologyEntryTagName(), "mine")
    logic.SetSegmentStatus(lesion, logic.Flagged)
    (kidney,) = [item for item in review.items(node) if item.organ == "right kidney"]
    review.mark(node, kidney)
    mask = mask_of(node, "metastasis", node.GetNodeReference(nodes.VOLUME))
    assert history.undo() is node
    back = segment(node, "metastasis")
    assert names(node) == ["liver", "right kidney", "inferior vena cava", "metastasis"]
    np.testing.assert_array_equal(mask_of(node, "metastasis", node.GetNodeReference(nodes.VOLUME)), mask)
    assert back.GetColor() == pytest.approx((1.0, 0.0, 0.5))
    assert segments.tag(back, back.GetTerminologyEntryTagName()) == "mine"
    assert logic.GetSegmentStatus(back) == logic.Flagged
    assert {item.organ: item.checked for item in review.items(node)} == {"liver": False, "right kidney": True}
    assert logic.GetSegmentStatus(segment(node, "right kidney")) == logic.Completed
    volume = node.GetNodeReference(nodes.VOLUME)
    np.testing.assert_array_equal(mask_of(node, "liver", volume), labels_of() == LIVER["id"])


def test_an_undo_that_would_lose_a_name_or_a_check_is_refused(host, tmp_path: Path) -> None:
    node, history = two_runs(host, tmp_path)
    segment(node, "liver").SetName("liver of model 2")
    with pytest.raises(nodes.SceneError, match="'liver of model 2' was renamed or checked after the run") as caught:
        history.undo()
    assert caught.value.hint.startswith("Take the name or the check back first")
    segment(node, "liver of model 2").SetName("liver")
    (liver,) = [item for item in review.items(node) if item.organ == "liver"]
    review.mark(node, liver)
    with pytest.raises(nodes.SceneError, match="'liver' was renamed or checked after the run"):
        history.undo()
    review.mark(node, liver, False)
    assert history.undo() is node


# -------------------------------------------------------------------------------- grids, transforms, frames


def refine(node: Any) -> None:
    """Halves the slice thickness, as the Segment Editor's geometry dialog does."""
    fine = slicer.vtkOrientedImageData()
    fine.SetDimensions(SHAPE[2], SHAPE[1], SHAPE[0] * 2)
    affine = np.diag([0.7, 1.3, 1.25, 1.0])
    affine[2, 3] = -0.625
    fine.SetGeometryFromImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
    segmentation = node.GetSegmentation()
    text = slicer.vtkSegmentationConverter.SerializeImageGeometry(fine)
    segmentation.SetConversionParameter("Reference image geometry", text)
    images = {
        image.GetAddressAsString(""): image
        for image in (segmentation.GetSegment(i).GetRepresentation(nodes.BINARY) for i in segments.ids(segmentation))
    }
    for image in images.values():
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(image, fine, image)


def test_a_grid_that_was_refined_is_told_and_not_trained_on(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    edited(node, volume)
    training.add(node, volume, corrected=True)
    refine(node)
    with pytest.raises(nodes.SceneError, match="the voxel grid of 'CT segmentation' was changed"):
        corrections.changes(node)
    with pytest.raises(nodes.SceneError, match="does not lie on the voxels of the volume 'CT'"):
        training.request(training.cases(), tmp_path / "job", MODEL)


def test_a_drawn_case_whose_grid_was_refined_is_not_trained_on(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    paint(node, "liver", volume, labels_of() == LIVER["id"])
    training.add(node, volume)
    refine(node)
    with pytest.raises(nodes.SceneError, match="does not lie on the voxels of the volume 'CT'"):
        training.request(training.cases(), tmp_path / "job", MODEL)
    assert not (tmp_path / "job").exists()


def test_the_review_finds_its_slice_on_a_refined_grid(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of(), slice_confidence={"liver": {5: 0.3}}))
    (item,) = review.items(node)
    before = review.position(node, item)
    refine(node)
    np.testing.assert_allclose(review.position(node, item), before, atol=1e-6)


def test_the_review_follows_a_bend_that_was_put_on_later(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of(), slice_confidence={"liver": {3: 0.2}}))
    (item,) = review.items(node)
    straight = review.position(node, item)
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    for points, set_landmarks in ((vtk.vtkPoints(), spline.SetSourceLandmarks), (vtk.vtkPoints(), None)):
        for x, y, z in ((0, 0, 0), (30, 0, 0), (0, 30, 0), (0, 0, 30), (20, 20, 20)):
            points.InsertNextPoint((x, y, z) if set_landmarks else (x + 20 - z / 3, y, z + 10))
        (set_landmarks or spline.SetTargetLandmarks)(points)
    bend = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "bend")
    bend.SetAndObserveTransformToParent(spline)
    for other in (volume, node):
        other.SetAndObserveTransformNodeID(bend.GetID())
    np.testing.assert_allclose(review.position(node, item), spline.TransformPoint(straight), atol=1e-6)


def test_prompts_are_no_case(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    with pytest.raises(nodes.SceneError, match="holds prompts"):
        training.add(nodes.companion(node, nodes.PROMPTS), volume)


def test_a_training_that_is_refused_leaves_no_files(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    mine.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for organ in LABEL_SET:
        paint(mine, organ["name"], volume, labels == organ["id"])
    training.add(mine, volume)
    edited(node, volume)
    training.add(node, volume, corrected=True)
    paint(node, "liver", volume, labels == LIVER["id"])  # the correction taken back
    with pytest.raises(nodes.SceneError, match="nothing was corrected"):
        training.request(reversed_cases(), tmp_path / "job", MODEL)
    assert not (tmp_path / "job").exists()


def reversed_cases() -> list[training.Case]:
    """The drawn one first, whose files are then written before the other is refused."""
    return sorted(training.cases(), key=lambda case: case.corrected)


# -------------------------------------------------------------------------------------------------- the table


def test_the_table_follows_edits_and_removed_segments(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels, slice_confidence={"liver": {3: 0.5}}))
    before = table.rows(node)
    table.measure(node)
    assert table.rows(node) == before
    stamp = table.stamp(node)
    cavity = np.zeros(SHAPE, bool)
    cavity[2:7, 2:9, 3:11] = True
    paint(node, "liver", volume, cavity)
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("right kidney"))
    assert table.stamp(node) != stamp
    table.measure(node)
    rows = table.rows(node)
    assert list(rows) == ["liver", "inferior vena cava"]
    millilitres, intensity, confidence, slices = rows["liver"]
    assert millilitres == pytest.approx(280 * 0.7 * 1.3 * 2.5 / 1000, abs=0.005)
    assert intensity == pytest.approx(slicer.util.arrayFromVolume(volume)[cavity].mean(), abs=0.05)
    assert (math.isnan(confidence), slices) == (True, "4")
    assert rows["inferior vena cava"] == before["inferior vena cava"]


def test_two_segments_of_an_organ_have_a_row_each(host, tmp_path: Path) -> None:
    """The user's own liver is no place for the figures of the model's."""
    volume, labels = add_volume(host), labels_of()
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    mine.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    own = np.zeros(SHAPE, bool)
    own[4, 4, 4:6] = True
    paint(mine, "liver", volume, own)
    node = scene.show_result(volume, write_result(tmp_path, labels, slice_confidence={"liver": {3: 0.5}}), mine)
    assert list(table.rows(node)) == ["liver (2)", "right kidney", "inferior vena cava"]
    assert table.rows(node)["liver (2)"] == (0.336, 55.5, 0.91, "4")
    table.measure(node)
    rows = table.rows(node)
    assert list(rows) == ["liver (2)", "liver", "right kidney", "inferior vena cava"]
    assert rows["liver"][0] == pytest.approx(2 * 0.7 * 1.3 * 2.5 / 1000, abs=0.0005)
    assert math.isnan(rows["liver"][2])
    assert rows["liver (2)"] == (0.336, 55.5, 0.91, "4")
    assert corrections.asked(node) == {"liver", "right kidney", "inferior vena cava"}
    assert table.cut_off(node) == {"inferior vena cava"}
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("liver (2)"))
    table.measure(node)
    assert list(table.rows(node)) == ["liver", "right kidney", "inferior vena cava"]
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("liver"))
    table.measure(node)
    assert list(table.rows(node)) == ["right kidney", "inferior vena cava"]


def test_a_second_segment_in_the_table_of_an_earlier_version_has_its_confidence(host, tmp_path: Path) -> None:
    """That table had one row an organ, with the figures of the latest result."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    edited(node, volume)
    again = np.roll(labels_of(), 1, axis=1)
    scene.show_result(volume, write_result(tmp_path, again, slice_confidence={"liver": {1: 0.6, 2: 0.9}}), node)
    figures = nodes.companion(node, nodes.TABLE).GetTable()
    rows = list(table.rows(node))
    figures.SetValueByName(rows.index("liver (2)"), table.ORGAN, "liver")
    figures.RemoveRow(rows.index("liver"))
    table.measure(node)
    mean = slicer.util.arrayFromVolume(volume)[again == LIVER["id"]].mean()
    assert table.rows(node)["liver (2)"] == (0.764, pytest.approx(mean, abs=0.05), 0.75, "2")
    assert math.isnan(table.rows(node)["liver"][2])


def test_the_confidence_comes_back_with_the_voxels_that_were_edited(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels, slice_confidence={"liver": {3: 0.5}}))
    edited(node, volume)
    table.measure(node)
    assert math.isnan(table.rows(node)["liver"][2])
    paint(node, "liver", volume, labels == LIVER["id"])
    table.measure(node)
    assert table.rows(node)["liver"][2:] == (0.5, "4")


def test_a_row_keeps_its_organ_however_its_segment_is_spelled(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    edited(node, volume)
    again = write_result(tmp_path, np.roll(labels_of(), 1, axis=1))
    nothing = {"volume_ml": 0.0, "mean_hu": None, "confidence": None, "slices_axis": 0, "slice_confidence": {}}
    again["organs"].append({"id": OWN["id"], "name": "lesion (2)", **nothing})
    again["label_set"] = [*again["label_set"], {**OWN, "name": "lesion (2)"}]
    scene.show_result(volume, again, node)
    segment(node, "liver (2)").SetName("Liver (2)")
    table.measure(node)
    assert "lesion (2)" in table.rows(node)
    assert corrections.asked(node) == {"liver", "right kidney", "inferior vena cava", "lesion (2)"}


def test_an_organ_that_a_run_does_not_find_leaves_the_row_of_the_users(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    segment(node, "liver").SetTag(slicer.vtkSlicerSegmentationsModuleLogic.GetStatusTagName(), "completed")
    before = table.rows(node)["liver"]
    result = write_result(tmp_path, np.where(labels == LIVER["id"], 0, labels).astype(np.uint8))
    nothing = {"volume_ml": 0.0, "mean_hu": None, "confidence": None, "slices_axis": 0, "slice_confidence": {}}
    result["organs"].append({"id": LIVER["id"], "name": "liver", **nothing})
    scene.show_result(volume, result, node)
    assert table.rows(node)["liver"] == before


def test_an_organ_that_was_drawn_and_removed_again_is_not_found_again(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    result = write_result(tmp_path, np.where(labels == KIDNEY["id"], 0, labels).astype(np.uint8))
    nothing = {"volume_ml": 0.0, "mean_hu": None, "confidence": None, "slices_axis": 0, "slice_confidence": {}}
    result["organs"].append({"id": KIDNEY["id"], "name": "right kidney", **nothing})
    node = scene.show_result(volume, result)
    before = repr(table.rows(node))
    paint(node, "right kidney", volume, labels == KIDNEY["id"])
    table.measure(node)
    assert repr(table.rows(node)) != before
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("right kidney"))
    table.measure(node)
    assert repr(table.rows(node)) == before


def test_the_table_follows_what_is_taken_back(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    before, written = table.rows(node), mask_of(node, "liver", volume)
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(node.GetSegmentation())
    history.SaveState()
    edited(node, volume)
    node.GetSegmentation().RemoveSegment(node.GetSegmentation().GetSegmentIdBySegmentName("right kidney"))
    table.measure(node)
    assert table.rows(node)["liver"][:2] != before["liver"][:2]
    history.RestorePreviousState()
    np.testing.assert_array_equal(mask_of(node, "liver", volume), written)
    table.measure(node)
    for organ in ("liver", "right kidney"):
        voxels = labels == {"liver": LIVER, "right kidney": KIDNEY}[organ]["id"]
        expected = voxels.sum() * np.prod(volume.GetSpacing()) / 1000
        assert table.rows(node)[organ][0] == pytest.approx(expected, abs=0.005)


def test_the_panels_table_follows_when_the_user_comes_back(bench) -> None:
    node = bench.segment()
    before = table.rows(node)["liver"]
    left = mask_of(node, "liver", bench.volume)
    left[3:] = False
    paint(node, "liver", bench.volume, left)
    bench.widget.enter()
    after = table.rows(node)["liver"]
    assert after[0] == pytest.approx(left.sum() * np.prod(bench.volume.GetSpacing()) / 1000, abs=0.005)
    assert after[0] != before[0]


# -------------------------------------------------------------------------------------------------- files


def test_a_scene_saved_with_the_save_dialog_brings_the_first_result_back(host, tmp_path: Path) -> None:
    """The dialog writes a file for each node that is not hidden from editors, and then the scene's own."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path / "out", labels_of()))
    edited(node, volume)
    folder = tmp_path / "saved"
    folder.mkdir()
    slicer.mrmlScene.SetRootDirectory(str(folder))
    everything = slicer.mrmlScene.GetNodes()
    for other in [everything.GetItemAsObject(n) for n in range(everything.GetNumberOfItems())]:
        if not other.IsA("vtkMRMLStorableNode") or other.GetHideFromEditors() or not other.GetSaveWithScene():
            continue
        other.AddDefaultStorageNode()
        storage = other.GetStorageNode()
        if storage is not None:
            storage.SetFileName(str(folder / f"{other.GetName()}.{storage.GetDefaultWriteFileExtension()}"))
            assert storage.WriteData(other)
    slicer.mrmlScene.SetURL(str(folder / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear(True)
    slicer.mrmlScene.SetURL(str(folder / "scene.mrml"))
    assert slicer.mrmlScene.Connect()
    assert changed(slicer.util.getNode("CT segmentation")) == {"liver": 1}


def test_no_list_of_the_panel_offers_the_first_result(bench) -> None:
    first = nodes.companion(bench.segment(), nodes.FIRST)
    offered = [widget for widget in vars(bench.ui).values() if hasattr(widget, "nodeTypes")]
    assert len(offered) >= 4
    assert not any(first.IsA(kind) for widget in offered for kind in widget.nodeTypes)
    assert firstresult.organs(bench.parameters.outputSegmentation) == {"liver", "spleen"}
