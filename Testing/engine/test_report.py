"""The table of organs, the page and the points: measured and placed as worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pgpsam.errors import UserError
from pgpsam.labels import ABDOMEN, LabelSet
from pgpsam.report import organ_table, overview_png, write_points, write_report
from pgpsam.segmentation import PromptPoint, Segmentation
from pgpsam.volume import Volume, read_labels_on, read_volume

SPLEEN, LEFT_KIDNEY, LIVER, AORTA = 1, 3, 6, 8
SHAPE = (10, 40, 50)  # z, y, x
# Stored along R, A, S with (2, 3, 4) mm from (10, 20, 30) in RAS, so canonical x and y run against i and j.
AFFINE = np.array([[2, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]], dtype=np.float64)


def volume(name: str = "patient") -> Volume:
    """HU rise by 1 with every canonical slice, from 100."""
    array = np.broadcast_to(np.arange(100, 110, dtype=np.float32)[:, None, None], SHAPE)
    return Volume.from_kji(array, AFFINE, name)


def segmentation(points: list[PromptPoint] | None = None) -> Segmentation:
    """A spleen in slices 2 to 5, less and less sure towards 5, and an aorta from the lowest slice on."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    confidence = np.ones(SHAPE, dtype=np.float32)
    labels[2:6, 10:20, 10:15] = SPLEEN  # 50 voxels a slice
    confidence[2:6, 10:20, 10:15] = np.array([0.9, 0.8, 0.6, 0.5], dtype=np.float32)[:, None, None]
    labels[0:3, 30, 30] = AORTA
    regions = np.where(labels == SPLEEN, labels, 0).astype(np.uint8)
    seconds = {"encode": 1.25, "decode": 0.5}
    return Segmentation(labels, confidence, regions, points or [], seconds, "cuda:0", "abdomen-ct", ABDOMEN)


# ------------------------------------------------------------------------------------------------------ table


def test_organs_are_measured() -> None:
    """200 voxels of 24 mm3; HU 102 to 105 in equal parts: mean 103.5, deviation sqrt(1.25)."""
    rows = {row.id: row for row in organ_table(volume(), segmentation())}
    assert list(rows) == list(ABDOMEN.ids)
    spleen = rows[SPLEEN]
    assert spleen.name == "spleen"
    assert spleen.ml == pytest.approx(4.8)
    assert spleen.mean_hu == pytest.approx(103.5)
    assert spleen.std_hu == pytest.approx(math.sqrt(1.25))
    assert spleen.confidence == pytest.approx(0.7)
    assert spleen.slices == 4


def test_slices_to_check_are_the_least_confident_below_the_organs_mean() -> None:
    rows = {row.id: row for row in organ_table(volume(), segmentation())}
    assert rows[SPLEEN].slices_to_check == (5, 4)  # 0.5 and 0.6, below 0.7
    assert rows[AORTA].slices_to_check == ()  # equally sure everywhere


def test_an_organ_at_the_scans_end_may_be_cut_off() -> None:
    rows = {row.id: row for row in organ_table(volume(), segmentation())}
    assert rows[AORTA].cut_off
    assert not rows[SPLEEN].cut_off


def test_an_organ_in_two_parts_counts_its_own_slices_only() -> None:
    given = segmentation()
    given.labels[8, 10, 10] = SPLEEN
    spleen = organ_table(volume(), given)[0]
    assert spleen.slices == 5
    assert 6 not in spleen.slices_to_check
    assert 7 not in spleen.slices_to_check


def test_an_organ_that_was_not_found_has_no_values() -> None:
    liver = next(row for row in organ_table(volume(), segmentation()) if row.id == LIVER)
    assert (liver.ml, liver.slices, liver.slices_to_check, liver.cut_off) == (0.0, 0, (), False)
    assert all(math.isnan(value) for value in (liver.mean_hu, liver.std_hu, liver.confidence))


# ------------------------------------------------------------------------------------------------------- page


