"""A stand-in for the engine's worker that has models and makes results: boxes instead of organs, within a moment.

Usage: standin_model_worker.py MODELS [MODE]. MODELS holds a folder for each model, with a model.json of the form that
`hello` tells; `finetune` adds one. Standard library and numpy only. MODE:

good   not otherwise
slow   a `segment`, `finetune` or `suggest` waits, half done, to be cancelled or for a file "go on" beside MODELS
full   a result cannot be written, because the disk is full (/dev/full, so the system says so itself)
dies   a `segment` ends the process, half done
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

STRUCTURE = ["SCT", "123037004", "Anatomical Structure"]
DEVICES = [
    {"name": "cpu", "title": "CPU, 2 cores", "memory_gb": 7.6, "available": True, "why": ""},
    {"name": "cuda:0", "title": "Stand-in GPU", "memory_gb": 24.0, "available": False, "why": "it is a stand-in"},
]


def organ(number, name, color, code):
    snomed = {"category": STRUCTURE, "type": ["SCT", code, name.capitalize()], "modifier": None}
    return {"id": number, "name": name, "color": color, "snomed": snomed}


CANCELLED = {"event": "error", "kind": "cancelled", "message": "cancelled", "hint": ""}
ORGANS = [organ(6, "liver", [221, 130, 101], "10200004"), organ(1, "spleen", [157, 108, 162], "78961009")]


def answer(**event):
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def add_model(models, name, organs, **more):
    """Writes a model's folder; tests do that as well, and one with `left_out` says why it is not listed."""
    folder = Path(models) / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "CARD.md").write_text(f"# {name}\n\nA stand-in's card.\n")
    facts = {
        "name": name,
        "folder": str(folder),
        "title": f"{name}: {len(organs)} organs",
        "description": "Boxes.",
        "organs": organs,
        "method": "pgp",
        "backbone": "lite_medsam",
        "score": "Dice 0.81, mean of 2 organs in 3 held-out cases",
        "card": str(folder / "CARD.md"),
        **more,
    }
    (folder / "model.json").write_text(json.dumps(facts))


def models_of(folder, left_out=False):
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*/model.json"))]
    return [model for model in found if ("left_out" in model) is left_out]


def hello(folder):
    return {
        "event": "done",
        "version": "0.1.0",
        "protocol": 1,
        "pid": os.getpid(),
        "devices": DEVICES,
        "device_note": "The engine's torch was built without CUDA.",
        "default_device": "cpu",
        "models": models_of(folder),
        "left_out": [model["left_out"] for model in models_of(folder, left_out=True)],
    }


