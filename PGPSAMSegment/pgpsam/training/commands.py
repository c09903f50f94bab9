"""The command lines of `Training/`: arguments in, calls of the rooms beside this one, tables out."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import FrameType
from typing import Any

from pgpsam.device import choose_device
from pgpsam.errors import UserError
from pgpsam.models.lookup import find_model
from pgpsam.models.spec import check_model_name
from pgpsam.models.store import load_spec
from pgpsam.models.weights import require
from pgpsam.network.methods import METHODS, default_method
from pgpsam.pages import write_whole
from pgpsam.slices import Preparation
from pgpsam.terminal import ProgressReporter, add_common, add_looks, given, given_path, number, print_table, run
from pgpsam.training.benchmark import (
    AMOUNTS,
    COLUMNS,
    SEEDS,
    Row,
    cells,
    check_finished,
    collect,
    page,
    plan,
    plot,
    run_all,
    score_again,
)
from pgpsam.training.benchmark import arguments as run_arguments
from pgpsam.training.choice import SliceChoice
from pgpsam.training.course import Progress
from pgpsam.training.crossfit import FOLDS, fold_settings, refine
from pgpsam.training.data import Dataset, read_dataset
from pgpsam.training.origins import check_apart
from pgpsam.training.outfolder import alone_in, check_folder, check_free
from pgpsam.training.overrides import apply, checked, parse_settings
from pgpsam.training.recipes import fitted, going_on, recipe, usual_iterations
from pgpsam.training.refining import RefinerSettings
from pgpsam.training.run import split_cases, train_on_dataset
from pgpsam.training.scoring import check_scorable, evaluate
from pgpsam.training.settings import TrainingSettings
from pgpsam.training.shipping import ship
from pgpsam.training.staged import ITERATIONS, train_in_stages


def finetune_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/finetune.py`."""
    parser = argparse.ArgumentParser(prog="finetune.py", description="Adapt a method to annotated slices.")
    parser.add_argument("--data", type=given_path, required=True, help="data set: images/ and labels/, or nnU-Net raw")
    parser.add_argument("--out", type=given_path, required=True, help="model folder to write")
    parser.add_argument(
        "--method",
        choices=sorted(METHODS),
        help="default: that of --start-from, or pgsam for organs that it has a description of, and pgp for others",
    )
    parser.add_argument("--backbone", help="default: lite_medsam, or none for a method from scratch")
    add_slices(parser)
    parser.add_argument(
        "--hold-out", nargs="*", action="extend", metavar="CASE", help="cases to keep for scoring (none: no names)"
    )
    parser.add_argument(
        "--start-from",
        type=given,
        metavar="MODEL",
        help="a trained model to go on from, of the same organs or others, with its window and channels; the pixel "
        "size is the default's or what --set spacing_mm says; if it knows all organs, gently (see docs/adapt.md)",
    )
    parser.add_argument(
        "--teacher",
        nargs="+",
        type=given,
        action="extend",
        default=[],
        metavar="MODEL",
        help="learn their confident labels of slices without annotation too, of several the mean",
    )
    parser.add_argument(
        "--staged",
        action="store_true",
        help="coarse, then fine, then taught by itself on slices without annotation: for few slices",
    )
    parser.add_argument("--iterations", type=int, help="optimiser steps (default: the recipe's)")
    add_set(parser, "of the run or method")
    parser.add_argument("--name", default="", help="the model's name (default: the folder's)")
    parser.add_argument("--description", default="", help="a line about the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run in --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in --out")
    add_common(parser)
    return run(_finetune, parsed(parser, arguments))


