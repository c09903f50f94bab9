"""A data set's own words: organs that label files name themselves, and what dataset.json and slice lists may say."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet, canonical_name
from pgpsam.segmenter import Segmenter
from pgpsam.training.data import annotated_slices, load_case, read_dataset, read_slice_list
from pgpsam.training.scoring import evaluate
from pgpsam.volume import write_array
from phantoms import make_phantom

PHANTOM = {"liver": 6, "spleen": 1}


def cohort(folder: Path, *numberings: dict[str, int], **description) -> Path:
    """Phantoms as drawn in Slicer, each file with label values of its own; `description` goes into dataset.json."""
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for seed, ids in enumerate(numberings):
        volume, labels = make_phantom(seed)
        write_array(folder / "images" / f"case_{seed}.nii.gz", volume.array, volume, "confidence")
        drawn = np.zeros_like(labels)
        for name, identifier in ids.items():
            drawn[labels == PHANTOM[canonical_name(name)]] = identifier
        path = folder / "labels" / f"case_{seed}.seg.nrrd"
        write_array(path, drawn, volume, "labels", LabelSet.from_names(ids))
    if description:
        (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def check_organs(folder: Path) -> LabelSet:
    """Every case's organs lie where the phantom has them; the data set's labels."""
    dataset = read_dataset(folder)
    for seed, case in enumerate(dataset.cases):
        loaded, truth = load_case(case, dataset.labels), make_phantom(seed)[1]
        for index, name in enumerate(dataset.labels.names, start=1):
            assert np.array_equal(loaded.labels == index, truth == PHANTOM[canonical_name(name)]), (case.name, name)
    return dataset.labels


# --------------------------------------------------------------------------------- names inside the label files


@pytest.mark.parametrize("named", [{}, {"labels": {"background": 0, "liver": 1, "spleen": 2}}])
def test_organs_go_by_name_where_every_file_numbers_them_anew(tmp_path, named):
    labels = check_organs(cohort(tmp_path, {"liver": 1, "spleen": 2}, {"Spleen": 1, " LIVER": 2}, **named))
    assert labels.names == ("liver", "spleen")
    assert labels.ids == (1, 2)


def test_ids_stay_where_the_files_agree(tmp_path):
    labels = check_organs(cohort(tmp_path, {"spleen": 1, "liver": 6}, {"Liver": 6, "spleen": 1}))
    assert labels.names == ("spleen", "liver")
    assert labels.ids == (1, 6)


@pytest.mark.parametrize("second", [1, 300])
def test_organs_of_any_file_are_the_data_sets(tmp_path, second):
    """One file has one organ, the next another of the same value, or of one that no model can have."""
    cohort(tmp_path, {"spleen": 1}, {"liver": 1})
    if second > 255:
        image = sitk.ReadImage(tmp_path / "labels" / "case_1.seg.nrrd", sitk.sitkUInt16)
        fields = {**{key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}, "Segment0_LabelValue": "300"}
        image *= second
        for key, value in fields.items():
            image.SetMetaData(key, value)
        sitk.WriteImage(image, tmp_path / "labels" / "case_1.seg.nrrd")
    dataset = read_dataset(tmp_path)
    assert dict(zip(dataset.labels.names, dataset.labels.ids, strict=True)) == {"liver": 1, "spleen": 2}
    for case, index, organ in zip(dataset.cases, (2, 1), ("spleen", "liver"), strict=True):
        truth = make_phantom(int(case.name[-1]))[1] == PHANTOM[organ]
        assert np.array_equal(load_case(case, dataset.labels).labels, truth * index)


def test_segments_in_layers_go_by_name_as_well(tmp_path):
    """Slicer puts segments that once overlapped into layers, where all have the value 1."""
    cohort(tmp_path, {"spleen": 1, "liver": 2}, {"spleen": 1, "liver": 2})
    path = tmp_path / "labels" / "case_1.seg.nrrd"
    flat = sitk.ReadImage(path)
    layers = sitk.Compose([sitk.Cast(flat == value, sitk.sitkUInt8) for value in (2, 1)])
    for number, name in enumerate(("liver", "spleen")):
        for key, value in (("ID", name), ("Name", name), ("LabelValue", "1"), ("Layer", str(number))):
            layers.SetMetaData(f"Segment{number}_{key}", value)
    sitk.WriteImage(layers, path)
    assert check_organs(tmp_path).names == ("liver", "spleen")


def test_segments_that_name_one_organ_become_one(tmp_path):
    cohort(tmp_path, {"liver": 1, "spleen": 2})
    path = tmp_path / "labels" / "case_0.seg.nrrd"
    image = sitk.ReadImage(path)
    image.SetMetaData("Segment1_Name", "Liver")
    sitk.WriteImage(image, path)
    dataset = read_dataset(tmp_path)
    assert dataset.labels.names == ("liver",)
    assert np.array_equal(load_case(dataset.cases[0], dataset.labels).labels, make_phantom(0)[1] > 0)


def test_an_organ_that_dataset_json_lacks_is_refused_before_anything_is_trained(tmp_path):
    cohort(tmp_path, {"liver": 1}, {"liver": 1, "spleen": 2}, labels={"background": 0, "liver": 1, "pancreas": 2})
    with pytest.raises(UserError, match=r"case_1\.seg\.nrrd: the data set has no organ named 'spleen'") as caught:
        read_dataset(tmp_path)
    assert "dataset.json" in caught.value.hint
    with pytest.raises(UserError, match="no organ named 'spleen'"):
        load_case(SimpleNamespace(name="case_1", **files_of(tmp_path, "case_1")), LabelSet.from_names({"liver": 1}))


def files_of(folder: Path, name: str) -> dict[str, Path]:
    return {"image": folder / "images" / f"{name}.nii.gz", "label": folder / "labels" / f"{name}.seg.nrrd"}


def test_labels_without_names_need_files_that_agree(tmp_path):
    cohort(tmp_path, {"liver": 6, "spleen": 1}, {"liver": 6, "spleen": 1}, {"liver": 1, "spleen": 6})
    nameless = tmp_path / "labels" / "case_1.seg.nrrd"
    volume, labels = make_phantom(1)
    write_array(tmp_path / "labels" / "case_1.nii.gz", labels, volume, "labels")
    nameless.unlink()
    with pytest.raises(UserError, match=r"case_1\.nii\.gz does not say what its label ids mean.*dataset\.json"):
        read_dataset(tmp_path)
    for part, ending in (("images", "nii.gz"), ("labels", "seg.nrrd")):
        (tmp_path / part / f"case_2.{ending}").unlink()
    assert check_organs(tmp_path).ids == (1, 6)


def test_voxels_of_no_segment_are_refused(tmp_path):
    cohort(tmp_path, {"liver": 1, "spleen": 2}, labels={"background": 0, "liver": 1, "spleen": 2})
    path = tmp_path / "labels" / "case_0.seg.nrrd"
    image = sitk.ReadImage(path)
    image.EraseMetaData("Segment1_Name")
    image.EraseMetaData("Segment1_ID")
    sitk.WriteImage(image, path)
    dataset = read_dataset(tmp_path)
    with pytest.raises(UserError, match=r"holds the ids \[2\], which have no name"):
        load_case(dataset.cases[0], dataset.labels)


# ------------------------------------------------------------------------------------- names of the scored model


class Oracle:
    """Stands in for a Segmenter: it finds everything that its label set names, and its ids are its own."""

    name = "oracle"

    def __init__(self, **ids: int) -> None:
        self.label_set = LabelSet.from_names({name.replace("_", " "): i for name, i in ids.items()})

    def segment(self, volume, **_):
        truth = make_phantom(int(volume.name[-1]))[1]
        labels = np.zeros_like(truth)
        for label in self.label_set:
            labels[truth == PHANTOM.get(canonical_name(label.name), 99)] = label.id
        return SimpleNamespace(labels=labels, confidence=np.ones(truth.shape, np.float32))


@pytest.fixture
def score(monkeypatch, tmp_path):
    """Scores an oracle as `evaluate` scores a model folder."""
    monkeypatch.setattr("pgpsam.training.scoring.check_unseen", lambda *_: None)

    def scored(model: Oracle, data: Path):
        monkeypatch.setattr(Segmenter, "load", lambda *_: model)
        return evaluate("oracle", data, tmp_path / "scores", device="cpu")

    return scored


def test_organs_are_scored_in_whatever_spelling(tmp_path, score):
    (tmp_path / "data").mkdir()
    data = cohort(tmp_path / "data", {"Liver": 1, "SPLEEN": 2}, {"spleen": 1})
    summary = score(Oracle(spleen=7, liver=3), data)
    assert summary["all"]["dice"] == 1.0
    assert summary["all"]["missed"] == 0


def test_organs_that_the_model_does_not_know_are_left_out_and_named(tmp_path, score, caplog):
    (tmp_path / "data").mkdir()
    names = {"background": 0, "liver": 1, "spleen": 2}
    data = cohort(tmp_path / "data", {"liver": 1, "spleen": 2}, labels=names, reported_labels=[1, 2])
    with caplog.at_level(logging.WARNING):
        summary = score(Oracle(liver=6, pancreas=1), data)
    assert [(organ["organ"], organ["dice"]) for organ in summary["organs"]] == [("liver", 1.0)]
    assert summary["reported_labels"] == [1]
    for means in (summary["all"], summary["reported"], summary["cases"][0]["all"]):
        assert (means["dice"], means["organs"], means["missed"]) == (1.0, 1, 0)
    assert summary["confidence"]["all"]["missed"] == 0
    assert summary["confidence"]["calibration_error"] == 0.0
    assert [r.getMessage() for r in caplog.records] == ["oracle does not know spleen: left out of the scores"]
    about = json.loads((tmp_path / "scores" / "scores.json").read_text())["about"]
    assert about["not scored, as the model does not know them"] == "spleen"


def test_means_of_reported_organs_are_empty_where_the_model_knows_none_of_these(tmp_path, score):
    (tmp_path / "data").mkdir()
    names = {"background": 0, "liver": 1, "spleen": 2}
    data = cohort(tmp_path / "data", {"liver": 1, "spleen": 2}, labels=names, reported_labels=[2])
    summary = score(Oracle(liver=6), data)
    assert summary["all"]["dice"] == 1.0
    assert summary["reported"]["dice"] is None
    assert summary["reported"]["organs"] == 0


def test_a_model_that_knows_no_organ_of_the_data_set_is_not_scored(tmp_path, score):
    (tmp_path / "data").mkdir()
    data = cohort(tmp_path / "data", {"liver": 1, "spleen": 2})
    with pytest.raises(UserError, match=r"oracle knows none of the organs of .*data: liver, spleen.*pancreas"):
        score(Oracle(pancreas=1), data)


# ------------------------------------------------------------------------------------ dataset.json and slice lists


def test_a_list_as_excel_writes_it(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes("case,slice\r\nHüfte,3\r\n".encode("utf-8-sig"))
    assert read_slice_list(path) == {"Hüfte": [3]}
    for separator in (";", "\t"):  # as in countries whose numbers have a comma, and as "Text (tab delimited)"
        path.write_bytes(
            f"case{separator}slice{separator}note\r\nHüfte, links{separator}3{separator}\r\n".encode("utf-8-sig")
        )
        assert read_slice_list(path) == {"Hüfte, links": [3]}
    path.write_bytes("case,slice\nHüfte,3\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"list\.csv is not UTF-8 text.*UTF-8"):
        read_slice_list(path)


def test_dataset_json_in_another_encoding(phantoms, tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).symlink_to(phantoms / part)
    text = '{"name": "Hüfte", "labels": {"background": 0, "liver": 6, "spleen": 1}}'
    (tmp_path / "dataset.json").write_bytes(text.encode("utf-8-sig"))
    assert read_dataset(tmp_path).name == "Hüfte"
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"dataset\.json is not readable JSON"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("reported", [[1, 5], ["liver"], 6, None])
def test_reported_labels_are_ids_of_labels(phantoms, tmp_path, reported):
    for part in ("images", "labels"):
        (tmp_path / part).symlink_to(phantoms / part)
    content = json.loads((phantoms / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "reported_labels": [6]}))
    assert read_dataset(tmp_path).reported == (6,)
    (tmp_path / "dataset.json").write_text(json.dumps({**content, "reported_labels": reported}))
    with pytest.raises(UserError, match=r"dataset\.json: reported_labels.*1, 6"):
        read_dataset(tmp_path)


def test_reported_labels_need_labels_beside_them(tmp_path):
    """The ids of files that name their organs themselves may not be the data set's."""
    cohort(tmp_path, {"liver": 1, "spleen": 2}, {"spleen": 1}, reported_labels=[1])
    with pytest.raises(UserError, match=r"reported_labels is \[1\].*missing"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *(("validation", value, "not a list of cases' names") for value in (None, 5, [1], "case_1", {"case_1": 1})),
        *(("fully_annotated", value, "not true or false") for value in (None, 1, "true")),
    ],
)
def test_fields_of_another_kind_are_refused_in_one_line(phantoms, tmp_path, field, value, message):
    for part in ("images", "labels"):
        (tmp_path / part).symlink_to(phantoms / part)
    content = json.loads((phantoms / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(UserError, match=rf"dataset\.json: {field} is .*, {message}"):
        read_dataset(tmp_path)


def test_a_listed_case_of_which_no_slice_shows_an_organ_is_warned_of(phantoms, caplog):
    """Slices without organs are true background, and only a list of nothing else is likely to be a mistake."""
    dataset = read_dataset(phantoms)
    case = load_case(dataset.cases[0], dataset.labels)
    empty, shown = (np.flatnonzero(case.labels.any((1, 2)) == shows).tolist() for shows in (False, True))
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        assert annotated_slices(case, [empty[0], shown[0]], False) == sorted([empty[0], shown[0]])
        assert caplog.messages == []
        assert annotated_slices(case, empty[:1] * 2, False) == empty[:1], "a line that stands twice counts once"
    assert caplog.messages == ["case_0: none of its listed slices shows an organ; the first slice is number 0"]


def test_a_case_whose_labels_are_empty_is_warned_of(phantoms, caplog):
    """As of a segmentation that was exported before anything was drawn; with --fully-annotated it is background."""
    dataset = read_dataset(phantoms)
    case = load_case(dataset.cases[0], dataset.labels)
    empty = replace(case, labels=np.zeros_like(case.labels))
    with caplog.at_level(logging.WARNING, logger="pgpsam"):
        assert annotated_slices(case, None, False)
        assert len(annotated_slices(empty, None, True)) == len(case.labels)
        assert caplog.messages == []
        assert annotated_slices(empty, None, False) == []
    assert caplog.messages == ["case_0: its labels show no organ, so nothing is learned from it"]


# -------------------------------------------------------------------------------------------- which files are cases


def laid_out(phantoms: Path, folder: Path, images: dict[str, str], labels: dict[str, str]) -> Path:
    """A data set of files under other names: {"imagesTr/case_0_0000.nii.gz": "case_0"}."""
    for part, files in (("images", images), ("labels", labels)):
        for name, case in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).symlink_to(phantoms / part / f"{case}.nii.gz")
    (folder / "dataset.json").write_text((phantoms / "dataset.json").read_text())
    return folder


@pytest.mark.parametrize(("image", "further"), [("_0000", []), ("_0000", ["_0001"]), ("", [])])
def test_nnunet_and_the_decathlon_have_one_layout(phantoms, tmp_path, caplog, image, further):
    cases = [f"case_{k}" for k in range(3)]
    images = {f"imagesTr/{case}{channel}.nii.gz": case for case in cases for channel in (image, *further)}
    data = laid_out(phantoms, tmp_path, images, {f"labelsTr/{case}.nii.gz": case for case in cases})
    assert [case.image.name for case in read_dataset(data).cases] == [f"{case}{image}.nii.gz" for case in cases]
    assert caplog.messages == []


def test_files_without_a_counterpart_are_named(phantoms, tmp_path, caplog):
    images = {"images/case_0.NII.GZ": "case_0", "images/case_1.nii.gz": "case_1", "images/case_2.nii.gz": "case_2"}
    labels = {"labels/case_0.nii.gz": "case_0", "labels/case_1.nii.gz": "case_1", "labels/Case_2.nii.gz": "case_2"}
    data = laid_out(phantoms, tmp_path, images, labels)
    for part in ("images", "labels"):
        (data / part / "._case_1.nii.gz").write_bytes(b"what macOS adds")
    dataset = read_dataset(data)
    assert [case.name for case in dataset.cases] == ["case_0", "case_1"]
    assert load_case(dataset.cases[0], dataset.labels).labels.any()
    assert caplog.messages == [
        f"{data / 'labels'}: left out, with no file of the same name in {data / 'images'}: Case_2.nii.gz",
        f"{data / 'images'}: left out, with no file of the same name in {data / 'labels'}: case_2.nii.gz",
    ]
