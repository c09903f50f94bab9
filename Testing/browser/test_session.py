"""What the page says of volumes and runs, without a browser: the real session on real MRML, with a stand-in worker.

The views and trame's state are stood in for; `test_browser.py` has the real ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "PGPSAMSegment"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "slicer"))

from host import Host, make_host, slicer  # it must be the first to import slicer
from made_files import BROKEN, write_nifti, write_series
from made_results import OBLIQUE
from vtkmodules.vtkCommonMath import vtkMatrix4x4


class State(SimpleNamespace):
    """Trame's state; `choose` changes it as the page does."""

    def __init__(self) -> None:
        super().__init__(calls={})

    def update(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)

    def change(self, name: str) -> Callable[[Any], None]:
        return lambda call: self.calls.__setitem__(name, call)

    def choose(self, name: str, value: Any) -> None:
        setattr(self, name, value)
        self.calls[name]()


class Views:
    """Notes the volume that it is to show."""

    def __init__(self) -> None:
        self.shown: Any = None

    def show_volume(self, volume: Any) -> None:
        self.shown = volume

    def show_organs(self, segmentationNode: Any) -> None: ...

    def fit_at_resize(self) -> None: ...

    def draw(self) -> None: ...


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    (tmp_path / "temporary").mkdir()
    host = make_host(temporary=tmp_path / "temporary")
    host.add_view()
    yield host
    host.close()


@pytest.fixture
def session(host: Host, tmp_path: Path) -> Iterator[Any]:
    """With a model of two organs, liver and spleen, which finds both in every volume."""
    import standin_model_worker as standin
    from session import Session

    standin.add_model(tmp_path / "models", "abdomen-ct", standin.ORGANS)
    command = [sys.executable, standin.__file__, str(tmp_path / "models")]
    session = Session(SimpleNamespace(state=State()), Views(), command)
    poll_until(session, lambda: session._state.engine == "ready")
    yield session
    session.close()


