"""Frames of a sequence, and other volumes on the same grid: a result stays with the voxels that it was made on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from made_results import (
    KIDNEY,
    LABEL_SET,
    LIVER,
    OBLIQUE,
    add_sequence,
    add_volume,
    edited,
    labels_of,
    mask_of,
    names,
    write_result,
)

from PGPSAMSegmentLib import corrections, grid, nodes, output, scene, segments, suggestions, table, training
from PGPSAMSegmentLib.grid import ijk_to_world

MODEL = {"name": "abdomen-ct", "method": "pgp", "organs": LABEL_SET}


def test_every_frame_has_a_segmentation_of_its_own(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    first = scene.show_result(volume, write_result(tmp_path, labels_of()), output.output_of(volume))
    assert first.GetName() == "4D CT frame 1 segmentation"
    assert output.output_of(volume) is first
    output.choose_output(volume, first)
    show(1)
    assert output.output_of(volume) is None
    assert output.output_at(volume, first) is None, "nor is it replaced if it is still selected in the panel"
    second = scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), 1, axis=1)), None)
    assert second.GetName() == "4D CT frame 2 segmentation"
    for frame, own in enumerate((first, second)):
        show(frame)
        assert output.output_of(volume) is own
        assert output.output_at(volume, first) is own
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    assert output.output_at(volume, mine) is mine, "what holds no results yet takes any"


def test_a_new_segmentation_that_was_asked_for_is_asked_for_at_every_frame(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    scene.show_result(volume, write_result(tmp_path, labels_of()))
    output.choose_output(volume, None)
    for frame in (0, 1, 0):
        show(frame)
        assert output.output_of(volume) is None
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert output.output_of(slicer.util.getNode("4D CT")) is None


def test_a_frame_s_result_in_a_segmentation_of_another_frame_goes_beside_it(host, tmp_path: Path) -> None:
    """A script's, or that of a user who insists."""
    volume, show = add_sequence(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    show(1)
    scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), 1, axis=1)), node, ["liver"])
    assert names(node) == ["liver", "right kidney", "inferior vena cava", "liver (2)"]
    np.testing.assert_array_equal(mask_of(node, "liver", volume), labels_of() == LIVER["id"])
    scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), 2, axis=1)), node, ["liver"])
    assert names(node) == ["liver", "right kidney", "inferior vena cava", "liver (2)"]
    np.testing.assert_array_equal(mask_of(node, "liver (2)", volume), np.roll(labels_of(), 2, axis=1) == LIVER["id"])


def test_a_copied_result_of_another_phase_stays(host, tmp_path: Path) -> None:
    arterial, portal = add_volume(host, name="arterial"), add_volume(host, name="portal")
    slicer.util.arrayFromVolume(portal)[:] += 1
    node = scene.show_result(arterial, write_result(tmp_path, labels_of()))
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    mine.SetReferenceImageGeometryParameterFromVolumeNode(arterial)
    source = node.GetSegmentation()
    liver = source.GetSegmentIdBySegmentName("liver")
    assert mine.GetSegmentation().CopySegmentFromSegmentation(source, liver)
    scene.show_result(portal, write_result(tmp_path, np.roll(labels_of(), 1, axis=1)), mine, ["liver"])
    assert names(mine) == ["liver", "liver (2)"]
    np.testing.assert_array_equal(mask_of(mine, "liver", portal), labels_of() == LIVER["id"])
    assert output.kept(mine, ["liver"]) == [(liver, "liver")]


