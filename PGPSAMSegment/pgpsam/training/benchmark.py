"""Every method on the same slices, with the same budget, scored the same way: a grid of runs and what came of it.

A run is a call of `Training/finetune.py` in a process of its own, so that its command line reproduces it and its
memory is its own. Runs that are finished are kept, stopped ones go on; the page is written from the model folders.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pgpsam.errors import UserError
from pgpsam.models.spec import SPEC_FILE, ModelSpec
from pgpsam.models.store import load_spec
from pgpsam.models.weights import FROM_SCRATCH
from pgpsam.network.methods import make_settings
from pgpsam.pages import png
from pgpsam.segmenter import Step
from pgpsam.slices import Preparation
from pgpsam.training.choice import LABELS_CHECKSUM
from pgpsam.training.data import Dataset
from pgpsam.training.overrides import parse_settings
from pgpsam.training.recipes import recipe
from pgpsam.training.resuming import CHECKPOINT
from pgpsam.training.run import finish
from pgpsam.training.settings import TrainingSettings, describe

ELSEWHERE = "Move it away, or give another --out."
SCORE_AGAIN = "Score both alike with --score-again."
AMOUNTS = ("one", "16", "10%", "all")  # a slice an organ, 16 slices, a tenth of them, all
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        method: its name. amount: one of `AMOUNTS`. seed: of the choice of slices and of the training.
        fold: (number from 1, of how many); None for the data set's own held-out cases.
        hold_out: case names; empty for the data set's own.
        backbone: of methods that have one; empty for the recipe's.
    """

    method: str
    amount: str
    seed: int
    fold: tuple[int, int] | None = None
    hold_out: tuple[str, ...] = ()
    backbone: str = ""

    @property
    def name(self) -> str:
        split = f"-fold{self.fold[0]}of{self.fold[1]}" if self.fold else ""
        encoder = f"-{self.backbone}" if self.backbone else ""
        return f"{self.method}{encoder}-{self.amount.replace('%', 'pct')}-seed{self.seed}{split}"


def plan(
    dataset: Dataset,
    methods: Sequence[str],
    amounts: Sequence[str],
    seeds: Sequence[int],
    folds: int = 0,
    backbone: str = "",
) -> list[Row]:
    """The grid of runs, and for the first method at a tenth of the slices a cross-validation by patient.

    Args:
        folds: of the cross-validation; 0 leaves it out. Fold k holds out every `folds`-th case from the k-th on.
        backbone: of every method that does not start from scratch; empty for the recipe's.

    Raises:
        UserError: an unknown amount, more folds than cases, or a data set that names no cases to hold out.
    """
    if not dataset.validation:
        hint = 'Name them in dataset.json: "validation": ["case_07"].'
        raise UserError(f"{dataset.folder} does not say which cases to score", hint)
    if unknown := set(amounts) - set(AMOUNTS):
        raise UserError(f"no amount of slices named {', '.join(sorted(unknown))}: there are {', '.join(AMOUNTS)}")
    if folds and not 2 <= folds <= len(dataset.cases):
        hint = "Give from 2 folds to one for each case, or leave it out."
        raise UserError(f"--folds {folds} of {len(dataset.cases)} cases", hint)
    encoders = {method: "" if recipe(method).backbone == FROM_SCRATCH else backbone for method in methods}
    rows = [
        Row(method, amount, seed, backbone=encoders[method])
        for amount in amounts
        for seed in seeds
        for method in methods
    ]
    names, first = [case.name for case in dataset.cases], methods[0]
    rows += [Row(first, "10%", seeds[0], (k + 1, folds), tuple(names[k::folds]), encoders[first]) for k in range(folds)]
    return rows


