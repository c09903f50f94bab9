"""Volume slices <-> the network's canvases: intensity window, in-plane scale, channels, body box.

One rule for training and inference, described by `Preparation`, which travels in the model file. The slice is cut
to the body, brought to a fixed number of millimetres a pixel, so that a 0.4 mm, a 1.2 mm and a 3 mm image look
alike to the network, and centred on a canvas. Class scores come back the same way, resampled once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.volume import Volume

AIR_HU = -200.0
BODY_MARGIN_MM = 6.0
LIMB_SHARE = 0.15  # of the largest part's area in its slice; a thick arm has a tenth of a trunk's
LARGEST_CANVAS = 1024
SMALLEST_FIELD_MM = 10.0  # far below any crop; a field of view in metres, taken as mm, is under 1


@dataclass(frozen=True)
class Preparation:
    """How a slice becomes the network's input.

    Attributes:
        window: (low, high) in HU, mapped to 0..1.
        spacing_mm: millimetres a canvas pixel, in both directions.
        offsets_mm: where along z each of the three channels is taken, from the slice's own place; superior is
            positive. (0, 0, 0) repeats the slice.
        multiple: canvas sides are multiples of it.
    """

    window: tuple[float, float] = (-125.0, 275.0)
    spacing_mm: float = 1.5
    offsets_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    multiple: int = 56

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preparation:
        """The inverse of `to_json`.

        Raises:
            UserError: a missing, unknown or unusable field.
        """
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise UserError(f"preparation has fields {sorted(values)}, expected {sorted(known)}")
        try:
            low, high = (float(v) for v in values["window"])
            first, second, third = (float(v) for v in values["offsets_mm"])
            made = cls((low, high), float(values["spacing_mm"]), (first, second, third), int(values["multiple"]))
        except (TypeError, ValueError) as error:
            raise UserError(f"preparation has a field that is not a number: {error}") from error
        if not (low < high and 0.1 <= made.spacing_mm <= 20 and 1 <= made.multiple <= LARGEST_CANVAS):
            raise UserError(f"preparation is out of range: {made}")
        return made


@dataclass(frozen=True)
class Frame:
    """Where a volume's slices lie on their canvas.

    Attributes:
        box: (y0, y1, x0, x1), the trunk's box in voxels of the canonical slice.
        size: (h, w), the box on the canvas in pixels.
        canvas: (H, W), with the box centred.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    canvas: tuple[int, int]

    @property
    def corner(self) -> tuple[int, int]:
        """(top, left) of the box on the canvas."""
        return (self.canvas[0] - self.size[0]) // 2, (self.canvas[1] - self.size[1]) // 2


