"""Model folders: written whole or not at all, portable, and read with suspicion."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pgpsam.errors import UserError
from pgpsam.labels import ABDOMEN
from pgpsam.models import lookup
from pgpsam.models.lookup import find_model, list_models, model_folders
from pgpsam.models.spec import SCHEMA_VERSION, ModelSpec, check_model_name
from pgpsam.models.store import fingerprint, load_model, load_spec, save_model, split_tensors, with_prefix

SPEC = ModelSpec(
    schema_version=SCHEMA_VERSION,
    name="abdomen-ct",
    description="13 abdominal organs in CT — für Erwachsene",
    backbone="lite_medsam",
    backbone_sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
    method="pgp",
    settings={"alpha": 8, "taps": [2, 11], "temperature": 0.5, "refine": True, "text": None},
    preparation={"size": 256, "channels": {"recipe": "2.5d", "mm": 3.0}, "window": [-125, 275]},
    labels=ABDOMEN,
    training={"data": "btcv", "cases": 15, "slices": 186, "seed": 0},
    scores={"split": "test", "dice": {"liver": 0.95, "gallbladder": None}},
)
TENSORS = {
    "prototypes.intra": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "decoder.bias": torch.tensor([1.5, -2.0]),
    "steps": torch.tensor(600),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good model folder."""
    save_model(tmp_path / "models" / "abdomen-ct", SPEC, TENSORS, card="# Card\n")
    return tmp_path / "models" / "abdomen-ct"


def assert_is_whole(folder: Path, tensors: dict[str, torch.Tensor], spec: ModelSpec = SPEC) -> None:
    read_spec, read = load_model(folder)
    assert read_spec == spec
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


# Saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()} | {"empty": torch.empty(0, 3)}
    save_model(tmp_path / "new" / "model", SPEC, tensors)
    assert_is_whole(tmp_path / "new" / "model", tensors)
    assert sorted(os.listdir(tmp_path / "new" / "model")) == ["adapter.safetensors", "model.json"]
    assert os.listdir(tmp_path / "new") == ["model"]


