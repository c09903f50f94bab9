"""The Logic without a panel: jobs over real MRML, with a stand-in worker that makes boxes, once with the real one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
import standin_model_worker as standin
from listening import is_alive, wait_for_end
from made_results import add_volume, mask_of, names, paint

from PGPSAMSegment import PGPSAMSegmentLogic
from PGPSAMSegmentLib import grid, heldfolder, install, nodes, training
from PGPSAMSegmentLib.engine import Engine, EngineBusy
from PGPSAMSegmentLib.enginefolder import try_lock
from PGPSAMSegmentLib.nodes import SceneError
from PGPSAMSegmentLib.session import JobError

ROOT = Path(__file__).resolve().parents[2]
LIVER, SPLEEN = standin.ORGANS


class End:
    """What the callbacks of one job were told."""

    def __init__(self, logic):
        self.logic, self.progress, self.done, self.errors = logic, [], [], []
        self.calls = {
            "onProgress": self.progress.append,
            "onDone": lambda result, event: self.done.append((result, event)),
            "onError": self.errors.append,
        }

    def wait(self, patience_s=120.0, until=None):
        """Polls until the job's end, or until something is so."""
        limit = time.monotonic() + patience_s
        while not (until() if until else self.done or self.errors):
            self.logic.poll()
            assert time.monotonic() < limit, f"no end after {patience_s} s: {self.progress}"
            time.sleep(0.02)
        return self

    @property
    def result(self):
        """What a good end brought: (result, event)."""
        self.wait()
        assert not self.errors, self.errors
        return self.done[0]


def greeted(logic):
    end = End(logic)
    logic.hello(lambda event: end.done.append((None, event)), end.errors.append)
    return end.result[1]


def pid_of(logic):
    return logic.facts["pid"]


def node_ids():
    scene = slicer.mrmlScene
    return {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}


# ------------------------------------------------------------------------------------------------- segmentation


