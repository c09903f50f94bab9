"""The picture: every direction where a radiologist expects it, true proportions, and any size of volume."""

from __future__ import annotations

import itertools
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from pgpsam.errors import UserError
from pgpsam.labels import ABDOMEN, Label, LabelSet
from pgpsam.overview import draw, overview_png
from pgpsam.panels import WIDTH, Panel, cut, layout, position_text
from pgpsam.segmentation import PromptPoint, Segmentation
from pgpsam.volume import Volume, read_labels_on, read_volume

GREEN = LabelSet((Label(3, "marker", (0, 255, 0), ABDOMEN.by_id(6).category, ABDOMEN.by_id(6).type),))
SHAPE = (20, 40, 50)  # z, y, x
SPACING = (2.0, 3.0, 4.0)  # x, y, z in mm


def body(shape: tuple[int, int, int] = SHAPE) -> Volume:
    """Soft tissue in air, stored along R, A, S: its canonical axes x and y run against its own."""
    array = np.full(shape, 40.0, dtype=np.float32)
    array[:, :2] = array[:, -2:] = array[:, :, :2] = array[:, :, -2:] = -1000.0
    return Volume.from_kji(array, np.diag([*SPACING, 1.0]), "body")


def result(
    labels: NDArray[np.uint8],
    label_set: LabelSet = GREEN,
    points: list[PromptPoint] | None = None,
    regions: NDArray[np.uint8] | None = None,
) -> Segmentation:
    confidence = np.full(labels.shape, 0.8, dtype=np.float32)
    regions = np.zeros_like(labels) if regions is None else regions
    return Segmentation(labels, confidence, regions, points or [], {"encode": 2.0}, "cpu", "model", label_set)


def pixels(content: bytes) -> NDArray[np.float32]:
    """``[row, column, rgb]`` in 0..1."""
    return imread(BytesIO(content), format="png")[..., :3]


def inside(picture: NDArray[np.float32], panel: Panel) -> NDArray[np.float32]:
    left, top, width, height = (round(number) for number in panel.box)
    return picture[top : top + height, left : left + width]


def green_centre(picture: NDArray[np.float32], panel: Panel) -> tuple[float, float]:
    """Where the marker's outline lies in a panel's image: (down, right), each 0..1."""
    part = inside(picture, panel)
    rows, columns = np.nonzero((part[..., 1] > 0.7) & (part[..., 0] < 0.3) & (part[..., 2] < 0.3))
    assert rows.size > 20
    return float(rows.mean() / part.shape[0]), float(columns.mean() / part.shape[1])


# ------------------------------------------------------------------------------------------------ orientation


def test_a_marker_on_the_patients_right_front_top_is_drawn_there() -> None:
    """The volume is stored along R, A, S, so high indices of its own lie right, in front and on top."""
    volume = body()
    kji = np.zeros(SHAPE, dtype=np.uint8)
    kji[14:19, 28:36, 36:46] = 3
    labels = np.ascontiguousarray(volume.grid.to_canonical(kji))
    segmentation = result(labels)
    panels, _ = layout(volume, segmentation)
    picture = pixels(draw(volume, segmentation))
    drawn = {}
    for panel in panels:
        if panel.content == "masks":
            drawn[panel.axis] = green_centre(picture, panel)
    down, right = drawn["axial"]
    assert right < 0.4  # the patient's right, on the image's left
    assert down < 0.4  # anterior, on top
    down, right = drawn["coronal"]
    assert right < 0.4
    assert down < 0.4  # superior, on top
    down, right = drawn["sagittal"]
    assert right < 0.4  # anterior, on the left
    assert down < 0.4


def test_planes_are_cut_as_they_are_seen() -> None:
    """Canonical z goes up, y to the back, x to the left: the first row and column are what is on top and left."""
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    np.testing.assert_array_equal(cut(array, "axial", 1), array[1])
    np.testing.assert_array_equal(cut(array, "coronal", 2), array[::-1, 2, :])
    np.testing.assert_array_equal(cut(array, "sagittal", 3), array[::-1, :, 3])


