"""Random variations of an annotated slice: what a scanner, a patient or a position could have made different.

MONAI's transforms; one resampling for image and labels together, bilinear and nearest neighbour, so that no label is
invented. No flips: left and right stay left and right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    Rand2DElasticd,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandomizableTransform,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
    ResizeWithPadOrCropd,
)
from monai.transforms.utils import create_control_grid, create_grid
from monai.utils import convert_to_tensor
from torch import Tensor

from pgpsam.training.data import IGNORED

PHASES = (0.3, 2.0)  # a kidney of 175 HU gets 84 to 305 HU, which is beyond the window's end


@dataclass(frozen=True)
class Augmentation:
    """How far variations go.

    Attributes:
        rotate_degrees: rotation within plus and minus.
        scale: size factor within 1 - scale .. 1 + scale.
        shear: within plus and minus.
        shift: fraction of the canvas by which the body moves.
        elastic_pixels: (low, high) range of the elastic displacement's standard deviation, at control points 32 pixels
            apart.
        noise: largest standard deviation of Gaussian noise, in units of the window.
        brightness, contrast: shift and relative scale of the intensities.
        gamma: range of the exponent.
        unenhanced: how often the drawn organs lose a random share of their contrast agent.
        phases: how often each drawn organ by itself gets more contrast agent or less, as in another phase.
        distractors: how often a slice gets blobs that look like an organ and are none, as fluid in the colon does.
        coarse: how often the slice looks as if its voxels were up to 2.5 times as wide.
        cropped: how often the field of view ends inside the body.
    """

    rotate_degrees: float = 15.0
    scale: float = 0.2
    shear: float = 0.1
    shift: float = 0.06
    elastic_pixels: tuple[float, float] = (0.0, 3.0)
    noise: float = 0.03
    brightness: float = 0.2
    contrast: float = 0.25
    gamma: tuple[float, float] = (0.7, 1.5)
    unenhanced: float = 0.3
    phases: float = 0.0
    distractors: float = 0.0
    coarse: float = 0.0
    cropped: float = 0.0


class Bend(Rand2DElasticd):
    """MONAI's random affine and elastic deformation, but for its ripple.

    MONAI interpolates the deformed control points themselves, bicubically, which does not reproduce a straight line:
    without any deformation, pixels would move by up to 2 and scales change by a quarter, at the same places of every
    canvas. Here only the control points' offsets are interpolated, and the affine map is exact.
    """

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """data: "image" [C, H, W] and "labels" [1, H, W]."""
        self.randomize(None)
        elastic, size = self.rand_2d_elastic, self.rand_2d_elastic.spatial_size
        elastic.randomize(size)
        spacing = elastic.deform_grid.spacing
        moved = elastic.deform_grid(size) - create_control_grid(size, spacing, backend="torch")
        moved = F.interpolate(moved[None], scale_factor=[float(s) for s in spacing], mode="bicubic")[0]
        grid = elastic.rand_affine_grid(grid=create_grid(size, backend="torch") + CenterSpatialCrop(size)(moved))
        made = dict(data)
        for key, mode, padding in self.key_iterator(made, self.mode, self.padding_mode):
            made[key] = elastic.resampler(made[key], grid, mode=mode, padding_mode=padding)
        return made


class ContrastAgent(RandomizableTransform):
    """Organs that are brighter than plain soft tissue -> the same with less contrast agent, or with more.

    What an organ is brighter than soft tissue is multiplied by a random factor; the texture stays.

    Args:
        prob: how often.
        factors: range of the factor; 0 leaves no contrast agent, 1 all of it.
        each: every organ of a slice gets a factor of its own, as in another phase; otherwise all get the same, as in a
            scan with less contrast agent.
        soft_tissue: its grey value in the window, 0..1; 45 HU by default.
    """

    def __init__(
        self, prob: float, factors: tuple[float, float] = (0.0, 1.0), each: bool = False, soft_tissue: float = 0.425
    ) -> None:
        super().__init__(prob)
        self.factors, self.each, self.soft_tissue = factors, each, soft_tissue

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """data: "image" [C, H, W] in 0..1 and "labels" [1, H, W]."""
        self.randomize(None)
        if not self._do_transform:
            return data
        factor = self._draw()
        image, labels = data["image"], data["labels"]
        shift = torch.zeros_like(image)
        for index in labels[(labels > 0) & (labels != IGNORED)].unique():
            inside = (labels == index).expand_as(image)
            more = (self._draw() if self.each else factor) - 1
            shift[inside] = more * (image[inside].mean() - self.soft_tissue).clamp_min(0)
        return {
            **data,
            "image": image + F.avg_pool2d(shift, 3, 1, 1, count_include_pad=False),
        }  # no sharp edge where an organ ends

    def _draw(self) -> float:
        low, high = self.factors
        return high - (high - low) * float(self.R.uniform())


class Distract(RandomizableTransform):
    """Slices -> slices with one to three blobs in the background that are as bright as an organ, and stay background.

    What fills a colon can look like liver without contrast agent; only shape, place and surroundings tell.

    Args:
        prob: how often.
        radii: range of a blob's half axes, in pixels.
        soft_tissue: range of grey values, 0..1, where it does not copy an organ of the slice; 15 to 75 HU by default.
    """

    def __init__(
        self, prob: float, radii: tuple[float, float] = (6.0, 22.0), soft_tissue: tuple[float, float] = (0.35, 0.5)
    ) -> None:
        super().__init__(prob)
        self.radii, self.soft_tissue = radii, soft_tissue

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """data: "image" [C, H, W] in 0..1 and "labels" [1, H, W], which stay."""
        self.randomize(None)
        image, labels = data["image"], data["labels"][0]
        free = (labels == 0) & (image[0] > 0) & (image[0] < 0.8)  # neither an organ, nor air, nor bone
        if not self._do_transform or not free.any():
            return data
        organs = labels[(labels > 0) & (labels != IGNORED)].unique().tolist()
        places = free.nonzero()
        for _ in range(self.R.randint(1, 4)):
            value = self.R.uniform(*self.soft_tissue)
            if organs and self.R.uniform() < 0.5:
                value = float(image[0][labels == organs[self.R.randint(len(organs))]].mean())
            y, x = places[self.R.randint(len(places))].tolist()
            inside = self._blob(labels.shape, y, x) & free
            soft = F.avg_pool2d(inside[None].float(), 3, 1, 1, count_include_pad=False)
            noise = torch.from_numpy(self.R.normal(0, 0.02, labels.shape)).to(image.dtype)
            image = image * (1 - soft) + soft * (value + noise)
        return {**data, "image": image}

    def _blob(self, shape: torch.Size, y: float, x: float) -> Tensor:
        """A bulged ellipse around (y, x), [H, W]."""
        rows, columns = torch.meshgrid(torch.arange(shape[0]) - y, torch.arange(shape[1]) - x, indexing="ij")
        turn = self.R.uniform(0, np.pi)
        along = (rows * np.sin(turn) + columns * np.cos(turn)) / self.R.uniform(*self.radii)
        across = (rows * np.cos(turn) - columns * np.sin(turn)) / self.R.uniform(*self.radii)
        bulge = 1 + 0.2 * torch.sin(self.R.randint(2, 5) * torch.atan2(along, across) + self.R.uniform(0, 2 * np.pi))
        return along**2 + across**2 < bulge**2


class CropFieldOfView(RandomizableTransform):
    """Whole bodies -> images that end inside the body: a random box of it, in the middle, and nothing around it.

    Args:
        prob: how often.
        smallest: share of the body's height and width that is kept at least.
    """

    def __init__(self, prob: float, smallest: float = 0.5) -> None:
        super().__init__(prob)
        self.smallest = smallest

    def __call__(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """data: "image" [C, H, W] in 0..1 and "labels" [1, H, W]; what lies outside the box becomes 0 in both."""
        self.randomize(None)
        body = (data["image"] > 0).any(0)
        if not self._do_transform or not body.any():
            return data
        box, middle = [slice(None)], [slice(None)]
        for axis, size in enumerate(body.shape):
            seen = body.any(1 - axis).nonzero()
            first, stop = int(seen[0]), int(seen[-1]) + 1
            side = round((stop - first) * self.R.uniform(self.smallest, 1))
            start = self.R.randint(first, stop - side + 1)
            box.append(slice(start, start + side))
            middle.append(slice((size - side) // 2, (size - side) // 2 + side))
        cropped = {}
        for key in ("image", "labels"):
            cropped[key] = torch.zeros_like(data[key])
            cropped[key][tuple(middle)] = data[key][tuple(box)]
        return {**data, **cropped}


class Augmenter:
    """Samples to training canvases.

    Args:
        canvas: (H, W).
        settings: None only centres the slice on the canvas.
    """

    def __init__(self, canvas: tuple[int, int], settings: Augmentation | None) -> None:
        keys = ("image", "labels")
        if settings is None:
            self.transform = Compose([ResizeWithPadOrCropd(keys, canvas, mode="constant")])
            return
        s = settings
        angle = np.deg2rad(s.rotate_degrees)
        shift = tuple(s.shift * side for side in canvas)
        self.transform = Compose(
            [
                Bend(
                    keys,
                    spacing=(32, 32),
                    magnitude_range=s.elastic_pixels,
                    prob=1.0,
                    rotate_range=angle,
                    shear_range=(s.shear, s.shear),
                    translate_range=shift,
                    scale_range=((-s.scale, s.scale), (-s.scale, s.scale)),
                    spatial_size=canvas,
                    mode=("bilinear", "nearest"),
                    padding_mode="zeros",
                ),
                ContrastAgent(s.unenhanced),
                *([ContrastAgent(s.phases, PHASES, each=True)] if s.phases else []),
                Distract(s.distractors),
                CropFieldOfView(s.cropped),
                RandSimulateLowResolutiond(
                    "image", prob=s.coarse, downsample_mode="area", upsample_mode="bilinear", zoom_range=(0.4, 1.0)
                ),
                RandGaussianNoised("image", prob=0.3, std=s.noise),
                RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.4, 1.0), sigma_y=(0.4, 1.0)),
                RandScaleIntensityd("image", factors=s.contrast, prob=0.5),
                RandShiftIntensityd("image", offsets=s.brightness, prob=0.5),
                RandAdjustContrastd("image", gamma=s.gamma, prob=0.3),
            ]
        )

    def restart(self, seed: int) -> None:
        """Begin a random sequence anew, so that a resumed run sees what it would have seen."""
        self.transform.set_random_state(seed % 2**32)

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One random variation.

        Args:
            image: [1 or 3, h, w], 0..1. labels: [h, w] class indices.

        Returns:
            (float32 [3, H, W] in 0..1, int64 [H, W]).
        """
        made = self.transform({"image": image.float(), "labels": labels[None].float()})
        # Plain tensors: MONAI's own type would slow down every later operation.
        image, labels = convert_to_tensor(made["image"]), convert_to_tensor(made["labels"])
        return image.clamp(0, 1).expand(3, -1, -1), labels[0].round().long()
