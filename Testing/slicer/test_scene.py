"""Results in the scene: exact voxels in every orientation, codes, merging, transforms, errors, undo."""

from __future__ import annotations

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
    OBLIQUE,
    OWN,
    SHAPE,
    add_sequence,
    add_volume,
    labels_of,
    mask_of,
    names,
    orientations,
    paint,
    write_result,
)

from PGPSAMSegmentLib import (
    corrections,
    grid,
    nodes,
    output,
    overlay,
    preview,
    prompts,
    review,
    scene,
    segments,
    table,
    undo,
)
from PGPSAMSegmentLib.grid import cut, placed, segment_mask


def under(transform: np.ndarray, *nodes_: Any) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(transform))
    for other in nodes_:
        other.SetAndObserveTransformNodeID(node.GetID())
    return node


# ---------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize(
    "affine", [*orientations(), OBLIQUE], ids=lambda a: "".join(f"{v:+.0f}" for v in a[:3, :3].flat)
)
def test_voxels_go_out_and_come_back_exactly(host, tmp_path: Path, affine) -> None:
    volume = add_volume(host, affine)
    sent = scene.export_volume(volume, tmp_path)
    array = np.load(sent["volume"])
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, slicer.util.arrayFromVolume(volume))
    np.testing.assert_allclose(sent["affine"], affine, atol=1e-9)
    # An "organ" at each voxel whose value says so: the labels follow from the exported array alone.
    labels = np.where(array % 7 == 0, LIVER["id"], np.where(array % 11 == 0, KIDNEY["id"], 0)).astype(np.uint8)
    node = scene.show_result(volume, write_result(tmp_path / "out", labels))
    assert names(node) == ["liver", "right kidney"]
    for organ in (LIVER, KIDNEY):
        np.testing.assert_array_equal(mask_of(node, organ["name"], volume), labels == organ["id"])
        segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(organ["name"])
        np.testing.assert_array_equal(segment_mask(node, segment_id, SHAPE), labels == organ["id"])


def test_a_linear_transform_is_part_of_the_affine_and_of_the_result(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    move = np.array([[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
    transform = under(move, volume)
    sent = scene.export_volume(volume, tmp_path)
    np.testing.assert_allclose(sent["affine"], move @ np.diag([0.7, 1.3, 2.5, 1.0]), atol=1e-12)
    labels = labels_of()
    node = scene.show_result(volume, write_result(tmp_path / "out", labels))
    companions = [nodes.companion(node, role) for role in (nodes.PROMPTS, nodes.POINTS, nodes.CONFIDENCE)]
    assert all(other.GetTransformNodeID() == transform.GetID() for other in [node, *companions])
    np.testing.assert_array_equal(mask_of(node, "liver", volume), labels == LIVER["id"])
    points = nodes.companion(node, nodes.POINTS)
    k, j, i = np.argwhere(labels == LIVER["id"])[(labels == LIVER["id"]).sum() // 2]
    world = [0.0, 0.0, 0.0]
    points.GetNthControlPointPositionWorld(0, world)
    np.testing.assert_allclose(world, (np.array(sent["affine"]) @ [i, j, k, 1])[:3], atol=1e-9)


def test_a_non_linear_transform_is_one_clear_error(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    bend = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "bend")
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    for points, shift in ((vtk.vtkPoints(), 0), (vtk.vtkPoints(), 3)):
        for place in ((0, 0, 0), (10, 0, 0), (0, 10, 0), (0, 0, 10 + shift)):
            points.InsertNextPoint(place)
        (spline.SetTargetLandmarks if shift else spline.SetSourceLandmarks)(points)
    bend.SetAndObserveTransformToParent(spline)
    volume.SetAndObserveTransformNodeID(bend.GetID())
    with pytest.raises(nodes.SceneError, match="non-linear transform 'bend'") as caught:
        scene.export_volume(volume, tmp_path)
    assert "Harden" in caught.value.hint
    assert not (tmp_path / "v.npy").exists()


def test_volumes_that_cannot_be_segmented_say_why(host, tmp_path: Path) -> None:
    colours = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    colours.SetAndObserveImageData(image)
    frames = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "perfusion")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_SHORT, 5)
    frames.SetAndObserveImageData(image)
    flat = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "flat")
    flat.SetAndObserveImageData(vtk.vtkImageData())
    gone = add_volume(host, name="gone")
    slicer.mrmlScene.RemoveNode(gone)
    cases = {
        "no volume is selected": None,
        "'photo' has 3 values a voxel": colours,
        "'perfusion' has 5 values a voxel": frames,
        "'empty' has no voxels": slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"),
        "'flat' has no voxels": flat,
        "'gone' is no longer in the scene": gone,
        "'labels' is a label map": slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels"),
        "'model' is not an image volume": slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "model"),
        "'beat' is a sequence": slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "beat"),
    }
    for message, node in cases.items():
        with pytest.raises(nodes.SceneError, match=message) as caught:
            scene.export_volume(node, tmp_path)
        assert caught.value.hint
        assert "\n" not in str(caught.value)


