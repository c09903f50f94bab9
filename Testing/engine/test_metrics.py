"""Scores against numbers worked out by hand, and what is said of organs that are absent."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pgpsam.errors import UserError
from pgpsam.labels import ABDOMEN, LabelSet
from pgpsam.training.metrics import OrganScore, organ_scores, summarise, write_scores

SPLEEN, LIVER, PANCREAS = 1, 6, 11
ONE = LabelSet((ABDOMEN.by_id(LIVER),))


def block(z: slice, y: slice, x: slice, label_id: int = LIVER) -> NDArray[np.uint8]:
    """``[z, y, x]``, 12 x 14 x 30 voxels with one block of an organ."""
    labels = np.zeros((12, 14, 30), dtype=np.uint8)
    labels[z, y, x] = label_id
    return labels


def score(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], *rest: object) -> OrganScore:
    (row,) = organ_scores(prediction, reference, *rest[:1], ONE, *rest[1:])  # type: ignore[arg-type]
    return row


FOUR = slice(5, 9)

# ----------------------------------------------------------------------------------------------------- values


def test_equal_masks_score_best() -> None:
    mask = block(FOUR, FOUR, FOUR)
    row = score(mask, mask, (0.7, 0.7, 5.0))
    assert (row.dice, row.hd95_mm, row.nsd) == (1.0, 0.0, 1.0)
    assert row.reference_ml == row.predicted_ml == pytest.approx(64 * 0.7 * 0.7 * 5.0 / 1000)


@pytest.mark.parametrize(("axis", "millimetres"), [(2, 3.0), (1, 4.0), (0, 10.0)], ids=["x", "y", "z"])
def test_a_cube_shifted_by_two_voxels(axis: int, millimetres: float) -> None:
    """4 x 4 x 4 voxels of (1.5, 2, 5) mm; two of four layers are common, so Dice is 1/2.

    Of its 56 surface voxels the 16 of the outermost layer lie two steps from the other cube's surface: more
    than the farthest 5 percent, so HD95 is two steps.
    """
    reference = block(FOUR, FOUR, FOUR)
    row = score(np.roll(reference, 2, axis), reference, (1.5, 2.0, 5.0))
    assert row.dice == pytest.approx(0.5)
    assert row.hd95_mm == pytest.approx(millimetres)


def test_hd95_pools_both_directions() -> None:
    """Lines of 10 and 20 voxels with a common end: all voxels are surface.

    The 30 distances are twenty times 0, then 1, 2 ... 10 voxels. The 95th percentile lies at 0.95 x 29 =
    27.55 in that order, counted from 0: between the 8 at 27 and the 9 at 28, so at 8.55 voxels of 2 mm.
    """
    row = score(
        block(slice(5, 6), slice(5, 6), slice(5, 25)),
        block(slice(5, 6), slice(5, 6), slice(5, 15)),
        (2.0, 1.0, 1.0),
    )
    assert row.dice == pytest.approx(2 * 10 / 30)
    assert row.hd95_mm == pytest.approx(17.1)
    assert row.reference_ml == pytest.approx(0.02)
    assert row.predicted_ml == pytest.approx(0.04)


def test_hd95_swaps() -> None:
    one, other = block(FOUR, FOUR, slice(4, 12)), block(slice(4, 7), FOUR, slice(7, 20))
    spacing = (1.0, 1.5, 3.0)
    assert score(one, other, spacing).hd95_mm == score(other, one, spacing).hd95_mm


def test_nsd_is_the_part_of_the_surface_area_within_the_tolerance() -> None:
    """Blocks of 3 and of 7 x 3 x 3 voxels of 1 mm with a common end, tolerance 0.5 mm.

    A surface is made of one element at each corner of the voxel lattice: 1 mm2 on a face, sqrt(2)/2 on an
    edge, sqrt(3)/8 on a corner. The cube has 24 face elements, 24 on edges, 8 corners; the long block 56, 40
    and 8. Of the cube all is within but the 4 inner elements of the face that lies inside the long block; of
    the long block the common end (4 faces, 8 edges, 4 corners) and three rings (8 faces, 4 edges each).
    """
    within = 20 + 24 * math.sqrt(2) / 2 + math.sqrt(3)
    within += (4 + 24) + (8 + 12) * math.sqrt(2) / 2 + math.sqrt(3) / 2
    whole = (24 + 56) + (24 + 40) * math.sqrt(2) / 2 + 2 * math.sqrt(3)
    three = slice(5, 8)
    row = score(block(three, three, slice(5, 12)), block(three, three, three), (1.0, 1.0, 1.0), 0.5)
    assert row.nsd == pytest.approx(within / whole, abs=1e-5)
    assert row.nsd == pytest.approx(0.6348, abs=1e-4)


@pytest.mark.parametrize(("slice_mm", "within"), [(1.9, True), (2.0, True), (2.1, False)])
def test_the_tolerance_is_2_mm_unless_said_otherwise(slice_mm: float, within: bool) -> None:
    reference = block(FOUR, FOUR, FOUR)
    shifted = score(np.roll(reference, 1, 0), reference, (1.0, 1.0, slice_mm))
    assert (shifted.nsd == 1.0) == within


def test_masks_at_the_volumes_edge_count_like_others() -> None:
    inside = block(slice(1, 4), slice(1, 4), slice(1, 4)), block(slice(1, 4), slice(1, 4), slice(1, 6))
    at_edge = block(slice(0, 3), slice(0, 3), slice(0, 3)), block(slice(0, 3), slice(0, 3), slice(0, 5))
    assert score(*inside, (1.0, 2.0, 3.0)) == score(*at_edge, (1.0, 2.0, 3.0))


def test_a_single_slice_is_scored() -> None:
    reference = block(slice(0, 1), FOUR, FOUR)[:1]
    row = score(np.roll(reference, 1, 2), reference, (2.0, 2.0, 5.0))
    assert row.dice == pytest.approx(0.75)
    assert row.hd95_mm == pytest.approx(2.0)


# ---------------------------------------------------------------------------------------------------- absence


def test_an_organ_that_the_reference_lacks_is_not_scored() -> None:
    row = score(block(FOUR, FOUR, FOUR), block(FOUR, FOUR, FOUR, SPLEEN), (10.0, 10.0, 10.0))
    assert all(math.isnan(value) for value in (row.dice, row.hd95_mm, row.nsd))
    assert not row.scored
    assert not row.missed
    assert row.false_positive_ml == pytest.approx(64.0)


def test_an_organ_that_only_the_prediction_lacks_was_missed() -> None:
    row = score(block(FOUR, FOUR, FOUR, SPLEEN), block(FOUR, FOUR, FOUR), (10.0, 10.0, 10.0))
    assert (row.dice, row.nsd) == (0.0, 0.0)
    assert math.isnan(row.hd95_mm)
    assert row.missed
    assert row.reference_ml == pytest.approx(64.0)
    assert row.predicted_ml == row.false_positive_ml == 0.0


def test_an_organ_that_both_lack_has_neither_score_nor_volume() -> None:
    row = score(block(FOUR, FOUR, FOUR, SPLEEN), block(FOUR, FOUR, FOUR, SPLEEN), (1.0, 1.0, 1.0))
    assert math.isnan(row.dice)
    assert row.predicted_ml == row.reference_ml == 0.0


def test_every_organ_has_a_row_in_the_label_sets_order() -> None:
    reference = block(FOUR, FOUR, FOUR)
    rows = organ_scores(reference, reference, (1.0, 1.0, 1.0), ABDOMEN, case="p1")
    assert [row.label_id for row in rows] == list(ABDOMEN.ids)
    assert {row.case for row in rows} == {"p1"}
    assert [row.organ for row in rows if row.scored] == ["liver"]


def test_arrays_of_different_shapes_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        organ_scores(np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3, 5), np.uint8), (1, 1, 1), ABDOMEN)


# ---------------------------------------------------------------------------------------------------- summary


def row(case: str, label_id: int, dice: float, hd95_mm: float, reference_ml: float = 10.0) -> OrganScore:
    """A score of an organ called after its id; NSD is half of Dice."""
    predicted_ml = 0.0 if reference_ml and not dice else 7.0
    return OrganScore(case, label_id, f"organ {label_id}", dice, hd95_mm, dice / 2, reference_ml, predicted_ml)


ROWS = [
    row("a", 1, 0.8, 2.0),
    row("a", 2, 0.5, 4.0),
    row("a", 3, math.nan, math.nan, 0.0),  # a has no organ 3
    row("b", 1, 0.6, 4.0),
    row("b", 2, 0.0, math.nan),  # missed
    row("b", 3, 0.9, 1.0),
]


def test_means_are_taken_over_cases_first_and_then_over_organs() -> None:
    """Organ 1: (0.8 + 0.6) / 2; organ 2: (0.5 + 0) / 2, HD95 of a alone; organ 3: b alone."""
    summary = summarise(ROWS, reported_labels=[1, 2])
    organs = {organ["id"]: organ for organ in summary["organs"]}
    assert [organs[n]["dice"] for n in (1, 2, 3)] == pytest.approx([0.7, 0.25, 0.9])
    assert [organs[n]["hd95_mm"] for n in (1, 2, 3)] == pytest.approx([3.0, 4.0, 1.0])
    assert [organs[n]["nsd"] for n in (1, 2, 3)] == pytest.approx([0.35, 0.125, 0.45])
    assert [organs[n]["missed"] for n in (1, 2, 3)] == [0, 1, 0]
    assert [organs[n]["absent"] for n in (1, 2, 3)] == [0, 0, 1]
    assert organs[3]["false_positive_ml"] == 7.0
    assert summary["reported"] == {
        "dice": pytest.approx((0.7 + 0.25) / 2),
        "hd95_mm": pytest.approx(3.5),
        "nsd": pytest.approx((0.35 + 0.125) / 2),
        "organs": 2,
        "missed": 1,
    }
    assert summary["all"]["dice"] == pytest.approx((0.7 + 0.25 + 0.9) / 3)
    assert summary["all"]["organs"] == 3


def test_a_cases_means_are_over_its_own_organs() -> None:
    first, second = summarise(ROWS, reported_labels=[1, 2])["cases"]
    assert (first["case"], second["case"]) == ("a", "b")
    assert first["all"]["dice"] == pytest.approx(0.65)
    assert second["all"]["dice"] == pytest.approx(0.5)
    assert second["reported"]["dice"] == pytest.approx(0.3)
    assert second["reported"]["hd95_mm"] == pytest.approx(4.0)
    assert second["reported"]["missed"] == 1


def test_all_organs_are_reported_unless_some_are_named() -> None:
    summary = summarise(ROWS)
    assert summary["reported_labels"] == [1, 2, 3]
    assert summary["reported"] == summary["all"]


def test_what_was_never_scored_has_no_mean() -> None:
    summary = summarise([row("a", 3, math.nan, math.nan, 0.0)])
    assert summary["all"] == {"dice": None, "hd95_mm": None, "nsd": None, "organs": 0, "missed": 0}


def test_a_reported_id_without_scores_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"\[9\]"):
        summarise(ROWS, reported_labels=[1, 9])


# ------------------------------------------------------------------------------------------------------ files


def test_scores_are_written_for_people_and_programs(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "scores"
    summary = write_scores(ROWS, folder, "model on data", [1, 2], {"split": "validation"})
    assert sorted(path.name for path in folder.iterdir()) == ["scores.csv", "scores.html", "scores.json"]
    assert summary == summarise(ROWS, [1, 2])

    with open(folder / "scores.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(ROWS)
    assert table[0]["case"] == "a"
    assert float(table[0]["dice"]) == 0.8
    assert (table[2]["dice"], table[2]["hd95_mm"]) == ("", "")
    assert table[2]["false_positive_ml"] == "7.0"
    assert [line["missed"] for line in table] == ["0", "0", "0", "0", "1", "0"]

    record = json.loads((folder / "scores.json").read_text())
    assert record["summary"] == summary
    assert record["about"] == {"split": "validation"}
    assert record["rows"][2]["dice"] is None


def test_the_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    evil = OrganScore("<script>case</script>", 1, "<b>$organ$", 0.5, 3.0, 0.4, 1.0, 1.0)
    write_scores([evil], tmp_path, "<i>title", about={"<u>fact": "<s>value"})
    text = (tmp_path / "scores.html").read_text()
    for raw in ("<script", "<b>$", "<i>", "<u>", "<s>"):
        assert raw not in text
    assert "&lt;b&gt;$organ$" in text
    assert "http://" not in text
    assert "https://" not in text
    assert text.count("data:image/png;base64,") == 1


def test_scores_that_can_not_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    write_scores(ROWS, tmp_path, "first")
    before = {name: (tmp_path / name).read_bytes() for name in ("scores.csv", "scores.json")}
    (tmp_path / "scores.html").unlink()
    (tmp_path / "scores.html").mkdir()
    with pytest.raises(UserError, match=r"scores\.html can't be written"):
        write_scores(ROWS[:1], tmp_path, "second")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_can_not_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be made"):
        write_scores(ROWS, tmp_path / "file" / "scores", "title")
