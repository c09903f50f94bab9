"""The panel and the engine: installing, removing, and everything that may go wrong while it works."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import qt_stand_ins
import slicer
import standin_model_worker as standin
from listening import is_alive, wait_for_end
from made_results import add_volume, names, paint
from panel_bench import WORKER, segmentations
from standin_slicer import make_wheel

from PGPSAMSegmentLib import engine, enginepanel, install, preview, training

# --------------------------------------------------------------------------------------------------------- the engine


def test_without_an_engine_the_panel_says_so_and_starts_nothing(make_bench, host):
    bench = make_bench(mode="")
    add_volume(host)
    bench.widget.enter()
    assert bench.ui.engineStatus.text() == "Not installed."
    assert bench.ui.hintLabel.text() == "The engine is not installed: Auto-segment offers to do it."
    assert bench.ui.installButton.isEnabled()
    assert not bench.ui.removeButton.isEnabled()
    assert not bench.widget.timer.isActive()


def test_an_engine_that_cannot_be_used_is_not_called_missing(make_bench, tmp_path):
    bench = make_bench(mode="")
    folder = tmp_path / "engine"
    install.use_python(sys.executable, {"version": "0.1.0"}, folder)
    bench.ui.engineFolder.setCurrentPath(str(folder))
    facts = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps({**facts, "build": "cpu", "key": "of another version"}))
    bench.widget.refresh()
    reason = "it was installed for another version of this extension: repair it"
    assert bench.ui.hintLabel.text() == f"The engine cannot be used: {reason}."
    assert bench.ui.repairButton.isEnabled()


def test_auto_segment_offers_to_install_the_engine(make_bench, host, tmp_path):
    bench = make_bench(mode="")
    add_volume(host)
    bench.widget.enter()
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "torch", "2.9.0")
    bench.ui.wheelsFolder.setCurrentPath(str(wheels))
    bench.window.agrees = False
    bench.ui.autoSegmentButton.click()
    (question,) = bench.window.questions
    assert "Install the engine?" in question
    assert bench.ui.engineStatus.text() == "Not installed."


def test_a_folder_of_the_users_is_never_taken_for_the_engines(tmp_path):
    documents = tmp_path / "Documents"
    documents.mkdir()
    (documents / "thesis.txt").write_text("years of work")
    with pytest.raises(install.InstallError, match="holds other files"):
        install.use_python(sys.executable, {"version": "0.1.0"}, documents)
    with pytest.raises(install.InstallError, match="was not made by this extension"):
        install.remove(documents)
    assert [path.name for path in documents.iterdir()] == ["thesis.txt"]


def test_a_removal_that_was_stopped_by_a_file_in_use_can_be_repeated(tmp_path, monkeypatch):
    folder = tmp_path / "engine"
    install.use_python(sys.executable, {"version": "0.1.0"}, folder)
    (folder / "packages").mkdir()
    remove_tree, refused = shutil.rmtree, []

    def in_use(path, *arguments):
        if not refused:
            refused.append(path)
            raise PermissionError(13, "in use")
        remove_tree(path, *arguments)

    monkeypatch.setattr(shutil, "rmtree", in_use)
    with pytest.raises(PermissionError):
        install.remove(folder)
    assert install.status(folder).state == "broken"
    install.remove(folder)
    assert not folder.exists()


def test_a_click_before_the_engine_has_answered_still_keeps_to_the_ticks(make_bench, host):
    bench = make_bench()
    add_volume(host)
    bench.parameters.skippedOrgans = ["spleen"]
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()
    assert names(bench.parameters.outputSegmentation) == ["liver"]


def test_a_first_greeting_that_fails_is_made_up_for_by_the_next_one(make_bench, host):
    bench = make_bench()
    add_volume(host)
    engine = bench.logic._session.engine
    command, engine.command = engine.command, ["/no/such/python"]
    bench.open()
    assert "could not be started" in bench.status
    engine.command = command
    bench.segment()
    assert "2 of 2 organs found" in bench.status
    assert bench.ui.model.currentText() == "abdomen-ct: 2 organs"
    assert (bench.ui.device.count(), len(bench.organ_items())) == (2, 2)
    assert bench.ui.deviceNote.text().startswith("No GPU is used.")


def test_a_job_that_is_too_long_for_one_request_ends_with_a_line(bench, monkeypatch):
    drawn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    drawn.SetReferenceImageGeometryParameterFromVolumeNode(bench.volume)
    paint(drawn, "lesion", bench.volume, np.ones(slicer.util.arrayFromVolume(bench.volume).shape, bool))
    training.add(drawn, bench.volume)
    bench.ui.newModel.setText("mine")
    with monkeypatch.context() as short:
        short.setattr(engine, "REQUEST_LIMIT", 100)
        bench.ui.adaptButton.click()
        assert bench.ui.adaptButton.text() == "Cancel"
        bench.wait_idle()
    message = "There are more cases, or slices in them, than one job can take. Take fewer cases at a time."
    assert bench.ui.adaptStatus.text() == message
    assert bench.ui.adaptButton.text() == "Train new model"
    assert not (bench.models / "mine").exists()
    bench.ui.adaptButton.click()
    bench.wait_idle()
    assert bench.ui.adaptStatus.text() == "The model 'mine' is ready and chosen."


def test_a_model_that_is_copied_there_meanwhile_is_listed_when_the_user_comes_back(bench):
    bench.segment()
    told = bench.status
    standin.add_model(bench.models, "of-a-colleague", standin.ORGANS)
    bench.widget.exit()
    bench.open()
    assert [bench.ui.model.itemData(n) for n in range(bench.ui.model.count())] == ["abdomen-ct", "of-a-colleague"]
    assert bench.ui.model.currentText() == "abdomen-ct: 2 organs"
    assert bench.status == told
    assert bench.log.count("is ready, device cpu.") == 1


def test_a_volume_that_changes_meanwhile_gets_no_result(make_bench, host):
    """As a sequence's proxy does when another frame is shown."""
    bench = make_bench("slow")
    volume = add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "CT (segmenting)" in segmentations())
    slicer.util.arrayFromVolume(volume)[0, 0, 0] += 1
    (bench.models.parent / "go on").touch()
    bench.wait_idle()
    assert "changed while it was segmented" in bench.status
    assert segmentations() == []


