"""What users do to a result before the next run, and what the next run, its undo and a saved scene make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from made_results import (
    CAVA,
    KIDNEY,
    LABEL_SET,
    LIVER,
    OBLIQUE,
    OWN,
    SHAPE,
    add_volume,
    labels_of,
    mask_of,
    names,
    paint,
    write_result,
)

from PGPSAMSegmentLib import corrections, grid, nodes, output, preview, scene, segments, table, undo

MOVE = np.array([[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])


def under(transform: np.ndarray, *moved: Any) -> None:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(transform))
    for each in moved:
        each.SetAndObserveTransformNodeID(node.GetID())


def segment_of(node: Any, name: str) -> Any:
    return node.GetSegmentation().GetSegment(node.GetSegmentation().GetSegmentIdBySegmentName(name))


# ------------------------------------------------------------------------------------------- names in saved scenes


@pytest.mark.parametrize("name", ["tumour & oedema", "size < 1 cm", "duct 'a'", "it: 50%\\", "äй脾"])
def test_a_scene_with_any_organ_name_can_be_loaded_again(host, tmp_path: Path, name: str) -> None:
    volume, labels = add_volume(host), np.where(labels_of() == LIVER["id"], OWN["id"], 0).astype(np.uint8)
    organ = {**OWN, "name": name}
    np.save(tmp_path / "labels.npy", labels)
    shown = preview.show_partial(volume, tmp_path / "labels.npy", [organ])
    node = scene.show_result(volume, write_result(tmp_path / "out", labels, [organ]))
    assert shown.GetScene() is None
    figures, ours = table.rows(node), segments.ours(node.GetSegmentation())
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    assert slicer.mrmlScene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    node = slicer.util.getNode("CT segmentation")
    assert names(node) == names(nodes.companion(node, nodes.PROMPTS)) == list(figures) == [name]
    assert segments.ours(node.GetSegmentation()) == ours
    assert ours[0].untouched
    assert table.rows(node) == figures


def test_names_that_look_alike_as_ids_do_not_fall_together(host, tmp_path: Path) -> None:
    organs = [{**OWN, "name": name, "id": number} for number, name in ((6, "脾"), (2, "肝"), (9, "a&b"), (7, "a<b"))]
    labels = labels_of()
    labels[8, 8, 8] = 7
    node = scene.show_result(add_volume(host), write_result(tmp_path, labels, organs))
    assert names(node) == ["脾", "肝", "a&b", "a<b"]
    for organ in organs:
        np.testing.assert_array_equal(mask_of(node, organ["name"], slicer.util.getNode("CT")), labels == organ["id"])


# --------------------------------------------------------------------------------------------- what the user named


def test_a_renamed_segment_is_the_users(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    segment_of(node, "liver").SetName("liver of model 1")
    moved = np.roll(labels, 1, axis=1)
    for overwrite in (False, True):
        scene.show_result(volume, write_result(tmp_path, moved), node, overwrite=overwrite)
        assert names(node) == ["liver of model 1", "right kidney", "inferior vena cava", "liver"]
        np.testing.assert_array_equal(mask_of(node, "liver of model 1", volume), labels == LIVER["id"])
        np.testing.assert_array_equal(mask_of(node, "liver", volume), moved == LIVER["id"])
        assert [name for _, name in output.kept(node, ["liver"])] == ["liver of model 1"]


@pytest.mark.parametrize("name", ["liver", "liver, first model"])
def test_a_copy_of_a_segment_is_the_users(host, tmp_path: Path, name: str) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    copy = slicer.vtkSegment()
    copy.DeepCopy(segment_of(node, "liver"))
    copy.SetName(name)
    node.GetSegmentation().AddSegment(copy, "copy")
    moved = np.roll(labels, 1, axis=1)
    scene.show_result(volume, write_result(tmp_path, moved), node)
    assert names(node) == ["liver", "right kidney", "inferior vena cava", name]
    for segment_id, expected in (("copy", labels), ("liver", moved)):
        array = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volume)
        np.testing.assert_array_equal(array.astype(bool), expected == LIVER["id"])


def test_a_replaced_segment_keeps_the_terminology_that_the_user_chose(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    liver = segment_of(node, "liver")
    theirs = segments.tag(segment_of(node, "right kidney"), liver.GetTerminologyEntryTagName())
    liver.SetTag(liver.GetTerminologyEntryTagName(), theirs)
    scene.show_result(volume, write_result(tmp_path, labels_of()), node)
    assert names(node) == [organ["name"] for organ in LABEL_SET]
    assert segments.tag(segment_of(node, "liver"), liver.GetTerminologyEntryTagName()) == theirs


# ------------------------------------------------------------------------------------------------------- prompts


def test_the_prompts_of_a_result_take_no_results(host, tmp_path: Path) -> None:
    volume, result = add_volume(host), write_result(tmp_path, labels_of())
    prompts = nodes.companion(scene.show_result(volume, result), nodes.PROMPTS)
    for _ in range(2):  # with segments, and emptied
        with pytest.raises(nodes.SceneError, match="holds the prompts of another segmentation") as caught:
            scene.show_result(volume, result, prompts)
        assert caught.value.hint
        prompts.GetSegmentation().RemoveAllSegments()


def test_prompts_that_the_user_edited_stay(host, tmp_path: Path) -> None:
    volume, labels, history = add_volume(host), labels_of(), undo.RunHistory()
    node = scene.show_result(volume, write_result(tmp_path, labels), history=history)
    prompts = nodes.companion(node, nodes.PROMPTS)
    mine = np.zeros(SHAPE, bool)
    mine[4, 4, 4] = True
    paint(prompts, "liver", volume, mine)
    segment_of(prompts, "right kidney").SetName("seen")
    for _ in range(2):
        scene.show_result(volume, write_result(tmp_path, labels), node, history=history)
        assert names(prompts) == ["liver", "seen", "liver (2)", "right kidney", "inferior vena cava"]
        np.testing.assert_array_equal(mask_of(prompts, "liver", volume), mine)
        regions = np.roll(labels, 1, axis=2)
        np.testing.assert_array_equal(mask_of(prompts, "liver (2)", volume), regions == LIVER["id"])
    paint(prompts, "liver", volume, ~mine)
    with pytest.raises(nodes.SceneError, match="prompts' was edited after the run"):
        history.undo()
    paint(prompts, "liver", volume, mine)
    for _ in range(3):
        history.undo()
    assert node.GetScene() is None
    assert names(prompts) == ["liver", "seen"]


# ----------------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("way", ["put under", "hardened", "taken off"])
def test_all_that_comes_with_a_result_follows_the_volumes_transform(host, tmp_path: Path, way: str) -> None:
    volume, labels = add_volume(host), labels_of()
    if way != "put under":
        under(MOVE, volume)
    node = scene.show_result(volume, write_result(tmp_path / "a", labels))
    if way == "put under":
        under(MOVE, volume, node)
    for each in (volume, node):
        if way == "hardened":
            each.HardenTransform()
        elif way == "taken off":
            each.SetAndObserveTransformNodeID(None)
    moved = np.roll(labels, 1, axis=1)
    scene.show_result(volume, write_result(tmp_path / "b", moved), node, organs=["liver"])
    sent = np.array(scene.export_volume(volume, tmp_path)["affine"])
    prompts, points, confidence = (
        nodes.companion(node, role) for role in (nodes.PROMPTS, nodes.POINTS, nodes.CONFIDENCE)
    )
    bounds = np.zeros((2, 6))
    volume.GetRASBounds(bounds[0])
    confidence.GetRASBounds(bounds[1])
    np.testing.assert_allclose(bounds[1], bounds[0], atol=1e-6)
    for organ, source in ((LIVER, moved), (KIDNEY, labels)):  # of this run and of the one before
        regions = np.roll(source, 1, axis=2) == organ["id"]
        np.testing.assert_array_equal(mask_of(prompts, organ["name"], volume), regions)
        n = [points.GetNthControlPointLabel(n) for n in range(3)].index(organ["name"])
        world, voxels = [0.0, 0.0, 0.0], np.argwhere(source == organ["id"])
        points.GetNthControlPointPositionWorld(n, world)
        np.testing.assert_allclose(world, (sent @ [*voxels[len(voxels) // 2][::-1], 1])[:3], atol=1e-6)


# ---------------------------------------------------------------------------- an emptied segmentation, faults of ours


def test_undo_leaves_a_result_where_it_was_moved_since(host, tmp_path: Path) -> None:
    volume, labels, history = add_volume(host), labels_of(), undo.RunHistory()
    node = scene.show_result(volume, write_result(tmp_path / "a", labels))
    scene.show_result(volume, write_result(tmp_path / "b", np.roll(labels, 1, axis=1)), node, history=history)
    under(MOVE, volume, node)
    history.undo()
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    np.testing.assert_array_equal(mask_of(node, "liver", volume), labels == LIVER["id"])


def test_an_emptied_segmentation_takes_another_volume(host, tmp_path: Path) -> None:
    first, second = add_volume(host, name="A"), add_volume(host, OBLIQUE, (6, 7, 8), name="B")
    history = undo.RunHistory()
    node = scene.show_result(first, write_result(tmp_path / "a", labels_of()))
    figures = table.rows(node)
    node.GetSegmentation().RemoveAllSegments()
    labels = np.full((6, 7, 8), LIVER["id"], np.uint8)
    scene.show_result(second, write_result(tmp_path / "b", labels), node, ["liver"], history=history)
    prompts, points = nodes.companion(node, nodes.PROMPTS), nodes.companion(node, nodes.POINTS)
    assert names(node) == names(prompts) == list(table.rows(node)) == ["liver"]
    assert mask_of(prompts, "liver", second).all()
    assert points.GetNumberOfControlPoints() == 1
    assert [(change.organ, change.changed) for change in corrections.changes(node)] == [("liver", 0)]
    history.undo()
    assert (names(node), table.rows(node)) == ([], figures)
    assert names(prompts) == [organ["name"] for organ in LABEL_SET]
    erased = {change.organ: change.removed for change in corrections.changes(node)}
    assert erased["liver"] == (labels_of() == LIVER["id"]).sum()
    assert node.GetNodeReference(nodes.VOLUME) is first
    assert grid.same_grid(prompts, first)
    assert not grid.same_grid(prompts, second)


def test_a_fault_in_the_middle_of_a_result_leaves_the_scene_as_it_was(host, tmp_path: Path, monkeypatch) -> None:
    volume, labels, history = add_volume(host), labels_of(), undo.RunHistory()
    count = slicer.mrmlScene.GetNumberOfNodes()

    def fault(*_arguments: Any) -> None:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as broken:
        broken.setattr(scene, "put_table", fault)
        with pytest.raises(RuntimeError, match="a fault of ours"):
            scene.show_result(volume, write_result(tmp_path, labels), history=history)
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert not history.can_undo
    node = scene.show_result(volume, write_result(tmp_path, labels), history=history)
    mine = labels == CAVA["id"]
    paint(node, "tumour", volume, mine)
    monkeypatch.setattr(scene, "put_table", fault)
    moved = write_result(tmp_path, np.roll(labels, 1, axis=1))
    for remembered in (history, None):
        with pytest.raises(RuntimeError, match="a fault of ours"):
            scene.show_result(volume, moved, node, history=remembered)
        assert names(node) == [*(organ["name"] for organ in LABEL_SET), "tumour"]
        np.testing.assert_array_equal(mask_of(node, "liver", volume), labels == LIVER["id"])
        np.testing.assert_array_equal(mask_of(node, "tumour", volume), mine)
        assert not slicer.mrmlScene.IsBatchProcessing()
    assert history.last is node


# ---------------------------------------------------------------------------------------------- confidence as input


def test_a_confidence_map_is_no_input(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    slicer.mrmlScene.RemoveNode(volume)
    with pytest.raises(nodes.SceneError, match="'CT segmentation confidence' is a confidence map") as caught:
        output.check_volume(nodes.companion(node, nodes.CONFIDENCE))
    assert caught.value.hint


@pytest.mark.parametrize("version", ["now", "earlier"])
def test_what_came_with_a_result_is_never_taken_for_an_image_or_for_organs(host, tmp_path: Path, version: str) -> None:
    """Also after the result was deleted; scenes of earlier versions know it only as long as the result is there."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    confidence, prompts = (nodes.companion(node, role) for role in (nodes.CONFIDENCE, nodes.PROMPTS))
    if version == "earlier":
        for each in (confidence, prompts):
            each.RemoveAttribute(nodes.ROLE)
    else:
        slicer.mrmlScene.RemoveNode(node)
    assert (nodes.is_confidence(confidence), nodes.is_prompts(prompts)) == (True, True)
    assert not nodes.is_confidence(volume)
    with pytest.raises(nodes.SceneError, match="is a confidence map"):
        output.check_volume(confidence)
    with pytest.raises(nodes.SceneError, match="holds the prompts of another segmentation"):
        output.check_target(prompts, volume)


