"""Model folders: `model.json`, all about a model, `adapter.safetensors`, what training changed in its method, and,
where it has one, `refiner.safetensors`, its volume refiner.

A folder is written whole or not at all, is portable, and is read with suspicion: sizes and hashes first, and
nothing in it is ever unpickled. This room stores and checks; what the settings mean is for the rooms that use
them. It must not know networks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgpsam.errors import UserError
from pgpsam.home import home
from pgpsam.labels import LabelSet

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 3  # 1 had no refiner, 2 no packed tensors
SPEC_FILE = "model.json"
ADAPTER_FILE = "adapter.safetensors"
REFINER_FILE = "refiner.safetensors"
REFINER_PREFIX = "volume_refiner."  # of the names of the tensors that lie in it
CARD_FILE = "CARD.md"
MAX_SPEC_BYTES = 4 << 20

_GET_AGAIN = "Copy the model folder again from where it came"
_RESERVED = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))"  # by Windows, which also drops a dot at the end
_NAME = re.compile(_RESERVED + r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_model_name(name: str) -> None:
    """Refuse now what model.json would refuse after hours of training.

    Raises:
        UserError: the name cannot name a model's folder.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"name: {name!r} is not a plain name", "Use letters, digits, '.', '-' and '_'")


@dataclass(frozen=True)
class ModelSpec:
    """All that `model.json` says of a model, but for the tensor files' own sizes and hashes.

    The dicts hold JSON values; tuples become lists, so that a spec equals itself after a round trip.

    Args:
        schema_version: 1 to `SCHEMA_VERSION`.
        name: letters, digits, dots, dashes and underscores; it can name a folder.
        description: one paragraph for people.
        backbone: a key of `weights.BASE_WEIGHTS`, or `weights.FROM_SCRATCH`.
        backbone_sha256: of the base weights that the adapter was trained on.
        method: a key of `network.methods.METHODS`.
        settings: the method's.
        preparation: `slices.Preparation`: intensity window, millimetres a pixel, channel recipe, and what the sides of
            the canvas, whose size follows the body, are multiples of; pixels are 0..1.
        labels: the organs.
        training: data name, case and slice counts, seed, code version, command.
        scores: with the split they were taken on, and "model", if they are of another one that was trained in the same
            way without these cases; null where one is undefined.
        refiner: what corrects the slices' answers as one volume: channels, and how it was trained; empty for none.

    Raises:
        UserError: a value of a wrong kind, naming the field.
    """

    schema_version: int
    name: str
    description: str
    backbone: str
    backbone_sha256: str
    method: str
    settings: dict[str, Any]
    preparation: dict[str, Any]
    labels: LabelSet
    training: dict[str, Any]
    scores: dict[str, Any]
    refiner: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_version(self.schema_version)
        for key in ("name", "description", "backbone", "backbone_sha256", "method"):
            if not isinstance(getattr(self, key), str):
                raise UserError(f"{key}: expected text, got {_kind(getattr(self, key))}")
        check_model_name(self.name)
        if not _SHA256.fullmatch(self.backbone_sha256):
            raise UserError(f"backbone_sha256: {self.backbone_sha256!r} is not a SHA-256")
        for key in ("backbone", "method"):
            if not getattr(self, key):
                raise UserError(f"{key}: must not be empty")
        if not isinstance(self.labels, LabelSet):
            raise UserError(f"labels: expected a LabelSet, got {_kind(self.labels)}")
        for key in ("settings", "preparation", "training", "scores", "refiner"):
            if not isinstance(getattr(self, key), Mapping):
                raise UserError(f"{key}: expected an object, got {_kind(getattr(self, key))}")
            object.__setattr__(self, key, _json_value(getattr(self, key), key))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return values | {"labels": self.labels.to_json()}

    @classmethod
    def from_json(cls, data: object, where: str = SPEC_FILE) -> ModelSpec:
        """Read what `to_json` gave.

        Args:
            data: the parsed JSON.
            where: the file's name, for messages.

        Raises:
            UserError: naming `where` and the field that is missing, unknown or of a wrong kind.
        """
        try:
            if not isinstance(data, dict):
                raise UserError(f"expected an object, got {_kind(data)}")
            _check_version(data.get("schema_version"))  # first: a newer version may have other fields
            known = {one.name for one in fields(cls)}
            needed = {one.name for one in fields(cls) if one.default_factory is MISSING}
            for problem, names in (("missing", needed - set(data)), ("unknown", set(data) - known)):
                if names:
                    raise UserError(f"{min(map(str, names))}: {problem} field")
            return cls(**data | {"labels": LabelSet.from_json(data["labels"])})
        except UserError as error:
            raise UserError(f"{where}: {error.message}", error.hint) from error


