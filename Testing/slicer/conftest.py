"""Fixtures of real MRML: a host of its own for each test, and results as the worker would write them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the models that the stand-in worker has, which is also where new ones go."""
    import standin_model_worker as standin

    from PGPSAMSegmentLib import training

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = training.models_folder()
    standin.add_model(folder, "abdomen-ct", standin.ORGANS)
    return folder


@pytest.fixture
def make_logic(host: Host, models: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes Logics with a stand-in worker of some mode, see standin_model_worker.py."""
    from PGPSAMSegment import PGPSAMSegmentLogic
    from PGPSAMSegmentLib.engine import Engine

    made = []

    def make(mode: str = "good") -> Any:
        command = [sys.executable, str(Path(__file__).with_name("standin_model_worker.py")), str(models), mode]
        made.append(PGPSAMSegmentLogic(lambda: Engine(command, tmp_path / os.fsdecode("engine with ümläuts".encode()))))
        return made[-1]

    yield make
    for logic in made:
        logic.close()


@pytest.fixture
def make_bench(host: Host, models: Path, make_logic: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes panels on a test bench, see `panel_bench.Bench`; `mode` is the worker's, "" for no engine at all."""
    import qt_stand_ins
    from panel_bench import Bench

    benches = []

    def make(mode: str = "good") -> Any:
        window = qt_stand_ins.install_qt(host.app, tmp_path / "settings")
        benches.append(Bench(host, window, models, make_logic(mode) if mode else None))
        return benches[-1]

    yield make
    for bench in benches:
        bench.widget.cleanup()
        qt_stand_ins.remove_qt(bench.window)


@pytest.fixture
def bench(make_bench: Callable[..., Any], host: Host) -> Any:
    """An open panel and a volume."""
    from made_results import add_volume

    bench = make_bench()
    bench.volume = add_volume(host)
    return bench.open()
