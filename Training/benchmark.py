#!/usr/bin/env python3
"""Compare the methods: `python Training/benchmark.py --data DATASET --out FOLDER`."""

from pgpsam.entry import enter

if __name__ == "__main__":
    raise SystemExit(enter("pgpsam.training.commands", "benchmark_main"))