def test_a_volume_is_segmented_with_progress_and_the_callbacks_come_only_from_poll(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    end = End(logic)
    logic.segment(volume, organs=["liver", "spleen"], **end.calls)
    assert logic.busy
    time.sleep(1)
    assert [end.progress, end.done, end.errors] == [[], [], []]
    node, event = end.result
    assert [e["stage"] for e in end.progress] == ["load", "slices"]
    labels = standin.boxes(slicer.util.arrayFromVolume(volume).shape, standin.ORGANS)
    assert names(node) == ["liver", "spleen"]
    for organ in standin.ORGANS:
        np.testing.assert_array_equal(mask_of(node, organ["name"], volume), labels == organ["id"])
    assert event["device"] == "cpu"
    assert not logic.busy
    for role in nodes.COMPANIONS:
        assert nodes.companion(node, role) is not None


def test_the_engine_is_greeted_before_its_first_job_and_stays_warm(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    assert logic.models == []
    first, second = End(logic), End(logic)
    logic.segment(volume, **first.calls)
    first.wait()
    pid = pid_of(logic)
    assert [model["name"] for model in logic.models] == ["abdomen-ct"]
    logic.segment(volume, first.done[0][0], **second.calls)
    assert second.result
    assert greeted(logic)["pid"] == pid


def test_finished_slices_show_while_the_others_are_waited_for(host, make_logic):
    logic, volume = make_logic("slow"), add_volume(host)
    end = End(logic)
    logic.segment(volume, **end.calls)
    end.wait(
        until=lambda: "CT (segmenting)" in {n.GetName() for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}
    )
    preview = slicer.util.getNode("CT (segmenting)")
    liver = mask_of(preview, "liver", volume)
    assert liver[1].any()
    assert not liver[len(liver) // 2 :].any()
    logic.cancel()
    end.wait()
    assert [error["kind"] for error in end.errors] == ["cancelled"]


def test_a_cancelled_run_leaves_the_scene_as_it_was(host, make_logic):
    logic, volume = make_logic("slow"), add_volume(host)
    before, end = node_ids(), End(logic)
    logic.segment(volume, **end.calls)
    end.wait(until=lambda: node_ids() != before)
    logic.cancel()
    end.wait()
    assert not end.done
    # What MRML shares among nodes stays: the subject hierarchy and the colours of new display nodes.
    left = {slicer.mrmlScene.GetNodeByID(i).GetClassName() for i in node_ids() - before}
    assert left <= {"vtkMRMLSubjectHierarchyNode", "vtkMRMLColorTableNode"}
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_a_cancel_before_the_greeting_is_answered_ends_the_job(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    end = End(logic)
    logic.segment(volume, **end.calls)
    logic.cancel()
    assert [error["kind"] for error in end.wait().errors] == ["cancelled"]
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_two_clicks_at_once_start_one_run(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    first, second = End(logic), End(logic)
    logic.segment(volume, **first.calls)
    with pytest.raises(EngineBusy, match="busy with 'segment'"):
        logic.segment(volume, **second.calls)
    assert first.result
    assert [second.done, second.errors] == [[], []]
    assert (
        len([n for n in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if names(n) == ["liver", "spleen"]]) == 2
    )
    # One is the result, the other its prompts.


def test_a_corrected_segment_stays_unless_the_user_wants_otherwise(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    node = logic.segmentAndWait(volume)
    mine = np.zeros(slicer.util.arrayFromVolume(volume).shape, bool)
    mine[4, 4, 4] = True
    paint(node, "liver", volume, mine)
    logic.segmentAndWait(volume, node)
    assert names(node) == ["liver", "spleen", "liver (2)"]
    np.testing.assert_array_equal(mask_of(node, "liver", volume), mine)
    logic.segmentAndWait(volume, node, organs=["liver"], overwrite=True)
    assert mask_of(node, "liver", volume).sum() > 1
    logic.undo()
    np.testing.assert_array_equal(mask_of(node, "liver", volume), mine)


def test_a_script_gets_its_error_as_an_exception(host, make_logic):
    logic, volume = make_logic("dies"), add_volume(host)
    with pytest.raises(JobError, match=r"ended unexpectedly .*the stand-in ends here") as caught:
        logic.segmentAndWait(volume)
    assert caught.value.kind == "died"
    assert "\n" not in str(caught.value)
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


# -------------------------------------------------------------------------------------------------------- faults


def test_a_volume_that_is_deleted_meanwhile_ends_the_run(host, make_logic):
    logic, volume = make_logic("slow"), add_volume(host)
    end = End(logic)
    logic.segment(volume, **end.calls)
    end.wait(until=lambda: end.progress)
    slicer.mrmlScene.RemoveNode(volume)
    (error,) = end.wait(patience_s=20).errors
    assert (error["kind"], error["message"]) == ("scene", "the volume 'CT' was removed while it was segmented")
    assert error["hint"]
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert not logic.busy


def test_a_scene_that_is_closed_meanwhile_stays_empty(host, make_logic):
    logic, volume = make_logic("slow"), add_volume(host)
    end = End(logic)
    logic.segment(volume, **end.calls)
    end.wait(until=lambda: end.progress)
    slicer.mrmlScene.Clear()
    (error,) = end.wait(patience_s=20).errors
    assert "removed while it was segmented" in error["message"]
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    fresh = End(logic)
    logic.segment(add_volume(host, name="next"), **fresh.calls)
    fresh.wait(until=lambda: fresh.progress)


def test_a_target_that_is_deleted_meanwhile_does_not_cost_the_result(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    node = logic.segmentAndWait(volume)
    end = End(logic)
    logic.segment(volume, node, **end.calls)
    slicer.mrmlScene.RemoveNode(node)
    other = end.result[0]
    assert other is not node
    assert names(other) == ["liver", "spleen"]


def test_a_model_whose_folder_is_gone_is_named(host, make_logic, models):
    standin.add_model(models, "my-liver", [LIVER])
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    (models / "my-liver" / "model.json").unlink()
    with pytest.raises(JobError, match=r"no model 'my-liver'\. Known: abdomen-ct"):
        logic.segmentAndWait(volume, model="my-liver")


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is not on this system"
)
def test_a_full_disk_at_the_result_is_told(host, make_logic):
    logic, volume = make_logic("full"), add_volume(host)
    with pytest.raises(JobError, match="No space left on device"):
        logic.segmentAndWait(volume)
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="/dev/full, a disk that is always full, is not on this system"
)
def test_a_full_disk_at_the_start_is_told_before_anything_runs(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    folder = logic._temporary() / "job-1"
    folder.mkdir()
    (folder / "v.npy").symlink_to("/dev/full")
    with pytest.raises(SceneError, match="nothing could be handed to the engine: No space left on device"):
        logic.segment(volume)
    assert not logic.busy


def test_a_dead_engine_is_told_and_replaced(host, make_logic, models, tmp_path):
    logic, volume = make_logic("slow"), add_volume(host)
    end = End(logic)
    logic.segment(volume, **end.calls)
    end.wait(until=lambda: end.progress)
    os.kill(pid_of(logic), 9)
    (error,) = end.wait().errors
    assert "lack of memory (signal 9" in error["message"]
    assert Path(error["log_path"]).is_file()
    again = End(logic)
    logic.segment(volume, **again.calls)
    again.wait(until=lambda: again.progress)


def test_closing_while_running_leaves_no_process_no_preview_and_no_files(host, make_logic):
    logic, volume = make_logic("slow"), add_volume(host)
    end = End(logic)
    logic.segment(volume, **end.calls)
    end.wait(until=lambda: slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    pid, scratch = pid_of(logic), logic._temporary()
    assert is_alive(pid)
    assert any(scratch.iterdir())
    logic.close()
    wait_for_end(pid)
    assert not scratch.exists()
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_what_cannot_begin_says_why_and_changes_nothing(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    with pytest.raises(SceneError, match="no volume is selected"):
        logic.segment(None)
    with pytest.raises(SceneError, match="no organ is ticked"):
        logic.segment(volume, organs=[])
    with pytest.raises(SceneError, match="no run to undo"):
        logic.undo()
    assert not logic.waiting


def test_without_an_engine_the_message_says_what_to_do(host, tmp_path):
    logic = PGPSAMSegmentLogic()
    logic.engineFolder = tmp_path / "nothing"
    assert not logic.ready
    with pytest.raises(install.InstallError, match="Install or repair it"):
        logic.segment(add_volume(host))
    with pytest.raises(install.InstallError, match="not installed"):
        logic.hello()
    logic.close()
    assert not (tmp_path / "nothing").exists()


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the engine's packages are absent")
@pytest.mark.parametrize("writable", [True, False])
def test_the_engines_log_is_there_after_slicer_has_ended(host, tmp_path, monkeypatch, writable):
    """The real worker, in a folder of the engine's; another folder in the log's place stands for one without room."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    logic = PGPSAMSegmentLogic()
    logic.engineFolder = tmp_path / "engine"
    log = logic.engineFolder / "engine.log"
    install.use_python(sys.executable, {"version": "0.1.0"}, logic.engineFolder)
    if not writable:
        log.mkdir()
        (tmp_path / "data" / "PGPSAMSegment" / "engine.log").mkdir(parents=True)
    pid = greeted(logic)["pid"]
    logic.close()
    wait_for_end(pid)
    assert not writable or f"worker {pid} begins" in log.read_text(encoding="utf-8")
    install.remove(logic.engineFolder)
    assert not logic.engineFolder.exists()


# ----------------------------------------------------------------------------------------------------- training


def drawn(host, volume, *organs, name="mine"):
    """A segmentation of the user's own: a block for each organ."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for n, organ in enumerate(organs):
        mask = np.zeros(slicer.util.arrayFromVolume(volume).shape, bool)
        mask[2:4, 1 + 3 * n : 3 + 3 * n, 3:6] = True
        paint(node, organ, volume, mask)
    return node


def trained(logic, models, name, **options):
    end = End(logic)
    logic.adapt(name, **options, **end.calls)
    assert end.result[0] == name
    return json.loads((models / name / "told.json").read_text())


def test_the_models_of_the_organs_are_the_start_of_a_training(host, make_logic, models):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "spleen", "liver"), volume)
    told = trained(logic, models, "my-organs", steps=7)
    assert (told["start_from"], told["iterations"], told["method"]) == ("abdomen-ct", 7, "pgp")
    assert told["settings"] is None, "the engine keeps what other patients need"
    assert [(o["id"], o["name"]) for o in told["labels"]] == [(6, "liver"), (1, "spleen")]
    assert told["cases"] == [[list(slicer.util.arrayFromVolume(volume).shape), [0, 1, 6], None]]
    greeted(logic)
    assert [model["name"] for model in logic.models] == ["abdomen-ct", "my-organs"]


def test_other_organs_go_on_from_the_model_as_well(host, make_logic, models):
    """What it knows keeps its id, what is new gets a free one: 1 is the spleen's."""
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "my lesion", "liver", "vein"), volume)
    plan = training.plan(training.cases(), logic.models[0])
    assert plan == training.Plan({"liver": 6, "my lesion": 2, "vein": 3}, ["my lesion", "vein"], ["spleen"], [])
    told = trained(logic, models, "lesions")
    assert (told["start_from"], told["method"]) == ("abdomen-ct", "pgp")
    assert told["iterations"] is None, "the engine knows how many serve"
    assert [(o["id"], o["name"]) for o in told["labels"]] == [(6, "liver"), (2, "my lesion"), (3, "vein")]
    assert told["labels"][0] == LIVER
    assert told["cases"][0][1] == [0, 2, 3, 6]


def test_an_organ_that_is_spelled_otherwise_is_not_called_new(host, make_logic, models):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "Liver", "SPLEEN"), volume)
    assert training.plan(training.cases(), logic.models[0]) == training.Plan({"spleen": 1, "liver": 6}, [], [], [])


def test_a_training_before_the_engine_has_told_its_models_says_so(host, make_logic, models):
    logic, volume = make_logic(), add_volume(host)
    training.add(drawn(host, volume, "liver"), volume)
    with pytest.raises(SceneError, match="the engine has not told yet which models it has"):
        logic.adapt("mine")
    greeted(logic)
    assert trained(logic, models, "mine")


def test_corrected_slices_alone_are_learnt_from(host, make_logic, models):
    logic, volume = make_logic(), add_volume(host)
    node = logic.segmentAndWait(volume)
    with pytest.raises(SceneError, match="nothing was corrected"):
        training.add(node, volume, corrected=True)
    liver = mask_of(node, "liver", volume)
    liver[4, 2, 2] = False
    liver[6, 2, 2] = False
    paint(node, "liver", volume, liver)
    training.add(node, volume, corrected=True)
    told = trained(logic, models, "corrected")
    assert told["start_from"] == "abdomen-ct"
    assert [case[2] for case in told["cases"]] == [[4, 6]]


def test_cases_of_different_organs_are_refused(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver", name="first"), volume)
    training.add(drawn(host, volume, "liver", "spleen", name="second"), volume)
    with pytest.raises(SceneError, match=r"'first' has no segment 'spleen', and another case has.*empty segment"):
        logic.adapt("mixed")
    slicer.util.getNode("first").GetSegmentation().AddEmptySegment("", "spleen")
    end = End(logic)
    logic.adapt("mixed", **end.calls)
    assert end.result


@pytest.mark.parametrize("name", ['the "duct"', "liver|left", "liver\tleft", "liver\nleft"])
def test_an_organ_name_that_a_scene_would_not_keep_is_refused_before_training(host, make_logic, models, name):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver", name), volume)
    with pytest.raises(SceneError, match="a saved scene does not keep the organ name") as caught:
        logic.adapt("mine")
    assert caught.value.hint.startswith("Rename the segment")
    assert "\n" not in str(caught.value)
    assert not logic.busy
    assert not (models / "mine").exists()


def test_a_segmentation_of_another_volume_is_no_case(host, make_logic):
    volume, other = add_volume(host), add_volume(host, shape=(4, 5, 6), name="other")
    node = drawn(host, volume, "liver")
    with pytest.raises(SceneError, match="does not lie on the voxels of the volume 'other'"):
        training.add(node, other)
    assert training.cases() == []


def test_a_segmentation_drawn_outside_its_volumes_transform_is_a_case(host, make_logic, models):
    """Slicer then writes the segmentation's grid with the transform applied: both lie in one place all the same."""
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    turn = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "turn")
    matrix = np.array([[0.0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
    turn.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    volume.SetAndObserveTransformNodeID(turn.GetID())
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    mask = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
    mask[2:4, 3:5, 6:9] = 1
    # Not `paint`, which takes no notice of the transform; the Segment Editor works on the segmentation's grid.
    node.AddSegmentFromBinaryLabelmapRepresentation(grid.labelmap(mask, grid.ijk_to_world(volume)), "my lesion")
    training.add(node, volume)
    assert trained(logic, models, "lesions")["cases"] == [[list(mask.shape), [0, 2], None]]
    node.SetAndObserveTransformNodeID(turn.GetID())  # now it lies elsewhere
    with pytest.raises(SceneError, match="and put both under the same transform"):
        training.add(node, volume)


def test_a_segmentation_made_from_a_label_map_is_a_case(host, make_logic, models):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    labels = slicer.modules.volumes.logic().CreateAndAddLabelVolume(volume, "drawn elsewhere")
    mask = slicer.util.arrayFromVolume(labels)
    mask[2:4, 3:5, 6:9] = 1
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "imported")
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
    training.add(node, volume)
    assert trained(logic, models, "lesions")["cases"] == [[list(mask.shape), [0, 2], None]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no name"),
        ("my liver", "cannot name a model"),
        ("../x", "cannot name"),
        ("my-liver.", "cannot name"),
        ("Con", "cannot name"),
        ("abdomen-ct", "already"),
        ("Abdomen-CT", "already"),
    ],
)
def test_names_that_cannot_be_are_refused(host, make_logic, name, message):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver"), volume)
    with pytest.raises(SceneError, match=message):
        logic.adapt(name)


def test_a_cancelled_training_leaves_no_model(host, make_logic, models):
    logic, volume = make_logic("slow"), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver"), volume)
    end = End(logic)
    logic.adapt("half", **end.calls)
    end.wait(until=lambda: (models / "half").exists())
    logic.cancel()
    assert [error["kind"] for error in end.wait().errors] == ["cancelled"]
    assert not (models / "half").exists()


def test_a_cancel_that_comes_after_the_model_is_none(host, make_logic, models):
    logic, volume = make_logic("slow"), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver"), volume)
    end = End(logic)
    logic.adapt("done", **end.calls)
    end.wait(until=lambda: end.progress)
    standin.add_model(models, "done", [LIVER])  # written, and not yet told
    logic.cancel()
    name, event = end.result
    assert (name, event["event"], event["folder"]) == ("done", "done", str(models / "done"))
    assert sorted(path.name for path in models.iterdir()) == ["abdomen-ct", "done"]


def test_two_slicers_do_not_train_one_name(host, make_logic, models, tmp_path):
    """Two Logics and their workers, as two Slicers have them."""
    one, other, volume = make_logic("slow"), make_logic("slow"), add_volume(host)
    for logic in (one, other):
        greeted(logic)
    training.add(drawn(host, volume, "liver"), volume)
    end = End(one)
    one.adapt("ours", **end.calls)
    with pytest.raises(SceneError, match="a model 'ours' is being trained, or was not finished"):
        other.adapt("ours")
    second = End(other)
    other.adapt("theirs", **second.calls)
    second.wait(until=lambda: second.progress)
    other.cancel()
    assert [error["kind"] for error in second.wait().errors] == ["cancelled"]
    (tmp_path / "data" / "pgpsam" / "go on").touch()
    assert end.result[0] == "ours"
    assert (models / "ours" / "model.json").is_file()
    assert sorted(path.name for path in models.iterdir()) == ["abdomen-ct", "ours"]


def test_a_training_that_cannot_begin_leaves_its_name_free(host, make_logic, models):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver", name="first"), volume)
    training.add(drawn(host, volume, "liver", "spleen", name="second"), volume)
    with pytest.raises(SceneError, match="has no segment"):
        logic.adapt("mixed")
    assert [path.name for path in models.iterdir()] == ["abdomen-ct"]


def test_a_models_folder_that_the_system_refuses_is_one_clear_error(host, make_logic, models):
    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver"), volume)
    shutil.rmtree(models)
    models.write_text("a file in its place")
    with pytest.raises(SceneError, match=f"cannot make {models / 'mine'}: Not a directory. Check the disk"):
        logic.adapt("mine")
    assert not logic.busy


CRASHING_SLICER = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from host import make_host
host = make_host(temporary=Path(sys.argv[3]))
from test_logic import *
worker = [sys.executable, standin.__file__, str(training.models_folder()), "slow"]
logic, volume = PGPSAMSegmentLogic(lambda: Engine(worker, Path(sys.argv[3]) / "engine")), add_volume(host)
greeted(logic)
training.add(drawn(host, volume, "liver"), volume)
end = End(logic)
logic.adapt("my-liver", **end.calls)
end.wait(until=lambda: end.progress)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such end of a process")
def test_what_a_crashed_slicer_leaves_blocks_no_name_and_goes(host, make_logic, models):
    """A real process with real MRML, killed in the middle of a training."""
    temporary = Path(slicer.app.temporaryPath)
    folders = [str(Path(__file__).parent), str(ROOT / "PGPSAMSegment"), str(temporary)]
    done = subprocess.run(
        [sys.executable, "-c", CRASHING_SLICER, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    (models / "my-liver" / "training.pt").write_bytes(b"as the real one leaves it")
    (exported,) = temporary.glob("PGPSAMSegment-*/job-1")
    stopped = models / "by-hand"  # on the command line, where --resume goes on
    stopped.mkdir()
    (stopped / "training.pt").write_bytes(b"weights")

    logic, volume = make_logic(), add_volume(host)
    greeted(logic)
    training.add(drawn(host, volume, "liver"), volume)
    with pytest.raises(SceneError, match="was not finished"):
        logic.adapt("by-hand")
    assert trained(logic, models, "my-liver")
    assert not exported.parent.exists()
    assert sorted(path.name for path in models.iterdir()) == ["abdomen-ct", "by-hand", "my-liver"]
    assert not (models / "my-liver" / "training.pt").exists()
    assert (stopped / "training.pt").read_bytes() == b"weights"
    assert len(list(temporary.glob("PGPSAMSegment-*"))) == 2  # the new Logic's folder and its lock
    logic.close()
    assert list(temporary.glob("PGPSAMSegment-*")) == []


def test_a_model_that_a_crash_left_finished_stays(models, tmp_path):
    """What is left beside it is a lock that nobody holds."""
    standin.add_model(models, "my-liver", [LIVER])
    for name in ("my-liver", "half"):
        (models / name).mkdir(exist_ok=True)
        (models / (name + heldfolder.LOCK)).touch()
    (models / heldfolder.LOCK).touch()
    heldfolder.sweep(models)
    (models / heldfolder.LOCK).unlink()  # of nobody's folder
    assert sorted(path.name for path in models.iterdir()) == ["abdomen-ct", "my-liver"]


def test_a_folder_that_was_made_anew_during_a_sweep_stays(tmp_path, monkeypatch):
    """One sweep has opened the lock of a crash when another one clears it away and a new training takes the name."""
    folder, lock, held = tmp_path / "m", tmp_path / f"m{heldfolder.LOCK}", []
    folder.mkdir()
    lock.touch()

    def late(file: Any) -> bool:
        if not held:
            held.append(None)
            lock.unlink()
            held.append(heldfolder.HeldFolder(folder))
        return try_lock(file)

    monkeypatch.setattr(heldfolder, "try_lock", late)
    heldfolder.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", lock.name]
    held[1].remove()
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_that_was_cleaned_away_is_made_anew_for_the_user_alone(host, make_logic):
    logic, volume = make_logic(), add_volume(host)
    logic.segmentAndWait(volume)
    shutil.rmtree(logic._temporary())
    assert names(logic.segmentAndWait(volume)) == ["liver", "spleen"]
    assert os.name == "nt" or logic._temporary().stat().st_mode & 0o777 == 0o700


def test_a_python_of_the_users_own_that_lacks_a_package_is_not_to_be_repaired(host, tmp_path):
    """Repair is greyed out for it. A real worker, whose Python has no packages."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    logic = PGPSAMSegmentLogic()
    logic.engineFolder = tmp_path / "engine"
    install.use_python(str(python), {}, logic.engineFolder)
    end = End(logic)
    logic.hello(onError=end.errors.append)
    (error,) = end.wait().errors
    logic.close()
    assert "No module named" in error["message"]
    assert error["hint"].startswith("Install pgpsam in this Python again")


def test_new_models_go_where_the_command_line_finds_them(host, models):
    from pgpsam.models import lookup

    assert training.models_folder() in lookup.model_folders()


# -------------------------------------------------------------------------------------------- the real engine


@pytest.mark.data
def test_the_real_engine_segments_a_crop(host, shared_data, tmp_path):
    """Eight slices through the liver of a real CT; PGPSAM_TEST_MODEL may name another model than the shipped one."""
    model = os.environ.get("PGPSAM_TEST_MODEL", "abdomen-ct")
    whole = slicer.util.loadVolume(str(shared_data / "samples" / "ts_abdomen_ct.nii.gz"))
    first = 92
    array = slicer.util.arrayFromVolume(whole)[first : first + 8].copy()
    matrix = slicer.util.vtkMatrixFromArray(crop_affine(whole, first))
    volume = slicer.util.addVolumeFromArray(array, matrix, "crop")
    logic = PGPSAMSegmentLogic(lambda: Engine([sys.executable, "-m", "pgpsam", "worker"], tmp_path / "engine"))
    try:
        node = logic.segmentAndWait(volume, organs=["liver", "spleen"], model=model, device="cpu")
        with pytest.raises(JobError, match="no model 'gone'"):
            logic.segmentAndWait(volume, model="gone")
        pid = pid_of(logic)
    finally:
        logic.close()
    wait_for_end(pid)
    reference = slicer.util.loadLabelVolume(str(shared_data / "samples" / "ts_abdomen_seg.nii.gz"))
    theirs = slicer.util.arrayFromVolume(reference)[first : first + 8] == 6
    ours = mask_of(node, "liver", volume)
    dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
    assert dice > 0.7, f"the liver agrees with the sample's own by {dice:.2f} only"


def crop_affine(volume, first):
    from PGPSAMSegmentLib.grid import ijk_to_ras

    affine = ijk_to_ras(volume)
    affine[:3, 3] += first * affine[:3, 2]
    return affine
