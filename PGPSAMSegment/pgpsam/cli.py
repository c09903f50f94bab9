"""The command line `pgpsam`: segment, cohort, models, info, weights, worker."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import pgpsam
from pgpsam.errors import UserError, reason
from pgpsam.labels import LabelSet, canonical_name
from pgpsam.models.lookup import find_model, list_models
from pgpsam.models.spec import SPEC_FILE, ModelSpec
from pgpsam.models.store import load_spec
from pgpsam.models.weights import BASE_WEIGHTS, fetch
from pgpsam.terminal import (
    ProgressReporter,
    add_common,
    add_debug,
    add_looks,
    given,
    given_path,
    number,
    print_table,
    run,
)
from pgpsam.volume import Volume, output_extension, read_labels, read_labels_on, read_volume, write_array

DEFAULT_MODEL = "abdomen-ct"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return run(options.action, options)


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(prog="pgpsam", description="Organ segmentation in CT without annotations.")
    parser.add_argument("--version", action="version", version=f"pgpsam {pgpsam.__version__}")
    commands = parser.add_subparsers(required=True, metavar="segment | cohort | models | info | weights | worker")

    command = commands.add_parser("segment", help="segment a CT volume")
    command.add_argument("input", type=given, metavar="IN", help="NIfTI, NRRD or MHA file, or a DICOM folder")
    command.add_argument("-o", "--out", type=given, required=True, metavar="OUT", help="label volume on IN's own grid")
    add_model(command)
    command.add_argument(
        "--prompts", type=given, metavar="FILE", help="where the model looked for each organ: a label volume"
    )
    command.add_argument("--points", type=given, metavar="FILE", help="the prompts' peaks: Slicer markups (.mrk.json)")
    command.add_argument("--confidence", type=given, metavar="FILE", help="confidence map, 0..1")
    command.add_argument("--preview", type=given, metavar="FILE", help="overview picture (.png)")
    command.add_argument("--report", type=given, metavar="FILE", help="report page (.html)")
    command.add_argument("--reference", type=given, metavar="FILE", help="labels to compare with (prints Dice)")
    command.add_argument(
        "--reference-names", type=given, metavar="FILE", help='their names as JSON, {"6": "liver", ...}'
    )
    add_looks(command)
    add_common(command)
    command.set_defaults(action=segment)

    command = commands.add_parser("cohort", help="segment many CT volumes; goes on where it was stopped")
    command.add_argument(
        "inputs", nargs="+", type=given, metavar="IN", help="volume files, such as scans/*.nii.gz, or DICOM folders"
    )
    command.add_argument(
        "-o", "--out", type=given_path, required=True, metavar="FOLDER", help="for results and organs.csv"
    )
    add_model(command)
    command.add_argument(
        "--format", default=".nii.gz", help="of the labels: .nii.gz, .seg.nrrd, ... (default: .nii.gz)"
    )
    command.add_argument("--no-pictures", action="store_true", help="no overview pictures")
    add_looks(command)
    add_common(command)
    command.set_defaults(action=cohort)

    command = commands.add_parser("models", help="list the installed models")
    add_debug(command)
    command.set_defaults(action=models)

    command = commands.add_parser("info", help="what a model segments, was trained on and scored")
    command.add_argument("model", type=given)
    add_debug(command)
    command.set_defaults(action=info)

    command = commands.add_parser("worker", help="serve 3D Slicer: JSON lines on standard input and output")
    command.add_argument("--log", type=given, metavar="FILE", help="where the log goes, beside standard error")
    add_debug(command)
    command.set_defaults(action=worker)

    weights = commands.add_parser("weights", help="base weights of the backbones").add_subparsers(required=True)
    command = weights.add_parser("fetch", help="download and check a backbone's published weights")
    command.add_argument("backbone", choices=sorted(BASE_WEIGHTS))
    command.add_argument("--file", type=given_path, help="take this file, given by hand, instead of downloading")
    command.add_argument("--url", help="a mirror")
    add_common(command)
    command.set_defaults(action=fetch_weights)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model, --weights and --organs, which may be given several times; `organ_names` reads it."""
    parser.add_argument(
        "--model", type=given, default=DEFAULT_MODEL, help=f"a model's name or folder (default: {DEFAULT_MODEL})"
    )
    parser.add_argument(
        "--organs", action="append", metavar="NAMES", help="comma-separated (default: all that the model knows)"
    )
    parser.add_argument(
        "--weights", type=given_path, metavar="FILE", help="the backbone's base weights, if given by hand"
    )