def test_a_volume_that_was_changed_in_place_takes_its_earlier_result_s_place(host, tmp_path: Path) -> None:
    """It was smoothed, say: the result of before is of no use, and nobody touched it."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    slicer.util.arrayFromVolume(volume)[:] += 1
    scene.show_result(volume, write_result(tmp_path, labels_of()), output.output_of(volume))
    assert names(node) == [organ["name"] for organ in LABEL_SET]


def test_a_frame_that_the_labels_were_not_drawn_on_is_refused(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    refusal = "does not show what '4D CT frame 1 segmentation' was made on"
    edited(node, volume, "liver", 4)
    show(1)
    with pytest.raises(nodes.SceneError, match=refusal):
        training.add(node, volume, corrected=True)
    show(0)
    training.add(node, volume, corrected=True)
    assert training.request(training.cases(), tmp_path / "job", MODEL)["cases"][0]["slices"] == [4]
    table.measure(node)
    assert table.rows(node)["liver"][1] == 0.0
    show(1)
    edited(node, volume, "liver", 3)
    table.measure(node)
    assert math.isnan(table.rows(node)["liver"][1]), "the mean of another frame is not the organ's"
    slicer.mrmlScene.RemoveNode(slicer.util.getNodesByClass("vtkMRMLSequenceNode")[0])
    with pytest.raises(nodes.SceneError, match=refusal):  # the frame is nowhere any more
        training.request(training.cases(), tmp_path / "job", MODEL)


def test_frames_of_one_sequence_are_cases_of_one_training(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    under = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    under.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(OBLIQUE))
    volume.SetAndObserveTransformNodeID(under.GetID())
    for frame in range(2):
        show(frame)
        node = scene.show_result(volume, write_result(tmp_path / str(frame), labels_of()))
        edited(node, volume, k=3 + frame)
        training.add(node, volume, corrected=True)
    told = training.request(training.cases(), tmp_path / "job", MODEL)["cases"]
    assert [case["slices"] for case in told] == [[3], [4]]
    assert [np.unique(np.load(case["volume"])).tolist() for case in told] == [[0], [1]]
    for case in told:
        assert case["name"] == "4D CT"
        np.testing.assert_allclose(case["affine"], ijk_to_world(volume))


def test_two_frames_corrections_in_one_segmentation_are_refused_till_one_frame_s_are_gone(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    edited(node, volume, "liver", 4)
    show(1)
    scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), 1, axis=1)), node)
    edited(node, volume, "right kidney (2)", 3)
    for frame in range(2):  # the liver that counts is of the one, the kidney of the other
        show(frame)
        with pytest.raises(nodes.SceneError, match="holds results of several frames"):
            training.add(node, volume, corrected=True)
    segmentation = node.GetSegmentation()
    for segment_id in segments.ids(segmentation):
        if "(2)" not in segmentation.GetSegment(segment_id).GetName():
            segmentation.RemoveSegment(segment_id)
    training.add(node, volume, corrected=True)
    assert training.request(training.cases(), tmp_path / "job", MODEL)["cases"][0]["slices"] == [3]
    assert KIDNEY["id"] in np.load(tmp_path / "job" / "0" / "labels.npy")


def segmented(make_bench: Any, host: Any) -> tuple[Any, Any, Any, Callable[[int], None]]:
    """A panel that has segmented both frames of a sequence, the two results, and what shows another frame."""
    bench = make_bench()
    _, show = add_sequence(host)
    bench.open()
    first = bench.segment()
    show(1)
    return bench, first, bench.segment(), show


def test_auto_segment_at_another_frame_makes_a_new_segmentation_and_comes_back_to_the_first(make_bench, host) -> None:
    bench, first, second, show = segmented(make_bench, host)
    assert second.GetName() == "4D CT frame 2 segmentation"
    assert bench.ui.outputSegmentation.currentNode() is second
    assert names(first) == names(second) == ["liver", "spleen"]
    show(0)
    assert bench.segment() is first
    assert names(first) == ["liver", "spleen"]
    assert bench.ui.outputSegmentation.currentNode() is first
    assert len(bench.table()) == 2


def test_a_run_at_another_frame_does_not_take_earlier_segments_for_its_own(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    show(1)
    scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), 1, axis=1)), node)
    edited(node, volume, "liver", 4)  # the first frame's; the other organs that count are the second's, which came last
    with pytest.raises(nodes.SceneError, match="holds results of several frames"):
        training.add(node, volume, corrected=True)
    table.measure(node)
    assert math.isnan(table.rows(node)["liver"][1]), "the mean of another frame is not the organ's"


def test_a_result_that_was_accepted_at_one_frame_is_no_case_of_another(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    edited(node, volume)
    show(1)
    with pytest.raises(nodes.SceneError, match="does not show what '4D CT frame 1 segmentation' was made on"):
        training.add(node, volume)
    show(0)
    training.add(node, volume)


def test_results_of_frames_outlast_their_sequence(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    first = scene.show_result(volume, write_result(tmp_path, labels_of()))
    show(1)
    second = scene.show_result(volume, write_result(tmp_path, labels_of()))
    show(0)
    for kind in ("vtkMRMLSequenceBrowserNode", "vtkMRMLSequenceNode"):
        slicer.mrmlScene.RemoveNode(slicer.util.getNodesByClass(kind)[0])
    assert output.output_of(volume) is first
    assert output.output_at(volume, second) is first


def test_a_frame_in_which_nothing_was_found_has_its_result_all_the_same(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    node = scene.show_result(volume, write_result(tmp_path, np.zeros_like(labels_of())))
    assert output.output_of(volume) is node
    show(1)
    assert output.output_of(volume) is None


def test_a_clone_is_neither_an_output_nor_does_it_have_its_originals(host, tmp_path: Path) -> None:
    volume, _ = add_sequence(host)
    first = scene.show_result(volume, write_result(tmp_path, labels_of()))
    backup = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "backup")
    backup.Copy(first)
    assert output.output_of(volume) is first
    output.choose_output(volume, None)
    clone = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, volume, "clone")
    assert output.output_of(clone) is None
    volume.SetAndObserveImageData(None)
    assert output.output_at(volume, first) is first, "what is wrong with it, Auto-segment says"


def test_without_an_output_a_frame_s_own_segmentation_is_taken(make_bench, host) -> None:
    bench, first, second, show = segmented(make_bench, host)
    bench.ui.undoButton.click()
    assert second.GetScene() is None
    show(0)
    assert bench.parameters.outputSegmentation is None
    assert bench.segment() is first


def test_suggested_slices_outlast_the_turn_to_another_frame(make_bench, host, tmp_path: Path) -> None:
    bench = make_bench()
    volume, show = add_sequence(host)
    bench.open()
    bench.ui.suggestButton.click()
    bench.wait_idle()
    suggested = suggestions.of(volume)
    assert suggested
    for frame in (1, 0):
        show(frame)
        bench.widget.enter()
        assert suggestions.of(volume) == suggested
        assert bench.ui.suggestions.count() == len(suggested)
    clone = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, volume, "clone")
    assert suggestions.of(clone) == []
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    volume = slicer.util.getNode("4D CT")
    assert suggestions.of(volume) == suggested
    slicer.mrmlScene.RemoveNode(volume)
    assert not slicer.util.getNodesByClass("vtkMRMLTextNode")


def test_suggestions_of_an_earlier_version_are_read(host) -> None:
    volume = add_volume(host)
    suggestions.keep(volume, {"slices": [3, 5], "slices_axis": 0})
    (kept,) = suggestions.withdraw(volume)
    volume.SetAttribute(suggestions.SUGGESTED, kept.GetText())
    slicer.mrmlScene.RemoveNode(kept)
    assert [place.slice for place in suggestions.of(volume)] == [3, 5]


def test_the_mean_of_an_organ_that_was_edited_at_another_frame_comes_with_its_own(make_bench, host) -> None:
    bench, first, _, show = segmented(make_bench, host)
    bench.ui.outputSegmentation.setCurrentNode(first)
    edited(first, bench.parameters.inputVolume)
    bench.widget.enter()
    assert math.isnan(table.rows(first)["liver"][1]), "the mean of another frame is not the organ's"
    bench.ui.compareButton.click()
    changes = bench.ui.changesText.text()
    for frame in (0, 1):
        show(frame)
        bench.widget.enter()
        assert table.rows(first)["liver"][1] == 0.0, "what is known stays"
        assert bench.ui.changesText.text() == changes != "", "the segments are the same"


def test_of_two_browsers_of_a_volume_the_one_that_it_follows_tells_the_frame(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host, frames=3)
    sequence = slicer.util.getNodesByClass("vtkMRMLSequenceNode")[0]
    second = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "second")
    second.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    second.AddProxyNode(volume, sequence, False)
    second.SetSelectedItemNumber(2)
    assert slicer.util.arrayFromVolume(volume).max() == 2
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    assert node.GetName() == "4D CT frame 3 segmentation"
    show(1)
    assert grid.frame_of(volume) == 2
    slicer.util.arrayFromVolume(volume)[:] = 7
    assert grid.frame_of(volume) in (2, 3), "it is of a sequence all the same"


def test_overwrite_replaces_what_was_edited_at_this_frame_and_nothing_of_another(host, tmp_path: Path) -> None:
    volume, show = add_sequence(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()), organs=["liver"])
    mine = edited(node, volume)
    show(1)
    for shift in (1, 2):
        labels = np.roll(labels_of(), shift, axis=1)
        scene.show_result(volume, write_result(tmp_path, labels), node, ["liver"], overwrite=True)
        assert names(node) == ["liver", "liver (2)"]
        np.testing.assert_array_equal(mask_of(node, "liver", volume), mine)
        np.testing.assert_array_equal(mask_of(node, "liver (2)", volume), labels == LIVER["id"])
        edited(node, volume, "liver (2)")


def test_a_segmentation_that_is_turned_with_the_frames_has_the_figures_of_its_frame(host, tmp_path: Path) -> None:
    """It has one table for all of them."""
    volume, show = add_sequence(host)
    node, labels = turned_segmentation(), [labels_of(), np.roll(labels_of(), 1, axis=1)]
    labels[1][labels[1] == KIDNEY["id"]] = 0
    for frame in range(2):
        show(frame)
        doubts = {"liver": {3: 0.5 + frame / 10}}
        scene.show_result(volume, write_result(tmp_path / str(frame), labels[frame], slice_confidence=doubts), node)
    for frame in (0, 1, 0):
        show(frame)
        table.measure(node)
        assert {row for row, line in table.rows(node).items() if line[0]} == set(names(node))
        assert table.rows(node)["liver"] == (0.764, frame, 0.5 + frame / 10, "4")


def test_corrections_in_a_segmentation_that_is_turned_are_told_from_no_other_frame_s_result(
    host, tmp_path: Path
) -> None:
    """It has one first result for all frames, the latest run's."""
    volume, show = add_sequence(host)
    node = turned_segmentation()
    for frame in range(2):
        show(frame)
        scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), frame, axis=1)), node)
        edited(node, volume)
    training.add(node, volume, corrected=True)
    assert corrections.corrected_slices(node)[0] == [4]
    show(0)
    for call in (corrections.changes, lambda node: training.add(node, volume, corrected=True)):
        with pytest.raises(nodes.SceneError, match="is of another frame") as refused:
            call(node)
    assert "into a new segmentation, and correct that result" in refused.value.hint
    own = scene.show_result(volume, write_result(tmp_path, labels_of()))
    edited(own, volume)
    training.add(own, volume, corrected=True)


def turned_segmentation() -> Any:
    """A segmentation that the browser turns with the frames of its volume, empty at each."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "segmentations")
    browser = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")[0]
    for frame in range(browser.GetNumberOfItems()):
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        sequence.SetDataNodeAtValue(empty, str(frame))
        slicer.mrmlScene.RemoveNode(empty)
    browser.AddSynchronizedSequenceNode(sequence)
    browser.SetSaveChanges(sequence, True)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser.GetProxyNode(sequence)