class Reader(HTMLParser):
    """Gathers the text, the tags, and what would be loaded from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_says_what_was_found_and_how(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(volume(), segmentation(), path)
    reader = Reader(path)
    text = " ".join(reader.words)
    assert "Not for clinical use" in text
    for expected in ("spleen", "4.8", "104", "0.70", "abdomen-ct", "cuda:0", "encode", "1.25", "1.75", "50 x 40 x 10"):
        assert expected in text, expected
    assert "6 (S 50.0 mm), 5 (S 46.0 mm)" in text  # slices 5 and 4, counted from 1
    assert "aorta †" in text
    assert "not found" in text
    assert "nan" not in text
    assert [link[:22] for link in reader.links] == ["data:image/png;base64,"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_the_page_repeats_a_picture_that_is_given(tmp_path: Path) -> None:
    content = overview_png(volume(), segmentation(), tmp_path / "overview.png")
    write_report(volume(), segmentation(), tmp_path / "given.html", content)
    write_report(volume(), segmentation(), tmp_path / "drawn.html")
    assert (tmp_path / "given.html").read_bytes() == (tmp_path / "drawn.html").read_bytes()


def test_names_can_not_break_the_page(tmp_path: Path) -> None:
    evil = replace(ABDOMEN.by_id(SPLEEN), name="<script>alert('organ')</script>")
    given = replace(segmentation(), model='<img src="x">', device="<i>", label_set=LabelSet((evil,)))
    write_report(volume("</title><script>"), given, tmp_path / "report.html", b"png")
    reader = Reader(tmp_path / "report.html")
    assert "script" not in reader.tags
    assert "i" not in reader.tags
    assert reader.tags.count("img") == 1
    assert "<script>alert('organ')</script>" in reader.words


def test_a_result_without_organs_has_a_page(tmp_path: Path) -> None:
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    given = replace(segmentation(), labels=nothing, regions=nothing, seconds={})
    write_report(volume(), given, tmp_path / "report.html")
    assert "0 of 13 organs found" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_page_that_can_not_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing/report\.html can't be written"):
        write_report(volume(), segmentation(), tmp_path / "missing" / "report.html", b"png")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=r"folder\.html can't be written"):
        write_report(volume(), segmentation(), tmp_path / "folder.html", b"png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.html"]


# ----------------------------------------------------------------------------------------------------- points


def test_points_lie_in_lps_where_their_voxels_are(tmp_path: Path) -> None:
    """Canonical (z, y, x) = (1, 2, 3) is (i, j, k) = (49 - 3, 39 - 2, 1) = (46, 37, 1).

    In RAS that is (10 + 2 * 46, 20 + 3 * 37, 30 + 4 * 1) = (102, 131, 34), so in LPS (-102, -131, 34).
    """
    path = tmp_path / "points.mrk.json"
    write_points(path, volume(), segmentation([PromptPoint(SPLEEN, 1, 2, 3, 0.75)]))
    record = json.loads(path.read_text())
    assert record["@schema"].endswith("markups-schema-v1.0.3.json#")
    (markup,) = record["markups"]
    assert (markup["type"], markup["coordinateSystem"], markup["name"]) == ("Fiducial", "LPS", "spleen")
    (point,) = markup["controlPoints"]
    assert point["position"] == [-102.0, -131.0, 34.0]
    assert (point["label"], point["description"]) == ("spleen", "0.75")
    assert [entry.name for entry in tmp_path.iterdir()] == ["points.mrk.json"]


def test_every_organ_has_a_point_list_in_its_colour(tmp_path: Path) -> None:
    path = tmp_path / "points.mrk.json"
    points = [
        PromptPoint(LIVER, 1, 2, 3, 1.0),
        PromptPoint(LEFT_KIDNEY, 2, 3, 4, 0.5),
        PromptPoint(LIVER, 4, 5, 6, 0.25),
    ]
    write_points(path, volume(), segmentation(points))
    kidney, liver = json.loads(path.read_text())["markups"]
    assert (kidney["name"], liver["name"]) == ("left kidney", "liver")
    assert [point["description"] for point in liver["controlPoints"]] == ["1", "0.25"]
    assert [point["id"] for point in liver["controlPoints"]] == ["1", "2"]
    assert liver["display"]["selectedColor"] == pytest.approx([221 / 255, 130 / 255, 101 / 255])
    assert liver["display"]["color"] == liver["display"]["selectedColor"]


def test_without_prompts_there_is_one_empty_list(tmp_path: Path) -> None:
    """Slicer refuses a file that has none."""
    write_points(tmp_path / "points.mrk.json", volume(), segmentation())
    (markup,) = json.loads((tmp_path / "points.mrk.json").read_text())["markups"]
    assert markup["controlPoints"] == []


def test_points_go_only_where_slicer_reads_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.mrk\.json"):
        write_points(tmp_path / "points.json", volume(), segmentation())
    with pytest.raises(UserError, match="can't be written"):
        write_points(tmp_path / "missing" / "points.mrk.json", volume(), segmentation())
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- patient


def test_a_patient_is_reported(shared_data: Path, tmp_path: Path) -> None:
    """Voxels of 3 mm: the volumes are the voxel counts times 0.027 mL. A liver has about 50 to 70 HU."""
    image = read_volume(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    labels = read_labels_on(image, shared_data / "samples" / "ts_abdomen_seg.nii.gz").astype(np.uint8)
    ones = np.ones(labels.shape, dtype=np.float32)
    given = Segmentation(labels, ones, labels, [], {"encode": 1.0}, "cpu", "drawn", ABDOMEN)
    rows = organ_table(image, given)
    for row in rows:
        assert row.ml == pytest.approx(0.027 * np.count_nonzero(labels == row.id), rel=1e-5)
    liver = next(row for row in rows if row.id == LIVER)
    assert 30 < liver.mean_hu < 80
    write_report(image, given, tmp_path / "report.html")
    assert "ts_abdomen_ct" in (tmp_path / "report.html").read_text(encoding="utf-8")