def _finetune(options: argparse.Namespace) -> None:
    dataset = read_dataset(options.data)
    settings = settings_of(options, dataset)
    choice = slices_of(options, dataset)
    if options.staged and options.teacher:
        raise UserError("a staged run is its own teacher", "Leave out --teacher or --staged.")
    check_model_name(options.name or options.out.resolve().name)
    check_apart(options.out, options.start_from, *options.teacher)
    require(settings.backbone)
    check_folder(options.out)
    print(f"{dataset.name}: {len(dataset.cases)} cases")
    with alone_in(options.out), ProgressReporter(options.progress) as report, stop_after_a_step(report) as training:
        if not options.resume:
            check_free(options.out, options.overwrite)
        held = split_cases(dataset, options.hold_out)[1]
        check_scorable(dataset, held, "Export them again, or hold out other cases with --hold-out.")
        train: Callable[..., dict[str, Any] | None] = partial(
            train_on_dataset, teachers=options.teacher, progress=partial(training.tell, "training")
        )
        if options.staged:
            train = partial(train_in_stages, progress=lambda stage, p: training.tell(f"training, {stage}", p))
        summary = train(
            dataset,
            options.out,
            settings,
            choice,
            name=options.name,
            description=options.description,
            hold_out=options.hold_out,
            device=options.device,
            resume=options.resume,
            cancelled=lambda: training.asked_to_stop,
            command=options.command,
            labelling=report.each("labelling"),
            scoring=report.each("scoring"),
        )
    print(f"model written to {options.out}")
    if summary:
        print_summary(summary, f"{options.out.name}: held-out cases, all slices")


@dataclass
class Watched:
    """A training whose progress is shown; `goes_on` tells whether it runs now."""

    report: ProgressReporter
    goes_on: bool = False
    asked_to_stop: bool = False

    def tell(self, what: str, p: Progress) -> None:
        """Show a step of what is trained."""
        self.goes_on = p.iteration < p.iterations
        self.report(what, p.iteration, p.iterations, p.eta_seconds, f"loss {p.loss:.3f}")


@contextmanager
def stop_after_a_step(report: ProgressReporter) -> Iterator[Watched]:
    """Ctrl-C while a training goes on lets it save its state and stop; a second one, or one at other times, ends it."""
    training = Watched(report)

    def ask(number: int, frame: FrameType | None) -> None:
        if training.asked_to_stop or not training.goes_on:
            raise KeyboardInterrupt
        training.asked_to_stop = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield training
    finally:
        signal.signal(signal.SIGINT, before)


def settings_of(options: argparse.Namespace, dataset: Dataset) -> TrainingSettings:
    """The recipe of the method, and of the model to start from its method, settings, window and channels, with what
    was given over it. The pixel size is the recipe's: a coarse model goes on at fine pixels.

    Raises:
        UserError: no such model, or a setting that cannot be used.
    """
    start = load_spec(find_model(options.start_from)) if options.start_from else None
    method = options.method or (start.method if start else default_method(dataset.labels.names))
    values = parse_settings(options.set)
    if name := next((name for name in ("seed", "start_from", "method", "backbone") if name in values), ""):
        raise UserError(f"--set {name}: this is an option of its own", f"Give it as --{name.replace('_', '-')}.")
    also = checked("iterations", values.pop("iterations"), 1) if "iterations" in values else None
    iterations = also if options.iterations is None else options.iterations
    if iterations is not None and iterations < 1:
        raise UserError(f"{iterations} iterations are none", "Train for at least one.")
    if options.staged:  # every stage is a short run
        settings = replace(recipe(method), iterations=iterations or ITERATIONS)
    else:
        settings = recipe(method, iterations or usual_iterations(method, choose_device(options.device)))
    if start and start.method == method:
        theirs = Preparation.from_json(start.preparation)
        seen = replace(settings.preparation, window=theirs.window, offsets_mm=theirs.offsets_mm)
        settings = replace(settings, settings=start.settings, preparation=seen)
        settings = going_on(settings, start.labels.names, dataset.labels.names)
    whole = settings.start_share > 0 or options.staged  # all weights are the start's; a stage's are the former one's
    settings = replace(apply(settings, values), seed=options.seed, start_from=options.start_from or "")
    if settings.start_share and not whole:
        message = "--set start_share: there is no model of all these organs whose weights could stay"
        raise UserError(message, "Leave it out, or start from such a model with --start-from.")
    return fitted(replace(settings, backbone=options.backbone) if options.backbone else settings)


