"""Fixtures of real MRML: a host of its own for each test, and results as the worker would write them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "PGPSAMSegment")]

from host import Host, make_host  # noqa: E402  it must be the first to import slicer


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    host = make_host(temporary=temporary)
    yield host
    host.close()
