"""What organs are, in words, and what a sentence encoder made of those words: vectors, computed once and shipped.

`Training/embed_descriptions.py` computes them. No language model runs here, and none is needed to use the vectors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pgpsam.errors import UserError, reason
from pgpsam.labels import canonical_name

WIDTH = 384  # values of a sentence's vector
DESCRIPTIONS = Path(__file__).with_name("descriptions.json")
VECTORS = Path(__file__).with_name("descriptions.safetensors")
BACKGROUND = "background"
_log = logging.getLogger(__name__)


def read_descriptions(path: Path = DESCRIPTIONS) -> dict[str, str]:
    """Organ -> its description, the background's among them.

    Raises:
        UserError: the file is not such a table.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        hint = "Give a JSON file of names and texts in UTF-8."
        raise UserError(f"cannot read {path}: {reason(error)}", hint) from error
    if not isinstance(known, dict) or not all(isinstance(text, str) and text.strip() for text in known.values()):
        raise UserError(f"{path}: expected an object of names and texts")
    return known


def generic_description(name: str) -> str:
    """What can be said of an organ of which only the name is known."""
    return (
        f"The {name}, a structure of the human body with the position, neighbours, shape and size that anatomy gives"
        f" the {name}. In the portal venous phase of a CT the {name} has the density of its tissue."
    )


def text_vectors(names: Sequence[str], path: Path = VECTORS) -> Tensor:
    """The stored vectors of some organs, of length 1, [n, WIDTH].

    For an organ of which nothing is written stands a vector that is drawn from its name: it differs from the stored
    ones as much as they do from each other, but says nothing. A warning names it.

    Args:
        names: as a data set calls them; `labels.canonical_name` decides which organ that is.

    Raises:
        UserError: a damaged file.
    """
    stored = _read(path)[0]
    keys = [canonical_name(name) for name in names]
    if unknown := sorted({key for key in keys if key not in stored}):
        quoted = " ".join(f"'{name}'" for name in unknown)
        _log.warning(
            "nothing is written of %s, and drawn vectors stand for it; to describe it: "
            "python Training/embed_descriptions.py %s (or 'NAME=two sentences about it')",
            ", ".join(unknown),
            quoted,
        )
    drawn = {name: _drawn(name, torch.stack(list(stored.values()))) for name in unknown}
    return torch.stack([stored[key] if key in stored else drawn[key] for key in keys])


def _drawn(name: str, stored: Tensor) -> Tensor:
    """A vector of length 1 about as far from the mean of the stored ones, [n, WIDTH], as they are; always the same."""
    mean = stored.mean(0)
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    vector = mean + direction / direction.norm() * (stored - mean).norm(dim=1).mean()
    return vector / vector.norm()


def are_described(names: Sequence[str], path: Path = VECTORS) -> bool:
    """Whether every organ has a stored vector.

    Raises:
        UserError: a damaged file.
    """
    return _read(path)[0].keys() >= {canonical_name(name) for name in names}


def packed(descriptions: Mapping[str, str], vectors: Tensor) -> bytes:
    """A file of the vectors of descriptions, [n, WIDTH] in their order, with what proves which texts they belong to."""
    tensors = {name: vector.clone() for name, vector in zip(descriptions, vectors.float(), strict=True)}
    return save(tensors, {"texts": _digest(descriptions)})


def is_current(descriptions: Mapping[str, str], path: Path = VECTORS) -> bool:
    """Whether the stored vectors are those of these texts."""
    return _read(path)[1] == _digest(descriptions)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, the file is no mapping
            digest = (file.metadata() or {}).get("texts", "")
    except Exception as error:  # safetensors' own error for damaged files, and the system's for missing ones
        raise UserError(f"cannot read {path}: {reason(error)}", "Run: python Training/embed_descriptions.py") from error
    return stored, digest


def _digest(descriptions: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(descriptions), sort_keys=True).encode()).hexdigest()
