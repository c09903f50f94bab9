"""Adapt a method to annotated slices: one loop, read from top to bottom.

    prepare slices -> build the network on its base weights -> start prototypes from the slices -> iterate
    (sample, augment, loss, step, average) -> save the averaged weights as a model folder

A run can be stopped at any time and resumed: every few minutes its whole state goes to `training.pt` in the output
folder, which the finished model replaces. This room knows no user interface, only a progress callback.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pgpsam
from pgpsam.device import autocast, choose_device, describe_device
from pgpsam.errors import Cancelled, UserError
from pgpsam.labels import LabelSet
from pgpsam.memory import peak_memory_gb
from pgpsam.models.store import SCHEMA_VERSION, ModelSpec, find_model, fingerprint, save_model
from pgpsam.models.weights import base_state
from pgpsam.network.lora import put_tensors, trained_tensors
from pgpsam.network.methods import SegmentationNetwork, build_network, make_settings
from pgpsam.network.prototypes import coarse_labels
from pgpsam.slices import Preparation
from pgpsam.training.augment import Augmentation, Augmenter
from pgpsam.training.batches import Batches, Kept, Order, Replay
from pgpsam.training.data import Sample
from pgpsam.training.losses import class_weights, total_loss
from pgpsam.training.takeover import Start, take_over

CHECKPOINT = "training.pt"
CURVES = "curves.csv"
CHECKPOINT_SECONDS = 180.0
BALANCED = 0.6  # the share of a run after which the loss stays as it is
KEPT = re.compile(r"decoder\.(transformer|hypernetworks\.weights)")  # by `keep_decoder`
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a run besides its data.

    Attributes:
        method, backbone, settings: what is trained; `settings` over the method's defaults.
        iterations: optimiser steps. batch: slices a step.
        lr: peak learning rate; `published_lr`: that of the transformer in SAM's decoder.
        weight_decay, warmup: of AdamW (0.9, 0.999); iterations of linear warm-up, then a cosine to 1/1000.
        balance: (first, last) exponent by which rare classes count more in the cross-entropy, linear over the first
            part of the run. dice_weight: (first, last) share of Dice in the loss, likewise.
        final_weight: (first, last) share of the last pass in the loss, linear over the run.
        average: decay of the exponential moving average of the weights that is saved; 0 saves the last ones.
        empty_share: largest share of slices without organs among the annotated ones that are sampled.
        guessed_share: largest share of slices that a model labelled, where there are any.
        replay: how often a varied slice is used, see `batches`.
        canvas: (H, W) in training. augmentation: None for none.
        preparation: how slices become inputs.
        start_from_support: prototypes begin at what the annotated slices show, not at random, where they are not those
            of `start_from`.
        start_from: a trained model with the same method whose weights are the start; see `takeover`.
        start_share: share of the start's weights in what is saved, their mean with the trained ones (Wortsman et al.,
            "Robust fine-tuning of zero-shot models", 2022); only where all weights were the start's.
        keep_encoder: the encoder stays as the start has it; what it makes of a view can then be used several times.
        keep_decoder: so do the weights of the decoder's transformer and hypernetworks, which are most of a model.
    """

    method: str = "pgp"
    backbone: str = "lite_medsam"
    settings: Mapping[str, Any] = field(default_factory=dict)
    iterations: int = 450
    batch: int = 4
    lr: float = 2e-3
    published_lr: float = 5e-4
    weight_decay: float = 0.1
    warmup: int = 40
    balance: tuple[float, float] = (0.5, 0.2)
    dice_weight: tuple[float, float] = (0.5, 0.8)
    final_weight: tuple[float, float] = (0.6, 0.98)
    average: float = 0.98
    empty_share: float = 0.15
    guessed_share: float = 0.5
    replay: int = 1
    canvas: tuple[int, int] = (168, 224)
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    preparation: Preparation = field(default_factory=Preparation)
    seed: int = 0
    start_from_support: bool = True
    start_from: str = ""
    start_share: float = 0.0
    keep_encoder: bool = False
    keep_decoder: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for what no run can be made of."""
        for name in ("iterations", "batch", "replay"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: a training needs at least one")
        for name in ("empty_share", "guessed_share", "average", "start_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0 and under 1")
        for name in ("lr", "published_lr", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: it must not be negative")
        for name in ("balance", "dice_weight", "final_weight"):
            if not all(0 <= end <= 1 for end in getattr(self, name)):
                raise UserError(f"{name} is {list(getattr(self, name))}: both ends must be from 0 to 1")
        if min(self.canvas) < 1:
            raise UserError(f"canvas {self.canvas}: a side has at least one pixel")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: it must not be negative")


@dataclass(frozen=True)
class Progress:
    """One step's news. Losses are running means."""

    iteration: int
    iterations: int
    loss: float
    seconds: float
    eta_seconds: float