def segment(options: argparse.Namespace) -> None:
    """`pgpsam segment`. Checks what can be checked before the work, writes only after it."""
    check_outputs(options)
    volume = read_volume(options.input)
    reference = read_reference(options, volume) if options.reference else None
    from pgpsam.report import organ_table, overview_png, write_points, write_report
    from pgpsam.segmenter import Segmenter

    segmenter = Segmenter.load(options.model, options.device, options.weights)
    organs = organ_names(options)
    segmenter.label_set.select(organs)
    with ProgressReporter(options.progress) as report:
        result = segmenter.segment(
            volume,
            organs,
            progress=lambda s: report(s.stage, s.done, s.total, s.eta_seconds),
            looks=options.looks,
        )
    write_array(options.out, result.labels, volume, "labels", result.label_set)
    if options.prompts:
        write_array(options.prompts, result.regions, volume, "labels", result.label_set)
    if options.confidence:
        write_array(options.confidence, result.confidence, volume, "confidence")
    if options.points:
        write_points(options.points, volume, result)
    picture = overview_png(volume, result, options.preview) if options.preview else None
    if options.report:
        write_report(volume, result, options.report, picture)
    dice = agreement(result.labels, result.label_set, *reference) if reference else {}
    rows = []
    for row in organ_table(volume, result):
        extra = [number(dice.get(row.name))] if options.reference else []
        rows.append([row.name, number(row.ml, 1), number(row.mean_hu, 0), number(row.confidence, 2), *extra])
    title = f"{volume.name}: {result.model} on {result.device}"
    print_table(title, ["organ", "mL", "mean HU", "confidence"] + (["Dice"] if options.reference else []), rows)
    print("seconds: " + ", ".join(f"{stage} {value:.1f}" for stage, value in result.seconds.items()))
    if reference and not reference[1]:
        print(f"the reference names no organs: its ids are taken for those of {result.model}")
    if options.reference:
        print_agreement(dice, [name for name in result.label_set.names if name not in dice])
    print(f"wrote {options.out}")


def organ_names(options: argparse.Namespace) -> list[str] | None:
    """What --organs names; None for all."""
    return None if options.organs is None else [name.strip() for name in ",".join(options.organs).split(",")]


def cohort(options: argparse.Namespace) -> None:
    """`pgpsam cohort`. One volume's failure does not stop the others.

    Raises:
        UserError: volumes that failed, at the end, by name.
    """
    from pgpsam.cohort import TABLE, name_sources, segment_cohort
    from pgpsam.segmenter import Segmenter

    sources = name_sources(options.inputs)
    segmenter = Segmenter.load(options.model, options.device, options.weights)
    with ProgressReporter(options.progress) as report:
        failed = segment_cohort(
            segmenter,
            sources,
            options.out,
            organ_names(options),
            extension=options.format,
            pictures=not options.no_pictures,
            looks=options.looks,
            progress=lambda name, s: report(name, s.done, s.total, s.eta_seconds),
        )
    if (options.out / TABLE).is_file():
        print(f"wrote {options.out / TABLE}")
    if failed:
        raise UserError(f"{len(failed)} of {len(sources)} volumes could not be segmented: {', '.join(failed)}")


def check_outputs(options: argparse.Namespace) -> None:
    """Refuse output paths that could not be written, or would cost another file, before any work.

    Raises:
        UserError: unknown extension, a folder that is missing or refuses, a file that is read, or one path twice.
    """
    from pgpsam.pages import check_can_write

    for path in (options.out, options.prompts, options.confidence):
        if path:
            output_extension(path)
    if options.confidence and output_extension(options.confidence) == ".seg.nrrd":
        raise UserError(f"{options.confidence}: .seg.nrrd holds segments, not confidence", "Use .nrrd or .nii.gz.")
    for path, ending in ((options.points, ".mrk.json"), (options.preview, ".png"), (options.report, ".html")):
        if path and not path.endswith(ending):
            raise UserError(f"{path} does not end in {ending}")
    read = {"the input": options.input, "the reference": options.reference}
    read |= {"the reference's names": options.reference_names, "the base weights": options.weights}
    taken = {os.path.realpath(path): what for what, path in read.items() if path}
    outputs = (options.out, options.prompts, options.points, options.confidence, options.preview, options.report)
    for path in filter(None, outputs):
        if what := taken.get(os.path.realpath(path)):
            raise UserError(f"{path} is {what} itself", "Give another output path.")
        taken[os.path.realpath(path)] = "another output"
        check_can_write(Path(path))


def read_reference(options: argparse.Namespace, volume: Volume) -> tuple[NDArray[np.integer], dict[int, str]]:
    """Given labels [z, y, x] on the volume's grid and the names of their ids; {} where they have none.

    Raises:
        UserError: unreadable files, or labels on another grid.
    """
    reference = read_labels_on(volume, options.reference)
    if not options.reference_names:
        return reference, read_labels(options.reference)[2]
    try:
        names = json.loads(Path(options.reference_names).read_text(encoding="utf-8-sig"))
        return reference, {int(i): str(n) for i, n in names.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"cannot read {options.reference_names}: {reason(error)}") from error


