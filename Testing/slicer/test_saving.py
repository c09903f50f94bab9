"""What a saved scene brings back, and what a segmentation file alone does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import slicer
from made_results import KIDNEY, LABEL_SET, LIVER, OBLIQUE, add_volume, labels_of, mask_of, names, paint, write_result
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from PGPSAMSegmentLib import corrections, nodes, preview, review, scene, segments, table

DOUBTS = {"liver": {1: 0.95, 2: 0.6, 3: 0.5, 4: 0.95, 5: 0.7, 6: 0.95}}


def a_worked_on_scene(host: Any, tmp_path: Path) -> None:
    """A run, a look at its worst slice, a correction of the kidney, a segment of the user's own."""
    volume, labels = add_volume(host, OBLIQUE), labels_of()
    node = scene.show_result(volume, write_result(tmp_path / "out", labels, slice_confidence=DOUBTS))
    review.mark(node, review.step(node))
    kidney = labels == KIDNEY["id"]
    kidney[2, 9, 12] = False
    paint(node, "right kidney", volume, kidney)
    own = np.zeros(labels.shape, bool)
    own[4:6, 4:7, 5:7] = True
    paint(node, "tumour", volume, own)


def check_everything_is_back() -> None:
    labels = labels_of()
    volume, node = slicer.util.getNode("CT"), slicer.util.getNode("CT segmentation")
    assert names(node) == ["liver", "right kidney", "inferior vena cava", "tumour"]
    np.testing.assert_array_equal(mask_of(node, "liver", volume), labels == LIVER["id"])
    assert node.GetNodeReference(nodes.VOLUME) is volume
    segmentation = node.GetSegmentation()
    liver = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("liver"))
    assert "SCT^10200004^Liver" in segments.tag(liver, liver.GetTerminologyEntryTagName())
    prompts = nodes.companion(node, nodes.PROMPTS)
    assert names(prompts) == [organ["name"] for organ in LABEL_SET]
    regions = np.roll(labels, 1, axis=2)
    np.testing.assert_array_equal(mask_of(prompts, "liver", volume), regions == LIVER["id"])
    points = nodes.companion(node, nodes.POINTS)
    assert [points.GetNthControlPointLabel(n) for n in range(3)] == [organ["name"] for organ in LABEL_SET]
    assert points.GetNthControlPointDescription(1) == "weight 0.75"
    k, j, i = np.argwhere(labels == LIVER["id"])[(labels == LIVER["id"]).sum() // 2]
    place = [0.0, 0.0, 0.0]
    points.GetNthControlPointPosition(0, place)
    np.testing.assert_allclose(place, (OBLIQUE @ [i, j, k, 1])[:3], atol=1e-6)
    assert table.rows(node)["liver"] == (0.336, 55.5, 0.91, "3-4, 6")
    confidence = slicer.util.arrayFromVolume(nodes.companion(node, nodes.CONFIDENCE))
    np.testing.assert_allclose(confidence, np.linspace(0, 1, labels.size).reshape(labels.shape), atol=1e-6)
    assert [(item.organ, item.slices, item.checked) for item in review.items(node)] == [
        ("liver", "3-4", True),
        ("liver", "6", False),
    ]
    assert review.current(node).slices == "3-4"
    changed = {change.organ: change.changed for change in corrections.changes(node)}
    assert changed == {"liver": 0, "right kidney": 1, "inferior vena cava": 0}
    ours = {organ.name: organ.untouched for organ in segments.ours(node.GetSegmentation())}
    assert ours == {"liver": False, "right kidney": False, "inferior vena cava": True}


def test_a_scene_bundle_brings_everything_back(host, tmp_path: Path) -> None:
    a_worked_on_scene(host, tmp_path)
    check_everything_is_back()
    path = str(tmp_path / "scene.mrb")
    assert slicer.mrmlScene.WriteToMRB(path)
    slicer.mrmlScene.Clear(False)
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert slicer.mrmlScene.ReadFromMRB(path)
    check_everything_is_back()


def test_a_later_run_on_a_loaded_scene_still_keeps_the_users_work(host, tmp_path: Path) -> None:
    a_worked_on_scene(host, tmp_path)
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    slicer.mrmlScene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    volume, node = slicer.util.getNode("CT"), slicer.util.getNode("CT segmentation")
    before = {name: mask_of(node, name, volume) for name in names(node)}
    moved = np.flip(labels_of(), axis=1).copy()
    scene.show_result(volume, write_result(tmp_path / "out", moved), node)
    assert names(node) == [
        "liver", "right kidney", "inferior vena cava", "tumour", "liver (2)", "right kidney (2)",
    ]  # fmt: skip
    for name in ("liver", "right kidney", "tumour"):
        np.testing.assert_array_equal(mask_of(node, name, volume), before[name])
    np.testing.assert_array_equal(mask_of(node, "liver (2)", volume), moved == LIVER["id"])


def test_a_loaded_scene_knows_which_organ_a_result_was_renamed_to(host, tmp_path: Path) -> None:
    node = scene.show_result(add_volume(host), write_result(tmp_path / "out", labels_of()))
    segmentation = node.GetSegmentation()
    segmentation.RemoveSegment(segmentation.GetSegmentIdBySegmentName("right kidney"))
    segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("liver")).SetName("right kidney")
    slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    slicer.mrmlScene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    loaded = slicer.util.getNode("CT segmentation")
    assert [organ.organ for organ in segments.ours(loaded.GetSegmentation())] == ["right kidney", "inferior vena cava"]
    found = {change.organ: (change.added, change.removed) for change in corrections.changes(loaded)}
    assert found == {"right kidney": (288 + 48, 18), "liver": (0, 336), "inferior vena cava": (0, 0)}


