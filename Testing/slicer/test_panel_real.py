"""The panel with the real engine on a real CT: slices to annotate, and a model trained on corrected slices."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import panel_bench
import pytest
import slicer
from made_results import mask_of, names, paint

from PGPSAMSegment import PGPSAMSegmentLogic
from PGPSAMSegmentLib import install, suggestions, training
from PGPSAMSegmentLib.engine import Engine
from PGPSAMSegmentLib.grid import ijk_to_ras

FIRST, SLICES = 92, 4  # of the sample: liver, spleen and kidneys


@pytest.fixture
def bench(host, shared_data, tmp_path, monkeypatch):
    """An open panel with the shipped model, and four slices of a CT."""
    import qt_stand_ins

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(panel_bench, "PATIENCE_S", 1200.0)
    command = install.own_worker_command(sys.executable)
    logic = PGPSAMSegmentLogic(lambda: Engine(command, tmp_path / "engine", hang_s=1200.0))
    window = qt_stand_ins.install_qt(host.app, tmp_path / "settings")
    bench = panel_bench.Bench(host, window, training.models_folder(), logic)
    bench.volume = crop(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    yield bench.open()
    bench.widget.cleanup()
    qt_stand_ins.remove_qt(window)


def crop(path):
    whole = slicer.util.loadVolume(str(path))
    affine = ijk_to_ras(whole)
    affine[:3, 3] += FIRST * affine[:3, 2]
    array = slicer.util.arrayFromVolume(whole)[FIRST : FIRST + SLICES].copy()
    slicer.mrmlScene.RemoveNode(whole)
    return slicer.util.addVolumeFromArray(array, slicer.util.vtkMatrixFromArray(affine), "crop")


SHIPPED = sorted(folder.name for folder in (Path(__file__).parents[2] / "Resources" / "Models").iterdir())


def models_listed(bench):
    return [bench.ui.model.itemData(n) for n in range(bench.ui.model.count())]


def test_the_engine_suggests_slices_to_annotate(bench, host):
    view, _ = host.add_view()
    bench.ui.inputVolume.setCurrentNode(bench.volume)
    bench.ui.suggestButton.click()
    bench.wait_idle()
    places = suggestions.of(bench.volume)
    assert places, bench.log
    assert len({place.slice for place in places}) == len(places) == bench.ui.suggestions.count() <= SLICES
    bench.ui.suggestions.setCurrentRow(len(places) - 1)
    place = ijk_to_ras(bench.volume) @ [0, 0, places[-1].slice, 1]
    assert view.GetSliceOffset() == pytest.approx(place[2])


@pytest.mark.slow
def test_corrected_slices_train_a_model_that_is_chosen_and_segments(bench):
    bench.ui.inputVolume.setCurrentNode(bench.volume)
    node = bench.segment()
    liver = mask_of(node, "liver", bench.volume)
    assert liver.any(), bench.log
    corrected = liver.copy()
    for n in (1, 2):  # the user cuts the liver's left half off in two slices
        columns = np.flatnonzero(corrected[n].any(axis=0))
        corrected[n, :, columns[len(columns) // 2] :] = False
    paint(node, "liver", bench.volume, corrected)
    bench.ui.useCorrectedButton.click()
    assert bench.ui.cases.item(0).text() == f"corrected slices of {node.GetName()}"

    # A long training is cancelled in its middle, and the engine stays usable.
    bench.ui.newModel.setText("my-liver")
    bench.ui.steps.setValue(500)
    bench.ui.adaptButton.click()
    bench.wait(lambda: re.match(r"Training: [1-9]\d* of 500, loss ", bench.ui.adaptStatus.text()), "a training step")
    assert not bench.ui.adaptBar.isHidden()
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "Cancelled; no model was made."
    assert not (training.models_folder() / "my-liver").exists()
    assert models_listed(bench) == SHIPPED

    # A short one makes a model.
    said = []
    bench.ui.adaptBar.valueChanged.connect(said.append)
    bench.ui.steps.setValue(2)
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "The model 'my-liver' is ready and chosen.", bench.log
    assert 50 in said  # the first of two steps
    assert sorted(models_listed(bench)) == [*SHIPPED, "my-liver"]
    assert bench.parameters.model == "my-liver"
    facts = (training.models_folder() / "my-liver" / "model.json").read_text(encoding="utf-8")
    assert "annotated in 3D Slicer" in facts

    # And it segments, into a segmentation of its own.
    bench.ui.outputSegmentation.setCurrentNode(None)
    result = bench.segment()
    assert "with 'my-liver'" in bench.log
    assert result is not node
    assert "liver" in names(result)
    again = mask_of(result, "liver", bench.volume)
    dice = 2 * (again & liver).sum() / (again.sum() + liver.sum())
    assert dice > 0.5, f"two steps changed the liver beyond recognition: Dice {dice:.2f}"
