#!/usr/bin/env python3
"""Adapt a method to annotated slices: `python Training/finetune.py --data DATASET --out MODEL_DIR`."""

from pgpsam.training.commands import finetune_main

if __name__ == "__main__":
    raise SystemExit(finetune_main())
