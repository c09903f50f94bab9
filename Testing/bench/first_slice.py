#!/usr/bin/env python3
"""Seconds from a click to the first finished slice, with a cold worker and with a warm one.

    python Testing/bench/first_slice.py VOLUME [--model MODEL] [--slices 16] [--runs 3]

Measured where the user is: from the request to the event that brings the slice, through the worker's own protocol.
Cold starts a new process; warm asks the same one again. Budgets: 8 s cold, 1 s warm. On a busy machine the clock says
little, so the last column gives the slice's time in units of the same worker's time per slice afterwards.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pgpsam.terminal import print_table
from pgpsam.volume import read_volume

BUDGET_S = {"cold": 8.0, "warm": 1.0}


class Worker:
    """A worker process, asked one thing at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "pgpsam", "worker"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.last_id = 0

    def time_slices(self, request: dict[str, Any]) -> tuple[float, float]:
        """(seconds to the first finished batch, seconds a slice after it)."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.last_id += 1
        started = time.monotonic()
        self.process.stdin.write(json.dumps({"id": self.last_id, "do": "segment", **request}) + "\n")
        self.process.stdin.flush()
        seen: list[tuple[int, float]] = []  # slices done, seconds since the click
        for line in self.process.stdout:
            event = json.loads(line)
            if event.get("stage") == "slices":
                seen.append((event["done"], time.monotonic() - started))
            if event["event"] == "error":
                raise SystemExit(f"first_slice.py: {event['message']} {event['hint']}")
            if event["event"] == "done":
                break
        (first, at), (last, end) = seen[0], seen[-1]
        return at, (end - at) / max(1, last - first)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time to the first finished slice, cold and warm.")
    parser.add_argument("volume", type=Path)
    parser.add_argument("--model", default="abdomen-ct")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slices", type=int, default=16, help="how many are taken, from the middle")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        request = {**crop(options.volume, options.slices, Path(folder)), "out": str(Path(folder) / "out")}
        request |= {"model": options.model, "device": options.device, "partial": True}
        for _ in range(options.runs):
            worker = Worker()
            try:
                for kind in times:
                    times[kind].append(worker.time_slices(request))
            finally:
                worker.close()
    rows = []
    for kind, measured in times.items():
        firsts, each = zip(*measured, strict=True)
        first, slice_s = statistics.median(firsts), statistics.median(each)
        spread = f"{min(firsts):.1f} to {max(firsts):.1f}"
        rows.append([kind, f"{first:.2f}", spread, f"{BUDGET_S[kind]:g}", f"{slice_s:.2f}", f"{first / slice_s:.1f}"])
    print_table(
        f"First finished slice, {options.model}, {options.device}, median of {options.runs}",
        ["worker", "seconds", "range", "budget", "s a slice", "in slices"],
        rows,
    )


def crop(path: Path, slices: int, folder: Path) -> dict[str, Any]:
    """The middle slices of a volume, as the request's "volume" and "affine"."""
    volume = read_volume(path)
    low = max(0, (len(volume.array) - slices) // 2)
    affine = volume.affine.copy()
    affine[:3, 3] += low * affine[:3, 2]
    np.save(folder / "v.npy", volume.array[low : low + slices])
    return {"volume": str(folder / "v.npy"), "affine": affine.tolist()}


if __name__ == "__main__":
    main()
