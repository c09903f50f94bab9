#!/usr/bin/env python3
"""Make a copy of a trained model to give away: `python Training/ship.py --model MODEL_DIR --out FOLDER`."""

from pgpsam.training.commands import ship_main

if __name__ == "__main__":
    raise SystemExit(ship_main())
