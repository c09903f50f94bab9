"""`python -m pgpsam`: the command line."""

from pgpsam.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