def poll_until(session: Any, seen: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not seen():
        assert time.monotonic() < limit
        session.poll()
        time.sleep(0.02)


def run(session: Any) -> None:
    session.start()
    assert session._state.engine == "working", session._state.error
    poll_until(session, lambda: session._state.engine == "ready")
    assert not session._state.error


def choose(session: Any, name: str) -> None:
    volume = next(each["value"] for each in session._state.volumes if each["title"] == name)
    session._state.choose("volume", volume)


def voxels_and_place(node: Any) -> tuple[Any, Any]:
    matrix = vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVolume(node), slicer.util.arrayFromVTKMatrix(matrix)


def assert_same(node: Any, theirs: Any) -> None:
    """Voxel by voxel, in the patient: a reader may store a series from either end."""
    (ours, place), (other, their_place) = voxels_and_place(node), voxels_and_place(theirs)
    if np.dot(place[:3, 2], their_place[:3, 2]) < 0:
        turn = np.diag([1.0, 1, -1, 1])
        turn[2, 3] = len(other) - 1
        other, their_place = other[::-1], their_place @ turn
    np.testing.assert_array_equal(ours, other)
    np.testing.assert_allclose(place, their_place, atol=1e-3)


# ------------------------------------------------------------------------------------------------ opening files


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_file_lies_where_slicers_own_reader_puts_it(host: Host, tmp_path: Path, ending: str) -> None:
    import SimpleITK
    from loading import open_volume

    path = write_nifti(tmp_path / "ct.nii.gz", OBLIQUE)
    if ending != ".nii.gz":
        image, path = SimpleITK.ReadImage(str(path)), tmp_path / f"ct{ending}"
        SimpleITK.WriteImage(image, str(path))
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    theirs = host.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    assert storage.ReadData(theirs)
    assert_same(open_volume(path), theirs)


def test_a_dicom_series_lies_where_slicers_own_reader_puts_it(host: Host, tmp_path: Path) -> None:
    from loading import open_volume
    from trame_slicer.core import VolumesReader

    files = write_series(tmp_path / "series")
    (theirs,) = VolumesReader.load_volumes(host.scene, host.application_logic, [str(file) for file in files])
    assert_same(open_volume(tmp_path / "series"), theirs)


def test_a_series_in_several_acquisitions_is_opened_whole(session: Any, tmp_path: Path) -> None:
    session.open_files(write_series(tmp_path / "sent", AcquisitionNumber=lambda n: 1 if n < 3 else 2))
    assert session._state.error == ""
    assert session._state.volume_note.startswith("12 × 10 × 8 voxels")
    assert session._state.volumes[0]["title"] == "Abdomen"


@pytest.mark.parametrize("fault", ["two phases", "a slice is missing", "MR", "broken JPEG 2000"])
def test_what_is_no_single_whole_ct_is_refused_and_the_next_file_opens(
    session: Any, tmp_path: Path, fault: str
) -> None:
    tags = {"MR": {"Modality": "MR"}, "broken JPEG 2000": {"TransferSyntaxUID": BROKEN}}
    files = write_series(tmp_path / "sent", **tags.get(fault, {}))
    if fault == "two phases":
        files += write_series(tmp_path / "sent")
    if fault == "a slice is missing":
        files.pop(4).unlink()
    session.open_files(files)
    said = {"two phases": "2 DICOM series", "a slice is missing": "missing", "MR": "is MR", "broken": "can't be read"}
    assert said[fault.removesuffix(" JPEG 2000")] in session._state.error
    assert str(tmp_path) not in session._state.error
    assert session._state.volumes == []
    session.open_files([write_nifti(tmp_path / "ct.nii.gz")])
    assert (session._state.error, session.volume.GetName()) == ("", "ct")


def test_files_that_are_chosen_together_all_open_or_are_named(session: Any, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir or Madam")
    session.open_files([write_nifti(tmp_path / "a b.nii.gz"), write_nifti(tmp_path / "c.nii.gz"), letter])
    assert [each["title"] for each in session._state.volumes] == ["a b", "c"]
    assert "letter.txt" in session._state.error
    session.open_files([tmp_path / "a b.nii.gz"])
    assert (session.volume.GetName(), session._state.error) == ("a b_1", "")


# ---------------------------------------------------------------------------------------- results and their volumes


@pytest.fixture
def two(session: Any, tmp_path: Path) -> Any:
    """Two volumes; the second is chosen."""
    session.open_files([write_nifti(tmp_path / "A.nii.gz"), write_nifti(tmp_path / "B.nii.gz")])
    return session


def test_another_volume_is_shown_where_an_undone_run_left_a_checked_organ(two: Any) -> None:
    choose(two, "A")
    run(two)
    two.step(1)
    two.check()
    two.undo()
    assert two.segmentation.GetSegmentation().GetNumberOfSegments() == 1
    two._state.choose("confidence", True)
    assert "no confidence map" in two._state.error
    assert not two._state.confidence
    choose(two, "B")
    assert two._views.shown.GetName() == "B"
    assert two._state.error == ""
    assert not two._state.has_result


def test_only_the_shown_volumes_run_is_undone_and_its_note_goes_with_it(two: Any) -> None:
    run(two)
    note = two._state.run_note
    assert note.startswith("2 of 2 organs found")
    two._state.chosen = ["liver"]
    choose(two, "A")
    assert not two._state.can_undo
    run(two)
    assert two._state.run_note.startswith("1 of 1 organs found")
    choose(two, "B")
    assert (two._state.run_note, two._state.can_undo) == (note, False)
    two.undo()  # a click from a tab that is behind
    assert two.segmentation is not None
    choose(two, "A")
    two.undo()
    assert "The last run on 'A' was undone." in two._state.log[-1]
    assert not two._state.has_result
    choose(two, "B")
    run(two)
    two.undo()
    assert (two._state.has_result, two._state.can_undo, two._state.run_note) == (True, True, "")


def test_a_number_is_rounded_once_and_zero_has_no_sign() -> None:
    from session import _figure

    assert [_figure(66.5553, 1), _figure(-0.3, 0), _figure(float("nan"), 1)] == ["66.6", "0", ""]


def test_what_is_downloaded_has_the_segments_with_their_names(two: Any, tmp_path: Path) -> None:
    from pgpsam.volume import read_labels

    path = tmp_path / "result.seg.nrrd"
    assert two.save(path) == ""
    run(two)
    assert two.save(path) == "B.seg.nrrd"
    labels, _, names = read_labels(path)
    assert {names[i]: int((labels == i).sum()) for i in names} == {
        name: int(slicer.util.arrayFromSegmentBinaryLabelmap(two.segmentation, segment, two.volume).sum())
        for name, segment in (("liver", "liver"), ("spleen", "spleen"))
    }
