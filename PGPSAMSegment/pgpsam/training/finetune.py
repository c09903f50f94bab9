"""Adapt a method to annotated slices: one loop, read from top to bottom.

    prepare slices -> build the network on its base weights -> start prototypes from the slices -> iterate
    (sample, augment, loss, step, average) -> save the averaged weights as a model folder

A run can be stopped at any time and resumed: every few minutes its whole state goes to `training.pt` in the output
folder, which the finished model replaces. This room knows no user interface, only a progress callback.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgpsam.device import autocast, choose_device, describe_device
from pgpsam.errors import Cancelled, UserError
from pgpsam.labels import LabelSet
from pgpsam.memory import peak_memory_gb
from pgpsam.models.spec import SCHEMA_VERSION, ModelSpec
from pgpsam.models.store import save_model
from pgpsam.models.weights import base_state
from pgpsam.network.lora import trained_tensors
from pgpsam.network.methods import SegmentationNetwork, build_network, make_settings
from pgpsam.network.prototypes import coarse_labels
from pgpsam.training.augment import Augmenter
from pgpsam.training.batches import Batches, Kept, Order, Replay
from pgpsam.training.course import Average, Progress, learning_rate
from pgpsam.training.curves import CURVES, Curves
from pgpsam.training.data import Sample
from pgpsam.training.losses import class_weights, total_loss
from pgpsam.training.resuming import CHECKPOINT, CHECKPOINT_SECONDS, load_checkpoint, run_key, state_of, write_state
from pgpsam.training.settings import TrainingSettings, describe
from pgpsam.training.takeover import Start, take_over

BALANCED = 0.6  # the share of a run after which the loss stays as it is
KEPT = re.compile(r"decoder\.(transformer|hypernetworks\.weights)")  # by `keep_decoder`


def pixel_counts(samples: Sequence[Sample], classes: int) -> Tensor:
    """How many pixels each class has in all samples, [K]."""
    counts = [torch.bincount(s.labels.flatten().long(), minlength=256)[:classes] for s in samples]
    return torch.stack(counts).sum(0)


def between(ends: tuple[float, float], done: float) -> float:
    """Linear from the first to the last value, which it keeps from done = 1 on."""
    return ends[0] + (ends[1] - ends[0]) * min(1.0, done)


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


def start_network(
    samples: Sequence[Sample], label_set: LabelSet, settings: TrainingSettings, where: torch.device, resume: bool
) -> tuple[SegmentationNetwork, str, Start]:
    """The network as its training begins, the SHA-256 of its base weights, and what it has of another model.

    Args:
        resume: what it would learn from names and slices before the first step comes from a checkpoint.
    """
    state, sha256 = base_state(settings.backbone)
    network = (
        build_network(settings.method, settings.backbone, len(label_set) + 1, settings.settings, state)
        .to(where)
        .to(memory_format=torch.channels_last)
    )
    start = take_over(network, settings, label_set) if settings.start_from else Start()
    if not start.whole and not resume:
        network.start_from_names(label_set.names)
        if settings.start_from_support:
            start_prototypes(network, samples, settings)
    return network, sha256, start


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


def freeze(network: SegmentationNetwork, settings: TrainingSettings) -> None:
    """Leave as they are the parts that `keep_encoder` and `keep_decoder` name.

    Raises:
        UserError: the method has no such decoder.
    """
    if settings.keep_encoder:
        network.encoder.requires_grad_(False)
    if settings.keep_decoder:
        large = [value for name, value in network.named_parameters() if KEPT.match(name)]
        if not large:
            message = f"method {settings.method} has no decoder of SAM's that could be kept"
            raise UserError(message, "Leave out keep_decoder.")
        for value in large:
            value.requires_grad_(False)


def make_batches(
    network: SegmentationNetwork, samples: Sequence[Sample], order: Order, settings: TrainingSettings
) -> Batches:
    """Features are kept where none of them ever changes."""
    augmenter = Augmenter(settings.canvas, settings.augmentation)
    frozen = not any(p.requires_grad for p in network.encoder.parameters())
    if frozen and network.neck_only and settings.augmentation is None:
        return Kept(network, samples, order, augmenter, settings.batch)
    return Replay(network, samples, order, augmenter, settings.batch, settings.replay, settings.seed)


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
    network, sha256, start = start_network(samples, label_set, settings, where, resume)
    adapter = trained_tensors(network)
    begun = {name: value.clone() for name, value in adapter.items()} if start.whole and settings.start_share else {}
    freeze(network, settings)
    optimizer = make_optimizer(network, settings)
    batches = make_batches(network, samples, order, settings)
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
            group["lr"] = group["peak"] * learning_rate(iteration, settings.iterations, settings.warmup)
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


def describe_samples(samples: Sequence[Sample]) -> dict[str, Any]:
    annotated = [s for s in samples if not s.guessed]
    counts = {
        "cases": sorted({s.case for s in samples}),
        "slices": len(annotated),
        "slices_with_organs": sum(s.filled for s in annotated),
    }
    return counts | ({"guessed_slices": len(samples) - len(annotated)} if len(annotated) < len(samples) else {})
