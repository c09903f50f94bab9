"""What SAM's ViT-B costs: seconds, work and peak memory of a forward pass and of a PGP-SAM training step.

    python Testing/bench/vit_b.py

Random weights, batch 1, float32, on the first CUDA device or else on the CPU (OMP_NUM_THREADS says on how many
cores). Each row runs in a process of its own, so that peaks do not mix. `cpu s` is the processor time that a run
took, which a busy machine stretches less than its clock; `ratio` is a run's time over that of the same number
of floating-point operations as one large matrix product (processor time on the CPU, the clock's on a GPU).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pgpsam.network.backbones import build_backbone
from pgpsam.network.methods import build_network
from pgpsam.network.prototypes import coarse_labels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES = 14
PRODUCT = 2048 if DEVICE.type == "cpu" else 16384  # side of the matrices

Step = Callable[[], object]


def forward(side: int) -> tuple[nn.Module, Step]:
    """The encoder alone on a canvas of side x side."""
    encoder = build_backbone("vit_b").to(DEVICE).eval()
    image = torch.rand(1, 3, side, side, device=DEVICE)

    def step() -> None:
        with torch.inference_mode():
            encoder(image)

    return encoder, step


def training(side: int) -> tuple[nn.Module, Step]:
    """Forward, loss on the masks and on every coarse pass, backward and one AdamW step of PGP-SAM."""
    network = build_network("pgp", "vit_b", CLASSES, {}).to(DEVICE).train()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    image = torch.rand(1, 3, side, side, device=DEVICE)
    labels = torch.randint(0, CLASSES, (1, side, side), device=DEVICE)

    def step() -> None:
        output = network(image)
        loss = F.cross_entropy(output.logits, labels)
        for logits in output.coarse:
            loss = loss + F.cross_entropy(logits, coarse_labels(labels, *logits.shape[-2:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return network, step


def seconds_of(step: Step, repeats: int = 2) -> tuple[float, float]:
    """(clock, processor time) of the fastest of some runs, after one to warm up."""
    runs = []
    for _ in range(repeats + 1):
        start = time.perf_counter(), time.process_time()
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        runs.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return min(clock for clock, _ in runs[1:]), min(processor for _, processor in runs[1:])


def peak_gib() -> float:
    """The most memory that this process has held so far: the GPU's on a GPU, else the resident set."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # not on Windows, where the rest of this file would run

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def measure(make: Callable[[int], tuple[nn.Module, Step]], side: int) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    _, step = make(side)
    clock, processor = seconds_of(step)
    peak = peak_gib()
    counter = FlopCounterMode(display=False)
    with counter:
        step()
    flops = counter.get_total_flops()
    left = torch.rand(PRODUCT, PRODUCT, device=DEVICE)
    product = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, left, out=product)

    which = 1 if DEVICE.type == "cpu" else 0
    ideal = seconds_of(multiply)[which] * flops / (2 * PRODUCT**3)
    ratio = (clock, processor)[which] / ideal
    name = make.__name__
    return f"{name:<9}{side:>5}{clock:>9.2f}{processor:>9.2f}{flops / 1e9:>8.0f}{ratio:>8.2f}{peak:>10.2f}"


def main() -> None:
    threads = f"{torch.get_num_threads()} threads" if DEVICE.type == "cpu" else torch.cuda.get_device_name()
    print(f"ViT-B, batch 1, float32, {DEVICE.type}, {threads}")
    print(f"{'step':<9}{'side':>5}{'clock s':>9}{'cpu s':>9}{'GFLOP':>8}{'ratio':>8}{'peak GiB':>10}")
    for make, side in ((forward, 512), (forward, 448), (training, 512)):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            print(pool.submit(measure, make, side).result(), flush=True)


if __name__ == "__main__":
    main()
