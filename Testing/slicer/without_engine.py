"""A plugin of pytest: the tests run where what Slicer lacks cannot be imported; `pytest -p without_engine ...`."""

from __future__ import annotations

import sys

from import_all import BLOCKED, Refuse

SLICERS = {"PySide6", "requests"}  # for Slicer's own Qt, and a package that comes with it

for name in [name for name in sys.modules if name.partition(".")[0] in BLOCKED - SLICERS]:
    del sys.modules[name]
Refuse.blocked = BLOCKED - SLICERS
sys.meta_path.insert(0, Refuse())
