"""Which annotated slices a run learns from.

Every case is read and forgotten again, so that a data set may be larger than the memory: what is kept of it is which of
its slices are chosen, and a checksum of their labels, by which a stopped run knows them again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pgpsam.errors import UserError
from pgpsam.training.data import (
    Case,
    Dataset,
    annotated_slices,
    load_case,
    read_slice_list,
    slice_list_sha256,
)

LABELS_CHECKSUM = "labels_crc32"  # model.json's word for `checksum`, and for `scoring.CaseScores.labels`


@dataclass(frozen=True)
class SliceChoice:
    """Which annotated slices to train on; at most one of the first four.

    Attributes:
        listed: a CSV with the columns case, slice.
        fraction: of all annotated slices, at random.
        shots: a number of organ-bearing slices in all, at random.
        per_organ: for every organ so many slices that show it, at random.
        fully_annotated: slices without organs are background, not unannotated.
    """

    listed: Path | None = None
    fraction: float | None = None
    shots: int | None = None
    per_organ: int | None = None
    fully_annotated: bool = False

    def __post_init__(self) -> None:
        if sum(v is not None for v in (self.listed, self.fraction, self.shots, self.per_organ)) > 1:
            raise UserError("choose slices by a list, a fraction or a number, not by several of them")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise UserError(f"--fraction {self.fraction} is not between 0 and 1")
        for option, count in (("--shots", self.shots), ("--per-organ", self.per_organ)):
            if count is not None and count < 1:
                raise UserError(f"{option} {count} is not a positive number")

    @cached_property  # a list's file may be gone or another one when a run ends
    def text(self) -> str:
        """The choice in words, as a model card says it.

        Raises:
            UserError: the list cannot be read.
        """
        if self.listed:
            return f"slices of {self.listed.name} (SHA-256 {slice_list_sha256(self.listed)[:16]}...)"
        if self.shots:
            return f"{self.shots} slices"
        if self.per_organ:
            return f"{self.per_organ} slices an organ"
        return f"{self.fraction:.0%} of the slices" if self.fraction else "all annotated slices"


@dataclass(frozen=True)
class ChosenSlices:
    """A training case's part of a choice.

    Attributes:
        slices: canonical z; there may be none.
        showing: whether one of them shows an organ.
        checksum: CRC-32 of their labels.
    """

    case: Case
    slices: tuple[int, ...]
    showing: bool
    checksum: int


def checksum(chosen: Sequence[ChosenSlices]) -> int:
    """What tells one choice of slices, and what is drawn in them, from another; the cases' order does not matter."""
    parts = sorted((one.case.name, one.slices, one.checksum) for one in chosen if one.slices)
    return zlib.crc32(repr(parts).encode())


def choose_slices(dataset: Dataset, cases: Sequence[Case], choice: SliceChoice, seed: int) -> list[ChosenSlices]:
    """Choose among the training cases' annotated slices.

    Raises:
        UserError: unreadable cases, a list that names no slice of them, or fewer slices than `shots`.
    """
    listed = read_slice_list(choice.listed) if choice.listed else None
    if listed is not None and (unknown := sorted(set(listed) - {case.name for case in dataset.cases})):
        raise UserError(f"{choice.listed} names {', '.join(map(repr, unknown))}, and {dataset.folder} has no such case")
    if listed is not None and not set(listed) & {case.name for case in cases}:
        raise UserError(f"{choice.listed} names no slice of the training cases")
    wanted = [case for case in cases if listed is None or case.name in listed]
    annotated: list[Annotated] = []
    for case in wanted:
        loaded = load_case(case, dataset.labels)
        for z in annotated_slices(loaded, listed[case.name] if listed else None, choice.fully_annotated):
            labels = loaded.labels[z]
            organs = frozenset(np.unique(labels[labels > 0]).tolist())
            annotated.append(Annotated(case.name, z, organs, zlib.crc32(np.ascontiguousarray(labels))))
    chosen = thin_out(annotated, choice, seed)
    found = []
    for case in wanted:
        own = sorted((one for one in chosen if one.case == case.name), key=lambda one: one.z)
        total = zlib.crc32(repr([one.checksum for one in own]).encode())
        found.append(ChosenSlices(case, tuple(one.z for one in own), any(one.organs for one in own), total))
    return found


@dataclass(frozen=True)
class Annotated:
    """An annotated slice: of which case, its canonical z, the class indices in it, and CRC-32 of its labels."""

    case: str
    z: int
    organs: frozenset[int]
    checksum: int


def thin_out(slices: Sequence[Annotated], choice: SliceChoice, seed: int) -> set[Annotated]:
    """A random part of the annotated slices, as the choice says."""
    random = np.random.default_rng(seed)
    if choice.per_organ:
        chosen: set[Annotated] = set()
        for organ in sorted(set().union(*(one.organs for one in slices))):
            showing = [one for one in slices if organ in one.organs]
            count = min(choice.per_organ, len(showing))
            chosen |= {showing[i] for i in random.choice(len(showing), count, replace=False).tolist()}
        return chosen
    if choice.shots:
        slices = [one for one in slices if one.organs]
        if len(slices) < choice.shots:
            raise UserError(f"--shots {choice.shots}: only {len(slices)} slices show an organ")
    count = choice.shots or (max(1, round(choice.fraction * len(slices))) if choice.fraction else len(slices))
    picked: list[int] = random.choice(len(slices), count, replace=False).tolist() if slices else []
    return {slices[i] for i in picked}