def body_mask(array: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[z, y, x] in HU -> what is not air, on the same grid; a windowed volume's lowest value counts as air."""
    return array > max(AIR_HU, float(array.min()) + 1.0)


def trunk_mask(array: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[z, y, x] in HU -> `body_mask` without what lies apart from the trunk in its slice: arms beside it, the couch.

    Of the connected parts of a slice, those of at least `LIMB_SHARE` of the largest stay, such as two thighs. An arm
    that touches the trunk stays, too.
    """
    trunk = body_mask(array)
    for plane in trunk:
        parts, count = ndimage.label(plane)
        if count > 1:
            areas = np.bincount(parts.ravel())
            areas[0] = 0
            plane &= (areas >= LIMB_SHARE * areas.max())[parts]
    return trunk


def body_box(volume: Volume) -> tuple[int, int, int, int]:
    """The trunk's box over all slices: (y0, y1, x0, x1) in voxels of the canonical slice.

    It is the largest connected part of the trunk's projection along z, after an opening that cuts off what still hangs
    on it. A volume without such a part is taken whole.
    """
    dx, dy, _ = volume.spacing
    _, height, width = volume.shape
    projection = trunk_mask(volume.array).mean(0) > 0.2
    radius = max(1, round(5.0 / max(dx, dy)))
    opened = ndimage.binary_opening(projection, iterations=radius) if min(height, width) > 8 * radius else projection
    parts, count = ndimage.label(opened)
    if not count:
        return (0, height, 0, width)
    largest = int(np.argmax(np.bincount(parts.ravel())[1:]))
    rows, columns = ndimage.find_objects(parts)[largest]
    my, mx = round(BODY_MARGIN_MM / dy), round(BODY_MARGIN_MM / dx)
    return (
        max(0, rows.start - my),
        min(height, rows.stop + my),
        max(0, columns.start - mx),
        min(width, columns.stop + mx),
    )


def frame_volume(volume: Volume, preparation: Preparation, box: tuple[int, int, int, int] | None = None) -> Frame:
    """The trunk's box and its canvas.

    Args:
        box: the volume's `body_box`, where it is known.

    Raises:
        UserError: the slice is too large for the largest canvas at this scale, or too small to be a patient's.
    """
    dx, dy, _ = volume.spacing
    _, height, width = volume.shape
    if max(height * dy, width * dx) < SMALLEST_FIELD_MM:
        raise UserError(
            f"{volume.name}: its slices are {width * dx:.3g} x {height * dy:.3g} mm, too small for a CT",
            "Check the voxel spacing in the file.",
        )
    box = box or body_box(volume)
    size = (
        max(1, round((box[1] - box[0]) * dy / preparation.spacing_mm)),
        max(1, round((box[3] - box[2]) * dx / preparation.spacing_mm)),
    )
    if max(size) > LARGEST_CANVAS:
        raise UserError(
            f"{volume.name}: its slices span {size[1]} x {size[0]} pixels of {preparation.spacing_mm} mm, "
            f"more than {LARGEST_CANVAS}",
            "Check the voxel spacing in the file.",
        )
    canvas = (-(-size[0] // preparation.multiple), -(-size[1] // preparation.multiple))
    return Frame(box, size, (canvas[0] * preparation.multiple, canvas[1] * preparation.multiple))


def scale_slices(volume: Volume, frame: Frame, preparation: Preparation, indices: Sequence[int]) -> Tensor:
    """The body box of some slices, windowed to 0..1 and scaled: [n, h, w], with (h, w) = frame.size."""
    y0, y1, x0, x1 = frame.box
    low, high = preparation.window
    crop = torch.from_numpy(np.ascontiguousarray(volume.array[list(indices), y0:y1, x0:x1]))
    crop = ((crop - low) / (high - low)).clamp_(0, 1)
    return F.interpolate(crop[:, None], frame.size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def scale_labels(labels: NDArray[Any], frame: Frame, indices: Sequence[int]) -> Tensor:
    """Class indices [z, y, x] -> those slices' body box by nearest neighbour, uint8 [n, h, w]."""
    y0, y1, x0, x1 = frame.box
    crop = torch.from_numpy(np.ascontiguousarray(labels[list(indices), y0:y1, x0:x1]).astype(np.float32))
    return F.interpolate(crop[:, None], frame.size, mode="nearest-exact")[:, 0].to(torch.uint8)


def neighbours(index: int, count: int, spacing_z: float, preparation: Preparation) -> list[int]:
    """The slice taken for each channel: the nearest to its offset, inside the volume."""
    return [min(max(index + round(mm / spacing_z), 0), count - 1) for mm in preparation.offsets_mm]


def place(slices: Tensor, frame: Frame) -> Tensor:
    """[..., h, w] -> [..., H, W], centred on a canvas of zeros."""
    top, left = frame.corner
    bottom, right = frame.canvas[0] - frame.size[0] - top, frame.canvas[1] - frame.size[1] - left
    return F.pad(slices, (left, right, top, bottom))


def channel_slices(
    volume: Volume, frame: Frame, preparation: Preparation, wanted: Sequence[Sequence[int]]
) -> list[Tensor]:
    """For each list of slice numbers the body boxes of these slices, [C, h, w]; a slice is scaled once."""
    needed = sorted({index for channels in wanted for index in channels})
    scaled = scale_slices(volume, frame, preparation, needed)
    row = {index: i for i, index in enumerate(needed)}
    return [scaled[[row[index] for index in channels]] for channels in wanted]


def network_input(volume: Volume, frame: Frame, preparation: Preparation, indices: Sequence[int]) -> Tensor:
    """The network's input for some slices: [n, 3, H, W], 0..1."""
    count, dz = volume.shape[0], volume.spacing[2]
    wanted = [neighbours(i, count, dz, preparation) for i in indices]
    return place(torch.stack(channel_slices(volume, frame, preparation, wanted)), frame)


def on_body(scores: Tensor, frame: Frame) -> Tensor:
    """[..., H, W] on the canvas -> its part on the body box, [..., h, w]; the inverse of `place`."""
    top, left = frame.corner
    return scores[..., top : top + frame.size[0], left : left + frame.size[1]]


def to_box(scores: Tensor, frame: Frame) -> Tensor:
    """Scores on the body box's pixels, [n, K, h, w], -> on its own voxels, [n, K, y1 - y0, x1 - x0]; one resampling."""
    y0, y1, x0, x1 = frame.box
    return F.interpolate(scores.float(), (y1 - y0, x1 - x0), mode="bilinear", align_corners=False)


def box_scores(scores: Tensor, frame: Frame) -> Tensor:
    """Scores on the canvas, [n, K, H, W], -> on the body box's own voxels, [n, K, y1 - y0, x1 - x0]; one resampling."""
    return to_box(on_body(scores, frame), frame)
