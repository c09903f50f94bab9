"""Segmenter: a volume in, a Segmentation out; slice by slice, in batches, with progress and cancel.

The only room that joins geometry, network and clean-up. It reads no files but model folders and writes none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pgpsam.device import autocast, choose_device
from pgpsam.errors import Cancelled, UserError
from pgpsam.labels import LabelSet
from pgpsam.looks import LOOKS
from pgpsam.memory import if_it_fits
from pgpsam.models.lookup import find_model
from pgpsam.models.spec import ModelSpec
from pgpsam.models.store import REFINER_PREFIX, SECOND_PREFIX, fingerprint, load_model, split_tensors
from pgpsam.models.weights import base_state
from pgpsam.network.base import LoraSettings, upsample
from pgpsam.network.lora import merge_lora, put_tensors
from pgpsam.network.methods import Output, SegmentationNetwork, build_network, make_settings
from pgpsam.network.volume_refiner import VolumeRefiner, restore_refiner
from pgpsam.postprocess import clean_up
from pgpsam.prompts import attended_labels, peak_points
from pgpsam.segmentation import Segmentation
from pgpsam.slices import Frame, Preparation, body_box, body_mask, frame_volume, network_input, on_body, to_box
from pgpsam.stack import Stack
from pgpsam.volume import Volume

BATCH = {"cpu": 2, "cuda": 16, "mps": 4}
BODY_SHARE = 0.01

T = TypeVar("T")
Answer = tuple[torch.Tensor, torch.Tensor | None]  # logits, attention: see `Segmenter._answer`


@dataclass(frozen=True)
class Step:
    """Progress: `done` of `total` in a stage, and the stage's estimated seconds left."""

    stage: str
    done: int
    total: int
    eta_seconds: float


@dataclass(frozen=True)
class View:
    """One way to see a volume's slices: at which pixel size, where they lie on the canvas, and by which network."""

    preparation: Preparation
    frame: Frame
    network: SegmentationNetwork


class Drawing:
    """Label and confidence volumes of a volume, drawn slice by slice; undrawn slices are background for sure.

    Args:
        frame: the body box that logits are of. label_set: the model's; `wanted`: those of its labels that are drawn.

    Attributes:
        labels: uint8 [z, y, x]. confidence: float32 [z, y, x], 0..1.
    """

    def __init__(self, volume: Volume, frame: Frame, label_set: LabelSet, wanted: LabelSet) -> None:
        self.labels = np.zeros(volume.shape, np.uint8)
        self.confidence = np.ones(volume.shape, np.float32)
        self._frame = frame
        ids = [label.id if label.id in wanted.ids else 0 for label in label_set]
        self._ids = torch.tensor([0, *ids], dtype=torch.uint8)  # by class index

    def draw(self, z: int, logits: torch.Tensor) -> None:
        """A slice, from its logits on the body box, [K, h, w]."""
        y0, y1, x0, x1 = self._frame.box
        best, winner = to_box(logits[None], self._frame)[0].softmax(0).max(0)
        self.labels[z, y0:y1, x0:x1] = self._ids[winner.cpu()].numpy()
        self.confidence[z, y0:y1, x0:x1] = best.cpu().numpy()