def test_a_sequence_gives_the_frame_that_it_shows(host, tmp_path: Path) -> None:
    proxy, show = add_sequence(host, frames=3)
    show(2)
    assert np.unique(np.load(scene.export_volume(proxy, tmp_path)["volume"])).tolist() == [2]


def test_a_disk_that_fills_up_is_one_clear_error_and_half_a_file_does_not_stay(host, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: the write is cut short."""
    resource = pytest.importorskip("resource")
    volume = slicer.util.addVolumeFromArray(np.zeros((20, 100, 100), np.int16))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(nodes.SceneError, match="handed to the engine: the disk is full"):
            scene.export_volume(volume, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_one_clear_error(host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(nodes.SceneError, match="nothing could be handed to the engine"):
        scene.export_volume(add_volume(host), tmp_path / "file" / "below")


# -------------------------------------------------------------------------------------------- a new result


def test_segments_carry_slicers_own_codes_names_and_colours(host, tmp_path: Path) -> None:
    labels = labels_of()
    labels[8, 8, 8] = OWN["id"]
    node = scene.show_result(add_volume(host), write_result(tmp_path, labels, [*LABEL_SET, OWN]))
    found = {}
    for name in names(node):
        segment = node.GetSegmentation().GetSegment(node.GetSegmentation().GetSegmentIdBySegmentName(name))
        found[name] = segments.tag(segment, segment.GetTerminologyEntryTagName())
        organ = next(organ for organ in [*LABEL_SET, OWN] if organ["name"] == name)
        np.testing.assert_allclose(np.array(segment.GetColor()) * 255, organ["color"], atol=1e-6)
    general = "Segmentation category and type - 3D Slicer General Anatomy list"
    master = "Segmentation category and type - DICOM master list"
    regions = "Anatomic codes - DICOM master list~^^~^^"
    structure = "SCT^123037004^Anatomical Structure"
    assert found == {
        "liver": f"{general}~{structure}~SCT^10200004^Liver~^^~{regions}",
        "right kidney": f"{general}~{structure}~SCT^64033007^Kidney~SCT^24028007^Right~{regions}",
        # Slicer's general list lacks it.
        "inferior vena cava": f"{master}~{structure}~SCT^64131007^Inferior vena cava~^^~{regions}",
        "my lesion": f"{general}~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~{regions}",
    }
    entry = slicer.vtkSlicerTerminologyEntry()
    logic = slicer.modules.terminologies.logic()
    assert all(logic.DeserializeTerminologyEntry(text, entry) for text in found.values())


def test_the_result_joins_the_volumes_study(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    study = hierarchy.CreateStudyItem(hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient"), "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    companions = [nodes.companion(node, r) for r in (nodes.PROMPTS, nodes.POINTS, nodes.CONFIDENCE, nodes.TABLE)]
    for other in [node, *companions]:
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(other)) == study, other.GetName()
    item = hierarchy.GetItemByDataNode(node)
    assert hierarchy.GetItemAttribute(item, "DICOM.ReferencedInstanceUIDs") == "1.2.3 1.2.4"
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    excluded = slicer.vtkMRMLSubjectHierarchyConstants.GetSubjectHierarchyExcludeFromTreeAttributeName()
    assert nodes.companion(node, nodes.FIRST).GetAttribute(excluded) == "1"


def test_prompts_points_confidence_and_table_come_along(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host, OBLIQUE), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    prompts = nodes.companion(node, nodes.PROMPTS)
    np.testing.assert_array_equal(mask_of(prompts, "liver", volume), np.roll(labels, 1, axis=2) == LIVER["id"])
    points = nodes.companion(node, nodes.POINTS)
    assert [points.GetNthControlPointLabel(n) for n in range(3)] == ["liver", "right kidney", "inferior vena cava"]
    assert points.GetNthControlPointDescription(0) == "weight 0.75"
    confidence = nodes.companion(node, nodes.CONFIDENCE)
    expected = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(confidence), expected)
    display = confidence.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == (0.0, 1.0)
    assert table.rows(node)["liver"] == (0.336, 55.5, 0.91, "")


def test_layers_are_shown_on_request(host, tmp_path: Path) -> None:
    node = scene.show_result(add_volume(host), write_result(tmp_path, labels_of()))
    layers = [node, nodes.companion(node, nodes.PROMPTS), nodes.companion(node, nodes.POINTS)]
    for what, expected in {"prompts": [0, 1, 1], "both": [1, 1, 1], "masks": [1, 0, 0]}.items():
        prompts.show(node, what)
        assert [layer.GetDisplayVisibility() for layer in layers] == expected
        points = layers[2].GetDisplayNode()
        assert (points.GetVisibility2D(), points.GetVisibility3D()) == (1, 0)
    with pytest.raises(nodes.SceneError, match="cannot show 'all'"):
        prompts.show(node, "all")


def test_the_overlay_comes_and_goes_and_leaves_the_view_as_it_was(host, tmp_path: Path) -> None:
    _, composite = host.add_view()
    other = add_volume(host, name="PET")
    composite.SetForegroundVolumeID(other.GetID())
    composite.SetForegroundOpacity(0.7)
    node = scene.show_result(add_volume(host), write_result(tmp_path, labels_of()))
    assert composite.GetForegroundVolumeID() == other.GetID()
    for _ in range(2):
        overlay.overlay_confidence(node, True)
        overlay.overlay_confidence(node, True)
        assert composite.GetForegroundVolumeID() == nodes.companion(node, nodes.CONFIDENCE).GetID()
        overlay.overlay_confidence(node, False)
        assert (composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()) == (other.GetID(), 0.7)


def test_organs_that_were_not_asked_for_or_not_found_get_no_segment(host, tmp_path: Path) -> None:
    labels = labels_of()
    labels[labels == KIDNEY["id"]] = 0
    node = scene.show_result(add_volume(host), write_result(tmp_path, labels), organs=["liver", "right kidney"])
    assert names(node) == ["liver"]
    assert list(table.rows(node)) == ["liver"]
    assert nodes.companion(node, nodes.POINTS).GetNumberOfControlPoints() == 1


def test_a_mask_is_cut_to_its_voxels_and_one_without_any_to_nothing() -> None:
    mask = np.zeros((4, 5, 6), bool)
    assert cut(mask)[0].size == cut(mask[:0])[0].size == 0
    mask[1, 2, 3:5] = mask[2, 4, 0] = True
    box, start = cut(mask)
    assert (box.shape, start) == ((2, 3, 5), (1, 2, 0))
    np.testing.assert_array_equal(placed(box, start, mask.shape), mask)


def test_a_volume_without_any_organ_gives_an_empty_segmentation(host, tmp_path: Path) -> None:
    node = scene.show_result(add_volume(host), write_result(tmp_path, np.zeros(SHAPE, np.uint8)))
    assert names(node) == []
    assert table.rows(node) == {}


def test_the_overlay_goes_with_the_run_that_is_undone(host, tmp_path: Path) -> None:
    """Both ways: the run had made the segmentation, and the run had added to one of the user's."""
    _, composite = host.add_view()
    volume, other, history = add_volume(host), add_volume(host, name="PET"), undo.RunHistory()
    own, _ = with_hand_made(host, volume)
    for target in (None, own):
        composite.SetForegroundVolumeID(other.GetID())
        composite.SetForegroundOpacity(0.7)
        node = scene.show_result(volume, write_result(tmp_path, labels_of()), target, history=history)
        overlay.overlay_confidence(node, True)
        history.undo()
        assert (composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()) == (other.GetID(), 0.7)


def test_results_of_another_volume_are_not_replaced(host, tmp_path: Path) -> None:
    """Two phases of one scan lie on one grid; once the first volume is gone, its segmentation is free."""
    first, second = add_volume(host, name="A"), add_volume(host, name="B")
    result = write_result(tmp_path, labels_of())
    node = scene.show_result(first, result)
    with pytest.raises(nodes.SceneError, match=r"holds results of another volume, 'A'\. Select a new") as caught:
        scene.show_result(second, result, node)
    assert caught.value.hint
    assert node.GetNodeReference(nodes.VOLUME) is first
    other = scene.show_result(second, result)
    assert [output.segmentation_of(volume) for volume in (first, second, None)] == [node, other, None]
    slicer.mrmlScene.RemoveNode(first)
    assert scene.show_result(second, result, node) is node


def test_two_volumes_keep_apart(host, tmp_path: Path) -> None:
    first, second = add_volume(host, name="A"), add_volume(host, OBLIQUE, (6, 7, 8), name="B")
    labels = labels_of(), np.full((6, 7, 8), CAVA["id"], np.uint8)
    a = scene.show_result(first, write_result(tmp_path / "a", labels[0]))
    b = scene.show_result(second, write_result(tmp_path / "b", labels[1]))
    assert (a.GetName(), b.GetName()) == ("A segmentation", "B segmentation")
    for node, volume, expected in ((a, first, labels[0]), (b, second, labels[1])):
        np.testing.assert_array_equal(mask_of(node, CAVA["name"], volume), expected == CAVA["id"])
        assert node.GetNodeReference(nodes.VOLUME) is volume
    with pytest.raises(nodes.SceneError, match="another voxel grid than the volume 'B'"):
        scene.show_result(second, write_result(tmp_path / "b", labels[1]), a)


def test_views_see_one_change(host, tmp_path: Path) -> None:
    ends = []
    slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.EndBatchProcessEvent, lambda *_: ends.append(1))
    scene.show_result(add_volume(host), write_result(tmp_path, labels_of()))
    assert len(ends) == 1
    assert not slicer.mrmlScene.IsBatchProcessing()


