"""Train the volume refiner on answers about patients that the answering model has not learned from.

A model's answers on its own training slices are nearly right, and would teach the refiner to believe them. So the
training patients are split into folds, a model learns from all folds but one, and answers for that one.

    answers of every training patient -> sample a part of a stack -> vary it -> correct -> loss on annotated slices
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgpsam.device import autocast
from pgpsam.errors import Cancelled, UserError
from pgpsam.network.volume_refiner import VolumeRefiner, log_shares
from pgpsam.stack import GRID_MM, slice_weights, tent_weights, to_planes, view
from pgpsam.training.course import Average, Progress, learning_rate
from pgpsam.training.data import IGNORED
from pgpsam.training.losses import class_weights, segmentation_loss
from pgpsam.training.resuming import CHECKPOINT_SECONDS, read_state, write_state


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of all of a patient's slices, and what people drew, on the refiner's grid in the plane.

    Attributes:
        shares: of the classes, float16 [D, K, Y, X]. image: float16 [D, Y, X], 0..1.
        labels: class indices, uint8 [D, Y, X]; `IGNORED` in slices that nobody annotated.
        slice_mm: distance of the slices.
    """

    case: str
    shares: Tensor
    image: Tensor
    labels: Tensor
    slice_mm: float

    @property
    def annotated(self) -> list[int]:
        """The annotated slices' numbers."""
        return (self.labels != IGNORED).flatten(1).any(1).nonzero().flatten().tolist()

    @property
    def showing(self) -> list[int]:
        """Those of them that show an organ."""
        return [z for z in self.annotated if self.labels[z].any()]