def test_a_partial_result_is_not_saved(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    write_result(tmp_path / "out", labels_of())
    preview.show_partial(volume, tmp_path / "out" / "labels.npy", LABEL_SET)
    slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    slicer.mrmlScene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_a_segmentation_file_alone_knows_which_segments_are_ours(host, tmp_path: Path) -> None:
    a_worked_on_scene(host, tmp_path)
    node = slicer.util.getNode("CT segmentation")
    path = str(tmp_path / "result.seg.nrrd")
    assert slicer.util.saveNode(node, path)
    saved = {organ.name: organ for organ in segments.ours(node.GetSegmentation())}
    terms = {name: terminology(node, name) for name in names(node)}
    names_before = names(node)
    masks = {name: mask_of(node, name, slicer.util.getNode("CT")) for name in names(node)}
    slicer.mrmlScene.Clear(False)
    loaded, volume = slicer.util.loadSegmentation(path), add_volume(host, OBLIQUE)
    for name, mask in masks.items():
        assert mask.any()
        np.testing.assert_array_equal(mask_of(loaded, name, volume), mask)
    assert {organ.name: organ for organ in segments.ours(loaded.GetSegmentation())} == saved
    assert {name: terminology(loaded, name) for name in names(loaded)} == terms
    assert [item.slices for item in review.build(loaded)] == ["3-4", "6"]
    # A run on it replaces what nobody has touched, and nothing else.
    scene.show_result(volume, write_result(tmp_path / "out", np.flip(labels_of(), axis=1).copy()), loaded)
    assert names(loaded)[:4] == names_before
    for name in ("liver", "right kidney", "tumour"):
        np.testing.assert_array_equal(mask_of(loaded, name, volume), masks[name])


def terminology(node: Any, name: str) -> str:
    segment = node.GetSegmentation().GetSegment(node.GetSegmentation().GetSegmentIdBySegmentName(name))
    return segments.tag(segment, segment.GetTerminologyEntryTagName())


@parameterNodeWrapper
class Parameters:
    volume: slicer.vtkMRMLScalarVolumeNode
    organs: list[str]
    threshold: Annotated[float, WithinRange(0, 1), Default(0.5)]
    live: bool = True
    device: str = "auto"


def test_parameters_of_the_module_come_back(host, tmp_path: Path) -> None:
    parameters = Parameters(ScriptedLoadableModuleLogic().getParameterNode())
    assert (parameters.volume, parameters.organs, parameters.threshold) == (None, [], 0.5)
    assert (parameters.live, parameters.device) == (True, "auto")
    seen: list[str] = []
    parameters.AddObserver("ModifiedEvent", lambda *_: seen.append(parameters.device))
    parameters.device = "cpu"
    assert seen == ["cpu"]
    parameters.volume, parameters.organs, parameters.live = add_volume(host), ["liver"], False
    for name, wrong in {"threshold": 2.0, "live": "yes", "volume": 3}.items():
        try:
            setattr(parameters, name, wrong)
        except (TypeError, ValueError):
            continue
        raise AssertionError(f"{name} took {wrong!r}")
    slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(True)
    slicer.mrmlScene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    again = Parameters(ScriptedLoadableModuleLogic().getParameterNode())
    assert again.volume is slicer.util.getNode("CT")
    assert (again.organs, again.live, again.device, again.threshold) == (["liver"], False, "cpu", 0.5)
