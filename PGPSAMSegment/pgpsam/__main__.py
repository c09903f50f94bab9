"""`python -m pgpsam`, and the command `pgpsam`."""

from pgpsam.entry import enter


def main() -> int:
    return enter("pgpsam.cli", "main")


if __name__ == "__main__":
    raise SystemExit(main())
