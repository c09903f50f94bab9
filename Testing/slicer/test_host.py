"""The host itself: what tests and the browser stand on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer
from host import make_host
from made_results import OBLIQUE, add_volume, labels_of, names, write_result

from PGPSAMSegmentLib import scene


def test_slicer_is_not_mixed_up_with_this_folder() -> None:
    """slicer-core imports every file of any folder named `slicer` on the path."""
    testing = Path(__file__).resolve().parents[1]
    program = (
        f"import sys; sys.path[:0] = [{str(testing)!r}, {str(testing / 'slicer')!r}]; import host; import slicer\n"
    )
    program += "assert not hasattr(slicer, 'make_host') and 'slicer.host' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr


def test_hierarchy_items_come_and_go_with_their_nodes(host) -> None:
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    volume = add_volume(host)
    assert hierarchy.GetItemByDataNode(volume)
    count = hierarchy.GetNumberOfItems()
    slicer.mrmlScene.RemoveNode(volume)
    assert hierarchy.GetNumberOfItems() == count - 1


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.nii.gz", "ct.mha"])
def test_volumes_are_saved_and_loaded_by_slicers_own_functions(host, tmp_path: Path, name: str) -> None:
    volume = add_volume(host, OBLIQUE)
    assert slicer.util.saveNode(volume, str(tmp_path / name))
    loaded = slicer.util.loadVolume(str(tmp_path / name))
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(loaded), slicer.util.arrayFromVolume(volume))
    sent = scene.export_volume(loaded, tmp_path)
    np.testing.assert_allclose(sent["affine"], OBLIQUE, atol=1e-4)
    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadVolume(str(tmp_path / "absent.nrrd"))


def test_it_takes_a_scene_and_logics_that_exist(tmp_path: Path) -> None:
    from trame_slicer.core import SlicerApp

    app = SlicerApp()
    host = make_host(app.scene, app.app_logic, tmp_path)
    assert slicer.mrmlScene is app.scene
    assert slicer.modules.segmentations.logic() is app.segmentations_logic
    volume = add_volume(host)
    node = scene.show_result(volume, write_result(tmp_path / "out", labels_of()))
    assert node.GetScene() is app.scene
    assert len(names(node)) == 3
    host.close()