def test_a_fault_in_the_preview_does_not_end_the_run(make_bench, host, monkeypatch):
    def fault(*_arguments):
        raise RuntimeError("a fault of ours")

    bench = make_bench()
    add_volume(host)
    bench.open()
    monkeypatch.setattr(preview, "show_partial", fault)
    bench.ui.autoSegmentButton.click()
    time.sleep(1)  # one look at the engine's messages then finds the preview and the end
    bench.wait_idle()
    assert "2 of 2 organs found" in bench.status
    assert bench.ui.autoSegmentButton.text() == "Auto-segment"


def test_an_installation_is_refused_with_the_reason(make_bench, tmp_path):
    bench = make_bench(mode="")
    empty = tmp_path / "wheels"
    empty.mkdir()
    bench.ui.wheelsFolder.setCurrentPath(str(empty))
    bench.ui.installButton.click()
    assert "holds no wheels" in bench.ui.installStatus.text()
    assert bench.window.questions == []
    assert bench.widget.engine.installation is None


def test_nothing_is_installed_if_the_user_says_no(make_bench, tmp_path):
    bench = make_bench(mode="")
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "torch", "2.9.0")
    bench.ui.wheelsFolder.setCurrentPath(str(wheels))
    bench.window.agrees = False
    bench.ui.installButton.click()
    (question,) = bench.window.questions
    for part in ("Install the engine?", "Folder: ", "Disk: about", "without a network"):
        assert part in question
    assert not install.default_folder().exists()


