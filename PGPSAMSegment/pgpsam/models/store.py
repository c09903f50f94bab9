"""Model folders: `model.json`, all about a model, `adapter.safetensors`, what training changed in its method, and,
where it has them, `refiner.safetensors`, its volume refiner, and `second.safetensors`, what looks a second time.

A folder is written whole or not at all, is portable, and is read with suspicion: sizes and hashes first, and
nothing in it is ever unpickled. This room stores and checks; what the settings mean is for the rooms that use
them. It must not know networks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgpsam.errors import UserError
from pgpsam.models.spec import SCHEMA_VERSION, SHA256, SPEC_FILE, ModelSpec, kind

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_FILE = "adapter.safetensors"
REFINER_FILE = "refiner.safetensors"
REFINER_PREFIX = "volume_refiner."  # of the names of the tensors that lie in it
SECOND_FILE = "second.safetensors"  # another adapter of the same method and settings
SECOND_PREFIX = "second_look."  # of the names of its tensors among the model's; in the file they are an adapter's
CARD_FILE = "CARD.md"
_FILES = (CARD_FILE, SECOND_FILE, REFINER_FILE, ADAPTER_FILE, SPEC_FILE)  # the last makes a folder a model's
MAX_SPEC_BYTES = 4 << 20

_GET_AGAIN = "Copy the model folder again from where it came"


def save_model(folder: Path, spec: ModelSpec, tensors: Mapping[str, Tensor], card: str | None = None) -> None:
    """Write a model folder, whole or not at all.

    All files are first written into a hidden sibling folder, which then takes the place of a former model.
    Other files that lay in the former folder are kept.

    Args:
        folder: of the model; its parents are made.
        tensors: what training changed, of any floating or integer dtype, on any device; those whose names begin with
            `REFINER_PREFIX` or `SECOND_PREFIX` get a file of their own.
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
        The spec, and the tensors on the CPU: the adapter's, the refiner's and the second adapter's, packed ones
        expanded.

    Raises:
        UserError: one line on what is missing, damaged or not what `model.json` says.
    """
    folder = Path(os.path.expanduser(folder))
    spec, records = _read_spec(folder)
    tensors: dict[str, Tensor] = {}
    for record in records:
        read = _read_tensors(folder / record.file, record, as_stored)
        tensors |= with_prefix(read, SECOND_PREFIX) if record.file == SECOND_FILE else read
    return spec, tensors


def split_tensors(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's tensors -> (the others, those of one part under its own names, without the prefix)."""
    others = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    return others, {name.removeprefix(prefix): tensors[name] for name in tensors.keys() - others.keys()}


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A part's tensors under the names that they have among a model's; `split_tensors` undoes it."""
    return {prefix + name: value for name, value in tensors.items()}


def load_spec(folder: Path) -> ModelSpec:
    """Read `model.json` alone: quick, and without torch.

    Raises:
        UserError: as `load_model`, of model.json.
    """
    return _read_spec(Path(os.path.expanduser(folder)))[0]


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
        raise UserError(f"{path}: expected an object, got {kind(data)}", _GET_AGAIN)
    adapter, refiner, second = (data.pop(key, None) for key in ("adapter", "refiner_file", "second_file"))
    spec = ModelSpec.from_json(data, where=str(path))
    records = [_file_record("adapter", adapter, ADAPTER_FILE, str(path))]
    if spec.refiner:
        records.append(_file_record("refiner_file", refiner, REFINER_FILE, str(path)))
    if second is not None:
        records.append(_file_record("second_file", second, SECOND_FILE, str(path)))
    return spec, records


def _file_record(key: str, record: object, file: str, where: str) -> _FileRecord:
    size, sha256 = (record.get("size"), record.get("sha256")) if isinstance(record, dict) else (None, None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise UserError(f"{where}: {key}.size: missing or not a number of bytes", _GET_AGAIN)
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
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


# Writing


def _write_files(folder: Path, spec: ModelSpec, tensors: Mapping[str, Tensor], card: str | None) -> None:
    refiner = {name: value for name, value in tensors.items() if name.startswith(REFINER_PREFIX)}
    adapter, second = split_tensors(tensors, SECOND_PREFIX)
    adapter = {name: value for name, value in adapter.items() if name not in refiner}
    about = spec.to_json() | {
        "schema_version": SCHEMA_VERSION,
        "adapter": _write_tensors(folder / ADAPTER_FILE, adapter),
    }
    if refiner:
        about["refiner_file"] = _write_tensors(folder / REFINER_FILE, refiner)
    if second:
        about["second_file"] = _write_tensors(folder / SECOND_FILE, second)
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
        if path.name not in _FILES:
            os.rename(path, folder / path.name)
    shutil.rmtree(former, ignore_errors=True)


def _move_into(scratch: Path, folder: Path) -> None:
    """Move the files into a folder that held no model."""
    for name in _FILES:
        if (scratch / name).exists():
            os.replace(scratch / name, folder / name)
