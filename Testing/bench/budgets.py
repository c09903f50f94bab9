#!/usr/bin/env python3
"""What a volume costs against what arithmetic costs at least, on the machine at hand.

    python Testing/bench/budgets.py VOLUME [--model MODEL] [--device DEVICE] [--slices 16] [--runs 3]

- encoder: its time a slice over that of the same number of floating-point operations as one large matrix product in
  the same number type. Budget: 1.5.
- volume: the time from the volume in memory to its label volume, over that of its slices' encoder alone, with one
  look at every slice. Budget: 1.15. Two looks are shown in the same unit; they have no budget.

Times are processor times on the CPU, which a busy machine stretches less than the clock's, and the clock's on a GPU.
The fastest of some runs counts. Slices are taken from the volume's middle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from vit_b import seconds_of as clock_and_processor

from pgpsam.device import autocast, describe_device
from pgpsam.segmenter import Segmenter, body_slices
from pgpsam.slices import frame_volume, network_input
from pgpsam.terminal import print_table
from pgpsam.volume import Volume, read_volume

PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices


def middle(volume: Volume, slices: int) -> Volume:
    """The middle slices of a volume, where they are; their place along z does not matter here."""
    low = max(0, (len(volume.array) - slices) // 2)
    return replace(volume, array=volume.array[low : low + slices])


def seconds_of(step: Callable[[], object], device: torch.device, runs: int) -> float:
    """Processor time on the CPU, the clock's on a GPU."""
    clock, processor = clock_and_processor(step, runs)
    return processor if device.type == "cpu" else clock


def product_seconds(device: torch.device, runs: int) -> float:
    """Seconds a floating-point operation of a large matrix product takes, in the number type of `autocast`."""
    side = PRODUCT.get(device.type, 2048)
    left = torch.rand(side, side, device=device)
    with autocast(device):
        kind = (left @ left).dtype
    left = left.to(kind)
    return seconds_of(lambda: left @ left, device, runs) / (2 * side**3)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="What a volume costs against one large matrix product.")
    parser.add_argument("volume", type=Path)
    parser.add_argument("--model", default="abdomen-ct")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--slices", type=int, default=16, help="how many are taken, from the middle")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    segmenter = Segmenter.load(options.model, options.device)
    device, volume = segmenter.device, middle(read_volume(options.volume), options.slices)
    shown = body_slices(volume)
    frame = frame_volume(volume, segmenter.preparation)
    batches = [shown[i : i + segmenter.batch] for i in range(0, len(shown), segmenter.batch)]
    images = [network_input(volume, frame, segmenter.preparation, batch).to(device) for batch in batches]

    def encode() -> None:
        with autocast(device):
            for image in images:
                segmenter.network.encoder(image)

    counter = FlopCounterMode(display=False)
    with counter:
        encode()
    encoder = seconds_of(encode, device, options.runs)
    ideal = counter.get_total_flops() * product_seconds(device, options.runs)
    rows = [["encoder, a slice", f"{encoder / len(shown):.3f}", f"{encoder / ideal:.2f} x the product", "1.5"]]
    for looks, budget in ((1, "1.15"), (2, "-")):
        whole = seconds_of(lambda: segmenter.segment(volume, looks=looks), device, options.runs)  # noqa: B023
        name = f"volume, a slice, looked at {'once' if looks == 1 else 'twice'}"
        rows.append([name, f"{whole / len(shown):.3f}", f"{whole / encoder:.2f} x the encoder", budget])
    canvas = " x ".join(map(str, frame.canvas))
    title = f"{options.model}, {len(shown)} slices, canvas {canvas}, {describe_device(device)}"
    print_table(title, ["what", "seconds", "ratio", "budget"], rows)


if __name__ == "__main__":
    main()
