"""Failures on purpose: the helpers beside the tests of Slicer's side serve here as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "slicer"))
