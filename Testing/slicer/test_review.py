"""Which slices to look at first, going through them, and what became of the model's result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer
from made_results import (
    CAVA,
    KIDNEY,
    LABEL_SET,
    LIVER,
    OBLIQUE,
    SHAPE,
    add_volume,
    labels_of,
    mask_of,
    names,
    paint,
    write_result,
)

from PGPSAMSegmentLib import (
    corrections,
    firstresult,
    nodes,
    overlay,
    review,
    scene,
    segments,
    suggestions,
    table,
    training,
)


def shown(tmp_path: Path, volume, slice_confidence, labels=None, axis: int = 0):
    labels = labels_of() if labels is None else labels
    return scene.show_result(
        volume, write_result(tmp_path / "out", labels, axis=axis, slice_confidence=slice_confidence)
    )


DOUBTS = {
    "liver": {1: 0.9, 2: 0.6, 3: 0.5, 4: 0.95, 5: 0.7, 6: 0.95},
    "right kidney": {2: 0.2, 3: 0.9},
}


def test_suspicion_weighs_doubt_with_the_slices_share_of_its_organ() -> None:
    assert review.suspicion(0.6, 100, 100) == pytest.approx(0.4)
    assert review.suspicion(0.6, 400, 100) == pytest.approx(0.4)
    assert review.suspicion(0.6, 25, 100) == pytest.approx(0.2)
    assert review.suspicion(1.0, 25, 100) == 0.0
    assert review.suspicion(0.0, 0, 100) == 0.0


def test_the_worst_slices_come_first_and_neighbours_are_one(host, tmp_path: Path) -> None:
    node = shown(tmp_path, add_volume(host), DOUBTS)
    found = [(item.organ, item.slices, item.slice, item.confidence) for item in review.items(node)]
    assert found == [("right kidney", "3", 2, 0.2), ("liver", "3-4", 3, 0.5), ("liver", "6", 5, 0.7)]
    chosen = [item.segment for item in review.items(node)]
    assert review.slices_to_check(node, chosen) == {"liver": "3-4, 6", "right kidney": "3"}
    assert review.slices_to_check(node, chosen[:1]) == {"right kidney": "3"}
    assert table.rows(node)["liver"][3] == "3-4, 6"
    assert review.progress(node) == "0 of 3 places checked; next: right kidney, slice 3"


def test_a_sure_result_asks_for_nothing(host, tmp_path: Path) -> None:
    node = shown(tmp_path, add_volume(host), None)
    assert review.items(node) == []
    assert review.step(node) is None
    assert "sure of all" in review.progress(node)


def test_where_no_organ_was_found_nobody_was_sure_of_anything(host, tmp_path: Path) -> None:
    node = shown(tmp_path, add_volume(host), None, np.zeros(SHAPE, np.uint8))
    assert review.progress(node) == "No organ was found, so there is no slice to check."


@pytest.mark.parametrize("axis", [0, 2])
def test_an_organ_at_the_scans_end_is_cut_off(host, tmp_path: Path, axis: int) -> None:
    """By the first and last slice along the axis that the slices are counted along."""
    node = shown(tmp_path, add_volume(host), None, axis=axis)
    assert table.cut_off(node) == {0: {"inferior vena cava"}, 2: {"inferior vena cava", "right kidney"}}[axis]


def test_the_confidence_of_a_result_that_has_none_can_be_taken_off_but_not_laid_over(host, tmp_path: Path) -> None:
    """As an undone run leaves it that keeps a checked organ."""
    node = shown(tmp_path, add_volume(host), DOUBTS)
    nodes.remove([nodes.companion(node, nodes.CONFIDENCE)])
    overlay.overlay_confidence(node, False)
    with pytest.raises(nodes.SceneError, match="has no confidence map"):
        overlay.overlay_confidence(node, True)


def test_the_few_voxels_at_an_organs_end_do_not_crowd_out_its_middle(host, tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:7, 1:11, 1:14] = LIVER["id"]
    labels[7, 5, 5] = LIVER["id"]
    node = shown(tmp_path, add_volume(host), {"liver": {2: 0.9, 3: 0.9, 4: 0.7, 5: 0.9, 6: 0.9, 7: 0.3}}, labels)
    assert [item.slice for item in review.items(node)] == [4]


def test_going_through_the_list(host, tmp_path: Path) -> None:
    node = shown(tmp_path, add_volume(host), DOUBTS)
    assert review.current(node) is None
    went = [review.step(node).slices for _ in range(4)]
    assert went == ["3", "3-4", "6", "3"]
    assert review.step(node, -1).slices == "6"
    for item in review.items(node)[:2]:
        review.mark(node, item)
    assert review.progress(node) == "2 of 3 places checked; next: liver, slice 6"
    assert {review.step(node).slices for _ in range(3)} == {"6"}
    review.mark(node, review.current(node))
    assert review.step(node) is None
    assert review.progress(node) == "3 of 3 places checked; all done."
    review.mark(node, review.items(node)[0], checked=False)
    assert review.step(node, -1).organ == "right kidney"
    review.select(node, review.items(node)[2])
    assert (review.current(node).slices, review.current(node).checked) == ("6", True)


@pytest.mark.parametrize("status", ["Flagged", "Completed"])
def test_a_status_that_the_user_gave_stays_while_places_are_checked(host, tmp_path: Path, status: str) -> None:
    node = shown(tmp_path, add_volume(host), DOUBTS)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    first = next(item for item in review.items(node) if item.organ == "liver")
    segment = node.GetSegmentation().GetSegment(first.segment)
    logic.SetSegmentStatus(segment, getattr(logic, status))
    review.mark(node, first)
    assert logic.GetSegmentStatus(segment) == getattr(logic, status)
    assert next(item for item in review.items(node) if item.organ == "liver").checked


def test_the_table_names_the_slices_of_the_segment_that_it_measures(host, tmp_path: Path) -> None:
    """A checked liver stays, and the new one goes beside it."""
    volume = add_volume(host)
    node = shown(tmp_path, volume, DOUBTS)
    review.mark(node, next(item for item in review.items(node) if item.organ == "liver"))
    scene.show_result(volume, write_result(tmp_path / "out", labels_of(), slice_confidence={"liver": {4: 0.3}}), node)
    assert "liver (2)" in names(node)
    assert [table.rows(node)[row][3] for row in ("liver", "liver (2)")] == ["3-4, 6", "5"]


def test_places_in_a_segment_that_was_removed_come_back_with_it(host, tmp_path: Path) -> None:
    """As when the user takes its removal back in the Segment Editor."""
    node = shown(tmp_path, add_volume(host), DOUBTS)
    kidney, liver = review.items(node)[:2]
    review.mark(node, kidney)
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(node.GetSegmentation())
    history.SaveState()
    node.GetSegmentation().RemoveSegment(kidney.segment)
    assert review.step(node) == liver
    review.mark(node, liver)
    review.select(node, liver)
    assert [item.organ for item in review.items(node)] == ["liver", "liver"]
    history.RestorePreviousState()
    assert [(item.organ, item.checked) for item in review.items(node)] == [
        ("right kidney", True),
        ("liver", True),
        ("liver", False),
    ]


def test_places_bear_the_names_that_their_segments_have_now(host, tmp_path: Path) -> None:
    node = shown(tmp_path, add_volume(host), DOUBTS)
    node.GetSegmentation().GetSegment(review.items(node)[0].segment).SetName("transplant")
    assert [item.organ for item in review.items(node)] == ["transplant", "liver", "liver"]
    assert review.progress(node) == "0 of 3 places checked; next: transplant, slice 3"
    assert review.step(node).organ == review.current(node).organ == "transplant"


def test_what_was_checked_is_the_users(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = shown(tmp_path, volume, DOUBTS)
    review.mark(node, review.items(node)[1])
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    segment = node.GetSegmentation().GetSegment(review.items(node)[1].segment)
    assert logic.GetSegmentStatus(segment) == logic.InProgress
    again = scene.show_result(volume, write_result(tmp_path / "out", labels_of(), slice_confidence=DOUBTS), node)
    assert names(again) == ["liver", "right kidney", "inferior vena cava", "liver (2)"]
    assert [(item.organ, item.checked) for item in review.items(node)] == [
        ("right kidney", False),
        ("liver", True),
        ("liver (2)", False),
        ("liver", False),
        ("liver (2)", False),
    ]
    scene.show_result(
        volume, write_result(tmp_path / "out", labels_of(), slice_confidence=DOUBTS), node, overwrite=True
    )
    assert not any(item.checked for item in review.items(node)), "new voxels are not checked yet"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_views_jump_to_the_organ_in_its_slice(host, tmp_path: Path, axis: int) -> None:
    view, _ = host.add_view()
    volume = add_volume(host, OBLIQUE)
    move = np.array([[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(move))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    worst = {0: 3, 1: 10, 2: 13}[axis]
    node = shown(tmp_path, volume, {"right kidney": {worst: 0.1}}, axis=axis)
    (item,) = review.items(node)
    assert review.jump(node, item) == node.GetSegmentation().GetSegmentIdBySegmentName("right kidney")
    centre = np.array([2.5, 10.0, 13.0])
    centre[axis] = worst
    world = (move @ OBLIQUE @ [*centre[::-1], 1])[:3]
    np.testing.assert_allclose(review.position(node, item), world, atol=1e-9)
    shown_at = slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS())[:3, 3]
    np.testing.assert_allclose(shown_at, world, atol=1e-6)


def test_a_view_that_shows_something_else_gets_the_volume_that_is_jumped_in(host, tmp_path: Path) -> None:
    composites = [host.add_view(name, "Axial")[1] for name in ("Red", "Yellow", "Green")]
    volume, other = add_volume(host), add_volume(host, name="other")
    red, yellow, green = composites
    red.SetBackgroundVolumeID(other.GetID())
    yellow.SetBackgroundVolumeID(other.GetID())
    yellow.SetForegroundVolumeID(volume.GetID())
    place = suggestions.Place(0, 4)
    node = shown(tmp_path, volume, DOUBTS)
    for jump in (lambda: review.jump(node, review.items(node)[0]), lambda: suggestions.jump(volume, place)):
        jump()
        assert [each.GetBackgroundVolumeID() for each in (red, green)] == [volume.GetID()] * 2
        assert yellow.GetBackgroundVolumeID() == other.GetID()
        red.SetBackgroundVolumeID(other.GetID())
    slicer.mrmlScene.RemoveNode(volume)
    review.jump(node, review.items(node)[0])
    assert red.GetBackgroundVolumeID() == other.GetID()


def test_jumping_works_where_the_user_erased_the_slice_and_not_where_he_removed_the_segment(
    host, tmp_path: Path
) -> None:
    volume = add_volume(host)
    node = shown(tmp_path, volume, DOUBTS)
    item = review.items(node)[1]
    left = mask_of(node, "liver", volume)
    left[item.slice] = False
    paint(node, "liver", volume, left)
    assert review.position(node, item)[2] == pytest.approx(item.slice * 2.5)
    node.GetSegmentation().RemoveSegment(item.segment)
    assert "liver" not in [other.organ for other in review.items(node)]
    with pytest.raises(nodes.SceneError, match="no longer there"):
        review.jump(node, item)


# ---------------------------------------------------------------------------------------- changes, corrections


def test_changes_count_voxels_and_overlap(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = shown(tmp_path, volume, None)
    untouched = {change.organ: (change.changed, change.dice) for change in corrections.changes(node)}
    assert untouched == {organ["name"]: (0, 1.0) for organ in LABEL_SET}
    kidney = labels == KIDNEY["id"]  # 2 x 3 x 3 voxels
    kidney[2, 9, 12:15] = False
    kidney[5, 0, 5] = True
    paint(node, "right kidney", volume, kidney)
    found = {change.organ: change for change in corrections.changes(node)}
    assert (found["right kidney"].added, found["right kidney"].removed) == (1, 3)
    assert found["right kidney"].dice == pytest.approx(2 * 15 / (18 + 16))
    assert found["liver"].changed == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_corrected_slices_become_a_case_to_learn_from(host, tmp_path: Path, axis: int) -> None:
    volume, labels = add_volume(host, OBLIQUE), labels_of()
    node = shown(tmp_path, volume, None, axis=axis)
    assert corrections.corrected_slices(node) == ([], axis)
    liver = labels == LIVER["id"]
    liver[4, 3, 5] = False
    liver[6, 8, 12] = True
    paint(node, "liver", volume, liver)
    slices, along = corrections.corrected_slices(node)
    assert (slices, along) == ({0: [4, 6], 1: [3, 8], 2: [5, 12]}[axis], axis)
    ids = {organ.segment_id: organ.label for organ in segments.ours(node.GetSegmentation())}
    case = corrections.training_case(node, volume, ids, slices, along, tmp_path / "case")
    assert case["slices"] == slices
    assert case["slices_axis"] == axis
    np.testing.assert_array_equal(np.load(case["volume"]), slicer.util.arrayFromVolume(volume))
    np.testing.assert_allclose(case["affine"], OBLIQUE, atol=1e-12)
    expected = np.where(labels == LIVER["id"], 0, labels)
    expected[liver] = LIVER["id"]
    saved = np.load(case["labels"])
    assert saved.dtype == np.uint8
    np.testing.assert_array_equal(saved, expected)
    assert case["organs"] == LABEL_SET


def test_the_segment_that_the_user_worked_on_is_the_one_to_learn_from(host, tmp_path: Path) -> None:
    volume, labels = add_volume(host), labels_of()
    node = shown(tmp_path, volume, None)
    mine = labels == LIVER["id"]
    mine[3, 2, 3] = False
    paint(node, "liver", volume, mine)
    scene.show_result(volume, write_result(tmp_path / "out", labels), node)
    assert "liver (2)" in names(node)
    training.add(node, volume, corrected=True)
    model = {"name": "abdomen-ct", "method": "pgp", "organs": LABEL_SET}
    (case,) = training.request(training.cases(), tmp_path / "case", model)["cases"]
    assert case["slices"] == [3]
    assert not np.load(case["labels"])[3, 2, 3]


def test_hand_made_segments_can_be_learned_from_as_well(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    mask = np.zeros(SHAPE, bool)
    mask[2:4, 3:5, 6:9] = True
    paint(node, "tumour", volume, mask)
    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName("tumour")
    node.GetSegmentation().GetSegment(segment_id).SetColor(1.0, 0.0, 0.5)
    case = corrections.training_case(node, volume, {segment_id: 7}, [3, 2], 0, tmp_path)
    np.testing.assert_array_equal(np.load(case["labels"]), mask * 7)
    assert case["slices"] == [2, 3]
    assert [(o["id"], o["name"], o["color"]) for o in case["organs"]] == [(7, "tumour", [255, 0, 128])]
    with pytest.raises(nodes.SceneError, match="own result for 'mine' is not in this scene"):
        corrections.changes(node)


def test_a_segment_painted_beyond_the_volume_is_cut_to_it(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = shown(tmp_path, volume, None)
    larger = add_volume(host, shape=(11, 14, 17), name="larger")
    larger.SetOrigin(-0.7, -1.3, -2.5)
    everything = np.ones((11, 14, 17), bool)
    paint(node, CAVA["name"], larger, everything)
    change = next(change for change in corrections.changes(node) if change.organ == CAVA["name"])
    assert change.added + change.removed == np.prod(SHAPE) - (labels_of() == CAVA["id"]).sum()


def test_the_first_result_of_other_organs_outlives_a_later_run(host, tmp_path: Path) -> None:
    volume = add_volume(host)
    node = shown(tmp_path, volume, None)
    again = np.zeros(SHAPE, np.uint8)
    again[5, 5, 5] = LIVER["id"]
    scene.show_result(volume, write_result(tmp_path / "out", again), node, organs=["liver"])
    assert {change.organ: change.changed for change in corrections.changes(node)} == {
        organ["name"]: 0 for organ in LABEL_SET
    }
    (liver,) = [o.segment_id for o in segments.ours(node.GetSegmentation()) if o.organ == "liver"]
    first = firstresult.of(node).mask(firstresult.key(node.GetSegmentation(), liver))
    np.testing.assert_array_equal(first, again == LIVER["id"])