def arguments(row: Row, dataset: Dataset, out: Path, slices_seen: int, extra: Sequence[str] = ()) -> list[str]:
    """What `Training/finetune.py` is called with.

    Args:
        out: the benchmark's folder; the row's model folder lies in it.
        slices_seen: the budget, in slices that a run's steps take together.
        extra: more arguments for every run.
    """
    words = ["--data", str(dataset.folder), "--out", str(out / row.name), "--method", row.method]
    words += [*chosen_slices(row, dataset), "--seed", str(row.seed)]
    words += ["--iterations", str(max(1, slices_seen // slices_a_step(row.method, extra)))]
    if row.hold_out:
        words += ["--hold-out", *row.hold_out]
    if row.backbone:
        words += ["--backbone", row.backbone]
    return [*words, *extra]


def slices_a_step(method: str, extra: Sequence[str]) -> int:
    """How many slices a step takes, as the recipe has it or `--set batch=` says, which the run itself checks."""
    given = parse_settings([word for word in extra if word.startswith("batch=")]).get("batch")
    return given if isinstance(given, int) and given > 0 else recipe(method).batch


def chosen_slices(row: Row, dataset: Dataset) -> list[str]:
    """The data set's own lists where it has them (fewshot_16_seedN.csv, fewshot_10pct_seedN.csv), else at random."""
    lists = {"16": "fewshot_16", "10%": "fewshot_10pct"}
    listed = {amount: dataset.folder / f"{name}_seed{row.seed}.csv" for amount, name in lists.items()}
    if row.amount in listed and listed[row.amount].is_file():
        return ["--slices", str(listed[row.amount])]
    return {
        "one": ["--per-organ", "1"],
        "16": ["--shots", "16"],
        "10%": ["--fraction", "0.1"],
        "all": ["--fully-annotated"] if dataset.fully_annotated else [],
    }[row.amount]


def is_done(folder: Path) -> bool:
    """Whether a run was trained and scored."""
    return (folder / SPEC_FILE).is_file() and bool(load_spec(folder).scores)


def check_finished(
    rows: Iterable[Row], dataset: Dataset, out: Path, command_of: Callable[[Row], Sequence[str]] | None = None
) -> None:
    """Refuse finished runs that are not those of these rows: they would stand in one table with others.

    Args:
        command_of: a row's arguments as of now. None where nothing is trained: then commands do not count, for data
            and runs may have been moved since, and the page shows every run's own; what is averaged, `collect` checks.

    Raises:
        UserError: one held out other patients, learned other organs, or had another budget or other settings.
    """
    for row in rows:
        folder = out / row.name
        if not is_done(folder):
            continue
        spec = load_spec(folder)
        held, wanted = spec.training.get("held_out", ()), row.hold_out or dataset.validation
        if set(held) != set(wanted):
            raise UserError(f"{folder} was scored on {', '.join(held)}, not on {', '.join(wanted)}", ELSEWHERE)
        organs, known = dataset.labels.names, spec.labels.names
        if known != organs:
            raise UserError(f"{folder} knows the organs {', '.join(known)}, not {', '.join(organs)}", ELSEWHERE)
        recorded = shlex.split(str(spec.training.get("command", "")))[2:]
        if command_of and _meaning(recorded) != _meaning(command_of(row)):
            raise UserError(f"{folder} was run with other settings than now", "Give the same ones, or another --out.")


def _meaning(words: Sequence[str]) -> list[str]:
    """A command's words without those that its result does not depend on."""
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--device", "--progress", "--resume"):
            kept.append(word)
        skip = not skip and word in ("--device", "--progress")
    return kept


def run_row(words: Sequence[str], folder: Path, progress: str) -> int:
    """Train and score in a process of its own, which writes its progress to ours; its exit code."""
    main = "from pgpsam.entry import enter; exit(enter('pgpsam.training.commands', 'finetune_main'))"
    command = [sys.executable, "-c", main, *words, "--progress", progress]
    if any((folder / name).is_file() for name in (CHECKPOINT, SPEC_FILE)):  # it was trained, but not scored
        command.append("--resume")
    with subprocess.Popen(command) as run:
        try:
            return run.wait()
        except KeyboardInterrupt:  # the run has got it as well, and saves its state
            run.wait()
            raise


def run_all(
    rows: Iterable[Row],
    dataset: Dataset,
    out: Path,
    slices_seen: int,
    extra: Sequence[str] = (),
    progress: str = "none",
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run what is not done yet.

    Args:
        out, slices_seen, extra: as for `arguments`.
        progress: how the runs show theirs: bar, json or none.
        say: gets a line for each run.

    Returns:
        The names of the runs that failed, after which the others went on.
    """
    failed = []
    for row in rows:
        folder = out / row.name
        if is_done(folder):
            say(f"{row.name}: done before")
            continue
        say(f"{row.name} ...")
        if code := run_row(arguments(row, dataset, out, slices_seen, extra), folder, progress):
            say(f"{row.name}: failed with exit code {code}")
            failed.append(row.name)
    return failed


def score_again(
    rows: Iterable[Row],
    dataset: Dataset,
    out: Path,
    device: str = "auto",
    scoring: Callable[[str, Step], None] | None = None,
) -> None:
    """Score the finished runs as today's code scores, for one table must not hold figures of two ways to do it.

    Args:
        out: as for `arguments`.
        scoring: called with "run: case" while the case is segmented.

    Raises:
        UserError: a held-out case is no longer in the data set.
    """
    for row in rows:
        if is_done(out / row.name):
            training = load_spec(out / row.name).training
            held = dataset.select(training["held_out"])
            say = (lambda case, step, name=row.name: scoring(f"{name}: {case}", step)) if scoring else None
            finish(out / row.name, dataset, held, training["choice"], "", device, say)


# --------------------------------------------------------------------------------------------------- what came of it


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed or fold only."""

    method: str
    amount: str
    folds: int
    specs: tuple[ModelSpec, ...]

    def values(self, *path: str) -> list[float]:
        """A figure of every run's scores, e.g. ("reported", "dice")."""
        found: list[float] = []
        for spec in self.specs:
            value: Any = spec.scores["summary"]
            for key in path:
                value = value[key]
            if value is not None:
                found.append(value)
        return found

    def cost(self, key: str) -> float:
        return statistics.mean(spec.training["cost"][key] for spec in self.specs)

    @property
    def slices(self) -> float:
        """Annotated slices with organs that a run had, on average."""
        return statistics.mean(spec.training["slices_with_organs"] for spec in self.specs)


def collect(rows: Iterable[Row], out: Path) -> list[Group]:
    """The finished runs, grouped; fewest slices first, then the best Dice first.

    Raises:
        UserError: runs of a group had other settings, runs of one choice learned from other slices or labels, or
            runs were scored on other labels or have the means of other organs.
    """
    found: dict[tuple[str, str, int], list[ModelSpec]] = {}
    alike: dict[tuple[str, Hashable], tuple[Path, Any]] = {}
    for row in rows:
        folder = out / row.name
        if not is_done(folder):
            continue
        spec = load_spec(folder)
        key = (row.method, row.amount, row.fold[1] if row.fold else 0)
        found.setdefault(key, []).append(spec)
        choice = (row.amount, row.seed, row.fold)
        count = spec.training.get("data"), spec.training.get("slices")
        drawn, scored = spec.training.get(LABELS_CHECKSUM), spec.scores.get(LABELS_CHECKSUM)
        for what, among, value, hint in (
            ("trained with other settings", key, settings_of(spec), ELSEWHERE),
            ("trained on other data or slices", choice, count, ELSEWHERE),
            ("trained on other slices or labels", choice, drawn, ELSEWHERE),
            ("scored on other labels", frozenset(spec.scores["split"]), scored, SCORE_AGAIN),
            ("scored for other reported organs", None, spec.scores["summary"]["reported_labels"], SCORE_AGAIN),
        ):
            if value is None:  # an older version did not record it
                continue
            first, theirs = alike.setdefault((what, among), (folder, value))
            if value != theirs:
                raise UserError(f"{folder} was {what} than {first}", hint)
    groups = [Group(*key, tuple(specs)) for key, specs in found.items()]

    def rank(group: Group) -> tuple[int, int, float]:
        dice = group.values("reported", "dice")
        return group.folds, AMOUNTS.index(group.amount), -statistics.mean(dice) if dice else 0.0

    return sorted(groups, key=rank)


def settings_of(spec: ModelSpec) -> dict[str, Any]:
    """What runs of a group share; what an older version does not say is what is usual."""
    usual = json.loads(json.dumps(describe(TrainingSettings())))
    shared = {name: spec.training.get(name, value) for name, value in usual.items()}
    del shared["seed"], shared["code_version"]
    method = make_settings(spec.method, spec.settings)
    return {**shared, "method": method, "backbone": spec.backbone, "input": Preparation.from_json(spec.preparation)}


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation; the mean alone of a single value."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


COLUMNS = (
    "slices",
    "method",
    "runs",
    "Dice",
    "all organs",
    "HD95 mm",
    "NSD",
    "trained parameters",
    "minutes",
    "memory GB",
)


def cells(group: Group) -> list[str]:
    """A group's row of the table, under `COLUMNS`."""
    return [
        f"{group.amount} ({group.slices:.0f})",
        f"`{group.method}`",
        f"{len(group.specs)} of {group.folds} folds" if group.folds else str(len(group.specs)),
        spread(group.values("reported", "dice"), 3),
        spread(group.values("all", "dice"), 3),
        spread(group.values("reported", "hd95_mm"), 1),
        spread(group.values("reported", "nsd"), 3),
        f"{group.cost('trained_parameters'):,.0f}",
        f"{group.cost('minutes'):.1f}",
        f"{group.cost('peak_memory_gb'):.1f}",
    ]


def page(groups: Sequence[Group], dataset: Dataset, command: str, picture: str) -> str:
    """The benchmark as Markdown.

    Args:
        command: that writes it again. picture: the plot's file name, beside the page.
    """
    reported = len(dataset.reported) or len(dataset.labels)
    split = ", ".join(dataset.validation)
    specs = [spec for group in groups for spec in group.specs]
    looks = sorted({spec.scores.get("looks", 1) for spec in specs})
    encoders = " or ".join(sorted({f"`{spec.backbone}`" for spec in specs} - {f"`{FROM_SCRATCH}`"})) or "none"
    lines = [
        "# Benchmark",
        "",
        f"Written by `{command}`.",
        "",
        f"Data: {dataset.name}, {len(dataset.cases)} patients. Held out: {split} (folds: every patient once).",
        f"Every method: the same base weights ({encoders}), the same slices, the same number of slices seen",
        "in training; whole volumes, every slice, stray pieces of one-piece organs removed. Dice, HD95 and NSD at 2 mm",
        f"are means over {reported} organs, ± the standard deviation over runs. Slices: annotated ones with organs.",
        f"Looks at every slice: {' or '.join(map(str, looks))}.",
        "",
        f"![Dice over annotated slices]({picture})",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(cells(group))} |" for group in groups),
    ]
    lines += ["", "## Dice by organ", "", *organ_table(groups), "", "## Each run", "", *run_table(groups), ""]
    return "\n".join(lines)


def organ_table(groups: Sequence[Group]) -> list[str]:
    """A column an organ, a line a group."""
    organs = [organ["organ"] for organ in groups[0].specs[0].scores["summary"]["organs"]]
    lines = [f"| slices | method | {' | '.join(organs)} |", "|---" * (len(organs) + 2) + "|"]
    for group in groups:
        dice: dict[str, list[float]] = {name: [] for name in organs}
        for organ in (o for spec in group.specs for o in spec.scores["summary"]["organs"]):
            if organ["dice"] is not None:
                dice[organ["organ"]].append(organ["dice"])
        folds = f", {group.folds} folds" if group.folds else ""
        cells = [f"{statistics.mean(values):.3f}" if values else "-" for values in dice.values()]
        lines.append(f"| {group.amount}{folds} | `{group.method}` | {' | '.join(cells)} |")
    return lines


def run_table(groups: Sequence[Group]) -> list[str]:
    """What reproduces each run, where it ran, and how long it took."""
    lines = ["| Dice | HD95 mm | minutes | device | command |", "|---|---|---|---|---|"]
    for spec in (spec for group in groups for spec in group.specs):
        means, cost = spec.scores["summary"]["reported"], spec.training["cost"]
        cells = (
            "-" if means["dice"] is None else f"{means['dice']:.3f}",
            "-" if means["hd95_mm"] is None else f"{means['hd95_mm']:.1f}",
            f"{cost['minutes']:.1f}",
            cost["device"],
            f"`{spec.training['command']}`",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot(groups: Sequence[Group]) -> bytes:
    """Dice over annotated slices, a line a method, its spread over seeds as bars; PNG.

    An amount has one place, the mean over its runs: lists of a tenth of the slices differ a little.
    """
    slices: dict[str, list[float]] = {}
    for group in groups:
        if not group.folds:
            slices.setdefault(group.amount, []).append(group.slices)
    place = {amount: statistics.mean(counts) for amount, counts in slices.items()}
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for method in dict.fromkeys(group.method for group in groups):
        own = [g for g in groups if g.method == method and not g.folds and g.values("reported", "dice")]
        dice = [g.values("reported", "dice") for g in own]
        means = [statistics.mean(values) for values in dice]
        bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in dice]
        axes.errorbar([place[g.amount] for g in own], means, bars, marker="o", capsize=3, label=method)
    axes.set_xscale("log")
    axes.set_xticks(list(place.values()), [f"{count:.0f}" for count in place.values()])
    axes.minorticks_off()
    axes.set_xlabel("annotated slices with organs")
    axes.set_ylabel("mean Dice")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return png(figure, dpi=110)
