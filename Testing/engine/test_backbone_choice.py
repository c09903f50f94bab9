"""Training on another backbone than the default: its canvases, its weights, and what is told when they are missing."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT

from pgpsam.models.store import load_spec
from pgpsam.models.weights import BASE_WEIGHTS, load_state, locate
from pgpsam.network.backbones import BACKBONES
from pgpsam.training.commands import finetune_main
from small_networks import small_vit


@pytest.fixture
def small_vit_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM's ViT in small as a backbone with a checked weights file: random encoder, LiteMedSAM's decoder."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        embed_dim=64,
        depth=5,
        num_heads=2,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=(0, 1, 3, 4),
    )
    state = {f"image_encoder.{name}": value for name, value in encoder.state_dict().items()}
    published = load_state(locate("lite_medsam"), "lite_medsam")
    state |= {name: value for name, value in published.items() if not name.startswith("image_encoder.")}
    monkeypatch.setenv("PGPSAM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    file = tmp_path / "cache" / "small_vit.pth"
    torch.save(state, file)
    content = file.read_bytes()
    entry = replace(BASE_WEIGHTS["vit_b"], backbone="small_vit", file_name=file.name, size=len(content))
    monkeypatch.setitem(BASE_WEIGHTS, "small_vit", replace(entry, sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setitem(BACKBONES, "small_vit", small_vit)


@pytest.mark.parametrize("method", ["pgp", "pgsam"])
@pytest.mark.usefixtures("small_vit_weights")
def test_a_vit_gets_canvases_that_it_takes(method: str, phantoms: Path, tmp_path: Path) -> None:
    words = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--method", method, "--backbone", "small_vit"]
    words += ["--iterations", "1", "--device", "cpu", "--progress", "none", "--hold-out", "case_2"]
    assert finetune_main([*words, "--set", "batch=2", "canvas=[56,100]"]) == 0
    spec = load_spec(tmp_path / "m")
    assert spec.training["canvas"] == [64, 112]
    assert spec.preparation["multiple"] == 112
    assert spec.scores["split"] == ["case_2"]  # segmented whole, at both pixel sizes


def test_missing_weights_are_told_before_the_data_is_read(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PGPSAM_CACHE", str(tmp_path / "cache"))
    broken = shutil.copytree(phantoms, tmp_path / "broken")
    (broken / "images" / "case_0.nii.gz").write_bytes(b"no volume")
    words = ["--data", str(broken), "--out", str(tmp_path / "m"), "--backbone", "vit_b"]
    assert finetune_main(words) == 2
    error = capsys.readouterr().err
    assert "weights fetch vit_b" in error
    assert not (tmp_path / "m").exists()


def test_a_model_folder_that_cannot_be_made_is_one_line(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    words = ["--data", str(phantoms), "--out", str(tmp_path / "file" / "m"), "--progress", "none"]
    assert finetune_main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert str(tmp_path / "file") in error
