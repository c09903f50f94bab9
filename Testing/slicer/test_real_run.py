"""Real volumes: what Slicer hands out is what the engine reads itself, and a real worker's result goes in."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
from listening import Ear
from made_results import add_volume, mask_of, names

from pgpsam.volume import Volume, read_volume
from PGPSAMSegmentLib import corrections, nodes, preview, review, scene, table
from PGPSAMSegmentLib.engine import Engine


@pytest.mark.parametrize("name", ["chest_ct_lps.nii.gz", "ts_abdomen_ct.nii.gz", "head_ct.nii.gz"])
def test_slicers_volume_is_the_engines(host, tmp_path: Path, shared_data: Path, name: str) -> None:
    path = shared_data / "samples" / name
    sent = scene.export_volume(slicer.util.loadVolume(str(path)), tmp_path)
    ours = Volume.from_kji(np.load(sent["volume"]), np.array(sent["affine"]))
    theirs = read_volume(path)
    np.testing.assert_array_equal(ours.array, theirs.array)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


def test_a_real_workers_result_goes_in(host, tmp_path: Path, shared_data: Path) -> None:
    whole = slicer.util.loadVolume(str(shared_data / "samples" / "ts_abdomen_ct.nii.gz"))
    array = slicer.util.arrayFromVolume(whole)
    low = len(array) // 2
    few = np.ascontiguousarray(array[low : low + 12])
    affine = scene.export_volume(whole, tmp_path)["affine"]
    volume = add_volume(host, np.array(affine), few.shape)
    slicer.util.updateVolumeFromArray(volume, few)
    sent = scene.export_volume(volume, tmp_path)
    engine = Engine([sys.executable, "-m", "pgpsam", "worker"], tmp_path / "scratch", hang_s=900.0)
    ear, out = Ear(engine), tmp_path / "out"
    try:
        done = ear.ask("segment", patience_s=900, **sent, model="abdomen-ct", device="cpu", out=str(out), partial=True)
    finally:
        engine.close()
    assert done["event"] == "done", done
    partial = preview.show_partial(volume, out / "labels.npy", done["label_set"])
    assert partial.GetSegmentation().GetNumberOfSegments() == len(done["label_set"])
    node = scene.show_result(volume, done, folder=out)
    labels = np.load(out / "labels.npy")
    found = [organ["name"] for organ in done["label_set"] if (labels == organ["id"]).any()]
    assert names(node) == found
    assert "liver" in found
    for organ in done["label_set"]:
        if organ["name"] in found:
            np.testing.assert_array_equal(mask_of(node, organ["name"], volume), labels == organ["id"])
    assert set(table.rows(node)) == {organ["name"] for organ in done["organs"]}
    points = nodes.companion(node, nodes.POINTS)
    assert points.GetNumberOfControlPoints() > 0
    assert all(change.changed == 0 for change in corrections.changes(node))
    assert all(item.organ in found and 0 <= item.slice < len(few) for item in review.items(node))
    for item in review.items(node):
        print(f"{item.organ:30} {item.slices:8} {item.confidence:.2f} {item.score:.2f}")