@dataclass(frozen=True)
class RefinerSettings:
    """How a refiner is trained and how far its samples are varied.

    Attributes:
        iterations: steps of one part of a stack each. lr: peak of AdamW's rate. weight_decay: of AdamW.
        planes: a part's height, in cells; canvas: its (Y, X).
        rotate_degrees, scale, shift: in the plane; shift in shares of the canvas. thickness: scale along z.
        brightness, contrast, noise: of the image, in units of the window.
        sharpness: range of the exponent on the shares. bias: standard deviation of a change of each class's logit.
        missed: how often an organ is weakened over some slices.
        balance, dice_weight: of the loss, as for slices; the Dice alone would have organs come out thick.
        average: decay of the exponential moving average of the weights and statistics that is kept.
    """

    iterations: int = 400
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 20
    planes: int = 32
    canvas: tuple[int, int] = (96, 128)
    rotate_degrees: float = 12.0
    scale: float = 0.15
    shift: float = 0.05
    thickness: float = 0.2
    brightness: float = 0.1
    contrast: float = 0.2
    noise: float = 0.02
    sharpness: tuple[float, float] = (0.6, 1.5)
    bias: float = 0.5
    missed: float = 0.5
    balance: float = 0.1
    dice_weight: float = 0.5
    average: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for what no refiner can be made of."""
        if self.iterations < 1:
            raise UserError(f"{self.iterations} iterations of the refiner are none", "Train it for at least one.")


@dataclass(frozen=True, eq=False)
class Part:
    """A varied part of a stack: [Z, ...] on grid planes, [n, ...] at annotated slices.

    Attributes:
        seen: shares and image, [Z, K + 1, H, W].
        own: log shares of the annotated slices, [n, K, H, W]. labels: [n, H, W].
        places: the annotated slices' places in planes, [n].
    """

    seen: Tensor
    own: Tensor
    labels: Tensor
    places: Tensor


class Parts:
    """Random parts, each around an annotated slice; a part follows from the seed and its number alone."""

    def __init__(self, answers: Sequence[Answers], settings: RefinerSettings) -> None:
        self.answers, self.settings = answers, settings
        self.anchors = [(i, z) for i, one in enumerate(answers) for z in one.showing]
        if not self.anchors:
            raise UserError("none of the annotated slices shows an organ")

    def __getitem__(self, number: int) -> Part:
        s, random = self.settings, np.random.default_rng((self.settings.seed, number))
        which, anchor = self.anchors[random.integers(len(self.anchors))]
        one = self.answers[which]
        depth = len(one.shares)
        ratio = GRID_MM[0] * random.uniform(1 - s.thickness, 1 + s.thickness) / one.slice_mm  # slices in a plane
        start = anchor - random.uniform(0.1, 0.9) * s.planes * ratio
        places = start + (torch.arange(s.planes) + 0.5) * ratio - 0.5
        first = max(0, math.floor(float(places[0]) - ratio) - 1)
        stop = min(depth, math.ceil(float(places[-1]) + ratio) + 2)
        annotated = [z for z in one.annotated if first <= z < stop and places[0] <= z <= places[-1]]
        local = [z - first for z in annotated]

        grid = self._affine(random, one.shares.shape[-2:])
        shares = self._corrupt(random, one.shares[first:stop].float())
        shares = F.grid_sample(shares, grid.expand(len(shares), -1, -1, -1), align_corners=False)
        shares[:, 0] += 1 - shares.sum(1)  # around the body there is nothing
        image = one.image[first:stop, None].float()
        image = F.grid_sample(image, grid.expand(len(image), -1, -1, -1), align_corners=False)
        body = image > 1e-3
        image = (image - 0.4) * random.uniform(1 - s.contrast, 1 + s.contrast) + 0.4
        image = image + random.uniform(-s.brightness, s.brightness)
        image = (image + s.noise * torch.from_numpy(random.standard_normal(image.shape, np.float32))).clamp(0, 1) * body
        labels = one.labels[annotated][:, None].float()
        # Zero outside the image is background.
        labels = F.grid_sample(labels, grid.expand(len(labels), -1, -1, -1), mode="nearest", align_corners=False)

        outside = (places < -0.5) | (places > depth - 0.5)
        planes = to_planes(torch.cat((shares, image), 1), places - first, ratio)
        planes[outside] = 0
        planes[outside, 0] = 1
        return Part(
            planes,
            log_shares(shares[local]),
            labels[:, 0].long(),
            (torch.tensor(annotated, dtype=torch.float32) - places[0]) / ratio,
        )

    def _affine(self, random: np.random.Generator, size: Sequence[int]) -> Tensor:
        s = self.settings
        angle = math.radians(random.uniform(-s.rotate_degrees, s.rotate_degrees))
        scale = random.uniform(1 - s.scale, 1 + s.scale, 2)
        height, width = size
        # Canvas pixels from its centre -> body pixels from its centre.
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) / scale[:, None]
        shift = random.uniform(-s.shift, s.shift, 2) * np.array([s.canvas[1], s.canvas[0]])
        rows = np.arange(s.canvas[0]) + 0.5 - s.canvas[0] / 2
        columns = np.arange(s.canvas[1]) + 0.5 - s.canvas[1] / 2
        x, y = np.meshgrid(columns, rows)
        places = np.stack((x, y), -1) @ turn.T + shift
        return torch.from_numpy((places / np.array([width / 2, height / 2])).astype(np.float32))[None]

    def _corrupt(self, random: np.random.Generator, shares: Tensor) -> Tensor:
        s = self.settings
        logits = log_shares(shares) * random.uniform(*s.sharpness)
        classes = logits.shape[1]
        bias = torch.from_numpy(random.normal(0, s.bias, classes).astype(np.float32))
        logits = logits + bias[:, None, None]
        if random.uniform() < s.missed:
            organ, count = random.integers(1, classes), len(logits)
            low = random.integers(count)
            logits[low : low + random.integers(1, 8), organ] -= random.uniform(2, 6)
        return logits.softmax(1)


def train_refiner(
    answers: Sequence[Answers],
    classes: int,
    settings: RefinerSettings,
    device: torch.device,
    *,
    state: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> VolumeRefiner:
    """A refiner that has learned from the annotated slices of every patient.

    Args:
        classes: K, background included.
        state: a file for the state of a stopped run, from which the next one goes on, and of a finished one.
        progress, cancelled: called at every iteration.

    Raises:
        UserError: no annotated slice shows an organ, or a state that is damaged or of another run.
        Cancelled: `cancelled` said so; the state was saved.
    """
    torch.manual_seed(settings.seed)
    parts = Parts(answers, settings)
    refiner = VolumeRefiner(classes).to(device)
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    counts = torch.stack(
        [torch.bincount(one.labels[one.annotated].flatten().long(), minlength=classes)[:classes] for one in answers]
    ).sum(0)
    weights = class_weights(counts, settings.balance).to(device)
    drawn = [(one.case, one.annotated, zlib.crc32(one.labels.numpy().tobytes())) for one in answers]
    run = repr((settings, drawn))
    average = Average(_values(refiner), settings.average)
    beginning = (0, 0.0, math.nan)
    first, spent, mean_loss = _restore(state, refiner, optimizer, average, run) if state else beginning
    started = saved = time.monotonic()
    refiner.train()
    for iteration in range(first, settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * learning_rate(iteration, settings.iterations, settings.warmup)
        part = parts[iteration]
        with autocast(device):
            change = refiner(part.seen.transpose(0, 1)[None].to(device))[0]
        back = tent_weights(part.places, settings.planes).to(device)
        logits = part.own.to(device) + torch.einsum("nz,czhw->nchw", back, change)
        loss = segmentation_loss(logits, part.labels.to(device), weights, settings.dice_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(refiner.parameters(), 1.0)
        optimizer.step()
        average.update(_values(refiner))
        mean_loss = loss.item() if math.isnan(mean_loss) else 0.97 * mean_loss + 0.03 * loss.item()
        seconds = time.monotonic() - started
        if progress:
            eta = seconds / (iteration + 1 - first) * (settings.iterations - iteration - 1)
            progress(Progress(iteration + 1, settings.iterations, mean_loss, spent + seconds, eta))
        stop = cancelled is not None and cancelled()
        last = iteration + 1 == settings.iterations
        if state and (stop or last or time.monotonic() - saved > CHECKPOINT_SECONDS):
            facts = {"run": run, "iteration": iteration + 1, "seconds": spent + seconds, "mean_loss": mean_loss}
            values = {"refiner": refiner.state_dict(), "optimizer": optimizer.state_dict()}
            facts |= {**values, "average": average.tensors, "steps": average.steps}
            write_state(state, facts, needed=stop)
            saved = time.monotonic()
        if stop:
            raise Cancelled(f"stopped at iteration {iteration + 1} of the refiner; --resume continues")
    refiner.load_state_dict(average.tensors, strict=False)
    return refiner.eval()


def _values(refiner: VolumeRefiner) -> dict[str, Tensor]:
    """Its weights and the statistics of its normalisation."""
    return {name: value for name, value in refiner.state_dict().items() if value.is_floating_point()}


@torch.inference_mode()
def gain(refiner: VolumeRefiner, answers: Sequence[Answers], device: torch.device) -> tuple[float, float]:
    """Mean Dice before and after the correction, over the organs of each patient and over the patients.

    Args:
        answers: of patients that the refiner has not learned from; only their annotated slices count, some of which
            show an organ.

    Returns:
        (before, after), on the refiner's grid in the plane and without clean-up: to compare with each other only.
    """
    means = []
    for one in answers:
        depth, known = len(one.shares), one.annotated
        planes = max(1, round(depth * one.slice_mm / GRID_MM[0]))
        seen = view(one.shares, one.image, planes).to(device)
        with autocast(device):
            change = refiner.over(seen).float().cpu()
        logits = log_shares(one.shares[known])
        after = logits + torch.einsum("nz,kzhw->nkhw", slice_weights(depth, planes)[known], change)
        truth = one.labels[known]
        organs = [k for k in range(1, logits.shape[1]) if (truth == k).any()]
        found = logits.argmax(1), after.argmax(1)
        means.append([sum(_dice(labels == k, truth == k) for k in organs) / len(organs) for labels in found])
    before, after_mean = torch.tensor(means).mean(0).tolist()
    return before, after_mean


def _dice(found: Tensor, truth: Tensor) -> float:
    return 2 * float((found & truth).sum()) / float(found.sum() + truth.sum())


def _restore(
    path: Path, refiner: VolumeRefiner, optimizer: torch.optim.Optimizer, average: Average, run: str
) -> tuple[int, float, float]:
    """(iterations done, seconds spent, mean loss) of the state in the file, which is put back; (0, 0, NaN) without it.

    Raises:
        UserError: it is damaged or of another run.
    """
    if not path.is_file():
        return 0, 0.0, math.nan
    state = read_state(path, run, "delete it; the refiner then starts anew")
    refiner.load_state_dict(state["refiner"])
    optimizer.load_state_dict(state["optimizer"])
    average.restore(state["steps"], state["average"])
    return state["iteration"], state["seconds"], state.get("mean_loss", math.nan)  # older states have none
