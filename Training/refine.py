#!/usr/bin/env python3
"""Give a trained model a volume refiner: `python Training/refine.py --model MODEL_DIR --data DATASET`."""

from pgpsam.training.commands import refine_main

if __name__ == "__main__":
    raise SystemExit(refine_main())