def pixel_counts(samples: Sequence[Sample], classes: int) -> Tensor:
    """How many pixels each class has in all samples, [K]."""
    counts = [torch.bincount(s.labels.flatten().long(), minlength=256)[:classes] for s in samples]
    return torch.stack(counts).sum(0)


def learning_rate(iteration: int, settings: TrainingSettings) -> float:
    """Factor on the peak rate: linear warm-up, then a cosine to almost nothing."""
    if iteration < settings.warmup:
        return (iteration + 1) / settings.warmup
    done = (iteration - settings.warmup) / max(1, settings.iterations - settings.warmup)
    return max(1e-3, 0.5 * (1 + math.cos(math.pi * done)))


def between(ends: tuple[float, float], done: float) -> float:
    """Linear from the first to the last value, which it keeps from done = 1 on."""
    return ends[0] + (ends[1] - ends[0]) * min(1.0, done)


def _keep_decoder(network: SegmentationNetwork, method: str) -> None:
    large = [value for name, value in network.named_parameters() if KEPT.match(name)]
    if not large:
        raise UserError(f"method {method} has no decoder of SAM's that could be kept", "Leave out keep_decoder.")
    for value in large:
        value.requires_grad_(False)


def make_optimizer(network: SegmentationNetwork, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with a rate of its own for the transformer in SAM's decoder, and without decay on vectors, temperatures,
    biases of any shape, and all that lies in `prototypes`: of PG-SAM, that is the whole text prior, its linear layers
    too.

    The other parts that start from SAM's decoder (mask tokens, upscaling, hypernetworks) learn at the rate of new ones.
    """
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, value in network.named_parameters():
        if not value.requires_grad:
            continue
        lr = settings.published_lr if name.startswith("decoder.transformer") else settings.lr
        decays = value.ndim > 1 and not name.endswith("bias") and ".biases." not in name and "prototypes" not in name
        decay = settings.weight_decay if decays else 0.0
        groups.setdefault((lr, decay), []).append(value)
    return torch.optim.AdamW(
        [{"params": p, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), p in groups.items()],
        betas=(0.9, 0.999),
        fused=next(network.parameters()).device.type in ("cpu", "cuda"),  # a quarter of the time on a CPU
    )


def network_classes(label_set: LabelSet) -> int:
    return len(label_set) + 1


@torch.no_grad()
def start_prototypes(network: SegmentationNetwork, samples: Sequence[Sample], settings: TrainingSettings) -> None:
    """Show the network up to 32 annotated slices, so that prototypes start at the classes' own features."""
    centre = Augmenter(settings.canvas, None)
    filled = [s for s in samples if s.filled and not s.guessed]
    some = [filled[i] for i in np.linspace(0, len(filled) - 1, min(32, len(filled))).astype(int)]
    where = next(network.parameters()).device
    shown, labels = [], []
    for sample in some:
        image, label = centre(sample.image, sample.labels)
        with autocast(where):
            shown.append(network.compared(network.encoder(image[None].to(where))).float())
        labels.append(coarse_labels(label[None].to(where), *shown[-1].shape[-2:]))
    network.start_from_support(torch.cat(shown), torch.cat(labels))


class Average:
    """Exponential moving average of the trained tensors, with a warm-up so that the start is forgotten."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.tensors = {name: value.clone() for name, value in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for name, value in tensors.items():
            self.tensors[name].lerp_(value, 1 - decay)

    def restore(self, steps: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint held of `steps` and `tensors`."""
        self.steps = steps
        for name, value in tensors.items():
            self.tensors[name].copy_(value)


def finetune(
    samples: Sequence[Sample],
    label_set: LabelSet,
    settings: TrainingSettings,
    out: str | Path,
    *,
    name: str,
    description: str = "",
    provenance: Mapping[str, Any] | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Train on annotated slices and write a model folder.

    Args:
        samples: from `data.make_samples`, with `settings.preparation`.
        label_set: what class index 1..N means.
        out: the model folder; made whole at the end, with curves.csv beside the model.
        name, description, provenance: go into model.json.
        resume: continue from the state that a stopped run left in `out`.
        progress, cancelled: called at every iteration.

    Returns:
        The model folder.

    Raises:
        UserError: no usable samples, unknown method or device, no decoder to keep, a checkpoint of another run, or a
            stopped run's state that cannot be saved.
        Cancelled: `cancelled` said so; the state for `resume` was saved.
    """
    out, where = Path(out), choose_device(device)
    order = Order(samples, settings.empty_share, settings.seed, settings.guessed_share)
    torch.manual_seed(settings.seed)
    state, sha256 = base_state(settings.backbone)
    network = (
        build_network(settings.method, settings.backbone, network_classes(label_set), settings.settings, state)
        .to(where)
        .to(memory_format=torch.channels_last)
    )
    start = take_over(network, settings, label_set) if settings.start_from else Start()
    if not start.whole and not resume:
        network.start_from_names(label_set.names)
        if settings.start_from_support:
            start_prototypes(network, samples, settings)
    adapter = trained_tensors(network)
    begun = {name: value.clone() for name, value in adapter.items()} if start.whole and settings.start_share else {}
    if settings.keep_encoder:
        network.encoder.requires_grad_(False)
    if settings.keep_decoder:
        _keep_decoder(network, settings.method)
    optimizer = make_optimizer(network, settings)
    augmenter = Augmenter(settings.canvas, settings.augmentation)
    frozen = not any(p.requires_grad for p in network.encoder.parameters())
    batches: Batches = (
        Kept(network, samples, order, augmenter, settings.batch)
        if frozen and network.neck_only and settings.augmentation is None
        else Replay(network, samples, order, augmenter, settings.batch, settings.replay, settings.seed)
    )
    average = Average(trained_tensors(network), settings.average)
    run = run_key(settings, samples)
    counts = pixel_counts(samples, network.classes)
    out.mkdir(parents=True, exist_ok=True)
    first, spent, mean_loss = 0, 0.0, math.nan
    if resume:
        first, spent, mean_loss = load_checkpoint(out, network, optimizer, average, run)
    started = saved = time.monotonic()
    curves = Curves(out / CURVES, first)
    network.train()
    for iteration in range(first, settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(iteration, settings)
        features, labels = batches(iteration)
        with autocast(where):
            output = network.decode(features, settings.canvas)
        done = iteration / settings.iterations
        weights = class_weights(counts, between(settings.balance, done / BALANCED)).to(where)
        dice_weight = between(settings.dice_weight, done / BALANCED)
        loss = total_loss(output, labels, between(settings.final_weight, done), weights, dice_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        average.update(trained_tensors(network))

        mean_loss = loss.item() if math.isnan(mean_loss) else 0.95 * mean_loss + 0.05 * loss.item()
        if not math.isfinite(mean_loss):
            raise UserError(f"the loss became {mean_loss} at iteration {iteration}", "Train with a lower rate.")
        seconds = time.monotonic() - started
        eta = seconds / (iteration + 1 - first) * (settings.iterations - iteration - 1)
        curves.add(iteration + 1, loss.item(), mean_loss, optimizer.param_groups[0]["lr"], spent + seconds)
        if progress:
            progress(Progress(iteration + 1, settings.iterations, mean_loss, spent + seconds, eta))
        stop = cancelled is not None and cancelled()
        if stop or time.monotonic() - saved > CHECKPOINT_SECONDS:
            facts = {"run": run, "iteration": iteration + 1, "seconds": spent + seconds, "mean_loss": mean_loss}
            write_state(out / CHECKPOINT, {**facts, **state_of(network, optimizer, average)}, needed=stop)
            saved = time.monotonic()
        if stop:
            raise Cancelled(f"stopped at iteration {iteration + 1}; --resume continues")
    trained = average.tensors if settings.average else trained_tensors(network)
    tensors = adapter | trained
    if begun:
        tensors = {name: value.lerp(begun[name], settings.start_share) for name, value in tensors.items()}
        start.told["share"] = settings.start_share
    spec = ModelSpec(
        schema_version=SCHEMA_VERSION,
        name=name,
        description=description,
        backbone=settings.backbone,
        backbone_sha256=sha256,
        method=settings.method,
        settings=asdict(make_settings(settings.method, settings.settings)),
        preparation=settings.preparation.to_json(),
        labels=label_set,
        training={
            **describe(settings),
            **describe_samples(samples),
            **({"started_from": start.told} if start.told else {}),
            **(provenance or {}),
            "cost": {
                "minutes": round((spent + time.monotonic() - started) / 60, 2),
                "device": describe_device(where),
                "peak_memory_gb": round(peak_memory_gb(where), 2),
                "trained_parameters": sum(value.numel() for value in trained.values()),
            },
        },
        scores={},
        refiner=start.refiner,
    )
    save_model(out, spec, {key: value.to(torch.float16) for key, value in tensors.items()} | start.refining)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return out


def describe(settings: TrainingSettings) -> dict[str, Any]:
    """The run's settings as JSON values, without what model.json says elsewhere."""
    values = asdict(replace(settings, settings={}))
    for key in ("settings", "method", "backbone", "preparation"):
        del values[key]
    return {**values, "code_version": pgpsam.__version__}


def describe_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    annotated = [s for s in samples if not s.guessed]
    counts = {
        "cases": sorted({s.case for s in samples}),
        "slices": len(annotated),
        "slices_with_organs": sum(s.filled for s in annotated),
    }
    return counts | ({"guessed_slices": len(samples) - len(annotated)} if len(annotated) < len(samples) else {})


class Curves:
    """The run's losses as a CSV that grows by a line an iteration; a resumed run goes on after its first `kept`.

    A disk that refuses a line costs the training nothing: it is written with the next one.

    Raises:
        UserError: it refuses the first one, before the training.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self.path, self.behind = path, False
        rows = path.read_text(encoding="utf-8").splitlines()[1 : kept + 1] if kept and path.exists() else []
        self.lines = ["iteration,loss,mean_loss,lr,seconds", *rows]
        try:
            self._write()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}", "Check the free space") from error

    def add(self, *values: float) -> None:
        self.lines.append(",".join(f"{value:.6g}" for value in values))
        try:
            if self.behind:
                self._write()
            else:
                with self.path.open("a", encoding="utf-8", newline="") as file:
                    file.write(f"{self.lines[-1]}\n")
            self.behind = False
        except OSError as error:
            if not self.behind:
                _log.warning("the training goes on: cannot write %s: %s", self.path, error.strerror or error)
            self.behind = True

    def _write(self) -> None:
        self.path.write_text("\n".join([*self.lines, ""]), encoding="utf-8", newline="")


def run_key(settings: TrainingSettings, samples: Sequence[Sample]) -> str:
    """What a run is known by when it is resumed: its settings, the model that it started from, its slices and labels.

    With other slices a resumed run would hold what it has seen of the first ones, perhaps of a patient that is held
    out now; with other labels (corrected, or another teacher's) it would be neither the first run nor a new one.
    """
    start = fingerprint(find_model(settings.start_from)) if settings.start_from else ""
    slices = [(s.case, s.index, s.guessed, zlib.crc32(s.labels.numpy().tobytes())) for s in samples]
    told = repr((settings, start, slices))
    # What states of earlier versions do not tell, the newest first.
    for usual in (", keep_decoder=False)", ", start_share=0.0, keep_encoder=False)"):
        told = told.replace(usual, ")", 1)
    return told


def state_of(network: SegmentationNetwork, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Any]:
    """What `load_checkpoint` puts back."""
    return {
        "trained": trained_tensors(network),
        "average": average.tensors,
        "steps": average.steps,
        "optimizer": optimizer.state_dict(),
    }


def write_state(path: Path, state: dict[str, Any], needed: bool) -> None:
    """The state of a run, whole or not at all; a former one stays where the disk refuses.

    Args:
        needed: the run stops here. One that goes on only warns.

    Raises:
        UserError: it is needed and the disk refuses.
    """
    part = path.with_name(path.name + ".part")
    try:
        torch.save(state, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch's own, which says nothing of the disk
        part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "it could not be written whole"
        message = f"cannot save the state of the training in {path.parent}: {reason}"
        if needed:
            raise UserError(message, "Check the free space and the permissions") from error
        _log.warning("the training goes on: %s", message)


def read_state(path: Path, run: str, instead: str) -> dict[str, Any]:
    """What a stopped run left.

    Args:
        run: what the run that goes on is known by. instead: what the user can do without the file.

    Raises:
        UserError: it is unreadable, or of a run with other settings, slices or labels.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is damaged: {error}", f"{instead[0].upper()}{instead[1:]}.") from error
    if state["run"] != run:
        raise UserError(
            f"{path} belongs to a run with other settings, slices or labels", f"Give the same ones, or {instead}."
        )
    return state


def load_checkpoint(
    out: Path,
    network: SegmentationNetwork,
    optimizer: torch.optim.Optimizer,
    average: Average,
    run: str,
) -> tuple[int, float, float]:
    """Put a stopped run's state back; returns (iteration, seconds spent, mean loss).

    Raises:
        UserError: no checkpoint, an unreadable one, or one of a run with other settings, slices or labels.
    """
    path = out / CHECKPOINT
    if not path.is_file():
        raise UserError(f"nothing to resume: {path} does not exist", "Start without --resume.")
    state = read_state(path, run, "start without --resume")
    put_tensors(network, state["trained"], str(path))
    optimizer.load_state_dict(state["optimizer"])
    average.restore(state["steps"], state["average"])
    return state["iteration"], state["seconds"], state["mean_loss"]
