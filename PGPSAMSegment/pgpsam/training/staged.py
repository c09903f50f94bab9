"""The recipe for few slices: coarse, then fine, then taught by its own answers on slices that nobody annotated.

coarse  larger pixels: twice the slices in the same time, and the organs' places are learned
fine    the model's own pixels, half the rate
taught  the same again; the fine model labels the other slices of the training patients where it is sure
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgpsam.errors import UserError
from pgpsam.models.store import load_spec
from pgpsam.training.finetune import CHECKPOINT, TrainingSettings, describe
from pgpsam.training.run import SliceChoice, train_on_dataset

STAGES = "stages"  # the folder, in the model's own, of the first two; it goes when the model is finished
ITERATIONS = 1300
SHARES = {"coarse": 0.46, "fine": 0.27, "taught": 0.27}
COARSER = 4 / 3  # pixel size of the first stage
CANVAS_STEP = 28


@dataclass(frozen=True)
class Stage:
    """One run. `taught`: by the stage before it."""

    name: str
    settings: TrainingSettings
    taught: bool = False


def stages(settings: TrainingSettings, out: Path) -> list[Stage]:
    """The three runs that take `settings.iterations` together; the last one writes to `out`.

    Raises:
        UserError: `settings` starts from a model already, or has too few iterations.
    """
    if settings.start_from:
        raise UserError("a staged run starts from nothing", "Leave out --start-from or --staged.")
    steps = {name: round(share * settings.iterations) for name, share in SHARES.items()}
    if min(steps.values()) < 1:
        raise UserError(f"{settings.iterations} iterations are too few for {len(SHARES)} stages")
    height, width = (-(-round(side / COARSER) // CANVAS_STEP) * CANVAS_STEP for side in settings.canvas)
    spacing = round(settings.preparation.spacing_mm * COARSER, 3)
    slow = replace(settings, average=max(settings.average, 0.99) if settings.average else 0.0)
    coarse = replace(
        slow,
        iterations=steps["coarse"],
        canvas=(height, width),
        preparation=replace(settings.preparation, spacing_mm=spacing),
    )
    fine = replace(
        slow,
        iterations=steps["fine"],
        lr=settings.lr / 2,
        published_lr=settings.published_lr / 2,
        balance=(settings.balance[1],) * 2,
        dice_weight=(settings.dice_weight[1],) * 2,
        start_from=str(out / STAGES / "coarse"),
    )
    taught = replace(fine, iterations=steps["taught"], start_from=str(out / STAGES / "fine"))
    return [Stage("coarse", coarse), Stage("fine", fine), Stage("taught", taught, taught=True)]


def train_in_stages(
    data: str | Path,
    out: str | Path,
    settings: TrainingSettings,
    choice: SliceChoice,
    *,
    resume: bool = False,
    command: str = "",
    stage_begins: Callable[[str], None] = lambda name: None,
    **more: Any,
) -> dict[str, Any] | None:
    """The three stages, of which only the last is scored.

    Args:
        data, out, settings, choice, command: as `train_on_dataset` takes them.
        resume: finished stages are kept, the stopped one goes on.
        stage_begins: called with a stage's name.
        more: further arguments of `train_on_dataset`.

    Returns:
        The scores' summary; None where no case was held out.

    Raises:
        UserError: as `train_on_dataset`; every slice is annotated; or a finished stage had other settings or slices.
    """
    out = Path(out)
    if choice.fully_annotated:
        raise UserError("a staged run learns from slices without annotation, and here all are annotated")
    if not resume:
        shutil.rmtree(out / STAGES, ignore_errors=True)
    *first, last = stages(settings, out)
    for stage in first:
        folder = out / STAGES / stage.name
        if (folder / "model.json").is_file():
            check_same(stage, folder, choice)
            continue
        stage_begins(stage.name)
        going_on = (folder / CHECKPOINT).is_file()
        own = {**more, "name": stage.name, "description": "", "scored": False}
        train_on_dataset(data, folder, stage.settings, choice, resume=going_on, **own)
    stage_begins(last.name)
    summary = train_on_dataset(
        data,
        out,
        last.settings,
        choice,
        resume=(out / CHECKPOINT).is_file() and resume,
        teacher=last.settings.start_from,
        command=command,
        **more,
    )
    shutil.rmtree(out / STAGES)
    return summary


def check_same(stage: Stage, folder: Path, choice: SliceChoice) -> None:
    """Refuse a finished stage of another run.

    Raises:
        UserError: it had other settings or slices.
    """
    recorded = load_spec(folder).training
    wanted = json.loads(json.dumps({**describe(stage.settings), "choice": choice.text}))
    if any(recorded.get(key) != value for key, value in wanted.items()):
        raise UserError(f"{folder} was trained with other settings than now", "Start without --resume.")
