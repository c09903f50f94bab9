"""The model card: what a model is, what it was trained on, how it scored and what it is not good for, as Markdown."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pgpsam.models.spec import ModelSpec
from pgpsam.models.weights import FROM_SCRATCH
from pgpsam.training.calibration import CONFIDENCE
from pgpsam.training.failures import FAILURES
from pgpsam.training.origins import trained_commands

VALIDATION = "validation"  # the folder in the model's own
PICTURES = {
    FAILURES: "The largest error of each organ",
    CONFIDENCE: "How often the confidence is right, and what it finds",
}


def model_card(spec: ModelSpec, pictures: Collection[str] = tuple(PICTURES)) -> str:
    """CARD.md of a model, from nothing but its own model.json.

    Args:
        pictures: those of the scores that its folder has, as `pictures_of` names them.
    """
    training = spec.training
    started = training.get("started_from")
    low, high = spec.preparation["window"]
    backbone = f"on backbone `{spec.backbone}` (SHA-256 `{spec.backbone_sha256[:16]}...`)"
    if spec.backbone == FROM_SCRATCH:
        backbone = "from scratch, on no backbone"
    counts = f"{training.get('slices', '?')} slices ({training.get('slices_with_organs', '?')} with organs)"
    lines = [
        f"# {spec.name}",
        "",
        spec.description or "A model adapted to annotated slices.",
        "",
        "**Not for clinical use.** Every result needs a human eye.",
        "",
        "## What it is",
        "",
        f"Method `{spec.method}` {backbone}.",
        f"Input slices of {spec.preparation['spacing_mm']:g} mm a pixel, window {low:g} to {high:g} HU.",
        "",
        f"Organs: {', '.join(spec.labels.names)}.",
        "",
        "## Training",
        "",
        f"Data: {training.get('data', 'not recorded')}, {training.get('choice', 'slices not recorded')}:",
        f"{counts} of {len(training.get('cases', []))} patients.",
    ]
    if started:
        share = f"; its weights are {started['share']:.0%} of these" if started.get("share") else ""
        lines += ["", f"Started from `{started['name']}`, trained on {len(started['cases'])} patients{share}."]
    if taught := training.get("taught_by"):
        guessed = training.get("guessed_slices", 0)
        lines += ["", f"Taught by `{taught['name']}` on {guessed} slices without annotation, where that was confident."]
    if averaged := training.get("averaged_with"):
        other = f"`{averaged['name']}`, trained on {len(averaged['cases'])} patients"
        lines += ["", f"The weights are the mean of what this training ended with and those of {other}."]
    if again := training.get("second_look"):
        who = f"`{again['name']}`, trained apart on {len(again['cases'])} patients"
        lines += ["", f"Every slice is looked at twice; the second look is by another network, {who}."]
    if spec.refiner:
        learned = spec.refiner
        about = (
            f"it learned on {learned['slices']} slices of {len(learned['cases'])} patients, from what models said of"
        )
        lines += ["", f"A volume refiner corrects what is said slice by slice as one volume; {about}"]
        lines += [f"patients that they had not seen ({learned['folds']} folds)."]
        if held := learned.get("held_out"):
            change = f"{held['dice_before']:.3f} to {held['dice_after']:.3f}"
            names = ", ".join(sorted(held["cases"]))
            lines += [f"On {names}, which it did not learn from, those models' mean Dice went from {change}"]
            lines += ["(all organs, on the refiner's grid, without clean-up)."]
    if commands := trained_commands(spec):
        lines += ["", "```", *commands, "```"]
    lines += ["", "## Scores", "", *_scores(spec, pictures)]
    lines += [
        "",
        "## Limits",
        "",
        f"- {_context(spec)}",
        "- Other body regions, other modalities than CT, children, and anatomy after surgery were not seen.",
        f"- {_confidence(spec)}",
        "",
    ]
    return "\n".join(lines)


def _context(spec: ModelSpec) -> str:
    if spec.refiner:
        return "Slices are segmented one by one; what neighbours say enters afterwards, on a grid of 4 x 3 x 3 mm."
    return "Slices are segmented one by one; context along z enters only through the clean-up."


def _scored(spec: ModelSpec) -> tuple[Mapping[str, Any], str]:
    """The scores to show and what was scored: the model, the one that it started from, or the twin of either."""
    started = spec.training.get("started_from", {})
    scores = spec.scores or started.get("scores", {})
    twin, stage = scores.get("model"), ""
    if not spec.scores and scores:
        bare = " without its volume refiner" if spec.refiner else ""
        stage = f"`{started['scored']}`, an earlier stage of this model{bare},"
    if twin and stage:
        of = "the first network of " if scores.get("alone") else ""
        return scores, f"`{twin}`, trained in the same way as {of}{stage} but without the patients that follow,"
    if twin:
        way = "as the first network was but" if scores.get("alone") else "in the same way"
        return scores, f"`{twin}`, trained {way} without the patients that follow,"
    return scores, stage or "This model"


def _confidence(spec: ModelSpec) -> str:
    scores, _ = _scored(spec)
    found = scores["summary"].get("confidence") if scores else None
    if not found:
        return "The confidence is the network's own and was not calibrated."
    every = found["all"]
    return (
        f"The confidence is not calibrated: expected calibration error {found['calibration_error']:.2f} in organs. "
        f"Of the {every['failed']} organ slices with a Dice under 0.5, {every['found']} are among the "
        f"{every['looked_at']} (of {every['segmented']}) with the lowest confidence; in {every['missed']} more the "
        "organ was not found at all."
    )


def _scores(spec: ModelSpec, pictures: Collection[str]) -> list[str]:
    scores, whose = _scored(spec)
    if not scores:
        return [f"None: {'it was not scored' if spec.training.get('held_out') else 'no patient was held out'}."]
    summary = scores["summary"]
    rows = ["| organ | Dice | HD95 mm | patients in whom it was not found |", "|---|---|---|---|"]
    rows += [_row(organ["organ"], organ) for organ in summary["organs"]]
    starred = [organ["organ"] for organ in summary["organs"] if organ["id"] in summary["reported_labels"]]
    if 0 < len(starred) < len(summary["organs"]):
        rows += [_row(f"mean of {', '.join(starred)}", summary["reported"])]
    rows += [_row("mean of all organs", summary["all"])]
    seen = "every slice, looked at twice" if scores.get("looks", 1) == 2 else "every slice"
    text = f"{whose} on {', '.join(scores['split'])}, which it was not trained on, {seen}:"
    note = ["", summary["note"]] if "note" in summary else []
    there = PICTURES if "confidence" in summary else {}
    shown = [line for name in there if name in pictures for line in ("", f"![{PICTURES[name]}]({VALIDATION}/{name})")]
    return [text, "", *rows, *note, *shown, *_of_second(spec)]


def _of_second(spec: ModelSpec) -> list[str]:
    """What the network that looks again reaches by itself, where the two were not scored together."""
    again = spec.training.get("second_look") or {}
    if not spec.scores.get("alone"):
        return []
    scores = again.get("scores") or {}
    both = "The two networks together were scored on no patient that neither has seen."
    if not scores:
        return ["", both]
    reported, every = (scores["summary"][group] for group in ("reported", "all"))
    twin = f"`{scores['model']}`, trained as `{again['name']}` was" if "model" in scores else f"`{again['name']}`"
    figures = f"{reported['dice']:.3f} ({every['dice']:.3f}), HD95 {reported['hd95_mm']:.1f} mm"
    return ["", f"The second network's: {twin}, has a mean Dice of {figures} on {', '.join(scores['split'])}. {both}"]


def _row(name: str, values: Mapping[str, Any]) -> str:
    dice, distance = values["dice"], values["hd95_mm"]
    shown = "-" if dice is None else f"{dice:.3f}", "-" if distance is None else f"{distance:.1f}"
    return f"| {name} | {shown[0]} | {shown[1]} | {values['missed']} |"


def shows_earlier_scores(spec: ModelSpec) -> bool:
    """Whether the card has the scores, and so the pictures, of the model that this one started from."""
    return not spec.scores and bool((spec.training.get("started_from") or {}).get("scores"))


def pictures_of(model: Path) -> list[str]:
    """Which of the scores' pictures a model's folder has."""
    return [name for name in PICTURES if (model / VALIDATION / name).is_file()]


def copy_pictures(origin: Path, model: Path) -> None:
    """What a card shows of the earlier stage that was scored in the model's stead; both are model folders."""
    for name in pictures_of(origin):
        (model / VALIDATION).mkdir(exist_ok=True)
        shutil.copy(origin / VALIDATION / name, model / VALIDATION)