def test_positions_are_slicers_own() -> None:
    """Stored along R, A, S without an offset: y 0 of 40 is the 39th row of 3 mm, x 10 of 50 the 39th of 2 mm."""
    volume = body()
    assert position_text(volume, "axial", 5) == "S 20.0 mm"
    assert position_text(volume, "coronal", 0) == "A 117.0 mm"
    assert position_text(volume, "sagittal", 10) == "R 78.0 mm"
    shifted = Volume.from_kji(volume.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*SPACING, 1.0]))
    assert position_text(shifted, "sagittal", 10) == "L 20.0 mm"


# ----------------------------------------------------------------------------------------------------- layout


def some_labels() -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[6:9, 10:20, 10:20] = 3
    return labels


def test_a_millimetre_is_as_long_in_every_direction() -> None:
    volume = body()
    panels, _ = layout(volume, result(some_labels()))
    steps = {"axial": (3.0, 2.0), "coronal": (4.0, 2.0), "sagittal": (4.0, 3.0)}  # mm: rows, columns
    assert {panel.axis for panel in panels} == set(steps)
    for panel in panels:
        rows, columns = steps[panel.axis]
        assert panel.step[0] / rows == pytest.approx(panel.step[1] / columns)
        assert panel.box[2] / panel.step[1] == pytest.approx(panel.shown[1].stop - panel.shown[1].start)
        assert panel.box[3] / panel.step[0] == pytest.approx(panel.shown[0].stop - panel.shown[0].start)


def test_panels_do_not_overlap_and_lie_in_the_picture() -> None:
    panels, height = layout(body(), result(some_labels()))
    for panel in panels:
        left, top, width, tall = panel.cell
        assert left >= 0
        assert left + width < WIDTH
        assert top + tall < height
        assert panel.box[0] >= left - 1e-6
        assert panel.box[0] + panel.box[2] <= left + width + 1e-6
    for one, other in itertools.combinations(panels, 2):
        apart_x = max(one.cell[0], other.cell[0]) >= min(one.cell[0] + one.cell[2], other.cell[0] + other.cell[2])
        apart_y = max(one.cell[1], other.cell[1]) >= min(one.cell[1] + one.cell[3], other.cell[1] + other.cell[3])
        assert apart_x or apart_y


def test_axial_slices_show_the_organs_from_superior_to_inferior_beside_their_prompts() -> None:
    labels = some_labels()
    labels[15, 10:20, 30:40] = 7
    panels, _ = layout(body(), result(labels, ABDOMEN))
    axial = [panel for panel in panels if panel.axis == "axial"]
    indices = [panel.index for panel in axial[::2]]
    assert indices == sorted(indices, reverse=True)
    assert 15 in indices
    assert set(indices) & {6, 7, 8}
    assert [panel.content for panel in axial] == ["prompts", "masks"] * 3
    assert [panel.index for panel in axial[1::2]] == indices


# ---------------------------------------------------------------------------------------------------- content


def test_the_left_of_a_pair_is_dashed() -> None:
    """Kidneys of one shape and one colour: the dashes leave gaps, so the left has fewer pixels of outline."""
    volume = body()
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[5:15, 12:28, 6:16] = 2  # right kidney, low x
    labels[5:15, 12:28, 34:44] = 3
    kidneys = ABDOMEN.select(["right kidney", "left kidney"])
    segmentation = result(labels, kidneys)
    panel = next(p for p in layout(volume, segmentation)[0] if p.content == "masks" and p.axis == "axial")
    part = inside(pixels(draw(volume, segmentation)), panel)
    color = np.array(kidneys.by_id(2).color) / 255
    like = np.abs(part - color).max(axis=-1) < 0.06
    half = part.shape[1] // 2
    right, left = int(like[:, :half].sum()), int(like[:, half:].sum())
    assert 0 < left < 0.9 * right


