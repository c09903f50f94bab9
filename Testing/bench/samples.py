#!/usr/bin/env python3
"""`pgpsam segment` on every volume of a folder: grid, side of the liver, seconds, peak memory.

    python Testing/bench/samples.py FOLDER [--model MODEL] [--previews DIR]

Each runs in a process of its own; files whose name ends in _seg or _ventricles are labels and left out.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pgpsam.terminal import print_table
from pgpsam.training.data import stem
from pgpsam.volume import read_labels, read_labels_on, read_volume


def volumes(folder: Path) -> list[Path]:
    """Volumes and DICOM folders."""
    files = [p for p in sorted(folder.iterdir()) if stem(p) and not stem(p).endswith(("_seg", "_ventricles"))]
    return files + [p for p in sorted(folder.iterdir()) if p.is_dir()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Segment every volume of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="abdomen-ct")
    parser.add_argument("--previews", type=Path, help="folder for the overview pictures")
    options = parser.parse_args()
    rows = []
    for path in volumes(options.folder):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "labels.nii.gz"
            command = [sys.executable, "-m", "pgpsam", "segment", str(path), "-o", str(out), "--model", options.model]
            if options.previews:
                options.previews.mkdir(parents=True, exist_ok=True)
                command += ["--preview", str(options.previews / f"{stem(path) or path.name}.png")]
            started = time.monotonic()
            process = subprocess.Popen([*command, "--progress", "none"], stdout=subprocess.DEVNULL)
            _, status, usage = wait(process)
            seconds = time.monotonic() - started
            if status:
                rows.append([path.name, f"exit {status}", "", "", "", ""])
                continue
            rows.append([path.name, *describe(path, out), f"{seconds:.1f}", f"{usage.ru_maxrss / 2**20:.2f}"])
    print_table(
        f"{options.model} on {options.folder.name}",
        ["volume", "size", "grid kept", "liver mL, side", "seconds", "peak GB"],
        rows,
    )


def wait(process: subprocess.Popen[bytes]) -> tuple[int, int, resource.struct_rusage]:
    """(pid, exit code, what the process used) when it has ended."""
    import os

    pid, status, usage = os.wait4(process.pid, 0)
    return pid, os.waitstatus_to_exitcode(status), usage


def describe(path: Path, out: Path) -> list[str]:
    """Size, whether the output's grid is the input's, and where the liver lies."""
    volume = read_volume(path)
    array, affine, _ = read_labels(out)
    kept = array.shape == volume.grid.shape and np.allclose(affine, volume.grid.affine, atol=1e-4)
    liver = read_labels_on(volume, out) == 6
    ml = liver.sum() * volume.voxel_ml
    side = "right" if ml and np.nonzero(liver)[2].mean() < volume.shape[2] / 2 else "left"
    return ["x".join(map(str, volume.grid.shape[::-1])), "yes" if kept else "NO", f"{ml:.0f} {side if ml else ''}"]


if __name__ == "__main__":
    main()
