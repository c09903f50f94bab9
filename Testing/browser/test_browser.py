"""A user at work on the page, from opening it to checking slices. The tests of `TestPage` go on from each other."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from driving import (
    HERE,
    RUN_S,
    RunningApp,
    colored,
    forget_progress,
    picture,
    progress_lines,
    still_picture,
    wait_until,
)

COUNTED = r"Segmenting slices: (\d+) of 10"


def working(page: Any) -> bool:
    return page.locator("#cancel").count() > 0


def begin_run(page: Any) -> None:
    forget_progress(page)
    page.click("#run")
    wait_until(lambda: working(page), "the run's begin")


def wait_half_way(page: Any) -> None:
    wait_until(lambda: re.search(r"slices: [1-8] of", " ".join(progress_lines(page))), "the first slices", RUN_S)


def end_run(page: Any) -> list[str]:
    """Waits for a run's end; returns the lines of its progress."""
    wait_until(lambda: not working(page), "the end of the run", RUN_S)
    assert not page.locator("#error").count(), page.inner_text("#error")
    return progress_lines(page)


def log_lines(page: Any) -> str:
    if not page.locator("#log-lines").count():
        page.click("#log")
    return str(page.inner_text("#log-lines"))


class TestPage:
    def test_offers_the_volume_the_models_organs_and_the_device_with_its_reason(
        self, page: Any, model: tuple[str, dict[str, str]]
    ) -> None:
        assert page.title() == "PGPSAM Segment"
        assert page.inner_text("#volume-note") == "122 × 101 × 10 voxels of 3 × 3 × 3 mm"
        assert page.inner_text("#organ-count") == "13 of 13"
        assert page.inner_text("#run") == "Auto-segment"
        assert page.get_by_text(f"{model[0]}: 13 organs").count() == 1
        assert page.get_by_text("Automatic (").count() == 1
        if page.get_by_text("Automatic (CPU").count():
            assert page.inner_text("#device-note").endswith(".")

    def test_shows_the_slices_in_gray(self, page: Any) -> None:
        wait_until(lambda: (picture(page, "Axial") > 100).mean() > 0.05, "the CT")
        assert colored(page, "Axial") < 0.001

    def test_without_an_organ_nothing_can_be_segmented(self, page: Any) -> None:
        page.click("#tick-None")
        assert page.inner_text("#organ-count") == "0 of 13"
        assert page.is_disabled("#run")
        page.get_by_text("liver", exact=True).click()
        assert page.inner_text("#organ-count") == "1 of 13"
        assert page.is_enabled("#run")
        page.click("#tick-All")
        assert page.inner_text("#organ-count") == "13 of 13"

    def test_cancel_half_way_leaves_nothing(self, page: Any) -> None:
        begin_run(page)
        wait_half_way(page)
        assert page.inner_text("#cancel") == "Cancel"
        page.click("#cancel")
        wait_until(lambda: not working(page), "the run's end")
        assert not page.locator("#figures").count()
        assert not page.locator("#error").count()
        assert "Cancelled; the scene is as before." in log_lines(page)
        wait_until(lambda: colored(page, "Axial") < 0.001, "the preview to go")

    def test_a_run_counts_its_slices_shows_them_and_then_the_organs(self, page: Any, app: RunningApp) -> None:
        begin_run(page)
        wait_half_way(page)
        with app.engine_paused():
            # Two slices are enough; before the run there was no colour at all.
            wait_until(lambda: any(colored(page, view) > 0.0005 for view in ("Coronal", "Axial")), "finished slices")
            assert working(page), "the run had ended before it was looked at"
            assert not page.locator("#figures").count()
        lines = end_run(page)
        counted = {int(found[1]): line for line in lines if (found := re.match(COUNTED, line))}
        assert len(counted) >= 2, lines
        assert list(counted) == sorted(counted)
        assert all(re.search(r", about \d+ (s|min) left$", line) for done, line in counted.items() if done < 10), lines
        wait_until(lambda: colored(page, "Axial") > 0.01, "the organs in the slices")
        wait_until(lambda: colored(page, "3D") > 0.01, "the organs in 3D")

    def test_the_table_gives_volume_intensity_and_confidence(self, page: Any) -> None:
        rows = [row.locator("td").all_inner_texts() for row in page.locator("#figures tbody tr").all()]
        liver = next(row for row in rows if row[0].strip() == "liver")
        assert len(rows) == 13
        assert 50 < float(liver[1]) < 600  # ten slices of 3 mm
        assert 0 < float(liver[2]) < 200
        assert re.fullmatch(r"\s*\d+ %", liver[3])
        assert re.search(r"\d+ of 13 organs found in \d+ (s|min) on", page.inner_text("#run-note"))

    def test_the_switches_change_what_the_views_show(self, page: Any) -> None:
        masks = still_picture(page, "Axial")
        page.click("#show-prompts")
        wait_until(lambda: np.abs(picture(page, "Axial").astype(int) - masks).mean() > 0.5, "the prompts")
        page.click("#show-masks")
        wait_until(lambda: np.abs(picture(page, "Axial").astype(int) - masks).mean() < 0.5, "the masks")
        before = colored(page, "Axial")
        page.locator("#switch-confidence").click()
        wait_until(lambda: colored(page, "Axial") > 2 * before, "the confidence")
        page.locator("#switch-confidence").click()
        wait_until(lambda: colored(page, "Axial") < 1.5 * before, "the slices without it")
        page.locator("#switch-show_3d").click()
        wait_until(lambda: colored(page, "3D") < 0.001, "an empty 3D view")
        page.locator("#switch-show_3d").click()
        wait_until(lambda: colored(page, "3D") > 0.01, "the organs in 3D")

    def test_the_review_jumps_to_its_slices_and_counts_what_was_checked(self, page: Any, ct: Path) -> None:
        places = page.locator(".place")
        assert places.count() > 0, page.inner_text("#review-note")
        assert page.is_disabled("#review-mark")
        page.click("#review-next")
        wait_until(lambda: page.locator(".place.current").count() == 1, "a current place")
        assert "current" in places.first.get_attribute("class")
        ends = [int(n) for n in re.findall(r"\d+", places.first.locator(".slices").inner_text())]
        affine = nibabel.load(ct).affine
        low, high = (affine[2, 3] + affine[2, 2] * ends[n] for n in (0, -1))  # its axes are those of the patient
        axial = page.locator(".layout-grid-item", has=page.get_by_text("Axial", exact=True))
        shown = axial.locator(".view-place")
        wait_until(
            lambda: low - 1.6 < float(shown.inner_text().removesuffix("mm")) < high + 1.6, "the place's own slice"
        )
        note = page.inner_text("#review-note")
        page.click("#review-mark")
        wait_until(lambda: page.inner_text("#review-note") != note, "the count")
        assert re.match(r"1 of \d+ places checked", page.inner_text("#review-note"))
        assert page.locator(".place.checked").count() == 1

    def test_a_second_run_uses_the_same_worker_and_model(self, page: Any, app: RunningApp) -> None:
        workers = app.workers()
        assert len(workers) == 1
        begin_run(page)
        lines = end_run(page)
        assert any(re.match(COUNTED, line) for line in lines), lines
        assert app.workers() == workers
        assert not any("Loading" in line for line in lines), lines

    def test_a_file_that_is_opened_in_the_page_comes_with_results_of_its_own(
        self, page: Any, ct: Path, tmp_path: Path
    ) -> None:
        import SimpleITK

        image = SimpleITK.ReadImage(str(ct))
        SimpleITK.WriteImage(image[:, :, :4], str(tmp_path / "few slices.nrrd"))
        page.set_input_files("input[type=file]", str(tmp_path / "few slices.nrrd"))
        wait_until(lambda: "× 4 voxels" in page.inner_text("#volume-note"), "the opened volume")
        wait_until(lambda: not page.locator("#figures").count(), "no results for it")
        wait_until(lambda: colored(page, "Axial") < 0.001, "its slices without organs")
        page.locator(".v-select", has=page.locator("#volume")).click()
        page.locator(".v-list-item", has_text="abdomen").click()
        wait_until(lambda: page.locator("#figures").count(), "the first volume's results")
        wait_until(lambda: colored(page, "Axial") > 0.01, "its organs")

    def test_a_click_on_a_place_goes_there(self, page: Any) -> None:
        last = page.locator(".place").last
        last.click()
        wait_until(lambda: "current" in last.get_attribute("class"), "the place that was clicked")
        assert page.locator(".place.current").count() == 1

    def test_a_file_that_is_opened_during_a_run_has_to_wait(self, page: Any, ct: Path) -> None:
        before = page.inner_text("#volume-note")
        begin_run(page)
        wait_half_way(page)
        page.set_input_files("input[type=file]", str(ct))
        wait_until(lambda: page.locator("#error").count(), "the refusal")
        assert "A volume is being segmented" in page.inner_text("#error")
        assert page.inner_text("#volume-note") == before
        page.click("#cancel")
        wait_until(lambda: not working(page), "the run's end")

    def test_undo_brings_the_run_before_back(self, page: Any) -> None:
        assert "(2)" in page.inner_text("#review"), "the second run put its result beside the checked organ"
        page.click("#undo")
        wait_until(lambda: "(2)" not in page.inner_text("#review"), "the first run's result")
        assert page.locator("#figures tbody tr").count() == 13
        assert page.locator(".place.checked").count() == 1


