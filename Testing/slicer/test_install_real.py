"""The engine installed for real, offline, from real wheels, and a real CT segmented by what was installed.

Slow, and it needs a folder of wheels, named by PGPSAM_TEST_WHEELS: `pip download -d FOLDER -r requirements.txt`
with the list of PGPSAMSegmentLib. Only Slicer's own Python stands in: it is the one of this environment.
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from listening import Ear
from standin_slicer import fingerprint

from pgpsam.exchange import LABELS
from PGPSAMSegmentLib import install
from PGPSAMSegmentLib.engine import Engine

WHEELS = os.environ.get("PGPSAM_TEST_WHEELS", "")


@pytest.mark.slow
@pytest.mark.skipif(not WHEELS, reason="PGPSAM_TEST_WHEELS does not name a folder of wheels")
def test_a_full_installation_segments_a_real_ct(host, tmp_path: Path, shared_data: Path) -> None:
    import slicer

    from PGPSAMSegmentLib import scene

    folder = tmp_path / os.fsdecode("Maschine für alle".encode()) / "engine"
    own = [Path(str(find_spec(name).origin)).parent for name in ("numpy", "SimpleITK")]  # as Slicer has them
    before = [fingerprint(path) for path in own]
    plan = install.make_plan(folder, wheels=Path(WHEELS))
    assert plan.problems == []
    events: list[dict] = []
    started = time.monotonic()
    work = install.Installation(plan, events.append, dict(os.environ))
    while work.busy:
        work.poll()
        assert time.monotonic() - started < 1800, events[-1:]
        time.sleep(0.2)
    assert events[-1] == {"event": "done"}, events[-1]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"installed in {time.monotonic() - started:.0f} s, {size / 1e9:.2f} GB")

    assert install.status(folder).state == "ready"
    assert [fingerprint(path) for path in own] == before
    volume = slicer.util.loadVolume(str(shared_data / "samples" / "ts_abdomen_ct.nii.gz"))
    sent = scene.export_volume(volume, tmp_path)
    engine = Engine(install.worker_command(folder), tmp_path / "scratch")
    ear = Ear(engine)
    try:
        done = ear.ask("segment", patience_s=900, **sent, model="abdomen-ct", device="cpu", out=str(tmp_path / "out"))
    finally:
        engine.close()
    assert done["event"] == "done", done
    assert np.load(tmp_path / "out" / LABELS).any()
