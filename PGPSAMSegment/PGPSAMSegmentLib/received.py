"""What the engine has sent, read and checked before anything in the scene is touched."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grid import only, shape_of
from .nodes import SceneError


class Received:
    """A "done" event with its files read and checked, before anything in the scene is touched.

    Attributes:
        labels: uint8 [k, j, i], only organs that were asked for.
        confidence: float32 [k, j, i].
        regions: uint8 [k, j, i].
        points: list of {"organ", "id", "weight", "ijk", "ras"}.
        organs: {"id", "name", "color", "snomed", "axis", "slice_confidence"} of those asked for.
        figures: the event's own list for these organs: {"name", "volume_ml", "mean_hu", "confidence", ...}.
    """

    def __init__(self, volumeNode: Any, result: dict[str, Any], folder: Path, organs: Iterable[str] | None) -> None:
        shape = shape_of(volumeNode)
        chosen = asked_for(result["label_set"], organs)
        ids = [organ["id"] for organ in chosen]
        measured = {organ["id"]: organ for organ in result["organs"]}
        self.model = str(result["model"])
        self.labels = only(load(folder / result["labels"], shape), ids)
        self.confidence = load(folder / result["confidence"], shape)
        self.regions = only(load(folder / result["regions"], shape), ids)
        self.points = [point for point in _load_points(folder / result["points"]) if point["id"] in ids]
        self.figures = [measured[i] for i in ids if i in measured]
        self.organs = [
            {
                **organ,
                "axis": measured.get(organ["id"], {}).get("slices_axis", 0),
                "slice_confidence": measured.get(organ["id"], {}).get("slice_confidence", {}),
            }
            for organ in chosen
        ]


def asked_for(label_set: Sequence[dict[str, Any]], organs: Iterable[str] | None) -> list[dict[str, Any]]:
    """Those of the engine's organs that were asked for, by name; all for None."""
    wanted = None if organs is None else set(organs)
    return [organ for organ in label_set if wanted is None or organ["name"] in wanted]


def load(path: str | Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array that was exchanged with the engine; one of voxels, [k, j, i], must lie on the volume's grid."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SceneError(f"the engine's result cannot be read: {path} ({error})", "Segment again") from error
    if array.shape != shape:
        raise SceneError(
            f"the result has {array.shape} voxels and the volume {shape}: the volume changed while it was segmented",
            "Segment again",
        )
    return array


def _load_points(path: Path) -> list[dict[str, Any]]:
    try:
        points: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SceneError(f"the engine's result cannot be read: {path} ({error})", "Segment again") from error
    return points