def test_a_dicom_series_opens_and_an_engine_that_cannot_start_is_told_in_one_line(
    browser: Any, shared_data: Path, tmp_path: Path
) -> None:
    arguments = [str(shared_data / "samples" / "dicom"), "--engine-python", str(tmp_path / "no python")]
    app = RunningApp(arguments, {}, tmp_path / "app.log")
    page = browser.new_page()
    page.set_default_timeout(RUN_S * 1000)
    try:
        page.goto(app.url)
        wait_until(lambda: page.locator("#error").count(), "the error", RUN_S)
        assert page.inner_text("#volume-note").startswith("512 × 512 × 20 voxels")
        assert "Engine stopped" in page.inner_text("#engine")
        assert "could not be started" in page.inner_text("#error")
        assert page.is_disabled("#run")
        assert log_lines(page).count("could not be started") == 1
        page.get_by_text("Try again").click()
        wait_until(lambda: log_lines(page).count("could not be started") == 2, "the second try's end")
    finally:
        page.close()
        app.close()


@pytest.mark.parametrize("fault", ["no such file", "no volume", "port in use"])
def test_what_the_user_can_mend_ends_with_one_line_and_2(drawable: None, tmp_path: Path, fault: str) -> None:
    (tmp_path / "letter.nii.gz").write_bytes(b"Dear Sir or Madam")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1]) if fault == "port in use" else "8137"
        name = "letter.nii.gz" if fault == "no volume" else "nothing.nii.gz"
        command = [sys.executable, str(HERE / "app.py"), str(tmp_path / name), "--no-browser", "--port", port]
        result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("app.py: ")
    assert {"no such file": "no such file", "no volume": "cannot be read", "port in use": "--port"}[fault] in line
    assert "Traceback" not in result.stderr