def add_slices(parser: argparse.ArgumentParser) -> None:
    """The options that say which slices are trained on; `slices_of` reads them."""
    which = parser.add_argument_group("slices (default: every annotated one)")
    which.add_argument(
        "--slices",
        type=given_path,
        help="CSV with the columns case, slice; the first slice along the file's third axis is 0",
    )
    which.add_argument("--fraction", type=float, help="share of the annotated slices, at random")
    which.add_argument("--shots", type=int, help="number of organ-bearing slices in all, at random")
    which.add_argument("--per-organ", type=int, help="for every organ so many slices that show it, at random")
    which.add_argument(
        "--fully-annotated", action="store_true", help="slices without labels are background, not unannotated"
    )


def slices_of(options: argparse.Namespace, dataset: Dataset) -> SliceChoice:
    """The choice that was asked for. A list says itself which slices are annotated, whatever dataset.json says."""
    whole = options.fully_annotated or (dataset.fully_annotated and not options.slices)
    return SliceChoice(options.slices, options.fraction, options.shots, options.per_organ, whole)


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """--set, which may be given several times."""
    parser.add_argument("--set", nargs="*", action="extend", default=[], metavar="NAME=VALUE", help=f"a setting {what}")


def refine_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/refine.py`."""
    parser = argparse.ArgumentParser(
        prog="refine.py",
        description="Give a trained model a volume refiner: a 3D network that corrects what it says slice by slice. "
        "Stopped and called again, it goes on.",
    )
    parser.add_argument("--model", type=given_path, required=True, help="model folder, which gets the refiner")
    parser.add_argument("--data", type=given_path, required=True, help="the data set that it was trained on")
    add_slices(parser)
    parser.add_argument("--folds", type=int, default=FOLDS, help=f"parts of the patients (default: {FOLDS})")
    parser.add_argument(
        "--hold-out",
        nargs="*",
        action="extend",
        default=[],
        metavar="CASE",
        help="patients to compare on, without and with the refiner",
    )
    parser.add_argument("--iterations", type=int, help="optimiser steps of each fold's model")
    parser.add_argument("--refiner-iterations", type=int, help="optimiser steps of the refiner")
    add_set(parser, "of the folds' models")
    parser.add_argument("--seed", type=int, default=0)
    add_common(parser)
    return run(_refine, parsed(parser, arguments))


def _refine(options: argparse.Namespace) -> None:
    refining = RefinerSettings(seed=options.seed)
    if options.refiner_iterations is not None:
        refining = replace(refining, iterations=options.refiner_iterations)
    settings = fold_settings(load_spec(options.model), options.seed)
    settings = apply(settings, parse_settings(options.set))
    if options.iterations is not None:
        settings = replace(settings, iterations=options.iterations)
    dataset = read_dataset(options.data)
    with alone_in(options.model), ProgressReporter(options.progress) as report, stop_after_a_step(report) as training:
        summary = refine(
            options.model,
            dataset,
            settings,
            slices_of(options, dataset),
            folds=options.folds,
            hold_out=options.hold_out,
            refining=refining,
            device=options.device,
            command=options.command,
            progress=training.tell,
            cancelled=lambda: training.asked_to_stop,
            labelling=report.each("answers for"),
            scoring=report.each("scoring"),
        )
    print(f"{options.model} has a volume refiner")
    if held := load_spec(options.model).refiner.get("held_out"):
        change = f"mean Dice {held['dice_before']:.3f} -> {held['dice_after']:.3f}"
        print(f"{', '.join(held['cases'])}, by models that had not seen them: {change}")
    if summary:
        print_summary(summary, f"{options.model.name}: held-out cases, all slices")


def ship_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/ship.py`."""
    parser = argparse.ArgumentParser(
        prog="ship.py", description="Copy a trained model to give it away: half the size, with a name and scores."
    )
    parser.add_argument("--model", type=given, required=True, help="a model folder or the name of an installed model")
    parser.add_argument("--out", type=given_path, required=True, help="folder of the copy")
    parser.add_argument("--name", default="", help="the copy's name (default: the folder's)")
    parser.add_argument("--description", default="", help="a line about it (default: the model's)")
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument(
        "--data", type=given_path, help="score the copy on the cases of this data set that were held out"
    )
    scored.add_argument(
        "--scores-of", type=given, metavar="MODEL", help="show the scores of a model trained alike on fewer patients"
    )
    parser.add_argument(
        "--average-with", type=given, metavar="MODEL", help="the copy's weights are the mean of both models'"
    )
    parser.add_argument(
        "--keep", default="", metavar="REGEX", help="with --average-with: weights whose names begin so are that model's"
    )
    parser.add_argument(
        "--second-look-by", type=given, metavar="MODEL", help="a model trained apart takes the second look at a slice"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model in --out")
    add_common(parser)
    return run(_ship, parsed(parser, arguments))


def _ship(options: argparse.Namespace) -> None:
    check_folder(options.out)
    with alone_in(options.out), ProgressReporter(options.progress) as report:
        check_free(options.out, options.overwrite, "Name another folder, or replace it with --overwrite.")
        summary = ship(
            options.model,
            options.out,
            name=options.name,
            description=options.description,
            data=options.data,
            twin=options.scores_of or "",
            average_with=options.average_with or "",
            keep=options.keep,
            second=options.second_look_by or "",
            device=options.device,
            command=options.command,
            scoring=report.each("scoring"),
        )
    size = sum(path.stat().st_size for path in options.out.rglob("*.safetensors")) / 1e6
    print(f"model written to {options.out}, {size:.1f} MB of weights")
    if summary:
        print_summary(summary, f"{options.out.name}: held-out cases, all slices")


def benchmark_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/benchmark.py`."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description="Train and score every method alike. What is done stays; what stopped goes on."
    )
    parser.add_argument("--data", type=given_path, required=True, help="data set: images/ and labels/, or nnU-Net raw")
    parser.add_argument("--out", type=given_path, required=True, help="folder for the runs' model folders")
    parser.add_argument("--methods", nargs="+", action="extend", choices=sorted(METHODS), help="default: all")
    parser.add_argument(
        "--amounts",
        nargs="+",
        action="extend",
        metavar="AMOUNT",
        help=f"of {', '.join(AMOUNTS)} (default: all four)".replace("%", "%%"),
    )
    parser.add_argument("--seeds", nargs="+", action="extend", type=int, help="default: 0 1 2")
    parser.add_argument(
        "--fully-annotated",
        action="store_true",
        help='of "all": slices without labels are background, as where dataset.json says "fully_annotated": true',
    )
    parser.add_argument("--folds", type=int, default=0, help="cross-validation of the first method at 10%% by patient")
    parser.add_argument("--backbone", default="", help="of the methods that have one (default: lite_medsam)")
    parser.add_argument("--slices-seen", type=int, default=2400, help="training budget of a run (default: 2400)")
    add_set(parser, "of every run")
    parser.add_argument(
        "--page", type=given_path, help="where the table goes, a plot beside it (default: OUT/benchmark.md)"
    )
    parser.add_argument("--list", action="store_true", help="print the commands of the runs and stop")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the page from what is finished")
    parser.add_argument("--score-again", action="store_true", help="score what was finished before as is done today")
    add_common(parser)
    return run(_benchmark, parsed(parser, arguments))


def _benchmark(options: argparse.Namespace) -> None:
    if options.slices_seen < 1:
        raise UserError(f"--slices-seen {options.slices_seen} trains nothing", "Give the number of slices of a run.")
    dataset = read_dataset(options.data)
    dataset = replace(dataset, fully_annotated=dataset.fully_annotated or options.fully_annotated)
    methods = options.methods or ["pgsam", *sorted({*METHODS} - {"pgsam"})]
    amounts, seeds = options.amounts or AMOUNTS, options.seeds or SEEDS
    rows = plan(dataset, methods, amounts, seeds, options.folds, options.backbone)
    extra = [*(["--set", *options.set] if options.set else []), "--device", options.device]

    def command_of(row: Row) -> list[str]:
        return run_arguments(row, dataset, options.out, options.slices_seen, extra)

    if options.list:
        for row in rows:
            print(shlex.join(["python", "Training/finetune.py", *command_of(row)]))
        return
    where = options.page or options.out / "benchmark.md"
    picture = where.with_suffix(".png")
    check_folder(where.parent)
    failed: list[str] = []
    check_finished(rows, dataset, options.out, None if options.finished else command_of)
    if options.score_again:
        with ProgressReporter(options.progress) as report:
            score_again(rows, dataset, options.out, options.device, report.each("scoring"))
    if not options.finished:
        if options.backbone:
            require(options.backbone)
        collect(rows, options.out)  # what cannot stand in one table is noticed before the others are trained
        failed = run_all(rows, dataset, options.out, options.slices_seen, extra, options.progress)
    groups = collect(rows, options.out)
    lost = UserError(f"{len(failed)} of {len(rows)} runs failed: {', '.join(failed)}", "Run this again to go on.")
    if not groups:
        raise lost if failed else UserError(f"no run in {options.out} is finished", "Leave out --finished.")
    shown = [dict(zip(COLUMNS, cells(group), strict=True)) for group in groups]
    columns = ["slices", "method", "runs", "Dice", "HD95 mm", "minutes"]  # what 80 characters hold
    print_table(dataset.name, columns, [[row[column].strip("`") for column in columns] for row in shown])
    where.parent.mkdir(parents=True, exist_ok=True)
    write_whole({picture: plot(groups), where: page(groups, dataset, options.command, picture.name).encode()})
    print(f"wrote {where}")
    if failed:
        raise lost


def evaluate_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/evaluate.py`."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Dice, HD95 (mm) and NSD on whole volumes.")
    parser.add_argument("--model", type=given, required=True, help="a model folder or the name of an installed model")
    parser.add_argument("--data", type=given_path, required=True)
    parser.add_argument(
        "--out", type=given_path, required=True, help="folder for scores.* and confidence.* (csv, json, html)"
    )
    parser.add_argument(
        "--cases", nargs="+", action="extend", metavar="CASE", help="default: the data set's validation cases"
    )
    parser.add_argument("--no-clean-up", action="store_true", help="score with stray pieces")
    add_looks(parser)
    add_common(parser)
    return run(_evaluate, parsed(parser, arguments))


def _evaluate(options: argparse.Namespace) -> None:
    check_folder(options.out)
    with ProgressReporter(options.progress) as report:
        summary = evaluate(
            options.model,
            options.data,
            options.out,
            cases=options.cases,
            device=options.device,
            clean=not options.no_clean_up,
            looks=options.looks,
            progress=report.each("scoring"),
        )
    print_summary(summary, f"{options.model}: {len(summary['cases'])} cases, all slices")


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, and `command`: what makes the same again, whether it was stopped or replaces another or not."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    words = (word for word in given if word not in ("--resume", "--overwrite"))
    options.command = shlex.join(["python", f"Training/{parser.prog}", *words])
    return options


def print_summary(summary: dict[str, Any], title: str) -> None:
    """Organ means and their mean over the reported organs and over all."""
    rows = [
        [o["organ"], number(o["dice"]), number(o["hd95_mm"], 1), number(o["nsd"]), str(o["missed"])]
        for o in summary["organs"]
    ]
    for key, text in (("reported", "mean of the reported organs"), ("all", "mean of all organs")):
        mean = summary[key]
        rows.append([text, number(mean["dice"]), number(mean["hd95_mm"], 1), number(mean["nsd"]), str(mean["missed"])])
    print_table(title, ["organ", "Dice", "HD95 mm", "NSD 2 mm", "missed"], rows)