def test_views_and_tied_tensors_are_saved(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    save_model(tmp_path / "model", SPEC, {"a": weight, "b": weight, "c": weight.T})
    assert_is_whole(tmp_path / "model", {"a": weight, "b": weight, "c": weight.T})


def test_model_json_is_readable_and_records_the_adapter(folder: Path) -> None:
    data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    content = (folder / "adapter.safetensors").read_bytes()
    assert data["adapter"] == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert data["description"] == SPEC.description
    assert data["labels"][0]["name"] == "spleen"
    assert (folder / "CARD.md").read_text() == "# Card\n"


REFINED = replace(SPEC, refiner={"channels": [8, 8, 8, 8, 8], "folds": 3})
WITH_REFINER = TENSORS | {"volume_refiner.network.weight": torch.ones(3), "refiner.of.the.method": torch.ones(2)}


def test_a_refiner_lies_in_a_file_of_its_own(folder: Path) -> None:
    former = (folder / "adapter.safetensors").read_bytes()
    save_model(folder, REFINED, WITH_REFINER)
    assert_is_whole(folder, WITH_REFINER, REFINED)
    assert (folder / "adapter.safetensors").read_bytes() != former  # a method's own refiner is the adapter's
    save_model(folder, SPEC, TENSORS)
    assert (folder / "adapter.safetensors").read_bytes() == former
    assert not (folder / "refiner.safetensors").exists()
    assert_is_whole(folder, TENSORS)


def test_a_second_adapter_lies_in_a_file_of_its_own(folder: Path) -> None:
    former, adapter = fingerprint(folder), (folder / "adapter.safetensors").read_bytes()
    with_second = {name: value + 1 for name, value in WITH_REFINER.items()} | with_prefix(TENSORS, "second_look.")
    save_model(folder, REFINED, with_second)
    assert_is_whole(folder, with_second, REFINED)
    assert (folder / "second.safetensors").read_bytes() == adapter  # it can be taken out as a model of its own
    others, second = split_tensors(load_model(folder)[1], "second_look.")
    assert (others.keys(), second.keys()) == (WITH_REFINER.keys(), TENSORS.keys())
    assert fingerprint(folder) != former
    file = folder / "second.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"second\.safetensors is damaged or not this model's"):
        load_model(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"second\.safetensors is missing"):
        load_model(folder)
    save_model(folder, REFINED, with_second)
    save_model(folder, SPEC, TENSORS)
    assert not file.exists()
    assert fingerprint(folder) == former


def test_a_model_of_before_refiners_is_read_and_saved_as_one_of_today(folder: Path) -> None:
    content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    del content["refiner"]
    content["schema_version"] = 1
    (folder / "model.json").write_text(json.dumps(content), encoding="utf-8")
    assert_is_whole(folder, TENSORS, replace(SPEC, schema_version=1))
    save_model(folder, replace(load_spec(folder), refiner=REFINED.refiner), WITH_REFINER)
    assert_is_whole(folder, WITH_REFINER, REFINED)  # an older pgpsam refuses it by its version


def test_a_refiner_that_is_damaged_or_gone_is_refused(folder: Path) -> None:
    save_model(folder, REFINED, WITH_REFINER)
    file = folder / "refiner.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match=r"refiner\.safetensors is damaged or not this model's"):
        load_model(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"refiner\.safetensors is missing"):
        load_model(folder)
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    del about["refiner_file"]
    (folder / "model.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match=r"refiner_file\.size: missing"):
        load_model(folder)


def test_a_copied_folder_loads(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "else where" / "renamed")
    shutil.rmtree(folder)
    assert_is_whole(tmp_path / "else where" / "renamed", TENSORS)


def test_a_new_model_replaces_the_former_one_and_keeps_other_files(folder: Path) -> None:
    (folder / "training.log").write_text("epoch 1")
    (folder / "state").mkdir()
    (folder / "state" / "last.pt").write_bytes(b"...")
    changed, tensors = replace(SPEC, description="better"), {"only": torch.ones(2)}
    save_model(folder, changed, tensors)
    assert_is_whole(folder, tensors, changed)
    assert sorted(os.listdir(folder)) == ["adapter.safetensors", "model.json", "state", "training.log"]
    assert (folder / "state" / "last.pt").read_bytes() == b"..."
    assert os.listdir(folder.parent) == ["abdomen-ct"]


def test_a_model_can_be_saved_beside_what_a_folder_holds(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    save_model(tmp_path / "run", SPEC, TENSORS)
    assert_is_whole(tmp_path / "run", TENSORS)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_linked_folder_stays_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    save_model(tmp_path / "link", SPEC, {"only": torch.ones(2)})
    assert (tmp_path / "link").is_symlink()
    assert_is_whole(folder, {"only": torch.ones(2)})


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        save_model(tmp_path / "model", SPEC, TENSORS)
    assert (tmp_path / "model").read_text() == "a file"


@pytest.mark.parametrize(
    ("owner", "function", "call"),
    [(owner, name, call) for owner, name in ((Path, "open"), (os, "fsync")) for call in (1, 2, 3)]
    + [(Path, "mkdir", 1), (os, "rename", 1), (os, "rename", 2)],
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_former_model_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, call: int, error: BaseException
) -> None:
    original, calls = getattr(owner, function), []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise error
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, interrupted)
        with pytest.raises((UserError, KeyboardInterrupt)):
            save_model(folder, SPEC, {"other": torch.zeros(9)}, card="new")
    assert_is_whole(folder, TENSORS)
    assert (folder / "CARD.md").read_text() == "# Card\n"
    assert os.listdir(folder.parent) == ["abdomen-ct"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot limit the size of a process's files")
def test_a_file_that_the_disk_refuses_leaves_the_former_model_whole(folder: Path) -> None:
    code = (
        "import resource, sys, torch\n"
        "from pgpsam.models.store import load_spec, save_model\n"
        "spec = load_spec(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "save_model(sys.argv[1], spec, {'large': torch.zeros(100_000)})\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert "UserError: cannot save the model in" in result.stderr
    assert_is_whole(folder, TENSORS)
    assert os.listdir(folder.parent) == ["abdomen-ct"]


# Damaged and hostile folders


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self._path), "w")


def set_adapter(folder: Path, content: bytes) -> None:
    """Replace the adapter, with the size and hash in model.json to match."""
    (folder / "adapter.safetensors").write_bytes(content)
    edit(folder, adapter={"size": len(content), "sha256": hashlib.sha256(content).hexdigest()})


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of model.json; one set to `edit` itself is removed."""
    path = folder / "model.json"
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not edit}))


def truncate(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(folder: Path) -> None:
    path = folder / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def pickle_as_adapter(folder: Path) -> None:
    set_adapter(folder, pickle.dumps({"a": Bomb(folder / "it ran")}))


def torch_file_as_adapter(folder: Path) -> None:
    torch.save({"a": Bomb(folder / "it ran")}, folder / "bomb.pt")
    set_adapter(folder, (folder / "bomb.pt").read_bytes())


def zip_as_adapter(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("../../escape.txt", "out")
    set_adapter(folder, (folder / "x.zip").read_bytes())


def header(text: str, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + data


def adapter(content: bytes) -> Callable[[Path], None]:
    return lambda folder: set_adapter(folder, content)


def field(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, **changes)


def text(content: str | bytes) -> Callable[[Path], None]:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: folder.joinpath("model.json").write_bytes(content)


TENSOR = '{"a": {"dtype": "%s", "shape": [%s], "data_offsets": [%s]}}'

HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no model folder"),
    "no model.json": (lambda folder: (folder / "model.json").unlink(), "has no model.json"),
    "no adapter": (
        lambda folder: (folder / "adapter.safetensors").unlink(),
        "adapter.safetensors is missing",
    ),
    "adapter is a folder": (
        lambda folder: ((folder / "adapter.safetensors").unlink(), (folder / "adapter.safetensors").mkdir()),
        "adapter.safetensors is missing",
    ),
    "truncated": (truncate, "truncated or damaged: expected .* bytes, got"),
    "bit flip": (flip_a_bit, "expected SHA-256 .*, got"),
    "another hash": (field(adapter={"size": 304, "sha256": "0" * 64}), "expected|truncated"),
    "pickle": (pickle_as_adapter, "not a safetensors file: it looks like a pickle"),
    "torch file": (torch_file_as_adapter, "not a safetensors file: it looks like a pickle"),
    "zip": (zip_as_adapter, "not a safetensors file: it looks like a pickle or zip"),
    "empty adapter": (adapter(b""), "not a safetensors file"),
    "huge header": (adapter(header("{}", length=1 << 62)), "not a safetensors file: .*header too large"),
    "long header": (adapter(header("{}", length=1 << 20)), "not a safetensors file"),
    "header is no JSON": (adapter(header("{]")), "not a safetensors file"),
    "offsets outside": (adapter(header(TENSOR % ("F32", "2", "0, 8"), b"1234")), "not a safetensors file"),
    "huge shape": (
        adapter(header(TENSOR % ("F32", f"{1 << 40}, {1 << 40}", "0, 4"), b"1234")),
        "not a safetensors file",
    ),
    "unknown dtype": (adapter(header(TENSOR % ("F4", "4", "0, 2"), b"12")), "not a safetensors file"),
    "model.json empty": (text(""), "not valid JSON"),
    "model.json broken": (text('{"name": '), "not valid JSON"),
    "model.json no UTF-8": (text(b"\xff\xfe{}"), "not valid JSON"),
    "model.json too deep": (text("[" * 200_000), "not valid JSON"),
    "model.json too long": (text('"' + "x" * (5 << 20) + '"'), "not valid JSON: it is too long"),
    "model.json a pickle": (text(pickle.dumps({})), "not valid JSON"),
    "model.json a list": (text("[]"), "model.json: expected an object, got a list"),
    "NaN": (text('{"scores": NaN}'), "NaN is not a JSON value"),
    "newer version": (field(schema_version=99, new=1), "schema_version 99: .* newer version. Update"),
    "no such version": (field(schema_version=0), "schema_version 0"),
    "version is text": (field(schema_version="1"), "model.json: schema_version: .* got text"),
    "version is true": (field(schema_version=True), "model.json: schema_version: .* got true or false"),
    "version missing": (field(schema_version=edit), "model.json: schema_version: .* got null"),
    "field missing": (field(backbone=edit), "model.json: backbone: missing field"),
    "field unknown": (field(extra=1), "model.json: extra: unknown field"),
    "name is a number": (field(name=3), "model.json: name: expected text, got int"),
    "name climbs": (field(name="../../etc"), "model.json: name: '../../etc' is not a plain name"),
    "name is dots": (field(name=".."), "model.json: name: '..' is not a plain name"),
    "name has a backslash": (field(name="a\\b"), "is not a plain name"),
    "name ends in a line": (field(name="a\n"), "is not a plain name"),
    "name empty": (field(name=""), "is not a plain name"),
    "backbone empty": (field(backbone=""), "model.json: backbone: must not be empty"),
    "backbone hash short": (field(backbone_sha256="79d8"), "model.json: backbone_sha256"),
    "description null": (field(description=None), "model.json: description: expected text, got null"),
    "settings a list": (field(settings=[]), "model.json: settings: expected an object, got a list"),
    "scores text": (field(scores="good"), "model.json: scores: expected an object, got text"),
    "labels an object": (field(labels={"1": "liver"}), "model.json: labels"),
    "labels wrong inside": (field(labels=[{"id": "1"}]), r"model.json: labels\[0\]"),
    "no adapter record": (field(adapter=edit), "model.json: adapter.size"),
    "adapter record a path": (field(adapter="../../etc/passwd"), "model.json: adapter.size"),
    "adapter size negative": (field(adapter={"size": -1, "sha256": "0" * 64}), "adapter.size"),
    "adapter hash a number": (field(adapter={"size": 1, "sha256": 5}), "model.json: adapter.sha256"),
}


@pytest.mark.parametrize(("spoil", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_or_hostile_folder_is_refused_in_one_line(
    folder: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (folder / "it ran").exists()


def test_other_files_in_the_folder_are_never_opened(folder: Path) -> None:
    bomb = pickle.dumps(Bomb(folder / "it ran"))
    for name in ("adapter.pth", "model.pkl", "adapter.safetensors.pt", "__init__.py"):
        (folder / name).write_bytes(bomb)
    opened: list[str] = []
    watched = [str(folder)]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and watched and str(arguments[0]).startswith(watched[0]):
            opened.append(Path(arguments[0]).name)

    sys.addaudithook(audit)  # which cannot be taken away again, only made idle
    load_model(folder)
    watched.clear()
    assert sorted(opened) == ["adapter.safetensors", "model.json"]
    assert not (folder / "it ran").exists()


# The spec


def test_a_spec_survives_json() -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


def test_tuples_become_lists_and_numpy_floats_become_floats() -> None:
    import numpy as np

    settings = {"taps": (2, 11), "dice": np.float64(0.5)}
    spec = replace(SPEC, settings=settings)
    assert spec.settings == {"taps": [2, 11], "dice": 0.5}
    assert type(spec.settings["dice"]) is float
    settings["taps"] = ()
    assert spec.settings["taps"] == [2, 11]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"a": [1.0, float("nan")]}, r"settings\.a\[1\]: nan is not a JSON value.*null"),
        ({"a": {1: "x"}}, r"settings\.a: the key 1 is not text"),
        ({"a": torch.ones(1)}, r"settings\.a: a Tensor is not a JSON value"),
        ({"a": {"b": Path("x")}}, r"settings\.a\.b: a .*Path is not a JSON value"),
    ],
)
def test_a_spec_holds_json_values_only(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SPEC, settings=settings)


# Finding


@pytest.fixture
def shelves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """The folders of PGPSAM_MODELS and of the user's own models, both empty; and a place to stand in."""
    monkeypatch.setenv("PGPSAM_MODELS", str(tmp_path / "chosen"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "chosen", tmp_path / "data" / "pgpsam" / "models"


def test_models_are_found_by_path_and_by_name_in_order(shelves: tuple[Path, Path], tmp_path: Path) -> None:
    chosen, own = shelves
    save_model(own / "mine", SPEC, TENSORS)
    (tmp_path / "here" / "mine").mkdir()  # a folder of that name, but no model
    assert find_model("mine") == own / "mine"
    save_model(chosen / "mine", SPEC, TENSORS)
    assert find_model("mine") == chosen / "mine"
    assert find_model(own / "mine") == own / "mine"
    save_model(tmp_path / "here" / "mine", SPEC, TENSORS)
    assert find_model("mine") == Path("mine")


def test_several_chosen_folders_are_searched(
    shelves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGPSAM_MODELS", os.pathsep.join([str(tmp_path / "a"), "", str(tmp_path / "b")]))
    save_model(tmp_path / "b" / "mine", SPEC, TENSORS)
    assert find_model("mine") == tmp_path / "b" / "mine"
    assert model_folders()[:2] == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_DATA_HOME", "", "/home/me/.local/share/pgpsam/models"),
        ("linux", "XDG_DATA_HOME", "relative", "/home/me/.local/share/pgpsam/models"),
        ("darwin", "XDG_DATA_HOME", "/x", "/home/me/Library/Application Support/pgpsam/models"),
        ("win32", "LOCALAPPDATA", "/users/me/Local", "/users/me/Local/pgpsam/models"),
    ],
)
def test_the_users_models_folder_is_the_platforms(
    monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, value: str, expected: str
) -> None:
    monkeypatch.delenv("PGPSAM_MODELS", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, value)
    assert model_folders()[0] == Path(expected)


def test_shipped_models_are_found_above_the_engine(
    shelves: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = tmp_path / "Extension" / "PGPSAMSegment" / "pgpsam" / "models" / "lookup.py"
    engine.parent.mkdir(parents=True)
    monkeypatch.setattr(lookup, "__file__", str(engine))
    save_model(tmp_path / "Extension" / "Resources" / "Models" / "shipped", SPEC, TENSORS)
    assert find_model("shipped") == tmp_path / "Extension" / "Resources" / "Models" / "shipped"


@pytest.mark.parametrize("name", ["my-liver.", "con", "NUL", "com1.v2", "my liver", ".liver", "x" * 101])
def test_names_that_a_system_would_not_keep_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not a plain name"):
        check_model_name(name)


@pytest.mark.parametrize("name", ["x", "my-liver.v2", "console", "com10", "nul-2", "x" * 100])
def test_other_names_are_taken(name: str) -> None:
    check_model_name(name)


@pytest.mark.parametrize("name", ["no-such", "../mine", "..", "a/b/c", "mine\n", "", "~nobody/x", "x" * 5000])
def test_an_unknown_name_lists_the_known_ones(shelves: tuple[Path, Path], name: str) -> None:
    save_model(shelves[1] / "mine", SPEC, TENSORS)
    with pytest.raises(UserError, match=r"Known models: .*mine") as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_named(shelves: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a model folder: it has no model\.json"):
        find_model(tmp_path / "here")


def test_list_models_shows_good_and_damaged_ones(shelves: tuple[Path, Path]) -> None:
    chosen, own = shelves
    for path in (own / "good", own / "broken", chosen / "good"):
        save_model(path, SPEC, TENSORS)
    edit(own / "broken", schema_version=9)
    (own / "notes").mkdir()
    (own / "good").rename(own / "good (copy)")
    (own / ".good.0123abcd").mkdir()  # as a save that was killed leaves it
    (own / ".good.0123abcd" / "model.json").write_text("{}")
    known = {path: found for path, found in list_models() if path.parent in shelves}
    assert known.keys() == {chosen / "good", own / "broken", own / "good (copy)"}
    assert known[chosen / "good"] == SPEC == load_spec(chosen / "good")
    assert "newer version" in str(known[own / "broken"])
    assert str(known[own / "good (copy)"]).startswith(f"{own / 'good (copy)'}: this cannot name a model. Rename")


def test_the_first_of_two_models_of_a_name_hides_the_second(shelves: tuple[Path, Path]) -> None:
    for shelf in shelves:
        save_model(shelf / "good", SPEC, TENSORS)
    assert [path for path, _ in list_models() if path.parent in shelves] == [shelves[0] / "good"]
