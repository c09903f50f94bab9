#!/usr/bin/env python3
"""Compare the methods: `python Training/benchmark.py --data DATASET --out FOLDER`."""

from pgpsam.training.commands import benchmark_main

if __name__ == "__main__":
    raise SystemExit(benchmark_main())
