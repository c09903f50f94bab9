"""The state of a training on the disk, from which a stopped one goes on."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pgpsam.errors import UserError
from pgpsam.models.lookup import find_model
from pgpsam.models.store import fingerprint
from pgpsam.network.lora import put_tensors, trained_tensors
from pgpsam.network.methods import SegmentationNetwork
from pgpsam.training.course import Average
from pgpsam.training.data import Sample
from pgpsam.training.settings import TrainingSettings

CHECKPOINT = "training.pt"
CHECKPOINT_SECONDS = 180.0
_log = logging.getLogger(__name__)


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
        raise UserError(f"{path} is damaged", f"{instead[0].upper()}{instead[1:]}.") from error
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
    state = read_state(path, run, "delete it and start without --resume")
    put_tensors(network, state["trained"], str(path))
    optimizer.load_state_dict(state["optimizer"])
    average.restore(state["steps"], state["average"])
    return state["iteration"], state["seconds"], state["mean_loss"]
