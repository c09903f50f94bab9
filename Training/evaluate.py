#!/usr/bin/env python3
"""Score a model: `python Training/evaluate.py --model MODEL --data DATASET --out DIR`."""

from pgpsam.training.commands import evaluate_main

if __name__ == "__main__":
    raise SystemExit(evaluate_main())
