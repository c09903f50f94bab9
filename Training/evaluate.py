#!/usr/bin/env python3
"""Score a model: `python Training/evaluate.py --model MODEL --data DATASET --out DIR`."""

from pgpsam.entry import enter

if __name__ == "__main__":
    raise SystemExit(enter("pgpsam.training.commands", "evaluate_main"))
