"""Where every command line begins: it imports the rest, so that Ctrl-C is one line from the first second on."""

from __future__ import annotations

import sys
from importlib import import_module


def enter(module: str, function: str) -> int:
    """Import a command line and run it; its exit code, or 130 where Ctrl-C ends it while it is imported."""
    try:
        code: int = getattr(import_module(module), function)()
    except KeyboardInterrupt:
        print("cancelled", file=sys.stderr)
        return 130
    return code