def test_a_scene_that_is_saved_while_slices_finish_keeps_nothing_of_the_preview(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    write_result(tmp_path, labels_of())
    preview.show_partial(volume, tmp_path / "labels.npy", LABEL_SET)
    assert slicer.mrmlScene.WriteToMRB(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    assert slicer.mrmlScene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    for name in ("vtkMRMLSegmentationNode", "vtkMRMLSegmentationDisplayNode"):
        assert slicer.util.getNodesByClass(name) == []


def test_the_voxels_place_is_part_of_what_the_engine_got(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    scene.export_volume(volume, tmp_path)
    under(MOVE, volume)
    scene.check_unchanged(volume, tmp_path)  # the result goes under the same transform
    scene.export_volume(volume, tmp_path)
    volume.HardenTransform()
    scene.check_unchanged(volume, tmp_path)
    volume.SetSpacing(1.4, 2.6, 5.0)
    with pytest.raises(nodes.SceneError, match="changed while it was segmented"):
        scene.check_unchanged(volume, tmp_path)


def test_a_volume_that_was_loaded_again_takes_the_place_of_the_deleted_one(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    assert output.volume_of(node, None) is volume
    slicer.mrmlScene.RemoveNode(volume)
    with pytest.raises(nodes.SceneError, match="the volume of 'CT segmentation' is not in the scene") as caught:
        output.volume_of(node, None)
    assert caught.value.hint
    phase = add_volume(host, name="portal")
    slicer.util.arrayFromVolume(phase)[0, 0, 0] += 1
    for other in (phase, add_volume(host, OBLIQUE, name="oblique")):
        with pytest.raises(
            nodes.SceneError, match=f"'{other.GetName()}' is not the one that 'CT segmentation'"
        ) as caught:
            output.volume_of(node, other)
        assert caught.value.hint
        assert node.GetNodeReference(nodes.VOLUME) is None
    again = add_volume(host, name="again")
    assert output.volume_of(node, again) is again
    assert node.GetNodeReference(nodes.VOLUME) is again


def test_a_copy_that_does_not_know_the_models_own_result_says_so(host, tmp_path: Path) -> None:
    """The Data module's Clone takes no references along."""
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    clone = slicer.modules.subjecthierarchy.logic().CloneSubjectHierarchyItem
    copy = hierarchy.GetItemDataNode(clone(hierarchy, hierarchy.GetItemByDataNode(node)))
    with pytest.raises(nodes.SceneError, match="own result for 'CT segmentation Copy' is not in this scene"):
        output.volume_of(copy, volume)


def test_a_run_that_fails_costs_no_undo_step(host, tmp_path: Path, monkeypatch) -> None:
    volume, history = add_volume(host), undo.RunHistory()
    node = scene.show_result(volume, write_result(tmp_path, labels_of()), history=history)
    for shift in (1, 2):
        scene.show_result(volume, write_result(tmp_path, np.roll(labels_of(), shift, 1)), node, history=history)
    with monkeypatch.context() as broken:
        broken.setattr(scene, "put_table", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scene.show_result(volume, write_result(tmp_path, labels_of()), node, history=history)
    for _ in range(3):
        history.undo()
    assert not history.can_undo
    assert node.GetScene() is None


def test_what_was_removed_by_hand_comes_back_named_with_undo(host, tmp_path: Path) -> None:
    volume, history = add_volume(host), undo.RunHistory()
    node = scene.show_result(volume, write_result(tmp_path, labels_of()), history=history)
    scene.show_result(volume, write_result(tmp_path, labels_of()), node, history=history)
    roles = (nodes.CONFIDENCE, nodes.TABLE, nodes.POINTS, nodes.FIRST)
    before = [nodes.companion(node, role).GetName() for role in roles]
    nodes.remove([nodes.companion(node, role) for role in roles])
    history.undo()
    assert [nodes.companion(node, role).GetName() for role in roles] == before
    assert nodes.companion(node, nodes.CONFIDENCE).GetDisplayNode() is not None
