"""What crosses the worker's border: arrays as .npy files on the input's own grid, and organs as JSON.

It turns the engine's values into the protocol's and back, and knows neither requests nor networks.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgpsam.errors import UserError, reason
from pgpsam.labels import STRUCTURE, Code, Label, LabelSet
from pgpsam.segmentation import Segmentation
from pgpsam.volume import Volume

LABELS, CONFIDENCE, REGIONS, POINTS = "labels.npy", "confidence.npy", "regions.npy", "points.json"
UNANNOTATED = 255
_MEND = "Check the folder, its free space and its permissions."
_TRIES, _PAUSE = 10, 0.2  # Windows refuses to replace a file while somebody reads it

# ------------------------------------------------------------------------------------------------------ files


def read_array(path: str | os.PathLike[str]) -> NDArray[Any]:
    """A .npy file, memory-mapped and read-only.

    Raises:
        UserError: missing, or not an array of plain values.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read the array {path}: {reason(error)}", "Send the volume again.") from error


def read_volume_array(path: str | os.PathLike[str], affine: Any, name: str) -> Volume:
    """The volume that a request names.

    Args:
        path: .npy, [k, j, i] in any orientation.
        affine: 4 x 4 nested lists, index (i, j, k) to RAS mm.
        name: what messages call it.

    Raises:
        UserError: unreadable, or not a volume that can be segmented.
    """
    try:
        matrix = np.array(affine, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: its affine is not a table of 4 x 4 numbers") from error
    return Volume.from_kji(read_array(path), matrix, name)


def write_files(folder: Path, files: Mapping[str, NDArray[Any] | list[Any]]) -> None:
    """Arrays as .npy and lists as JSON, each whole or not at all; none takes its name before all are written.

    Raises:
        UserError: the folder or the disk refuses.
    """
    parts = {name: folder / f".{uuid.uuid4().hex}.part" for name in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with parts[name].open("wb") as file:
                if isinstance(content, np.ndarray):
                    np.save(file, content, allow_pickle=False)
                else:
                    file.write(json.dumps(content, allow_nan=False).encode())
        for name, part in parts.items():
            _replace(part, folder / name)
    except OSError as error:
        why = error.strerror or "the disk is full"  # numpy only counts the bytes of a write that was cut short
        raise UserError(f"cannot write to {folder}: {why}", _MEND) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _replace(part: Path, path: Path) -> None:
    for _ in range(_TRIES):
        try:
            os.replace(part, path)
            return
        except PermissionError:
            time.sleep(_PAUSE)
    os.replace(part, path)


def remove_results(folder: Path) -> None:
    """Take away what a run left, so that no former or partial result passes for the whole one.

    Raises:
        UserError: the folder refuses.
    """
    for name in (LABELS, CONFIDENCE, REGIONS, POINTS):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {folder / name}: {reason(error)}", _MEND) from error


# ---------------------------------------------------------------------------------------------------- results


def write_result(folder: Path, volume: Volume, result: Segmentation) -> None:
    """labels, confidence and regions on the input's own [k, j, i] grid, and the prompts' points.

    Raises:
        UserError: the folder or the disk refuses.
    """
    files: dict[str, NDArray[Any] | list[Any]] = {
        LABELS: volume.restore(result.labels),
        CONFIDENCE: volume.restore(result.confidence),
        REGIONS: volume.restore(result.regions),
        POINTS: points_json(volume, result),
    }
    write_files(folder, files)


def points_json(volume: Volume, result: Segmentation) -> list[dict[str, Any]]:
    """The prompts' peaks: organ, id, weight, ijk (the input's index) and ras (mm)."""
    return [
        {
            "organ": result.label_set.by_id(point.label_id).name,
            "id": point.label_id,
            "weight": point.weight,
            "ijk": list(volume.grid.source_index(point.z, point.y, point.x)),
            "ras": (volume.affine @ [point.x, point.y, point.z, 1.0])[:3].tolist(),
        }
        for point in result.points
    ]


def organs_measured(volume: Volume, result: Segmentation) -> list[dict[str, Any]]:
    """Volume, mean HU and confidence of every organ that was looked for; null where one that is absent has none.

    `slice_confidence` maps the index along the input's axial axis, which is axis `slices_axis` of [k, j, i], to the
    organ's mean confidence in that slice.
    """
    from pgpsam.report import organ_table  # here, because it brings matplotlib, which nothing else in here needs

    by_slice: dict[int, dict[str, float]] = {}
    for label, box, organ in result.organs():
        values = enumerate(result.confidence_by_slice(box, organ), start=box[0].start)
        by_slice[label.id] = {str(volume.grid.axial_index(z)): float(v) for z, v in values if math.isfinite(v)}
    return [
        {
            "id": row.id,
            "name": row.name,
            "volume_ml": row.ml,
            "mean_hu": row.mean_hu if row.ml else None,
            "confidence": row.confidence if row.ml else None,
            "slice_confidence": by_slice.get(row.id, {}),
            "slices_axis": volume.grid.axial_axis,
        }
        for row in organ_table(volume, result)
    ]


# ----------------------------------------------------------------------------------------------------- organs


def organs_json(label_set: LabelSet) -> list[dict[str, Any]]:
    """Organs as "hello" tells them: SNOMED codes are [scheme, value, meaning]."""
    return [
        {
            "id": label.id,
            "name": label.name,
            "color": list(label.color),
            "single": label.single,
            "snomed": {
                "category": _code_json(label.category),
                "type": _code_json(label.type),
                "modifier": _code_json(label.modifier) if label.modifier else None,
            },
        }
        for label in label_set
    ]


def organs_from_json(items: Any) -> LabelSet:
    """The inverse of `organs_json`; an organ without "snomed" gets the general code.

    Raises:
        UserError: what is wrong, and in which organ.
    """
    if not isinstance(items, list):
        raise UserError("labels: expected a list of organs")
    return LabelSet(tuple(_organ(item, f"labels[{index}]") for index, item in enumerate(items)))


def _organ(item: Any, where: str) -> Label:
    try:
        codes = item.get("snomed") or {}
        category, kind, modifier = (_code(codes.get(part)) for part in ("category", "type", "modifier"))
        return Label(
            item["id"],
            item["name"],
            tuple(item["color"]),
            category or STRUCTURE,
            kind or STRUCTURE,
            modifier,
            bool(item.get("single", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not an organ with id, name, color and snomed codes ({error!r})") from error


def _code_json(code: Code) -> list[str]:
    return [code.scheme, code.value, code.meaning]


def _code(triple: Any) -> Code | None:
    if triple is None:
        return None
    scheme, value, meaning = (str(text) for text in triple)
    return Code(value, scheme, meaning)


def class_indices(ids: NDArray[Any], label_set: LabelSet, name: str) -> NDArray[np.uint8]:
    """Label ids -> class indices: 0 background, 1..N in the label set's order, `UNANNOTATED` for voxels of none.

    Raises:
        UserError: values that are no ids of the label set.
    """
    if ids.dtype.kind not in "iu" or int(ids.min()) < 0 or int(ids.max()) > 255:
        raise UserError(f"{name}: its labels are not whole numbers in 0 to 255")
    known = {0: 0, UNANNOTATED: UNANNOTATED} | {label: n for n, label in enumerate(label_set.ids, start=1)}
    unknown = sorted(set(np.unique(ids).tolist()) - set(known))
    if unknown:
        raise UserError(f"{name}: its labels hold the ids {unknown}, which no organ has")
    lookup = np.zeros(256, np.uint8)
    for identifier, index in known.items():
        lookup[identifier] = index
    return lookup[ids]