def boxes(shape, organs):
    """The organ n in the n-th part of the rows, away from the volume's border."""
    labels = np.zeros(shape, np.uint8)
    k, j, i = shape
    for n, each in enumerate(organs):
        labels[1 : k - 1, 1 + n * j // len(organs) : (n + 1) * j // len(organs) - 1, 2 : i - 2] = each["id"]
    return labels


def is_cancelled(models, cancelled):
    """Waits to be cancelled, or told to go on."""
    while not (Path(models).parent / "go on").exists():
        if cancelled.wait(0.05):
            return True
    return False


def segment(number, request, models, mode, cancelled):
    model = next((m for m in models_of(models) if request["model"] in (m["name"], m["folder"])), None)
    if model is None:
        names = ", ".join(m["name"] for m in models_of(models)) or "none"
        return {
            "event": "error",
            "kind": "user",
            "message": f"no model '{request['model']}'",
            "hint": f"Known: {names}",
        }
    volume, out = np.load(request["volume"]), Path(request["out"])
    organs = [each for each in model["organs"] if each["name"] in request.get("organs", [o["name"] for o in ORGANS])]
    labels = boxes(volume.shape, organs)
    half = len(labels) // 2
    answer(id=number, event="progress", stage="load", done=0, total=1, eta_s=0.0)
    answer(id=number, event="progress", stage="slices", done=half, total=len(labels), eta_s=9.0)
    np.save(out / "labels.npy", np.where(np.arange(len(labels))[:, None, None] < half, labels, 0).astype(np.uint8))
    if request.get("partial"):
        answer(id=number, event="partial", done=half)
    if mode == "dies":
        sys.stderr.write("RuntimeError: the stand-in ends here\n")
        os._exit(3)
    if mode == "slow" and is_cancelled(models, cancelled):
        return CANCELLED
    with open("/dev/full" if mode == "full" else out / "confidence.npy", "wb") as file:
        np.save(file, np.full(labels.shape, 0.9, np.float32))
    np.save(out / "labels.npy", labels)
    np.save(out / "regions.npy", np.roll(labels, 1, 2))
    points, measured = [], []
    for each in organs:
        where = np.argwhere(labels == each["id"])
        k, j, i = where[len(where) // 2].tolist()
        points.append({"organ": each["name"], "id": each["id"], "weight": 0.7, "ijk": [i, j, k], "ras": [0, 0, 0]})
        slices = {str(n): 0.5 if n == half else 0.95 for n in range(1, len(labels) - 1)}
        figures = {"volume_ml": len(where) / 1000, "mean_hu": 50.0, "confidence": 0.9}
        measured.append(
            {"id": each["id"], "name": each["name"], **figures, "slice_confidence": slices, "slices_axis": 0}
        )
    (out / "points.json").write_text(json.dumps(points))
    files = {"labels": "labels.npy", "confidence": "confidence.npy", "regions": "regions.npy", "points": "points.json"}
    more = {"seconds": {"slices": 0.1}, "device": "cpu", "model": model["name"], "label_set": model["organs"]}
    warnings = ["MR: it looks like no CT"] if request.get("name") == "MR" else []
    return {"event": "done", **files, **more, "organs": measured, "warnings": warnings}


def finetune(number, request, models, mode, cancelled):
    shapes = []
    for case in request["cases"]:
        volume, labels = np.load(case["volume"]), np.load(case["labels"])
        shapes.append([list(volume.shape), np.unique(labels).tolist(), case.get("slices")])
    answer(
        id=number,
        event="progress",
        stage="training",
        done=1,
        total=request.get("iterations", 200),
        eta_s=60,
        note="loss 1.0",
    )
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    if mode == "slow" and is_cancelled(models, cancelled):
        return CANCELLED
    told = {key: request.get(key) for key in ("start_from", "iterations", "settings", "labels", "method")}
    add_model(out.parent, request["name"], request["labels"])
    (out / "told.json").write_text(json.dumps({**told, "cases": shapes}))
    return {"event": "done", "folder": str(out), "model": request["name"], "score": "", "scores": None}


def suggest(number, request, models, mode, cancelled):
    """The last slice and the middle one, so far from sorted."""
    depth = len(np.load(request["volume"]))
    answer(id=number, event="progress", stage="slices", done=1, total=depth, eta_s=3.0)
    if mode == "slow" and is_cancelled(models, cancelled):
        return CANCELLED
    return {"event": "done", "slices": [depth - 1, depth // 2][: request["count"]], "slices_axis": 0}


JOBS = {"segment": segment, "finetune": finetune, "suggest": suggest}


def work(do, number, request, models, mode, cancelled):
    try:
        answer(id=number, **do(number, request, models, mode, cancelled))
    except OSError as error:
        message = f"cannot write to {request['out']}: {error.strerror}"  # as pgpsam/exchange.py has it
        hint = "Check the folder, its free space and its permissions."
        answer(id=number, event="error", kind="user", message=message, hint=hint)


def main(models, mode):
    cancelled = threading.Event()
    sys.stderr.write("stand-in worker with models\n")
    for line in sys.stdin:
        request = json.loads(line)
        number, do = request["id"], request["do"]
        if do == "hello":
            time.sleep(0.05)
            answer(id=number, **hello(models))
        elif do in JOBS:
            cancelled.clear()
            job = (JOBS[do], number, request, models, mode, cancelled)
            threading.Thread(target=work, args=job, daemon=True).start()
        elif do == "cancel":
            cancelled.set()
        elif do == "bye":
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "good")