def save_model(folder: Path, spec: ModelSpec, tensors: Mapping[str, Tensor], card: str | None = None) -> None:
    """Write a model folder, whole or not at all.

    All files are first written into a hidden sibling folder, which then takes the place of a former model.
    Other files that lay in the former folder are kept.

    Args:
        folder: of the model; its parents are made.
        tensors: what training changed, of any floating or integer dtype, on any device; those whose names begin with
            `REFINER_PREFIX` get a file of their own.
        card: the text of CARD.md; without it, there will be none.

    Raises:
        UserError: the disk refuses, or the folder is a file. A former model is then as it was.
    """
    folder = Path(os.path.expanduser(folder)).resolve()
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot save the model: {folder} is a file", "Choose a folder")
    try:
        scratch.mkdir(parents=True)
        _write_files(scratch, spec, tensors, card)
        if (folder / SPEC_FILE).exists():
            _take_place(scratch, folder)
        elif folder.exists():
            _move_into(scratch, folder)
        else:
            os.rename(scratch, folder)
    except OSError as error:
        message = f"cannot save the model in {folder}: {error.strerror or error}"
        raise UserError(message, "Check the free space and the permissions") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # gone already if all went well


def load_model(folder: Path, as_stored: bool = False) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read a model folder; only `model.json` and the tensor files are opened.

    Args:
        as_stored: leave packed tensors packed, to save them again as they are.

    Returns:
        The spec, and the tensors on the CPU: the adapter's and the refiner's, packed ones expanded.

    Raises:
        UserError: one line on what is missing, damaged or not what `model.json` says.
    """
    folder = Path(os.path.expanduser(folder))
    spec, records = _read_spec(folder)
    tensors: dict[str, Tensor] = {}
    for record in records:
        tensors |= _read_tensors(folder / record.file, record, as_stored)
    return spec, tensors


def load_spec(folder: Path) -> ModelSpec:
    """Read `model.json` alone: quick, and without torch.

    Raises:
        UserError: as `load_model`, of model.json.
    """
    return _read_spec(Path(os.path.expanduser(folder)))[0]


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a model.

    Args:
        name_or_path: a folder that holds a model.json, or the name of a model in one of `model_folders`.

    Raises:
        UserError: neither; the hint lists the known names.
    """
    path = Path(os.path.expanduser(name_or_path))
    if os.path.isfile(path / SPEC_FILE):  # os.path, which takes what it may not look at for missing
        return path
    if _NAME.fullmatch(str(name_or_path)):
        for folder in model_folders():
            if os.path.isfile(folder / path / SPEC_FILE):
                return folder / path
    if os.path.isdir(path):
        raise UserError(f"{path} is not a model folder: it has no {SPEC_FILE}", _known_hint())
    raise UserError(f"no model '{name_or_path}'", _known_hint())


def list_models() -> list[tuple[Path, ModelSpec | UserError]]:
    """Every model in the `model_folders`, sorted by name; of one that is damaged or misnamed, what is wrong with it."""
    return [(path, _spec_or_error(path)) for _, path in sorted(_known_models().items())]


def model_folders() -> list[Path]:
    """Where models are looked up by name, the first hit winning.

    The folders in PGPSAM_MODELS, the user's own, and the nearest `Resources/Models` above this file, which is
    the repository's in a checkout and the extension's inside Slicer.
    """
    chosen = [Path(os.path.expanduser(part)) for part in os.environ.get("PGPSAM_MODELS", "").split(os.pathsep) if part]
    shipped = [parent / "Resources" / "Models" for parent in Path(__file__).resolve().parents]
    return [*chosen, _user_data_dir() / "pgpsam" / "models", *[path for path in shipped if path.is_dir()][:1]]


# Names


def _user_data_dir() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return home() / "Library" / "Application Support"
    xdg = Path(os.environ.get("XDG_DATA_HOME", ""))
    return xdg if xdg.is_absolute() else home() / ".local" / "share"


def _known_models() -> dict[str, Path]:
    known: dict[str, Path] = {}
    for folder in model_folders():
        for spec_file in sorted(folder.glob(f"*/{SPEC_FILE}")):
            if not spec_file.parent.name.startswith("."):  # of `save_model`
                known.setdefault(spec_file.parent.name, spec_file.parent)
    return known


def _known_hint() -> str:
    names = sorted(filter(_NAME.fullmatch, _known_models()))
    return f"Known models: {', '.join(names) or 'none'}. Or give the path of a model folder"


def _spec_or_error(folder: Path) -> ModelSpec | UserError:
    if not _NAME.fullmatch(folder.name):
        return UserError(f"{folder}: this cannot name a model", "Rename the folder: letters, digits, '.', '-' and '_'")
    try:
        return load_spec(folder)
    except UserError as error:
        return error


# Reading


@dataclass(frozen=True)
class _FileRecord:
    """What model.json says of a tensor file."""

    file: str
    size: int
    sha256: str


def fingerprint(folder: Path) -> str:
    """What tells models of one name apart: the first digits of the SHA-256 of their tensors.

    Raises:
        UserError: no model.json there, or a damaged one.
    """
    _, records = _read_spec(folder)
    return hashlib.sha256("".join(record.sha256 for record in records).encode()).hexdigest()[:8]