def test_peaks_near_a_slice_are_marked_on_it() -> None:
    """5 mm at most: of slices 4 mm apart the next one counts, the second next does not."""
    volume = body()
    labels = some_labels()
    empty = result(labels)
    index = next(p.index for p in layout(volume, empty)[0] if p.axis == "axial")
    row, column = 25, 35
    for away, marked in ((0, True), (1, True), (2, False)):
        point = PromptPoint(3, index - away, row, column, 1.0)
        segmentation = result(labels, points=[point])
        panels = [p for p in layout(volume, segmentation)[0] if p.content == "prompts" and p.index == index]
        assert panels
        x, y = panels[0].place(row, column)
        red, green, blue = pixels(draw(volume, segmentation))[round(y), round(x)]
        assert (green > 0.8 and red < 0.3 and blue < 0.3) == marked


def test_regions_tint_the_prompts_but_not_the_masks() -> None:
    volume = body()
    regions = np.zeros(SHAPE, dtype=np.uint8)
    regions[:, 24:30, 30:40] = 3
    segmentation = result(some_labels(), regions=regions)
    picture = pixels(draw(volume, segmentation))
    axial = [panel for panel in layout(volume, segmentation)[0] if panel.axis == "axial"]
    for panel in axial[:2]:
        x, y = panel.place(25, 31)
        red, green, _ = picture[round(y), round(x)]
        assert (green > red + 0.15) == (panel.content == "prompts")


# ------------------------------------------------------------------------------------------------------- sizes


def size_of(content: bytes) -> tuple[int, int]:
    """Width and height, from the PNG's own header."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 60, 40), (3, 9, 30), (9, 12, 200), (200, 10, 12)])
@pytest.mark.parametrize("filled", [False, True])
def test_volumes_of_every_size_are_drawn(shape: tuple[int, int, int], filled: bool) -> None:
    array = np.random.default_rng(0).normal(0, 100, size=shape).astype(np.float32)
    volume = Volume.from_kji(array, np.diag([-1.0, -1.0, 2.0, 1.0]), "size")
    labels = np.zeros(shape, dtype=np.uint8)
    labels[:, 2:6, 2:6] = 3 * filled
    segmentation = result(labels)
    content = draw(volume, segmentation)
    assert size_of(content) == (WIDTH, layout(volume, segmentation)[1])
    assert size_of(content)[1] < 2000


def test_an_image_that_is_no_ct_and_names_that_are_no_words_are_drawn() -> None:
    array = np.random.default_rng(0).uniform(0, 900, size=SHAPE).astype(np.float32)
    volume = Volume.from_kji(array, np.diag([*SPACING, 1.0]), "$x^2$ <b> \u65e5\u672c " + "long " * 40)
    many = LabelSet.from_names({f"structure {number} $_{{a}}$ of a very long name": number for number in range(1, 61)})
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[5:15, 5:35, 5:45] = np.arange(40) % 60 + 1
    segmentation = result(labels, many)
    assert size_of(draw(volume, segmentation)) == (WIDTH, layout(volume, segmentation)[1])


def test_the_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    volume, segmentation = body(), result(some_labels())
    path = tmp_path / "overview.png"
    content = overview_png(volume, segmentation, path)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["overview.png"]
    with pytest.raises(UserError, match=r"missing/overview\.png can't be written"):
        overview_png(volume, segmentation, tmp_path / "missing" / "overview.png")


def test_a_patient_is_drawn(shared_data: Path) -> None:
    """Every organ of the patient is in one of the axial slices that were chosen."""
    volume = read_volume(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    labels = read_labels_on(volume, shared_data / "samples" / "ts_abdomen_seg.nii.gz").astype(np.uint8)
    segmentation = result(labels, ABDOMEN, regions=labels)
    panels, height = layout(volume, segmentation)
    shown = np.unique(labels[[panel.index for panel in panels if panel.axis == "axial"]])
    assert set(np.unique(labels)) == set(shown)
    assert size_of(draw(volume, segmentation)) == (WIDTH, height)