def test_install_cancel_repair_and_remove(make_bench, tmp_path):
    """Real pip, from a folder that lacks most wheels, so that it ends without a network and says why."""
    bench = make_bench(mode="")
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "torch", "2.9.0")
    bench.ui.wheelsFolder.setCurrentPath(str(wheels))
    bench.ui.installButton.click()
    assert bench.ui.installButton.text() == "Cancel"
    assert not bench.ui.installBar.isHidden()
    assert not bench.ui.engineFolder.isEnabled()
    bench.ui.installButton.click()
    bench.wait_idle()
    assert "cancelled" in bench.ui.installStatus.text().lower()
    assert bench.ui.installButton.text() == "Install..."
    assert bench.ui.engineStatus.text().startswith("Not usable: the installation was not finished")
    bench.ui.repairButton.click()
    bench.wait_idle()
    assert "holds no" in bench.ui.installStatus.text()  # the wheels of the other packages are not there
    bench.ui.removeButton.click()
    assert not install.default_folder().exists()
    assert bench.ui.engineStatus.text() == "Not installed."


def test_a_python_of_the_users_own_is_tried_before_it_is_taken(make_bench, monkeypatch, tmp_path):
    bench = make_bench(mode="")
    command = [sys.executable, str(WORKER), str(bench.models)]
    monkeypatch.setattr(install, "own_worker_command", lambda python: [python, "-c", "raise ImportError('no torch')"])
    qt_stand_ins.StandInFileDialog.answer = sys.executable
    bench.ui.ownPythonButton.click()
    bench.wait_idle()
    assert "no torch" in bench.ui.installStatus.text()
    assert bench.ui.engineStatus.text() == "Not installed."
    monkeypatch.setattr(install, "own_worker_command", lambda python: command)
    monkeypatch.setattr(install, "worker_command", lambda folder, log: command)
    bench.ui.ownPythonButton.click()
    bench.wait_idle()
    assert "runs the engine" in bench.log
    assert bench.ui.engineStatus.text().startswith("Ready")
    assert [model["name"] for model in bench.logic.models] == ["abdomen-ct"]


def test_the_trial_of_a_python_can_be_cancelled_and_ends_by_itself(make_bench, host, monkeypatch):
    bench = make_bench()
    add_volume(host)
    bench.open()
    monkeypatch.setattr(install, "own_worker_command", lambda python: [python, "-c", "import time; time.sleep(600)"])
    qt_stand_ins.StandInFileDialog.answer = sys.executable
    bench.ui.ownPythonButton.click()
    assert bench.ui.installButton.text() == "Cancel"
    assert bench.ui.installButton.isEnabled()
    assert not bench.ui.autoSegmentButton.isEnabled()
    (engine, _), is_running = bench.widget.engine._tried, bench.logic._session.engine.running
    bench.ui.installButton.click()
    assert bench.ui.installStatus.text() == "Cancelled."
    assert bench.ui.installButton.text() == "Install..."
    assert not engine.running
    assert bench.logic._session.engine.running is is_running  # the engine in use is none of its business
    assert bench.ui.autoSegmentButton.isEnabled()
    bench.wait_idle()
    monkeypatch.setattr(enginepanel, "TRIAL_S", 0.5)
    bench.ui.ownPythonButton.click()
    bench.wait_idle()
    assert "has said nothing for 0.5 seconds" in bench.ui.installStatus.text()


def test_folders_are_the_users_settings(make_bench, tmp_path):
    bench = make_bench(mode="")
    bench.ui.engineFolder.setCurrentPath(str(tmp_path / "elsewhere"))
    bench.ui.wheelsFolder.setCurrentPath(str(tmp_path / "wheels"))
    assert bench.logic.engineFolder == tmp_path / "elsewhere"
    again = make_bench(mode="")
    assert again.ui.engineFolder.currentPath == str(tmp_path / "elsewhere")
    assert again.ui.wheelsFolder.currentPath == str(tmp_path / "wheels")


