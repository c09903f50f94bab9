"""Where a training step's encoded slices come from.

What never changes in a run of a view's features is made once and used several times. Where nothing of the encoder
learns, that is all of them, which spares most of a step. Otherwise it is what `encoder.lower` gives: where LoRA adapts
TinyViT's last stage alone, all below it; by default LoRA adapts every stage, and then `lower` hands the image on, as
SAM's ViT always does, and replay saves only the augmentation.

A step's batch follows from the seed and the step's number alone, so that a resumed run continues exactly, after making
again what it had in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pgpsam.device import autocast
from pgpsam.errors import UserError
from pgpsam.network.features import Features
from pgpsam.network.methods import SegmentationNetwork
from pgpsam.training.augment import Augmenter
from pgpsam.training.data import Sample

ROUNDS = 8  # batches in the ring: a view's uses lie that far apart, and the first step makes as many


class Order:
    """Endless random order over the samples: every annotated slice with organs once a round, the others in shares.

    Args:
        empty_share: largest share of slices without organs among the annotated ones of a round.
        guessed_share: largest share of slices that a model labelled.

    Raises:
        UserError: no slice shows an organ.
    """

    def __init__(self, samples: Sequence[Sample], empty_share: float, seed: int, guessed_share: float = 0.5) -> None:
        self.seed = seed
        self.filled = [i for i, s in enumerate(samples) if s.filled and not s.guessed]
        self.empty = [i for i, s in enumerate(samples) if not s.filled and not s.guessed]
        self.guessed = [i for i, s in enumerate(samples) if s.guessed]
        if not self.filled:
            raise UserError("none of the annotated slices shows an organ")
        self.empty_each = min(len(self.empty), round(len(self.filled) * empty_share / (1 - empty_share)))
        self.annotated_each = len(self.filled) + self.empty_each
        self.guessed_each = min(len(self.guessed), round(self.annotated_each * guessed_share / (1 - guessed_share)))
        self.current: tuple[int, list[int]] = (-1, [])

    def __getitem__(self, number: int) -> int:
        """Index of the sample that is drawn as the number-th, from 0."""
        turn, place = divmod(number, self.annotated_each + self.guessed_each)
        if self.current[0] != turn:
            random = np.random.default_rng((self.seed, turn))
            chosen = [
                index
                for group, count in ((self.empty, self.empty_each), (self.guessed, self.guessed_each))
                if count
                for index in random.choice(group, count, replace=False).tolist()
            ]
            self.current = (turn, random.permutation([*self.filled, *chosen]).tolist())
        return self.current[1][place]


class Replay:
    """Batches from a ring of the latest views; a view is a slice in one random variation.

    Every step makes a few new views, as far as they never change, and draws its batch from the ring.

    Args:
        network: encodes.
        samples, order, augmenter: what is shown, in which order, how varied.
        batch: slices a step.
        replay: how often a view is used, on average; 1 makes a new batch for every step.
        seed: of the variations and the draws.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        samples: Sequence[Sample],
        order: Order,
        augmenter: Augmenter,
        batch: int,
        replay: int,
        seed: int,
    ) -> None:
        self.network, self.samples, self.order, self.augmenter = network, samples, order, augmenter
        self.batch, self.replay, self.seed = batch, replay, seed
        self.capacity = batch * (ROUNDS if replay > 1 else 1)
        self.device = next(network.parameters()).device
        self.frozen = not any(value.requires_grad for value in network.encoder.parameters())
        self.ring: dict[int, tuple[tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, iteration: int) -> tuple[Features, Tensor]:
        """A step's features, with gradients to the encoder's adapted layers, and class indices [B, H, W]."""
        first = self.batch * iteration // self.replay
        window = range(first, first + self.capacity)
        self.ring = {number: known for number, known in self.ring.items() if number in window}
        for number in window:
            if number not in self.ring:
                self.ring[number] = self.encode(number)
        random = np.random.default_rng((self.seed, iteration))
        drawn = [self.ring[window[i]] for i in random.permutation(self.capacity)[: self.batch]]
        parts = tuple(torch.cat(part) for part in zip(*(parts for parts, _ in drawn), strict=True))
        truth = torch.stack([labels for _, labels in drawn])
        if self.frozen:
            neck, shallow, deep, *details = parts
            return Features(neck, (shallow, deep), tuple(details)), truth
        with autocast(self.device):
            return self.network.encoder.upper(parts), truth

    @torch.no_grad()
    def encode(self, number: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the ring keeps of a view, and the view's labels."""
        sample = self.samples[self.order[number]]
        self.augmenter.restart(self.seed * 1_000_003 + number)
        image, labels = self.augmenter(sample.image, sample.labels)
        with autocast(self.device):
            parts = self.network.encoder.lower(image[None].to(self.device, memory_format=torch.channels_last))
            if self.frozen:
                features = self.network.encoder.upper(parts)
                parts = (features.neck, *features.taps, *features.details)
        return parts, labels.to(self.device)


class Kept:
    """Batches of a frozen encoder without augmentation: each slice is encoded once, up to the neck."""

    def __init__(
        self, network: SegmentationNetwork, samples: Sequence[Sample], order: Order, augmenter: Augmenter, batch: int
    ) -> None:
        self.network, self.samples, self.order, self.augmenter, self.batch = network, samples, order, augmenter, batch
        self.device = next(network.parameters()).device
        self.known: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, iteration: int) -> tuple[Features, Tensor]:
        """A step's neck features, without taps and details, and class indices [B, H, W]."""
        indices = [self.order[iteration * self.batch + i] for i in range(self.batch)]
        for index in indices:
            if index not in self.known:
                image, labels = self.augmenter(self.samples[index].image, self.samples[index].labels)
                with autocast(self.device):
                    neck = self.network.encoder(image[None].to(self.device)).neck
                self.known[index] = (neck.half(), labels.to(self.device))
        necks = torch.cat([self.known[i][0].float() for i in indices])
        return Features(necks, (necks[:, :0], necks[:, :0])), torch.stack([self.known[i][1] for i in indices])


Batches = Callable[[int], tuple[Features, Tensor]]
