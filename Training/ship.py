#!/usr/bin/env python3
"""Make a copy of a trained model to give away: `python Training/ship.py --model MODEL_DIR --out FOLDER`."""

from pgpsam.entry import enter

if __name__ == "__main__":
    raise SystemExit(enter("pgpsam.training.commands", "ship_main"))
