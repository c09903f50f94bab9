"""What counts as the user's correction, over several runs, models, grids, frames and files; the table after edits."""

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
    SHAPE,
    add_volume,
    labels_of,
    mask_of,
    names,
    paint,
    write_result,
)

from PGPSAMSegmentLib import corrections, firstresult, nodes, review, scene, segments, table, training

MODEL = {"name": "abdomen-ct", "method": "pgp", "organs": LABEL_SET}


def changed(node: Any) -> dict[str, int]:
    return {change.organ: change.changed for change in corrections.changes(node) if change.changed}


def edited(node: Any, volume: Any, name: str = "liver", k: int = 4) -> np.ndarray:
    """One voxel of a segment erased in slice `k`."""
    mask = mask_of(node, name, volume)
    mask[tuple(np.argwhere(mask & (np.arange(len(mask)) == k)[:, None, None])[0])] = False
    paint(node, name, volume, mask)
    return mask


# ------------------------------------------------------------------------------------ several runs and models


def test_a_model_whose_ids_mean_other_organs_makes_no_corrections(host, tmp_path: Path) -> None:
    """Models that are trained here count their organs from 1, so ids of two models collide."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    own = np.zeros(SHAPE, np.uint8)
    own[5:8, 9:12, 0:5] = KIDNEY["id"]
    scene.show_result(volume, write_result(tmp_path, own, [{**LIVER, "id": KIDNEY["id"], "name": "tumour"}]), node)
    assert names(node) == ["liver", "right kidney", "inferior vena cava", "tumour"]
    assert changed(node) == {}
    with pytest.raises(scene.SceneError, match="nothing was corrected"):
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
    volume, labels, history = add_volume(host), labels_of(), scene.RunHistory()
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
    with pytest.raises(scene.SceneError, match="the voxel grid of 'CT segmentation' was changed"):
        corrections.changes(node)
    with pytest.raises(scene.SceneError, match="does not lie on the voxels of the volume 'CT'"):
        training.request(training.cases(), tmp_path / "job", MODEL)


def test_a_drawn_case_whose_grid_was_refined_is_not_trained_on(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    paint(node, "liver", volume, labels_of() == LIVER["id"])
    training.add(node, volume)
    refine(node)
    with pytest.raises(scene.SceneError, match="does not lie on the voxels of the volume 'CT'"):
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


def test_a_frame_that_the_labels_were_not_drawn_on_is_refused(host, tmp_path: Path) -> None:
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "4D CT")
    for frame in range(2):
        still = add_volume(host, name=f"frame {frame}")
        slicer.util.arrayFromVolume(still)[:] = frame
        sequence.SetDataNodeAtValue(still, str(frame))
        slicer.mrmlScene.RemoveNode(still)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())

    def show(frame: int) -> Any:
        browser.SetSelectedItemNumber(frame)
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
        return browser.GetProxyNode(sequence)

    volume = show(0)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    edited(node, volume)
    show(1)
    with pytest.raises(scene.SceneError, match="does not show what '4D CT segmentation' was made on"):
        training.add(node, volume, corrected=True)
    show(0)
    training.add(node, volume, corrected=True)
    show(1)
    with pytest.raises(scene.SceneError, match="does not show what '4D CT segmentation' was made on"):
        training.request(training.cases(), tmp_path / "job", MODEL)
    show(0)
    assert training.request(training.cases(), tmp_path / "job", MODEL)["cases"][0]["slices"] == [4]
    table.measure(node)
    assert table.rows(node)["liver"][1] == 0.0
    show(1)
    edited(node, volume, k=3)
    table.measure(node)
    assert math.isnan(table.rows(node)["liver"][1]), "the mean of another frame is not the organ's"
    training.remove(node)
    scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), 1, axis=1)), node)
    for frame in range(2):  # the kept liver is of the one, all the others of the other
        show(frame)
        with pytest.raises(scene.SceneError, match="does not show what '4D CT segmentation' was made on"):
            training.add(node, volume, corrected=True)


def test_prompts_are_no_case(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    with pytest.raises(scene.SceneError, match="holds prompts"):
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
    with pytest.raises(scene.SceneError, match="nothing was corrected"):
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
