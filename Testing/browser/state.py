"""What the page shows, as the names that trame's state has for it, with their first values."""

from __future__ import annotations

from typing import Any

FIRST: dict[str, Any] = {
    # The input.
    "volumes": [],  # {"title", "value": the node's ID} each
    "volume": None,  # ID of the chosen one
    "volume_note": "",
    "opening": False,  # a tab's own: files are on their way
    # What to do: the engine's models and devices, as it tells them.
    "models": [],  # {"title", "value": the model's folder} each
    "model": None,
    "model_note": "",
    "organs": [],  # {"name", "css"} each
    "chosen": [],  # names of those that are ticked
    "devices": [{"title": "Automatic", "value": "auto"}],
    "device": "auto",
    "device_note": "",
    # The run.
    "engine": "starting",  # starting, ready, working, failed
    "cancelling": False,
    "stage": "",  # "Segmenting slices: 12 of 140, about 9 s left"
    "percent": 0.0,
    "known": False,  # whether `percent` says anything
    "spent": "",  # "12 s", since the run began
    "error": "",
    # The result.
    "has_result": False,
    "can_undo": False,
    "run_note": "",
    "show": "masks",  # masks, both, prompts
    "confidence": False,
    "show_3d": True,
    "rows": [],  # {"organ", "mark", "css", "ml", "hu", "percent"} each
    "cut_off": False,  # whether any is marked
    "review": [],  # {"organ", "slices", "percent", "checked", "current", "css"} each
    "review_here": "",  # the current place: "", open, checked
    "review_note": "",
    "review_percent": 0,
    # The rest.
    "layout": "Four views",
    "panel_open": True,
    "results_open": True,
    "log": [],
    "log_open": False,
}


def css(color: list[int] | tuple[int, ...]) -> str:
    """A colour 0..255 as a web page writes it."""
    return "#" + "".join(f"{int(channel):02x}" for channel in color[:3])
