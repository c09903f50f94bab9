#!/usr/bin/env python3
"""Is the attention that makes the prompts sharp, and does it lie in the organs?

    python Testing/bench/attention.py --model MODEL --data DATASET [--cases CASE ...]

For every slice of the cases (default: the data set's validation cases) that shows an organ: the entropy of the last
prompt's attention over the body's positions, relative to a uniform one (1 is flat), the share of the attention's mass
inside the drawn organ, and whether its peak lies inside.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from pgpsam.device import autocast
from pgpsam.segmenter import Segmenter
from pgpsam.slices import frame_volume, network_input, place, scale_labels
from pgpsam.terminal import print_table
from pgpsam.training.data import load_case, read_dataset


def coverage(labels: torch.Tensor, index: int, height: int, width: int) -> torch.Tensor:
    """Share of each token that the organ covers, [height, width]."""
    return torch.nn.functional.adaptive_avg_pool2d((labels == index).float()[None], (height, width))[0]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Entropy and place of the prompts' attention.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", nargs="*")
    options = parser.parse_args()
    segmenter, dataset = Segmenter.load(options.model), read_dataset(options.data)
    found: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for case in dataset.select(options.cases or dataset.validation):
        loaded = load_case(case, dataset.labels)
        frame = frame_volume(loaded.volume, segmenter.preparation)
        for z in np.flatnonzero(loaded.labels.any((1, 2))).tolist():
            image = network_input(loaded.volume, frame, segmenter.preparation, [z]).to(segmenter.device)
            with autocast(segmenter.device):
                attention = segmenter.network(image).attention
            assert attention is not None, "this method has no prompts"
            labels = place(scale_labels(loaded.labels, frame, [z]), frame)[0]
            for index, name in enumerate(dataset.labels.names, start=1):
                if not (labels == index).any():
                    continue
                weights = attention[0, index].float().flatten().softmax(0).cpu()
                entropy = float(-(weights * weights.clamp_min(1e-12).log()).sum()) / math.log(len(weights))
                inside = coverage(labels, index, *attention.shape[-2:]).flatten()
                mass = float((weights * inside).sum())
                found[name].append((entropy, mass, bool(inside[weights.argmax()] > 0)))
    rows = []
    for name, values in found.items():
        entropy, mass, peak = np.mean(values, axis=0)
        rows.append([name, str(len(values)), f"{entropy:.3f}", f"{mass:.2f}", f"{peak:.2f}"])
    print_table(
        f"{segmenter.name} on {', '.join(options.cases or dataset.validation)}",
        ["organ", "slices", "entropy / uniform", "mass inside", "peak inside"],
        rows,
    )


if __name__ == "__main__":
    main()
