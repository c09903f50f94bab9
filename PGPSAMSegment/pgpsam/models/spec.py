"""All that `model.json` says of a model, checked as it is made and as it is read. It must not know networks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet

SCHEMA_VERSION = 4  # 1 had no refiner, 2 no packed tensors, 3 no second network
SPEC_FILE = "model.json"
SHA256 = re.compile(r"[0-9a-f]{64}")

_RESERVED = r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))"  # by Windows, which also drops a dot at the end
_NAME = re.compile(_RESERVED + r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")


def is_model_name(name: str) -> bool:
    """Whether a model and its folder can be called so, on any system."""
    return bool(_NAME.fullmatch(name))


def check_model_name(name: str) -> None:
    """Refuse now what model.json would refuse after hours of training.

    Raises:
        UserError: the name cannot name a model's folder.
    """
    if not is_model_name(name):
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
            way without these cases ("alone": as the first of two networks); null where one is undefined.
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
                raise UserError(f"{key}: expected text, got {kind(getattr(self, key))}")
        check_model_name(self.name)
        if not SHA256.fullmatch(self.backbone_sha256):
            raise UserError(f"backbone_sha256: {self.backbone_sha256!r} is not a SHA-256")
        for key in ("backbone", "method"):
            if not getattr(self, key):
                raise UserError(f"{key}: must not be empty")
        if not isinstance(self.labels, LabelSet):
            raise UserError(f"labels: expected a LabelSet, got {kind(self.labels)}")
        for key in ("settings", "preparation", "training", "scores", "refiner"):
            if not isinstance(getattr(self, key), Mapping):
                raise UserError(f"{key}: expected an object, got {kind(getattr(self, key))}")
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
                raise UserError(f"expected an object, got {kind(data)}")
            _check_version(data.get("schema_version"))  # first: a newer version may have other fields
            known = {one.name for one in fields(cls)}
            needed = {one.name for one in fields(cls) if one.default_factory is MISSING}
            for problem, names in (("missing", needed - set(data)), ("unknown", set(data) - known)):
                if names:
                    raise UserError(f"{min(map(str, names))}: {problem} field")
            return cls(**data | {"labels": LabelSet.from_json(data["labels"])})
        except UserError as error:
            raise UserError(f"{where}: {error.message}", error.hint) from error


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise UserError(f"schema_version: expected a whole number, got {kind(version)}")
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
    raise UserError(f"{where}: a {kind(value)} is not a JSON value")


def kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return kinds.get(type(value), type(value).__name__)
