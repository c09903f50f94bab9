#!/usr/bin/env python3
"""Describe organs to `--method pgsam`: `python Training/embed_descriptions.py 'uterus=A pear-shaped organ ...'`."""

from pgpsam.entry import enter

if __name__ == "__main__":
    raise SystemExit(enter("pgpsam.training.describing", "main"))