def agreement(
    labels: NDArray[np.uint8], label_set: LabelSet, reference: NDArray[np.integer], names: dict[int, str]
) -> dict[str, float]:
    """Dice with given labels by organ name, of the organs that they name; nan where neither shows one.

    Args:
        labels: ids of `label_set`, [z, y, x]. reference: given labels on the same grid.
        names: of the reference's ids, in whatever spelling `canonical_name` knows; {} where they are the model's own.
    """
    known = names or {organ.id: organ.name for organ in label_set}
    scores = {}
    for label in label_set:
        ids = [each for each, name in known.items() if canonical_name(name) == canonical_name(label.name)]
        if not ids:  # it may be there without a name
            continue
        ours, theirs = labels == label.id, np.isin(reference, ids)
        total = int(ours.sum()) + int(theirs.sum())
        scores[label.name] = 2.0 * int((ours & theirs).sum()) / total if total else float("nan")
    return scores


def print_agreement(dice: dict[str, float], unnamed: Sequence[str] = ()) -> None:
    """The mean over the organs that published tables report, where all of them are there, and over all.

    Args:
        dice: of the organs that the reference names.
        unnamed: the organs that were looked for and that it does not name.
    """
    reported = [
        "spleen",
        "right kidney",
        "left kidney",
        "gallbladder",
        "liver",
        "stomach",
        "aorta",
        "pancreas",
    ]
    if unnamed:
        print(f"the reference does not name {', '.join(unnamed)}")
    if not dice:
        return
    found = [value for value in dice.values() if value == value]
    if not found:
        print("agreement with the reference: neither shows any of these organs")
        return
    if all(dice.get(name, np.nan) >= 0 for name in reported):
        mean = np.mean([dice[name] for name in reported])
        print(f"agreement with the reference: mean Dice {mean:.3f} of the eight organs of published tables")
    print(f"agreement with the reference: mean Dice {np.mean(found):.3f} of the organs that either shows")


def models(_: argparse.Namespace) -> None:
    """`pgpsam models`."""
    rows = []
    for path, spec in list_models():
        if isinstance(spec, UserError):
            rows.append([path.name, "damaged", str(spec), str(path)])
        else:
            rows.append([path.name, spec.method, f"{len(spec.labels)} organs, {spec.backbone}", str(path)])
    print_table("models", ["name", "method", "what", "folder"], rows)


def info(options: argparse.Namespace) -> None:
    """`pgpsam info MODEL`."""
    folder = find_model(options.model)
    spec = load_spec(folder)
    print(f"{spec.name}: {spec.description or 'no description'}")
    print(f"method {spec.method} on {spec.backbone}, in {folder}")
    print("organs: " + ", ".join(spec.labels.names))
    told = "its training is"
    try:
        for line in about_training(spec):
            print(line)
        if not spec.scores.get("summary"):
            return
        told = "its scores are"
        cases = ", ".join(spec.scores["split"])
        organs = spec.scores["summary"]["organs"]
        rows = [[str(o["organ"]), number(o["dice"]), number(o["hd95_mm"], 1)] for o in organs]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{folder / SPEC_FILE}: {told} not as training writes it ({type(error).__name__}: {error})"
        raise UserError(message, "Get the model again.") from error
    twin = spec.scores.get("model")
    way = "as its first network was, but" if spec.scores.get("alone") else "in the same way"
    who = f"of {twin}, trained {way} without them" if twin else "which it was not trained on"
    print(f"scores on {cases}, {who}:")
    print_table("held-out cases", ["organ", "Dice", "HD95 mm"], rows)


def about_training(spec: ModelSpec) -> list[str]:
    """What a model learned from and the commands that made it, as lines; model.json beside it says all."""
    from pgpsam.training.origins import trained_cases, trained_commands

    training, cases = spec.training, trained_cases(spec)
    slices = f"{training.get('slices', '?')} slices ({training.get('slices_with_organs', '?')} with organs)"
    data, choice = training.get("data", "data not recorded"), training.get("choice", "slices not recorded")
    lines = [
        f"trained on {data}, {choice}: {slices}",
        f"patients: {len(cases)}: {', '.join(cases)}" if cases else "patients: not recorded",
        f"held out: {', '.join(training.get('held_out', ())) or 'none'}",
    ]
    commands = trained_commands(spec)
    return [*lines, "made by:", *(f"  {command}" for command in commands)] if commands else lines


def fetch_weights(options: argparse.Namespace) -> None:
    """`pgpsam weights fetch BACKBONE`."""
    with ProgressReporter(options.progress) as report:
        path = fetch(
            options.backbone,
            file=options.file,
            url=options.url,
            progress=lambda done, total: report("downloading", done, total, 0.0),
        )
    print(f"{options.backbone}: {path}")


def worker(options: argparse.Namespace) -> None:
    """`pgpsam worker`."""
    from pgpsam.worker import serve

    serve(options.log)
