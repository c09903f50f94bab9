"""What every test may ask for: the development volumes, and the choice to run the slow tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

DATA_VARIABLE = "PGPSAM_DATA"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_configure() -> None:
    """A job that a shell runs in the background ignores Ctrl-C, and so would every program that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development volumes: ``shared/data`` beside the checkout, or the folder `PGPSAM_DATA` names."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get(DATA_VARIABLE) or beside)
    if not folder.is_dir():
        pytest.skip(f"the development volumes are not at {folder}: set {DATA_VARIABLE} to their folder")
    return folder
