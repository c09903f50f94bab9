"""Organs: names, ids, colours and codes, and the files that they are read from."""

from __future__ import annotations

import json
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from pgpsam.errors import UserError
from pgpsam.labels import ABDOMEN, STRUCTURE, Code, Label, LabelSet

RIGHT, LEFT = Code("24028007", "SCT", "Right"), Code("7771000", "SCT", "Left")
TERMS = "SegmentationCategoryTypeModifier-SlicerGeneralAnatomy.term.json"


def liver(**changes: Any) -> dict[str, Any]:
    """The liver as model.json has it, with some fields changed."""
    label = LabelSet((ABDOMEN.by_name("liver"),)).to_json()[0]
    return {**label, **changes}


# --------------------------------------------------------------------------------------- the abdomen's organs


def test_the_abdomen_has_the_thirteen_organs_in_the_data_sets_order() -> None:
    assert list(zip(ABDOMEN.ids, ABDOMEN.names, strict=True)) == [
        (1, "spleen"),
        (2, "right kidney"),
        (3, "left kidney"),
        (4, "gallbladder"),
        (5, "esophagus"),
        (6, "liver"),
        (7, "stomach"),
        (8, "aorta"),
        (9, "inferior vena cava"),
        (10, "portal and splenic vein"),
        (11, "pancreas"),
        (12, "right adrenal gland"),
        (13, "left adrenal gland"),
    ]


def test_names_and_ids_are_those_of_the_training_data(shared_data: Path) -> None:
    mapping = json.loads((shared_data / "btcv" / "dataset.json").read_text())["labels"]
    assert dict(zip(ABDOMEN.names, ABDOMEN.ids, strict=True)) | {"background": 0} == mapping
    assert LabelSet.from_names(mapping) == ABDOMEN


@pytest.mark.parametrize(
    ("name", "color", "kind", "modifier"),
    [
        ("liver", (221, 130, 101), Code("10200004", "SCT", "Liver"), None),
        ("right kidney", (185, 102, 83), Code("64033007", "SCT", "Kidney"), RIGHT),
        ("left adrenal gland", (249, 186, 150), Code("23451007", "SCT", "Adrenal gland"), LEFT),
        ("inferior vena cava", (0, 151, 206), Code("64131007", "SCT", "Inferior vena cava"), None),
    ],
)
def test_an_organ_has_slicers_colour_and_codes(
    name: str, color: tuple[int, int, int], kind: Code, modifier: Code | None
) -> None:
    label = ABDOMEN.by_name(name)
    assert label.category == STRUCTURE == Code("123037004", "SCT", "Anatomical Structure")
    assert (label.color, label.type, label.modifier) == (color, kind, modifier)


def test_every_organ_is_one_piece_but_the_portal_and_splenic_vein() -> None:
    assert [label.name for label in ABDOMEN if not label.single] == ["portal and splenic vein"]


def test_terminology_is_written_as_slicer_reads_it() -> None:
    assert ABDOMEN.by_name("right kidney").terminology == (
        "Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^24028007^Right"
        "~Anatomic codes - DICOM master list~^^~^^"
    )
    assert ABDOMEN.by_name("inferior vena cava").terminology == (
        "Segmentation category and type - DICOM master list"
        "~SCT^123037004^Anatomical Structure~SCT^64131007^Inferior vena cava~^^"
        "~Anatomic codes - DICOM master list~^^~^^"
    )


def test_codes_and_colours_agree_with_slicers_own_terminology() -> None:
    spec = util.find_spec("trame_slicer")
    if spec is None or spec.origin is None:
        pytest.skip("trame_slicer, which carries Slicer's terminology files, is not installed")
    file = Path(spec.origin).parent / "resources" / "terminologies" / TERMS
    known = {}
    for category in json.loads(file.read_text(encoding="utf-8"))["SegmentationCodes"]["Category"]:
        for kind in category["Type"]:
            for entry in (kind, *kind.get("Modifier", [])):
                codes = (
                    category["CodeValue"],
                    kind["CodeValue"],
                    entry["CodeValue"] if entry is not kind else None,
                )
                known[entry.get("3dSlicerLabel")] = (codes, entry.get("recommendedDisplayRGBValue"))
    for label in ABDOMEN:
        if label.name in ("inferior vena cava", "portal and splenic vein"):
            assert label.name not in known
            continue
        codes = (label.category.value, label.type.value, label.modifier.value if label.modifier else None)
        assert known[label.name] == (codes, list(label.color))


# --------------------------------------------------------------------------------------------------- choosing


def test_an_organ_is_found_by_name_or_id_whatever_its_case() -> None:
    assert ABDOMEN.by_name("Right_Kidney") is ABDOMEN.by_id(2)


def test_a_choice_keeps_the_models_order() -> None:
    assert ABDOMEN.select(["liver", "SPLEEN", "liver"]).names == ("spleen", "liver")
    assert ABDOMEN.select(None) is ABDOMEN