# ------------------------------------------------------------------------------- into a segmentation that exists


def with_hand_made(host: Any, volume: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A segmentation with the user's own liver and tumour, which overlap and lie where results will be."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    masks = {"liver": np.zeros(SHAPE, bool), "tumour": np.zeros(SHAPE, bool)}
    masks["liver"][2:8, 3:9, 4:12] = True
    masks["tumour"][4:6, 4:7, 5:7] = True
    for name, mask in masks.items():
        paint(node, name, volume, mask)
    return node, masks


def from_label_map(volume: Any, mask: np.ndarray) -> Any:
    """A segmentation as Slicer makes it of a label map: it knows no grid of its own."""
    labels = slicer.modules.volumes.logic().CreateAndAddLabelVolume(volume, "drawn elsewhere")
    slicer.util.updateVolumeFromArray(labels, mask.astype(np.uint8))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "imported")
    assert slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
    assert not node.GetSegmentation().GetConversionParameter("Reference image geometry")
    node.GetSegmentation().GetNthSegment(0).SetName("tumour")
    return node


def test_edits_in_a_segmentation_made_from_a_label_map_are_kept(host, tmp_path: Path) -> None:
    volume, labels, history = add_volume(host), labels_of(), undo.RunHistory()
    theirs = np.zeros(SHAPE, bool)
    theirs[7:9, 9:12, 3:6] = True
    node = from_label_map(volume, theirs)
    doubts = {"liver": {3: 0.5}}
    scene.show_result(volume, write_result(tmp_path, labels, slice_confidence=doubts), node, history=history)
    assert [item.slice for item in review.items(node)] == [3]
    assert {change.changed for change in corrections.changes(node)} == {0}
    edited = labels == LIVER["id"]
    edited[1, 2, 3] = False
    paint(node, "liver", volume, edited)
    assert [change.removed for change in corrections.changes(node) if change.organ == "liver"] == [1]
    with pytest.raises(nodes.SceneError, match="was edited after the run"):
        history.undo()
    scene.show_result(volume, write_result(tmp_path, labels), node)
    assert "liver (2)" in names(node)
    np.testing.assert_array_equal(mask_of(node, "liver", volume), edited)
    np.testing.assert_array_equal(mask_of(node, "tumour", volume), theirs)


