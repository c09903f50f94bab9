"""The recipe for few slices: coarse, then fine, refined, then taught by its own answers on slices without annotation.

coarse   larger pixels: twice the slices in the same time, and the organs' places are learned
fine     the model's own pixels, half the rate
refined  the fine model gets a volume refiner, from models trained without a part of the patients (`crossfit`)
taught   the fine model's rates again; it labels the other slices of the training patients where it is sure. Less Dice
         and nearly equal classes, because both made organs thick and put them where there are none
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pgpsam.errors import UserError
from pgpsam.models.store import load_spec
from pgpsam.training.choice import SliceChoice, choose_slices
from pgpsam.training.course import Progress
from pgpsam.training.crossfit import FOLDS, add_refiner
from pgpsam.training.data import Dataset
from pgpsam.training.recipes import coarse_stage
from pgpsam.training.refining import RefinerSettings
from pgpsam.training.resuming import CHECKPOINT
from pgpsam.training.run import check_same_run, is_same_run, is_trained, split_cases, train_on_dataset
from pgpsam.training.settings import TrainingSettings

STAGES = "stages"  # the folder, in the model's own, of the first two; it goes when the model is finished
ITERATIONS = 1300
SHARES = {"coarse": 0.46, "fine": 0.27, "taught": 0.27}
TAUGHT_BALANCE, TAUGHT_DICE_WEIGHT = 0.1, 0.5  # at most
FOLD_SHARE = 0.35  # of the iterations, beside those above, that each model without a fold gets


def stages(settings: TrainingSettings, out: Path) -> dict[str, TrainingSettings]:
    """The three runs, in order, that take `settings.iterations` together; the last one writes to `out`.

    Raises:
        UserError: `settings` starts from a model already, or has too few iterations.
    """
    if settings.start_from:
        raise UserError("a staged run starts from nothing", "Leave out --start-from or --staged.")
    steps = {name: round(share * settings.iterations) for name, share in SHARES.items()}
    if min(steps.values()) < 1:
        raise UserError(f"{settings.iterations} iterations are too few for {len(SHARES)} stages")
    coarse = replace(coarse_stage(settings), iterations=steps["coarse"])
    fine = replace(
        settings,
        average=coarse.average,
        iterations=steps["fine"],
        lr=settings.lr / 2,
        published_lr=settings.published_lr / 2,
        balance=(settings.balance[1],) * 2,
        dice_weight=(settings.dice_weight[1],) * 2,
        start_from=str(out / STAGES / "coarse"),
    )
    taught = replace(
        fine,
        iterations=steps["taught"],
        balance=(min(fine.balance[1], TAUGHT_BALANCE),) * 2,
        dice_weight=(min(fine.dice_weight[1], TAUGHT_DICE_WEIGHT),) * 2,
        start_from=str(out / STAGES / "fine"),
    )
    return {"coarse": coarse, "fine": fine, "taught": taught}


def train_in_stages(
    dataset: Dataset,
    out: str | Path,
    settings: TrainingSettings,
    choice: SliceChoice,
    *,
    resume: bool = False,
    command: str = "",
    refining: RefinerSettings | None = None,
    progress: Callable[[str, Progress], None] | None = None,
    **more: Any,
) -> dict[str, Any] | None:
    """All stages, of which only the last is scored. With a single patient there is no refiner.

    Args:
        dataset, out, settings, choice, command: as `train_on_dataset` takes them.
        resume: finished stages are kept, the stopped one goes on.
        refining: how the refiner is trained.
        progress: called while training, with the stage's name.
        more: further arguments of `train_on_dataset`.

    Returns:
        The scores' summary; None where no case was held out.

    Raises:
        UserError: as `train_on_dataset`; every slice is annotated; the stages of a stopped run lie there, or with
            `resume` none do; or a finished stage had other settings or slices.
    """
    out = Path(out)
    thinned = choice.listed or choice.fraction or choice.shots or choice.per_organ
    if choice.fully_annotated and not thinned:
        raise UserError("a staged run learns from slices without annotation, and here all are annotated")
    runs, begun = stages(settings, out), (out / STAGES).exists()
    if begun and not resume:
        raise UserError(f"{out / STAGES} is there, of a stopped run", "Go on with --resume, or delete it.")
    if resume and not begun:
        raise UserError(f"nothing to resume: {out / STAGES} does not exist", "Start without --resume.")

    def named(stage: str) -> Callable[[Progress], None] | None:
        return partial(progress, stage) if progress else None

    chosen = choose_slices(dataset, split_cases(dataset, more.get("hold_out"))[0], choice, settings.seed)
    *first, last = runs.items()
    for name, own in first:
        folder = out / STAGES / name
        if is_trained(folder):
            check_same_run(own, folder, choice, chosen, f"delete {folder.parent}")
            continue
        going_on = (folder / CHECKPOINT).is_file()
        stage = {**more, "name": name, "description": "", "scored": False, "progress": named(name), "chosen": chosen}
        train_on_dataset(dataset, folder, own, choice, resume=going_on, **stage)
    fine = out / STAGES / "fine"
    patients = load_spec(fine).training["cases"]
    if not load_spec(fine).refiner and len(patients) > 1:
        add_refiner(
            fine,
            dataset,
            replace(runs["coarse"], iterations=max(1, round(FOLD_SHARE * settings.iterations))),
            choice,
            folds=min(FOLDS, len(patients)),
            refining=refining,
            progress=progress,
            **{key: more[key] for key in ("device", "labelling", "cancelled") if key in more},
        )
    name, own = last
    going_on = resume and (out / CHECKPOINT).is_file()
    if resume and is_trained(out):  # of this run, or the one that it is to replace
        going_on = is_same_run(own, out, choice, chosen)
    final = {**more, "command": command, "progress": named(name), "chosen": chosen}
    summary = train_on_dataset(dataset, out, own, choice, resume=going_on, teachers=[own.start_from], **final)
    shutil.rmtree(out / STAGES)
    return summary