def test_the_warm_engine_outlives_letters_of_a_path_and_gives_way_to_another_engine(make_bench, monkeypatch, tmp_path):
    bench = make_bench(mode="")
    monkeypatch.setattr(
        install, "worker_command", lambda folder, log: [sys.executable, str(WORKER), str(bench.models), "good"]
    )
    for name in ("engine", "engine-2"):
        install.use_python(sys.executable, {"version": "0.1.0"}, tmp_path / name)
    type_in = lambda path: bench.ui.engineFolder.setCurrentPath(str(tmp_path / path))  # noqa: E731
    type_in("engine")
    bench.wait_idle()
    pid = bench.pid
    for path in ("engine-", "engin", "engine"):
        type_in(path)
        assert is_alive(pid)
        assert bench.logic.ready == (path == "engine")
    bench.wait_idle()
    assert bench.pid == pid
    type_in("engine-2")
    bench.wait_idle()
    wait_for_end(pid)
    assert bench.pid != pid
    assert [model["name"] for model in bench.logic.models] == ["abdomen-ct"]


# ------------------------------------------------------------------------------------------------------------- faults


def test_the_volume_is_deleted_while_running(make_bench, host):
    bench = make_bench("slow")
    volume = add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "CT (segmenting)" in segmentations())
    slicer.mrmlScene.RemoveNode(volume)
    bench.wait_idle()
    assert bench.status.startswith("The volume 'CT' was removed while it was segmented.")
    assert segmentations() == []


def test_the_scene_is_closed_while_running_and_the_next_one_works(make_bench, host):
    bench = make_bench("slow")
    add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "CT (segmenting)" in segmentations())
    slicer.mrmlScene.Clear()
    bench.wait_idle()
    assert segmentations() == []
    assert "removed while it was segmented" in bench.status
    volume = add_volume(host, name="next")
    assert bench.parameters.inputVolume is volume
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "next (segmenting)" in segmentations())
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()


def test_a_second_click_cancels_and_a_third_starts_anew(make_bench, host):
    bench = make_bench("slow")
    add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()
    assert bench.status == "Cancelled; the scene is as before."
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "4 of 9" in bench.status)


def test_a_removed_model_is_named_and_leaves_the_list(make_bench, host):
    bench = make_bench()
    standin.add_model(bench.models, "spleens", [standin.ORGANS[1]])
    add_volume(host)
    bench.open()
    bench.parameters.model = "spleens"
    (bench.models / "spleens" / "model.json").unlink()
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()
    assert bench.status == "No model 'spleens'. Known: abdomen-ct"
    assert [bench.ui.model.itemData(n) for n in range(bench.ui.model.count())] == ["abdomen-ct"]
    assert "The model 'spleens' is not installed: 'abdomen-ct' is chosen instead." in bench.log
    assert names(bench.segment()) == ["liver", "spleen"]


def test_a_model_that_is_left_out_is_told_in_the_log(make_bench):
    bench = make_bench()
    standin.add_model(bench.models, "newer", standin.ORGANS, left_out="model.json: made by a newer version")
    bench.open()
    assert [bench.ui.model.itemData(n) for n in range(bench.ui.model.count())] == ["abdomen-ct"]
    assert "A model is left out. model.json: made by a newer version" in bench.log


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is not on this system"
)
def test_a_full_disk_is_one_line(make_bench, host):
    bench = make_bench("full")
    add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()
    assert "No space left on device" in bench.status
    assert "Traceback" not in bench.log
    assert segmentations() == []


def test_a_dead_engine_shows_the_end_of_its_log(make_bench, host):
    bench = make_bench("dies")
    add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait_idle()
    assert "ended unexpectedly" in bench.status
    assert "the stand-in ends here" in bench.log
    assert "The whole log: " in bench.log
    assert segmentations() == []
    assert bench.ui.autoSegmentButton.isEnabled()


def test_cleanup_while_running_leaves_no_process_and_no_preview(make_bench, host):
    bench = make_bench("slow")
    add_volume(host)
    bench.open()
    bench.ui.autoSegmentButton.click()
    bench.wait(lambda: "CT (segmenting)" in segmentations())
    pid = bench.pid
    assert is_alive(pid)
    bench.widget.cleanup()
    wait_for_end(pid)
    assert segmentations() == []
    assert not bench.widget.timer.isActive()
    assert bench.widget.Observations == []