class Segmenter:
    """A model ready to segment volumes.

    Args:
        network: a method's network with its trained weights.
        label_set: what class index 1..N means.
        preparation: how slices become the network's input.
        name: what results say of the model.
        device: 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
        refiner: makes what corrects the slices' answers as one volume, called when the slices are done, because its
            library takes seconds to load; None leaves the answers as they are.
        version: tells models of one name apart.
        second: another network of the same method and settings, trained apart, that takes the second look; None where
            `network` takes both.

    Raises:
        UserError: no such device.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        label_set: LabelSet,
        preparation: Preparation,
        name: str,
        device: str = "auto",
        refiner: Callable[[], VolumeRefiner] | None = None,
        version: str = "",
        second: SegmentationNetwork | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.network, self.second = (
            one.to(self.device).to(memory_format=torch.channels_last).eval() for one in (network, second or network)
        )
        self.make_refiner = refiner
        self.label_set, self.preparation, self.name, self.version = label_set, preparation, name, version
        self.batch = BATCH[self.device.type]

    @classmethod
    def load(cls, model: str | Path, device: str = "auto", weights: Path | None = None) -> Segmenter:
        """Read a model folder and its backbone's base weights.

        Args:
            model: a model folder or the name of an installed one.
            weights: the backbone's base weights, where they lie in a file of the user's.

        Raises:
            UserError: no such model, a damaged one, or missing base weights.
        """
        folder = find_model(str(model))
        spec, tensors = load_model(folder)
        tensors, refining = split_tensors(tensors, REFINER_PREFIX)
        own, other = split_tensors(tensors, SECOND_PREFIX)
        network = restore_network(spec, own, weights)
        second = restore_network(spec, other, weights) if other else None
        refiner = partial(restore_refiner, len(spec.labels) + 1, spec.refiner, refining, spec.name)
        make_refiner = refiner if refining else None
        version = fingerprint(folder)
        return cls(network, spec.labels, preparation_of(spec), spec.name, device, make_refiner, version, second)

    @cached_property
    def refiner(self) -> VolumeRefiner | None:
        """The volume refiner, made when it is first asked for.

        Raises:
            UserError: its tensors do not fit the model.
        """
        return self.make_refiner().eval() if self.make_refiner else None

    @torch.inference_mode()
    def segment(
        self,
        volume: Volume,
        organs: Sequence[str] | None = None,
        *,
        progress: Callable[[Step], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        partial: Callable[[NDArray[np.uint8], int], None] | None = None,
        looks: int = len(LOOKS),
        clean: bool = True,
    ) -> Segmentation:
        """Segment every slice of a volume.

        Args:
            volume: the CT.
            organs: names to look for; None for all that the model knows.
            progress: called after every batch and at each stage.
            cancelled: asked before every batch.
            partial: called after every batch with the label volume so far, uint8 [z, y, x], and the number of
                slices in it.
            looks: at how many of the pixel sizes `LOOKS` every slice is seen; the answer is the mean of their logits.
                1 takes 0.6 of the time that 2 take, and is less accurate.
            clean: take stray pieces away, see `postprocess.keep_components`.

        Raises:
            UserError: an organ that the model does not know, not enough memory for a single slice, or no such number
                of looks.
            Cancelled: `cancelled` said so.
        """
        wanted = self.label_set.select(organs)
        seconds: dict[str, float] = {}
        with clocked("prepare", seconds):
            views = self._views(volume, looks)
            frame = views[0].frame
            drawing = Drawing(volume, frame, self.label_set, wanted)
            todo = body_slices(volume)
        with clocked("slices", seconds):
            stack = Stack(volume, frame, self.preparation, len(self.label_set) + 1) if self.make_refiner else None
            attention: dict[int, torch.Tensor] = {}
            for indices, (logits, attended), done in self._answers(volume, views, todo, progress, cancelled):
                for i, z in enumerate(indices):
                    drawing.draw(z, logits[i])
                    if stack:
                        stack.add(z, logits[i])
                    if attended is not None:
                        attention[z] = attended[i, 1:].float().cpu()
                if partial:
                    partial(drawing.labels, done)
        if stack and todo:
            with clocked("refine", seconds):
                self._refine(stack, drawing, progress, cancelled)
        with clocked("clean up", seconds):
            labels, confidence = drawing.labels, drawing.confidence
            if clean:
                labels, confidence = clean_up(labels, confidence, wanted, volume.spacing)
            regions = attended_labels(attention, labels, self.label_set, frame)
            points = peak_points(attention, labels, self.label_set, frame, volume.spacing[2])
        return Segmentation(labels, confidence, regions, points, seconds, str(self.device), self.name, wanted)

    @torch.inference_mode()
    def answers(
        self,
        volume: Volume,
        *,
        progress: Callable[[Step], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Stack:
        """What the network says of every slice at one look, before any correction.

        Raises:
            UserError, Cancelled: as `segment`.
        """
        views = self._views(volume, 1)
        stack = Stack(volume, views[0].frame, self.preparation, len(self.label_set) + 1)
        for indices, (logits, _), _ in self._answers(volume, views, body_slices(volume), progress, cancelled):
            for i, z in enumerate(indices):
                stack.add(z, logits[i])
        return stack

    def shares(
        self, volume: Volume, *, progress: Callable[[Step], None] | None = None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """z and the classes' shares of every slice that shows more than air, corrected by the refiner, if any.

        The shares are [K, y1 - y0, x1 - x0] on the voxels of the volume's body box, on the segmenter's device.

        Raises:
            UserError: as `segment`.
        """
        frame = frame_volume(volume, self.preparation)
        stack = self.answers(volume, progress=progress)
        logits = stack.correct(self.correction(stack)) if self.refiner and stack.logits else stack.logits.__getitem__
        for z in stack.logits:
            with torch.inference_mode():
                shares = to_box(logits(z)[None].to(self.device), frame)[0].softmax(0)
            yield z, shares

    @torch.inference_mode()
    def correction(self, stack: Stack) -> torch.Tensor:
        """What the refiner says of a stack, [K, Z, Y, X]; on the CPU where it does not fit on the device.

        Not in smaller windows: at their seams it would say something else.
        """

        def on(device: torch.device) -> torch.Tensor:
            assert self.refiner is not None
            seen = stack.planes().to(device)
            with autocast(device):
                return self.refiner.to(device).over(seen)

        change = None if self.device.type == "cpu" else if_it_fits(lambda: on(self.device))
        return on(torch.device("cpu")) if change is None else change

    def in_batches(
        self, slices: Sequence[int], work: Callable[[Sequence[int]], T], cancelled: Callable[[], bool] | None = None
    ) -> Iterator[tuple[Sequence[int], T]]:
        """Slices batch by batch; a batch that does not fit in memory is halved and stays so.

        Args:
            work: does what is to be done with a batch, and returns anything but None.

        Yields:
            The batch and what `work` returned for it.

        Raises:
            UserError: not enough memory for a single slice.
            Cancelled: `cancelled`, which is asked before every batch, said so.
        """
        start = 0
        while start < len(slices):
            if cancelled and cancelled():
                raise Cancelled("cancelled while looking at the slices")
            batch = slices[start : start + (self.batch if start else 1)]  # something to look at soon
            result = if_it_fits(lambda: work(batch))  # noqa: B023, called at once
            if result is not None:
                yield batch, result
                start += len(batch)
            elif self.batch == 1:
                raise UserError(
                    f"not enough memory on {self.device} for one slice", "Close other programs, or use --device cpu."
                )
            else:
                self.batch = max(1, min(self.batch, len(batch)) // 2)

    def _views(self, volume: Volume, looks: int) -> list[View]:
        """How a volume's slices are seen, the preparation's own pixel size first.

        Raises:
            UserError: no such number of looks, or slices that are too large.
        """
        if not 1 <= looks <= len(LOOKS):
            raise UserError(f"{looks} looks at every slice: there can be 1 to {len(LOOKS)}")
        own = self.preparation
        preparations = [replace(own, spacing_mm=own.spacing_mm * scale) for scale in LOOKS[:looks]]
        box = body_box(volume)
        networks = (self.network, self.second)
        return [
            View(one, frame_volume(volume, one, box), network)
            for one, network in zip(preparations, networks, strict=False)
        ]

    def _answers(
        self,
        volume: Volume,
        views: Sequence[View],
        slices: Sequence[int],
        progress: Callable[[Step], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> Iterator[tuple[Sequence[int], Answer, int]]:
        """Batch by batch: its slices, their answer, and how many slices are answered so far.

        Progress is told when the caller has done its part with a batch.
        """
        started = time.monotonic()
        done = 0
        for batch, answer in self.in_batches(slices, lambda batch: self._answer(volume, views, batch), cancelled):
            done += len(batch)
            yield batch, answer, done
            if progress:
                spent = time.monotonic() - started
                progress(Step("slices", done, len(slices), spent / done * (len(slices) - done)))

    def _refine(
        self,
        stack: Stack,
        drawing: Drawing,
        progress: Callable[[Step], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        """Draw the stack's slices anew, as the refiner corrects them."""
        stop_if(cancelled)
        if progress:
            progress(Step("refine", 0, 1, 0.0))
        corrected = stack.correct(self.correction(stack))
        for z in stack.logits:
            stop_if(cancelled)
            drawing.draw(z, corrected(z))
        if progress:
            progress(Step("refine", 1, 1, 0.0))

    def _answer(self, volume: Volume, views: Sequence[View], slices: Sequence[int]) -> Answer:
        """The slices' mean logits [n, K, h, w] on the first view's body box, and the first view's attention."""
        first = self._look(volume, views[0], slices)
        logits = on_body(first.logits, views[0].frame)
        for view in views[1:]:
            other = on_body(self._look(volume, view, slices).logits, view.frame)
            logits = logits + upsample(other, views[0].frame.size)
        return logits / len(views), first.attention

    def _look(self, volume: Volume, view: View, indices: Sequence[int]) -> Output:
        image = network_input(volume, view.frame, view.preparation, indices).to(self.device)
        with autocast(self.device):
            return view.network(image)


