"""What the engine says of itself when it is greeted: version, devices, models."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

import pgpsam
from pgpsam.errors import UserError
from pgpsam.exchange import organs_json
from pgpsam.models.lookup import list_models
from pgpsam.models.spec import ModelSpec
from pgpsam.models.store import CARD_FILE

PROTOCOL = 1
_log = logging.getLogger(__name__)


def hello() -> dict[str, Any]:
    """The answer to "hello", as JSON values."""
    devices, note = list_devices()
    models, left_out = [], []
    for folder, spec in list_models():
        if isinstance(spec, UserError):
            _log.warning("model %s is left out: %s", folder, spec)
            left_out.append(str(spec))
        else:
            models.append(describe_model(folder, spec))
    return {
        "version": pgpsam.__version__,
        "protocol": PROTOCOL,
        "pid": os.getpid(),
        "devices": devices,
        "device_note": note,
        "default_device": best_device(devices),
        "models": models,
        "left_out": left_out,
    }


def describe_model(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """What a user needs to choose a model, which is found by its folder's name, whatever model.json calls it."""
    card = folder.resolve() / CARD_FILE
    return {
        "name": folder.name,
        "folder": str(folder.resolve()),
        "title": f"{folder.name}: {len(spec.labels)} organ{'s' * (len(spec.labels) > 1)}",
        "description": spec.description,
        "organs": organs_json(spec.labels),
        "method": spec.method,
        "backbone": spec.backbone,
        "score": score_line(spec),
        "card": str(card) if card.is_file() else "",
    }


def score_line(spec: ModelSpec) -> str:
    """The mean Dice on patients that the model, the stage it was finished from, or the twin of either was not trained
    on; "" where there is none, or none that can be read."""
    try:
        scores = spec.scores or spec.training.get("started_from", {}).get("scores", {})
        stage, twin = "" if spec.scores else "an earlier stage", "trained without them" if scores.get("model") else ""
        notes = ", but ".join(filter(None, (stage, twin)))
        whose = f" ({notes})" if notes else ""
        mean = scores.get("summary", {}).get("reported", {})
        if mean.get("dice") is None:
            return ""
        cases = len(scores["split"])
        return f"Dice {mean['dice']:.2f}, mean of {mean['organs']} organs in {cases} held-out cases{whose}"
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # no reason to do without the model
        _log.warning("the scores of model %s are not as training writes them: %r", spec.name, error)
        return ""


# ---------------------------------------------------------------------------------------------------- devices


def list_devices() -> tuple[list[dict[str, Any]], str]:
    """The CPU and every accelerator, and why none of these is used: one sentence, empty where one is."""
    import torch

    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    devices = [_device("cpu", f"CPU, {cores} core{'s' * (cores > 1)}", psutil.virtual_memory().total)]
    if torch.backends.mps.is_available():
        devices.append(_device("mps", f"Apple {platform.machine()} graphics", psutil.virtual_memory().total))
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the second one where torch was built without CUDA
        note = _no_cuda(error)
    else:
        devices += [_cuda_device(n) for n in range(torch.cuda.device_count())]
        note = "No NVIDIA graphics card is visible to the engine."
    refused = [f"{device['title']}: {device['why']}" for device in devices if not device["available"]]
    if best_device(devices) != "cpu":
        return devices, ""
    return devices, " ".join(refused) or note


def best_device(devices: list[dict[str, Any]]) -> str:
    """The first accelerator that works, or the CPU."""
    return next((d["name"] for d in devices if d["name"] != "cpu" and d["available"]), "cpu")


def _device(name: str, title: str, memory: int, why: str = "") -> dict[str, Any]:
    return {"name": name, "title": title, "memory_gb": round(memory / 2**30, 1), "available": not why, "why": why}


def _cuda_device(number: int) -> dict[str, Any]:
    """A card is tried and not only asked: a torch built for other cards sees it, but cannot compute on it."""
    import torch

    from pgpsam.device import refusal

    name = f"cuda:{number}"
    properties = torch.cuda.get_device_properties(number)
    why = refusal(name)
    if why:
        why = f"this build of torch ({torch.__version__}) cannot compute on it: {_first_sentence(why)}."
    return _device(name, properties.name, properties.total_memory, why)


def _no_cuda(error: BaseException) -> str:
    import torch

    if torch.version.cuda is None:
        return "The engine's torch was built without CUDA, so no NVIDIA graphics card can be used."
    return f"No NVIDIA graphics card can be used: {_first_sentence(str(error) or type(error).__name__)}."


def _first_sentence(text: str) -> str:
    text = " ".join(text.split())
    return text.split(". ")[0].rstrip(". ")