def _read_spec(folder: Path) -> tuple[ModelSpec, list[_FileRecord]]:
    path = folder / SPEC_FILE
    if not os.path.isdir(folder):
        raise UserError(f"no model folder {folder}")
    if not os.path.isfile(path):
        raise UserError(f"{folder} is not a model folder: it has no {SPEC_FILE}")
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_SPEC_BYTES + 1)
        if len(text) > MAX_SPEC_BYTES:
            raise ValueError("it is too long")
        data = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}", _GET_AGAIN) from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object, got {_kind(data)}", _GET_AGAIN)
    adapter, refiner = data.pop("adapter", None), data.pop("refiner_file", None)
    spec = ModelSpec.from_json(data, where=str(path))
    records = [_file_record("adapter", adapter, ADAPTER_FILE, str(path))]
    if spec.refiner:
        records.append(_file_record("refiner_file", refiner, REFINER_FILE, str(path)))
    return spec, records


def _file_record(key: str, record: object, file: str, where: str) -> _FileRecord:
    size, sha256 = (record.get("size"), record.get("sha256")) if isinstance(record, dict) else (None, None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise UserError(f"{where}: {key}.size: missing or not a number of bytes", _GET_AGAIN)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise UserError(f"{where}: {key}.sha256: missing or not a SHA-256", _GET_AGAIN)
    return _FileRecord(file, size, sha256)


def _read_tensors(path: Path, record: _FileRecord, as_stored: bool) -> dict[str, Tensor]:
    from safetensors.torch import load

    from pgpsam.models.compact import expand

    content = _read_checked(path, record)
    try:
        tensors = load(content)
    except Exception as error:  # safetensors' own error, and others for dtypes that this torch does not know
        masked = content.startswith((b"PK", b"\x80"))
        reason = "it looks like a pickle or zip file" if masked else str(error)
        raise UserError(f"{path} is not a safetensors file: {reason}", _GET_AGAIN) from error
    try:
        return tensors if as_stored else expand(tensors)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}", _GET_AGAIN) from error


def _read_checked(path: Path, record: _FileRecord) -> bytes:
    """The file's bytes, which are those that the record describes: they are hashed as they will be parsed."""
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing", _GET_AGAIN)
    try:
        size = path.stat().st_size
        if size != record.size:
            message = f"{path} is truncated or damaged: expected {record.size} bytes, got {size}"
            raise UserError(message, _GET_AGAIN)
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != record.sha256:
        message = f"{path} is damaged or not this model's: expected SHA-256 {record.sha256}, got {digest}"
        raise UserError(message, _GET_AGAIN)
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"schema_version: expected a whole number, got {_kind(version)}")
    if version > SCHEMA_VERSION:
        raise UserError(f"schema_version {version}: the model was made by a newer version", "Update pgpsam")
    if version < 1:
        raise UserError(f"schema_version {version}: there is no such version")


def _json_value(value: object, where: str) -> Any:
    """A deep copy of a JSON value, tuples as lists; a UserError naming `where` for anything else."""
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise UserError(f"{where}: the key {wrong[0]!r} is not text")
        return {key: _json_value(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):  # numpy's float64 is one
        if not math.isfinite(value):
            raise UserError(f"{where}: {value} is not a JSON value", "Use null for what is undefined")
        return float(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise UserError(f"{where}: a {_kind(value)} is not a JSON value")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return kinds.get(type(value), type(value).__name__)


# Writing


def _write_files(folder: Path, spec: ModelSpec, tensors: Mapping[str, Tensor], card: str | None) -> None:
    refiner = {name: value for name, value in tensors.items() if name.startswith(REFINER_PREFIX)}
    adapter = {name: value for name, value in tensors.items() if name not in refiner}
    about = spec.to_json() | {
        "schema_version": SCHEMA_VERSION,
        "adapter": _write_tensors(folder / ADAPTER_FILE, adapter),
    }
    if refiner:
        about["refiner_file"] = _write_tensors(folder / REFINER_FILE, refiner)
    text = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / SPEC_FILE, text.encode("utf-8") + b"\n")
    if card is not None:
        _write(folder / CARD_FILE, card.encode("utf-8"))


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write them; what model.json says of the file."""
    from safetensors.torch import save

    # Copies, because safetensors refuses tensors that share memory, as tied parameters do.
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    _write(path, content)
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _take_place(scratch: Path, folder: Path) -> None:
    """Swap a former model folder for the new one, and bring over what else lay in it."""
    former = folder.with_name(f".{folder.name}.former.{uuid.uuid4().hex}")
    os.rename(folder, former)
    try:
        os.rename(scratch, folder)
    except BaseException:
        os.rename(former, folder)
        raise
    for path in former.iterdir():
        if path.name not in (SPEC_FILE, ADAPTER_FILE, REFINER_FILE, CARD_FILE):
            os.rename(path, folder / path.name)
    shutil.rmtree(former, ignore_errors=True)


def _move_into(scratch: Path, folder: Path) -> None:
    """Move the files into a folder that held no model; model.json comes last, for it makes the model."""
    for name in (CARD_FILE, REFINER_FILE, ADAPTER_FILE, SPEC_FILE):
        if (scratch / name).exists():
            os.replace(scratch / name, folder / name)