def test_an_unknown_organ_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'liwer' is not among .*spleen, right kidney, .*left adrenal gland"):
        ABDOMEN.select(["spleen", "liwer"])
    with pytest.raises(UserError, match=r"id 14 .*1, 2, 3"):
        ABDOMEN.by_id(14)
    with pytest.raises(UserError, match="no organ was chosen"):
        ABDOMEN.select([])


# ------------------------------------------------------------------------------------------------- model.json


def test_labels_come_back_from_json_as_they_were() -> None:
    text = json.dumps(ABDOMEN.to_json())
    assert LabelSet.from_json(json.loads(text)) == ABDOMEN
    assert json.loads(text)[1] == {
        "id": 2,
        "name": "right kidney",
        "color": [185, 102, 83],
        "category": {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"},
        "type": {"value": "64033007", "scheme": "SCT", "meaning": "Kidney"},
        "modifier": {"value": "24028007", "scheme": "SCT", "meaning": "Right"},
        "single": True,
    }


def test_modifier_and_single_may_be_left_out() -> None:
    item = liver()
    del item["modifier"], item["single"]
    label = LabelSet.from_json([item]).by_id(6)
    assert (label.modifier, label.single) == (None, False)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({}, "labels: must be a list"),
        ([], "labels: there are none"),
        (["liver"], r"labels\[0\]: must be an object"),
        ([liver(), liver(name="spleen")], "id 6 occurs twice"),
        ([liver(), liver(id=7, name="LIVER")], "name 'liver' occurs twice"),
        ([liver(), liver(id=0, name="spleen")], r"labels\[1\]\.id: 0 is not"),
        ([liver(id=256)], r"labels\[0\]\.id: 256"),
        ([liver(id=True)], r"labels\[0\]\.id: True"),
        ([liver(id="6")], r"labels\[0\]\.id: '6' is of the wrong kind"),
        ([liver(name=" ")], r"labels\[0\]\.name"),
        ([liver(name="li\nver")], r"labels\[0\]\.name"),
        ([liver(color=[0, 0, 256])], r"labels\[0\]\.color"),
        ([liver(color=[0, 0])], r"labels\[0\]\.color"),
        ([liver(color=[0.5, 0, 0])], r"labels\[0\]\.color"),
        ([liver(color="red")], r"labels\[0\]\.color"),
        ([{"id": 1}], r"labels\[0\]\.name: is missing"),
        ([liver(type={"value": "1", "scheme": "SCT"})], r"labels\[0\]\.type\.meaning: is missing"),
        ([liver(category=None)], r"labels\[0\]\.category"),
        ([liver(modifier="Right")], r"labels\[0\]\.modifier"),
        ([liver(single="yes")], r"labels\[0\]\.single"),
    ],
)
def test_faulty_json_names_the_field(items: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        LabelSet.from_json(items)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- dataset.json


def test_known_organs_get_their_codes_under_the_data_sets_own_ids_and_names() -> None:
    labels = LabelSet.from_names({"liver": 5, "background": 0, "kidney_right": 2})
    assert labels.names == ("kidney_right", "liver")
    kidney = labels.by_id(2)
    assert (kidney.type.meaning, kidney.modifier, kidney.color) == ("Kidney", RIGHT, (185, 102, 83))
    assert labels.by_id(5).single


def test_nnunets_older_form_means_the_same() -> None:
    assert LabelSet.from_names({"0": "background", "1": "spleen"}) == LabelSet.from_names(
        {"background": 0, "spleen": 1}
    )


def test_unknown_organs_get_a_general_code_and_colours_that_differ() -> None:
    names = {f"structure {number}": number for number in range(1, 256)}
    labels = LabelSet.from_names(names)
    assert {(label.category, label.type, label.single) for label in labels} == {(STRUCTURE, STRUCTURE, False)}
    colors = {label.color for label in labels} | {label.color for label in ABDOMEN}
    assert len(colors) == 255 + len({label.color for label in ABDOMEN})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"background": 0, "kidneys": [2, 3]}, "'kidneys' is a region"),
        ({"background": 0, "liver": 1, "ignore": 2}, "ignore label"),
        ({"liver": 0, "spleen": 1}, "'liver' has the id 0"),
        ({"background": 1, "spleen": 2}, "background has the id 1"),
        ({"spleen": 1, "liver": 1}, "id 1 occurs twice"),
        ({"1": "liver", "2": "Liver"}, "name 'liver' occurs twice"),
        ({"liver": 300}, "300"),
        ({"liver": "1"}, "does not name an id"),
        ({"liver": True}, "does not name an id"),
        ({"background": 0}, "there are none"),
        (["liver"], "must map organ names to ids"),
    ],
)
def test_a_faulty_dataset_json_is_explained(mapping: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelSet.from_names(mapping)


def test_a_label_set_refuses_what_can_not_be_written_as_uint8() -> None:
    with pytest.raises(UserError, match=r"labels\[0\]\.id"):
        LabelSet((Label(0, "liver", (1, 2, 3), STRUCTURE, STRUCTURE),))