@pytest.mark.parametrize("own", [False, True])
def test_points_that_the_user_added_to_the_prompts_outlast_later_runs_and_their_undo(
    host, tmp_path: Path, own: bool
) -> None:
    """Whether the runs had made the segmentation, or had added to one of the user's."""
    volume, labels, history = add_volume(host), labels_of(), undo.RunHistory()
    target = with_hand_made(host, volume)[0] if own else None
    node = scene.show_result(volume, write_result(tmp_path / "a", labels), target, history=history)
    points = nodes.companion(node, nodes.POINTS)
    listed = lambda: [points.GetNthControlPointLabel(n) for n in range(points.GetNumberOfControlPoints())]  # noqa: E731
    points.AddControlPoint([1.0, 2.0, 3.0], "liver")  # a name that the model's own points have, too
    moved = write_result(tmp_path / "b", np.roll(labels, 1, axis=1))
    scene.show_result(volume, moved, node, history=history)
    organs = [organ["name"] for organ in LABEL_SET]
    assert sorted(listed()) == sorted(["liver", *organs])
    points.AddControlPoint([4.0, 5.0, 6.0], "stone")
    history.undo()
    assert sorted(listed()) == sorted(["liver", "stone", *organs])
    places = {tuple(points.GetNthControlPointPosition(n)) for n in range(points.GetNumberOfControlPoints())}
    seed = np.argwhere(labels == LIVER["id"])[(labels == LIVER["id"]).sum() // 2][::-1]
    assert {(1.0, 2.0, 3.0), (4.0, 5.0, 6.0), tuple(seed * (0.7, 1.3, 2.5))} <= places
    history.undo()
    assert listed() == ["liver", "stone"]
    assert points.GetScene() is not None


def test_undo_sees_edits_of_a_segment_on_a_grid_of_its_own(host, tmp_path: Path) -> None:
    volume, history = add_volume(host), undo.RunHistory()
    coarse = add_volume(host, np.diag([1.4, 2.6, 5.0, 1.0]), (4, 6, 7), name="coarse")
    theirs = np.zeros((4, 6, 7), bool)
    theirs[1:3, 2:4, 3:5] = True
    node = from_label_map(coarse, theirs)
    scene.show_result(volume, write_result(tmp_path, labels_of()), node, history=history)
    paint(node, "tumour", coarse, ~theirs)
    with pytest.raises(nodes.SceneError, match="was edited after the run"):
        history.undo()
    paint(node, "tumour", coarse, theirs)
    assert history.undo() is node
    np.testing.assert_array_equal(mask_of(node, "tumour", coarse), theirs)


def test_a_segment_that_was_marked_without_a_grid_counts_as_edited(host, tmp_path: Path) -> None:
    """Earlier versions marked all segments of a segmentation without a grid with these words, so they tell nothing."""
    node = scene.show_result(add_volume(host), write_result(tmp_path, labels_of()))
    segmentation = node.GetSegmentation()
    segmentation.SetConversionParameter("Reference image geometry", "")
    for segment_id in segments.ids(segmentation):
        segmentation.GetSegment(segment_id).SetTag(segments.CONTENT_TAG, "another grid")
    assert [organ.untouched for organ in segments.ours(segmentation)] == [False, False, False]


def test_fingerprints_are_taken_once_in_a_run_and_tell_every_edit(host, tmp_path: Path, monkeypatch) -> None:
    """A large volume's run took most of its time in the scene to take each of them five times."""
    volume, taken, sha256 = add_volume(host), [], grid.hashlib.sha256
    monkeypatch.setattr(grid.hashlib, "sha256", lambda data: taken.append(data) or sha256(data))
    history = undo.RunHistory()
    node = scene.show_result(volume, write_result(tmp_path / "a", labels_of()), history=history)
    assert len(taken) == 2 * len(LABEL_SET)  # segments and prompts
    taken.clear()
    scene.show_result(volume, write_result(tmp_path / "b", np.roll(labels_of(), 1, axis=1)), node, history=history)
    assert len(taken) == 4 * len(LABEL_SET)  # before, and after
    segmentation = node.GetSegmentation()
    liver, kidney, _ = segments.ids(segmentation)
    with grid.fingerprints_kept():
        assert segments.is_untouched(segmentation, liver)
        segmentation.ClearSegment(liver)
        assert not segments.is_untouched(segmentation, liver)
        assert segments.is_untouched(segmentation, kidney)
    layer = grid.view(segmentation.GetSegment(kidney).GetRepresentation(nodes.BINARY))
    layer[layer == KIDNEY["id"]] = 0  # as a script may do it that does not tell VTK
    assert not segments.is_untouched(segmentation, kidney)


def test_hand_made_segments_stay_bit_identical(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node, masks = with_hand_made(host, volume)
    assert output.kept(node, ["liver", "spleen"])[0][1] == "liver"
    for _ in range(2):  # the second run replaces the first one's segments, in place
        assert scene.show_result(volume, write_result(tmp_path, labels), node) is node
        assert names(node) == ["liver", "tumour", "liver (2)", "right kidney", "inferior vena cava"]
        for name, mask in masks.items():
            np.testing.assert_array_equal(mask_of(node, name, volume), mask)
        np.testing.assert_array_equal(mask_of(node, "liver (2)", volume), labels == LIVER["id"])
        labels = np.flip(labels, axis=0).copy()


def test_a_hand_made_segment_in_our_own_layer_stays_too(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    segmentation = node.GetSegmentation()
    # The Segment Editor puts a new segment into a layer where it has room: here into ours.
    layer = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("liver")).GetRepresentation(nodes.BINARY)
    from PGPSAMSegmentLib.grid import view

    view(layer)[7:9, 5:7, 5:7] = 77
    layer.Modified()
    drawn = slicer.vtkSegment()
    drawn.SetName("drawn")
    drawn.AddRepresentation(nodes.BINARY, layer)
    drawn.SetLabelValue(77)
    segmentation.AddSegment(drawn, "drawn")
    before = mask_of(node, "drawn", volume)
    assert before.sum() == 8
    scene.show_result(volume, write_result(tmp_path, np.flip(labels, axis=1).copy()), node)
    np.testing.assert_array_equal(mask_of(node, "drawn", volume), before)
    values = np.unique(view(segmentation.GetSegment("drawn").GetRepresentation(nodes.BINARY))).tolist()
    assert values == [0, 77], "the replaced organs' old voxels must not linger in a layer that stays"


def test_only_ticked_organs_are_replaced(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    again = np.zeros(SHAPE, np.uint8)
    again[5:8, 5:8, 5:8] = LIVER["id"]
    again[0:3] = CAVA["id"]
    scene.show_result(volume, write_result(tmp_path, again), node, organs=["liver"])
    assert names(node) == ["liver", "right kidney", "inferior vena cava"]
    np.testing.assert_array_equal(mask_of(node, "liver", volume), again == LIVER["id"])
    for organ in (KIDNEY, CAVA):
        np.testing.assert_array_equal(mask_of(node, organ["name"], volume), labels == organ["id"])
    assert list(table.rows(node)) == ["liver", "right kidney", "inferior vena cava"]
    assert nodes.companion(node, nodes.POINTS).GetNumberOfControlPoints() == 3


def test_a_replaced_segment_keeps_its_colour_visibility_and_id(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    segmentation = node.GetSegmentation()
    segment_id = segmentation.GetSegmentIdBySegmentName("liver")
    segmentation.GetSegment(segment_id).SetColor(0.1, 0.2, 0.3)
    node.GetDisplayNode().SetSegmentVisibility(segment_id, False)
    scene.show_result(volume, write_result(tmp_path, np.flip(labels_of(), axis=0).copy()), node)
    assert segmentation.GetSegmentIdBySegmentName("liver") == segment_id
    assert segmentation.GetSegment(segment_id).GetColor() == (0.1, 0.2, 0.3)
    assert not node.GetDisplayNode().GetSegmentVisibility(segment_id)


def test_an_edited_segment_of_ours_is_kept_unless_told_otherwise(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = scene.show_result(volume, write_result(tmp_path, labels))
    edited = labels == LIVER["id"]
    edited[1, 2, 3] = False
    paint(node, "liver", volume, edited)
    assert [name for _, name in output.kept(node, [o["name"] for o in LABEL_SET])] == ["liver"]
    scene.show_result(volume, write_result(tmp_path, labels), node)
    assert names(node) == ["liver", "right kidney", "inferior vena cava", "liver (2)"]
    np.testing.assert_array_equal(mask_of(node, "liver", volume), edited)
    scene.show_result(volume, write_result(tmp_path, labels), node, overwrite=True)
    assert names(node) == ["liver", "right kidney", "inferior vena cava"]
    np.testing.assert_array_equal(mask_of(node, "liver", volume), labels == LIVER["id"])


@pytest.mark.parametrize("status", ["InProgress", "Completed", "Flagged"])
def test_a_segment_with_a_status_is_kept(host, tmp_path: Path, status: str) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName("liver")
    logic.SetSegmentStatus(node.GetSegmentation().GetSegment(segment_id), getattr(logic, status))
    scene.show_result(volume, write_result(tmp_path, labels_of()), node)
    assert "liver (2)" in names(node)


def test_surfaces_follow_the_new_voxels(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path, labels_of()))
    node.CreateClosedSurfaceRepresentation()
    before = surface_bounds(node, "liver")
    moved = write_result(tmp_path, np.flip(labels_of(), axis=0).copy())
    scene.show_result(volume, moved, node)
    fresh = scene.show_result(volume, moved)
    fresh.CreateClosedSurfaceRepresentation()
    for organ in LABEL_SET:
        assert surface_bounds(node, organ["name"]) == surface_bounds(fresh, organ["name"])
    assert surface_bounds(node, "liver") != before


def surface_bounds(node: Any, name: str) -> tuple[float, ...]:
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation(node.GetSegmentation().GetSegmentIdBySegmentName(name), surface)
    assert surface.GetNumberOfPoints()
    return surface.GetBounds()


def test_segmentations_that_cannot_take_voxels_say_why(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    result = write_result(tmp_path, labels_of())
    node, _ = with_hand_made(host, volume)
    under(np.diag([1.0, 1, 1, 1]), node)
    with pytest.raises(nodes.SceneError, match="different transforms"):
        scene.show_result(volume, result, node)
    node.SetAndObserveTransformNodeID(None)
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    with pytest.raises(nodes.SceneError, match="surfaces or contours"):
        scene.show_result(volume, result, node)
    slicer.mrmlScene.RemoveNode(node)
    with pytest.raises(nodes.SceneError, match="no longer in the scene"):
        scene.show_result(volume, result, node)


def test_a_result_that_does_not_fit_leaves_the_scene_as_it_was(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    before = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(nodes.SceneError, match="the volume changed while it was segmented"):
        scene.show_result(volume, write_result(tmp_path, np.zeros((5, 6, 7), np.uint8)))
    result = write_result(tmp_path, labels_of())
    (tmp_path / "regions.npy").write_bytes(b"half a fi")
    with pytest.raises(nodes.SceneError, match=r"cannot be read: .*regions\.npy"):
        scene.show_result(volume, result)
    assert slicer.mrmlScene.GetNumberOfNodes() == before


# ------------------------------------------------------------------------------------- while slices finish, undo


def test_finished_slices_are_shown_while_others_are_not(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    np.save(tmp_path / "labels.npy", np.where(np.arange(9)[:, None, None] < 3, labels, 0).astype(np.uint8))
    node = preview.show_partial(volume, tmp_path / "labels.npy", LABEL_SET, ["liver"])
    assert names(node) == ["liver"]
    expected = labels == LIVER["id"]
    np.testing.assert_array_equal(mask_of(node, "liver", volume)[:3], expected[:3])
    assert not mask_of(node, "liver", volume)[3:].any()
    seen = []
    segmentation = node.GetSegmentation()
    segmentation.AddObserver(slicer.vtkSegmentation.SourceRepresentationModified, lambda *_: seen.append(1))
    np.save(tmp_path / "labels.npy", labels)
    assert preview.show_partial(volume, tmp_path / "labels.npy", LABEL_SET, ["liver"]) is node
    assert seen, "views hear of the new slices"
    np.testing.assert_array_equal(mask_of(node, "liver", volume), expected)
    assert not node.GetSaveWithScene()


def test_a_cancelled_run_leaves_nothing_behind(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    write_result(tmp_path, labels_of())
    before = slicer.mrmlScene.GetNumberOfNodes()
    for _ in range(2):
        preview.show_partial(volume, tmp_path / "labels.npy", LABEL_SET)
    preview.discard_partial(volume)
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    preview.discard_partial(volume)


def test_the_result_takes_the_place_of_the_partial_one(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    result = write_result(tmp_path, labels_of())
    partial = preview.show_partial(volume, tmp_path / "labels.npy", LABEL_SET)
    scene.show_result(volume, result)
    assert partial.GetScene() is None


def test_a_partial_result_goes_even_if_its_volume_went_first(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    write_result(tmp_path, labels_of())
    partial = preview.show_partial(volume, tmp_path / "labels.npy", LABEL_SET)
    slicer.mrmlScene.RemoveNode(volume)
    preview.discard_partial(volume)
    assert partial.GetScene() is None


def test_undo_of_the_first_run_leaves_the_scene_as_it_was(host, tmp_path: Path) -> None:
    volume, history = add_volume(host), undo.RunHistory()
    before = slicer.mrmlScene.GetNumberOfNodes()
    assert not history.can_undo
    scene.show_result(volume, write_result(tmp_path, labels_of()), history=history)
    assert history.undo() is None
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    with pytest.raises(nodes.SceneError, match="no run to undo"):
        history.undo()


def test_undo_of_a_later_run_brings_everything_back(host, tmp_path: Path) -> None:
    volume, labels, history = add_volume(host), labels_of(), undo.RunHistory()
    node, masks = with_hand_made(host, volume)
    scene.show_result(volume, write_result(tmp_path, labels), node, history=history)
    confidence = slicer.util.arrayFromVolume(nodes.companion(node, nodes.CONFIDENCE)).copy()
    moved = np.zeros(SHAPE, np.uint8)
    moved[0, :3, :3] = LIVER["id"]
    result = write_result(tmp_path, moved)
    np.save(tmp_path / "confidence.npy", np.zeros(SHAPE, np.float32))
    scene.show_result(volume, result, node, history=history)
    assert names(node) == ["liver", "tumour", "liver (2)"]
    assert history.undo() is node
    assert names(node) == ["liver", "tumour", "liver (2)", "right kidney", "inferior vena cava"]
    np.testing.assert_array_equal(mask_of(node, "liver (2)", volume), labels == LIVER["id"])
    np.testing.assert_array_equal(mask_of(node, "right kidney", volume), labels == KIDNEY["id"])
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(nodes.companion(node, nodes.CONFIDENCE)), confidence)
    assert table.rows(node)["liver (2)"][0] == 0.336
    assert nodes.companion(node, nodes.POINTS).GetNumberOfControlPoints() == 3
    assert history.undo() is node
    assert node.GetNodeReference(nodes.VOLUME) is None
    assert names(node) == ["liver", "tumour"]
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask_of(node, name, volume), mask)
    assert all(nodes.companion(node, role) is None for role in nodes.COMPANIONS)


def test_undo_never_silently_drops_edits(host, tmp_path: Path) -> None:
    volume, history = add_volume(host), undo.RunHistory()
    node, masks = with_hand_made(host, volume)
    scene.show_result(volume, write_result(tmp_path, labels_of()), node, history=history)
    paint(node, "tumour", volume, ~masks["tumour"])
    with pytest.raises(nodes.SceneError, match="was edited after the run"):
        history.undo()
    np.testing.assert_array_equal(mask_of(node, "tumour", volume), ~masks["tumour"])
    history.undo(force=True)
    np.testing.assert_array_equal(mask_of(node, "tumour", volume), masks["tumour"])


def test_undo_of_the_first_run_keeps_what_the_user_made_since(host, tmp_path: Path) -> None:
    volume, history = add_volume(host), undo.RunHistory()
    node = scene.show_result(volume, write_result(tmp_path, labels_of()), history=history)
    mine = np.zeros(SHAPE, bool)
    mine[5:7, 10:12, 0:3] = True
    paint(node, "tumour", volume, mine)
    assert history.undo() is node
    assert names(node) == ["tumour"]
    np.testing.assert_array_equal(mask_of(node, "tumour", volume), mine)