@contextmanager
def clocked(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Note how long a stage took."""
    started = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - started


def stop_if(cancelled: Callable[[], bool] | None) -> None:
    if cancelled and cancelled():
        raise Cancelled("cancelled while segmenting")


def body_slices(volume: Volume) -> list[int]:
    """Canonical z of the slices that show more than air."""
    found: list[int] = np.flatnonzero(body_mask(volume.array).mean((1, 2)) >= BODY_SHARE).tolist()
    return found


def preparation_of(spec: ModelSpec) -> Preparation:
    return Preparation.from_json(spec.preparation)


def restore_network(
    spec: ModelSpec, tensors: dict[str, torch.Tensor], weights: Path | None = None
) -> SegmentationNetwork:
    """Base weights plus an adapter's tensors, for inference: LoRA is merged into the encoder.

    Raises:
        UserError: the base weights are missing or others than the model was trained on, or the adapter does not
            fit the method.
    """
    published, sha256 = base_state(spec.backbone, weights)
    if sha256 != spec.backbone_sha256:
        raise UserError(
            f"{spec.name} was trained on other base weights of {spec.backbone} "
            f"(SHA-256 {spec.backbone_sha256[:8]}...) than those here ({sha256[:8]}...)",
            "Get the model and this program in versions that belong together.",
        )
    settings = make_settings(spec.method, spec.settings)
    merged = {"lora_rank": 0} if isinstance(settings, LoraSettings) else {}
    network = build_network(spec.method, spec.backbone, len(spec.labels) + 1, {**spec.settings, **merged}, published)
    if isinstance(settings, LoraSettings):
        tensors = merge_lora(network.encoder, tensors, settings, spec.name)
    put_tensors(network, tensors, spec.name)
    return network
