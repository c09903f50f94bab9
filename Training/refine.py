#!/usr/bin/env python3
"""Give a trained model a volume refiner: `python Training/refine.py --model MODEL_DIR --data DATASET`."""

from pgpsam.entry import enter

if __name__ == "__main__":
    raise SystemExit(enter("pgpsam.training.commands", "refine_main"))
