"""Which slices of a volume to annotate, as the engine has suggested: kept by the volume, saved with the scene."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import views
from .grid import ijk_to_ras, shape_of, to_world
from .nodes import PREFIX

SUGGESTED = PREFIX + "suggested"


@dataclass(frozen=True)
class Place:
    """A slice to annotate.

    Attributes:
        axis: which axis of [k, j, i] the slice is counted along.
        slice: its index there.
    """

    axis: int
    slice: int


def keep(volumeNode: Any, event: Mapping[str, Any]) -> list[Place]:
    """Stores what the engine's "done" event suggests, the most useful first, in place of what was there."""
    places = {
        "axis": int(event["slices_axis"]),
        "slices": [int(index) for index in event["slices"]],
        "grid": _grid(volumeNode),
    }
    volumeNode.SetAttribute(SUGGESTED, json.dumps(places))
    return of(volumeNode)


def of(volumeNode: Any) -> list[Place]:
    """The suggestions for a volume; none for None, or where it was cropped or resampled in place since."""
    stored = volumeNode.GetAttribute(SUGGESTED) if volumeNode is not None else None
    if not stored or volumeNode.GetImageData() is None:
        return []
    places = json.loads(stored)
    if places.get("grid") != _grid(volumeNode):
        return []
    return [Place(places["axis"], index) for index in places["slices"]]


def _grid(volumeNode: Any) -> list[Any]:
    """What tells the volume's voxels from those of another grid."""
    return [list(shape_of(volumeNode)), ijk_to_ras(volumeNode).round(3).tolist()]


def jump(volumeNode: Any, place: Place) -> None:
    """Centres all slice views on the middle of the slice, and sees to it that they show the volume."""
    index = [(length - 1) / 2 for length in shape_of(volumeNode)]
    index[place.axis] = place.slice
    world = to_world(volumeNode) @ ijk_to_ras(volumeNode) @ [*index[::-1], 1.0]
    views.show_place(volumeNode.GetScene(), world[:3].tolist(), volumeNode)
