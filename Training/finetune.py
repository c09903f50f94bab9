#!/usr/bin/env python3
"""Adapt a method to annotated slices: `python Training/finetune.py --data DATASET --out MODEL_DIR`."""

from pgpsam.entry import enter

if __name__ == "__main__":
    raise SystemExit(enter("pgpsam.training.commands", "finetune_main"))
