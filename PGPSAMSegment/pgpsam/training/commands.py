"""The command lines of `Training/`: arguments in, calls of `training.run`, tables out."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pgpsam.device import choose_device
from pgpsam.errors import UserError
from pgpsam.models.store import find_model, load_spec
from pgpsam.network.methods import METHODS, default_method, make_settings
from pgpsam.slices import Preparation
from pgpsam.terminal import ProgressReporter, add_common, add_looks, number, print_table, run
from pgpsam.training.augment import Augmentation
from pgpsam.training.benchmark import AMOUNTS, collect, page, plan, plot, run_all, score_again
from pgpsam.training.benchmark import arguments as run_arguments
from pgpsam.training.crossfit import FOLDS, fold_settings, refine
from pgpsam.training.data import read_dataset
from pgpsam.training.finetune import Progress, TrainingSettings
from pgpsam.training.recipes import recipe, usual_iterations
from pgpsam.training.refining import RefinerSettings
from pgpsam.training.run import SliceChoice, evaluate, train_on_dataset
from pgpsam.training.shipping import ship
from pgpsam.training.staged import ITERATIONS, train_in_stages


def finetune_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/finetune.py`."""
    parser = argparse.ArgumentParser(prog="finetune.py", description="Adapt a method to annotated slices.")
    parser.add_argument("--data", type=Path, required=True, help="data set: images/ and labels/, or nnU-Net raw")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument(
        "--method",
        choices=sorted(METHODS),
        help="default: that of --start-from, or pgsam for organs that it has a description of, and pgp for others",
    )
    parser.add_argument("--backbone", help="default: lite_medsam, or none for a method from scratch")
    add_slices(parser)
    parser.add_argument("--hold-out", nargs="*", metavar="CASE", help="cases to keep for scoring (none: no names)")
    parser.add_argument("--start-from", metavar="MODEL", help="a trained model with the same organs to go on from")
    parser.add_argument(
        "--teacher",
        nargs="+",
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
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="a setting of the run or method")
    parser.add_argument("--name", default="", help="the model's name (default: the folder's)")
    parser.add_argument("--description", default="", help="a line about the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run in --out")
    add_common(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    words = [word for word in given if word != "--resume"]
    options.command = shlex.join(["python", "Training/finetune.py", *words])
    return run(_finetune, options)


def _finetune(options: argparse.Namespace) -> None:
    settings = settings_of(options)
    choice = slices_of(options)
    if options.staged and options.teacher:
        raise UserError("a staged run is its own teacher", "Leave out --teacher or --staged.")
    with ProgressReporter(options.progress) as report:

        def tell(stage: str, p: Progress) -> None:
            report(stage, p.iteration, p.iterations, p.eta_seconds, f"loss {p.loss:.3f}")

        train: Callable[..., dict[str, Any] | None] = partial(
            train_on_dataset, teachers=options.teacher, progress=partial(tell, "training")
        )
        if options.staged:
            train = partial(train_in_stages, progress=lambda stage, p: tell(f"training, {stage}", p))
        summary = train(
            options.data,
            options.out,
            settings,
            choice,
            name=options.name,
            description=options.description,
            hold_out=options.hold_out,
            device=options.device,
            resume=options.resume,
            command=options.command,
            labelling=lambda case, step: report(f"labelling {case}", step.done, step.total, step.eta_seconds),
            scoring=lambda case, step: report(f"scoring {case}", step.done, step.total, step.eta_seconds),
        )
    print(f"model written to {options.out}")
    if summary:
        print_summary(summary, f"{options.out.name}: held-out cases, all slices")


def settings_of(options: argparse.Namespace) -> TrainingSettings:
    """The recipe of the method, and of the model to start from its method and settings, with what was given over it.

    Raises:
        UserError: no such model or data set, or a setting that cannot be used.
    """
    start = load_spec(find_model(options.start_from)) if options.start_from else None
    method = options.method or (start.method if start else default_method(read_dataset(options.data).labels.names))
    values = parse_settings(options.set)
    set_iterations = checked("iterations", values.pop("iterations", 0), 0)
    iterations = options.iterations or set_iterations
    if options.staged:  # every stage is a short run
        settings = replace(recipe(method), iterations=iterations or ITERATIONS)
    else:
        settings = recipe(method, iterations or usual_iterations(method, choose_device(options.device)))
    if start and start.method == method:
        settings = replace(settings, settings=start.settings)
    settings = replace(apply(settings, values), seed=options.seed, start_from=options.start_from or "")
    return replace(settings, backbone=options.backbone) if options.backbone else settings


def add_slices(parser: argparse.ArgumentParser) -> None:
    """The options that say which slices are trained on; `slices_of` reads them."""
    which = parser.add_argument_group("slices (default: every annotated one)")
    which.add_argument("--slices", type=Path, help="CSV with the columns case, slice")
    which.add_argument("--fraction", type=float, help="share of the annotated slices, at random")
    which.add_argument("--shots", type=int, help="number of organ-bearing slices in all, at random")
    which.add_argument("--per-organ", type=int, help="for every organ so many slices that show it, at random")
    which.add_argument(
        "--fully-annotated", action="store_true", help="slices without labels are background, not unannotated"
    )


def slices_of(options: argparse.Namespace) -> SliceChoice:
    return SliceChoice(options.slices, options.fraction, options.shots, options.per_organ, options.fully_annotated)


def refine_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/refine.py`."""
    parser = argparse.ArgumentParser(
        prog="refine.py",
        description="Give a trained model a volume refiner: a 3D network that corrects what it says slice by slice. "
        "Stopped and called again, it goes on.",
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder, which gets the refiner")
    parser.add_argument("--data", type=Path, required=True, help="the data set that it was trained on")
    add_slices(parser)
    parser.add_argument("--folds", type=int, default=FOLDS, help=f"parts of the patients (default: {FOLDS})")
    parser.add_argument(
        "--hold-out", nargs="*", default=[], metavar="CASE", help="patients to compare on, without and with the refiner"
    )
    parser.add_argument("--iterations", type=int, help="optimiser steps of each fold's model")
    parser.add_argument("--refiner-iterations", type=int, help="optimiser steps of the refiner")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="a setting of the folds' models")
    parser.add_argument("--seed", type=int, default=0)
    add_common(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.command = shlex.join(["python", "Training/refine.py", *given])
    return run(_refine, options)


def _refine(options: argparse.Namespace) -> None:
    refining = RefinerSettings(seed=options.seed)
    if options.refiner_iterations:
        refining = replace(refining, iterations=options.refiner_iterations)
    settings = fold_settings(load_spec(options.model), options.seed)
    settings = apply(settings, parse_settings(options.set))
    if options.iterations:
        settings = replace(settings, iterations=options.iterations)
    with ProgressReporter(options.progress) as report:
        summary = refine(
            options.model,
            options.data,
            settings,
            slices_of(options),
            folds=options.folds,
            hold_out=options.hold_out,
            refining=refining,
            device=options.device,
            command=options.command,
            progress=lambda what, p: report(what, p.iteration, p.iterations, p.eta_seconds, f"loss {p.loss:.3f}"),
            labelling=lambda case, step: report(f"answers for {case}", step.done, step.total, step.eta_seconds),
            scoring=lambda case, step: report(f"scoring {case}", step.done, step.total, step.eta_seconds),
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
    parser.add_argument("--model", required=True, help="a model folder or the name of an installed model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the copy")
    parser.add_argument("--name", default="", help="the copy's name (default: the folder's)")
    parser.add_argument("--description", default="", help="a line about it (default: the model's)")
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument("--data", type=Path, help="score the copy on the cases of this data set that were held out")
    scored.add_argument(
        "--scores-of", default="", metavar="MODEL", help="show the scores of a model trained alike on fewer patients"
    )
    add_common(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.command = shlex.join(["python", "Training/ship.py", *given])
    return run(_ship, options)


def _ship(options: argparse.Namespace) -> None:
    with ProgressReporter(options.progress) as report:
        summary = ship(
            options.model,
            options.out,
            name=options.name,
            description=options.description,
            data=options.data,
            twin=options.scores_of,
            device=options.device,
            command=options.command,
            scoring=lambda case, step: report(f"scoring {case}", step.done, step.total, step.eta_seconds),
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
    parser.add_argument("--data", type=Path, required=True, help="data set: images/ and labels/, or nnU-Net raw")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs' model folders")
    parser.add_argument(
        "--methods", nargs="+", choices=sorted(METHODS), default=["pgsam", *sorted({*METHODS} - {"pgsam"})]
    )
    parser.add_argument(
        "--amounts", nargs="+", default=list(AMOUNTS), metavar="AMOUNT", help=", ".join(AMOUNTS).replace("%", "%%")
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=0, help="cross-validation of the first method at 10%% by patient")
    parser.add_argument("--slices-seen", type=int, default=2400, help="training budget of a run (default: 2400)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="a setting of every run")
    parser.add_argument("--page", type=Path, help="Markdown to write from the finished runs, with a plot beside it")
    parser.add_argument("--list", action="store_true", help="print the commands of the runs and stop")
    parser.add_argument("--finished", action="store_true", help="train nothing: write the page from what is finished")
    parser.add_argument("--score-again", action="store_true", help="score what was finished before as is done today")
    add_common(parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    options.command = shlex.join(["python", "Training/benchmark.py", *given])
    return run(_benchmark, options)


def _benchmark(options: argparse.Namespace) -> None:
    dataset = read_dataset(options.data)
    rows = plan(dataset, options.methods, options.amounts, options.seeds, options.folds)
    extra = [*(["--set", *options.set] if options.set else []), "--device", options.device]
    if options.list:
        for row in rows:
            words = run_arguments(row, dataset, options.out, options.slices_seen, extra)
            print(shlex.join(["python", "Training/finetune.py", *words]))
        return
    failed: list[str] = []
    if options.score_again:
        with ProgressReporter(options.progress) as report:
            score_again(
                rows,
                dataset,
                options.out,
                options.device,
                lambda case, step: report(f"scoring {case}", step.done, step.total, step.eta_seconds),
            )
    if not options.finished:
        failed = run_all(rows, dataset, options.out, options.slices_seen, extra, options.progress)
    groups = collect(rows, options.out)
    if not groups:
        raise UserError(f"no run in {options.out} is finished")
    if options.page:
        picture = options.page.with_suffix(".png")
        text = page(groups, dataset, options.command, picture.name)
        options.page.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(plot(groups))
        options.page.write_text(text, encoding="utf-8")
        print(f"wrote {options.page}")
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} runs failed: {', '.join(failed)}", "Run this again to go on.")


def evaluate_main(arguments: Sequence[str] | None = None) -> int:
    """`Training/evaluate.py`."""
    parser = argparse.ArgumentParser(prog="evaluate.py", description="Dice, HD95 (mm) and NSD on whole volumes.")
    parser.add_argument("--model", required=True, help="a model folder or the name of an installed model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for scores.* and confidence.* (csv, json, html)"
    )
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="default: the data set's validation cases")
    parser.add_argument("--no-clean-up", action="store_true", help="score with stray pieces")
    add_looks(parser)
    add_common(parser)
    return run(_evaluate, parser.parse_args(arguments))


def _evaluate(options: argparse.Namespace) -> None:
    with ProgressReporter(options.progress) as report:
        summary = evaluate(
            options.model,
            options.data,
            options.out,
            cases=options.cases,
            device=options.device,
            clean=not options.no_clean_up,
            looks=options.looks,
            progress=lambda case, step: report(case, step.done, step.total, step.eta_seconds),
        )
    print_summary(summary, f"{options.model}, all slices")


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


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """['alpha=4', 'cfm=false'] -> {'alpha': 4, 'cfm': False}; values are JSON, or text where they are not.

    Raises:
        UserError: a pair without '='.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise UserError(f"--set {pair}: expected NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values


def apply(settings: TrainingSettings, values: dict[str, Any]) -> TrainingSettings:
    """Put `values` where they belong: the run's own settings, its preparation, its augmentation, or the method's.

    Raises:
        UserError: a value of the wrong type, a preparation that is out of range, or an unknown or unusable setting of
            the method.
    """
    run_values: dict[str, Any] = {}
    preparation = settings.preparation.to_json()
    method = dict(settings.settings)
    variations = settings.augmentation
    for name, value in values.items():
        if name in preparation:
            preparation[name] = value
        elif name in Augmentation.__dataclass_fields__:
            if variations is None:
                raise UserError(f"--set {name}={value}: this run has no augmentation", "Leave it out.")
            value = tuple(value) if isinstance(value, list) else value
            variations = replace(variations, **{name: checked(name, value, getattr(variations, name))})
            run_values["augmentation"] = variations
        elif name == "augmentation":
            if value is not False:
                raise UserError("--set augmentation=false turns augmentation off; it has no other value")
            run_values[name] = variations = None
        elif name in TrainingSettings.__dataclass_fields__:
            run_values[name] = checked(
                name, tuple(value) if isinstance(value, list) else value, getattr(settings, name)
            )
        else:
            method[name] = value
    make_settings(settings.method, method)
    return replace(settings, **run_values, settings=method, preparation=Preparation.from_json(preparation))


def checked(name: str, value: Any, default: Any) -> Any:
    """The value, if it is of the default's kind.

    Raises:
        UserError: it is not.
    """
    alike = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
    if alike and isinstance(default, tuple):
        alike = len(value) == len(default) and all(isinstance(v, (int, float)) for v in value)
    if not alike:
        raise UserError(f"--set {name}: {value!r} is not of the kind of {default!r}")
    return value
