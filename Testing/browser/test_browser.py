"""A user at work on the page, from opening it to checking slices. The tests of `TestPage` go on from each other."""

from __future__ import annotations

import http.client
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
from made_files import BROKEN, write_nifti, write_series

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
        liver = next(row for row in rows if "liver" in row[0])
        assert len(rows) == 13
        assert liver[0].strip() == "liver †", "it goes on above and below these ten slices"
        assert 50 < float(liver[1]) < 600  # ten slices of 3 mm
        assert 0 < float(liver[2]) < 200
        assert re.fullmatch(r"\s*\d+ %", liver[3])
        found = re.search(r"(\d+) of 13 organs found in \d+ (s|min) on", page.inner_text("#run-note"))
        assert found
        assert [row[1] for row in rows].count("not found") == 13 - int(found[1])

    def test_the_download_holds_the_organs_of_the_table(self, page: Any, tmp_path: Path) -> None:
        from pgpsam.volume import read_labels

        page.focus("#download")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == "abdomen.seg.nrrd"
        download.value.save_as(tmp_path / "abdomen.seg.nrrd")
        labels, affine, names = read_labels(tmp_path / "abdomen.seg.nrrd")
        voxel = abs(np.linalg.det(affine[:3, :3])) / 1000
        rows = [row.locator("td").all_inner_texts() for row in page.locator("#figures tbody tr").all()]
        listed = {row[0].strip(" †\n"): row[1] for row in rows if row[1] != "not found"}
        assert {names[i]: f"{(labels == i).sum() * voxel:.1f}" for i in names} == listed

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
        ends = [int(n) - 1 for n in re.findall(r"\d+", places.first.locator(".slices").inner_text())]
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

    def test_the_enter_key_on_a_place_goes_there(self, page: Any) -> None:
        last = page.locator(".place").last
        last.focus()
        page.keyboard.press("Enter")
        wait_until(lambda: "current" in last.get_attribute("class"), "the place that was clicked")
        assert page.locator(".place.current").count() == 1

    def test_every_field_has_a_name_and_the_button_a_contrast(self, page: Any) -> None:
        missing = """[...document.querySelectorAll('[aria-labelledby]')].map((e) => e.getAttribute('aria-labelledby'))
            .filter((id) => !document.getElementById(id))"""
        assert page.evaluate(missing) == []
        assert page.get_by_label("Open files, or all files of a DICOM series").count() == 1
        colors = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(run))")
        dark, light = sorted(map(luminance, colors))
        assert (light + 0.05) / (dark + 0.05) > 4.5

    def test_the_drawers_fold_in_a_narrow_window(self, page: Any) -> None:
        size = page.viewport_size
        page.set_viewport_size({"width": 800, "height": 700})
        for name in ("Input and organs", "Results"):
            page.focus(f'[aria-label="{name}"]')
            page.keyboard.press("Enter")
        view = page.locator(".layout-grid-item").first
        wait_until(lambda: view.bounding_box()["width"] > 350, "wider views")
        for name in ("Input and organs", "Results"):
            page.click(f'[aria-label="{name}"]')
        page.set_viewport_size(size)
        wait_until(lambda: page.locator("#run").bounding_box()["x"] >= 0, "the drawer")

    def test_the_open_log_shows_its_end(self, page: Any) -> None:
        log_lines(page)
        ends = """() => {
            const box = document.querySelector('#log-lines'), text = document.createRange();
            text.selectNodeContents(box);
            return [text.getBoundingClientRect().bottom, box.getBoundingClientRect().bottom];
        }"""
        page.evaluate("document.querySelector('#log-lines').style.maxHeight = '20px'")
        last, bottom = page.evaluate(ends)
        assert last <= bottom + 1

    def test_a_file_that_does_not_arrive_is_told(self, page: Any, ct: Path) -> None:
        page.route("**/open", lambda route: route.abort())
        page.set_input_files("input[type=file]", str(ct))
        wait_until(lambda: page.locator("#error").count(), "the error")
        assert "could not be opened" in page.inner_text("#error")
        page.unroute("**/open")

    def test_a_closed_tab_takes_its_upload_with_it(
        self, page: Any, browser: Any, app: RunningApp, ct: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "big.nii.gz").write_bytes(bytes(80_000_000))
        tab = browser.new_page()
        tab.goto(app.url)
        wait_until(lambda: "Engine ready" in tab.inner_text("#engine"), "the second tab")
        tab.set_input_files("input[type=file]", str(tmp_path / "big.nii.gz"))
        page.wait_for_timeout(700)
        tab.close()
        before = page.locator(".v-select").first.inner_text()
        page.wait_for_timeout(2000)
        assert page.locator("input[type=file]:enabled").count() == 1
        assert "Connection" not in log_lines(page)
        page.set_input_files("input[type=file]", str(ct))
        wait_until(lambda: page.locator(".v-select").first.inner_text() != before, "the file of the first tab")
        page.locator(".v-select", has=page.locator("#volume")).click()
        page.locator(".v-list-item", has_text="abdomen").first.click()
        wait_until(lambda: page.locator("#figures").count(), "the first volume's results")

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


def luminance(color: str) -> float:
    """Of "rgb(r, g, b)", as the WCAG have it."""
    shares = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
    return float(
        np.dot([0.2126, 0.7152, 0.0722], [s / 12.92 if s <= 0.04 else ((s + 0.055) / 1.055) ** 2.4 for s in shares])
    )


SOCKET = """(url) => new Promise((answer) => {
    const socket = new WebSocket(url);
    socket.onopen = () => answer('open');
    socket.onerror = () => answer('refused');
})"""


def test_other_sites_get_nothing_and_no_file_is_written_where_its_name_says(browser: Any, tmp_path: Path) -> None:
    app = RunningApp([], {}, tmp_path / "app.log")
    address = app.url.removeprefix("http://").rstrip("/")
    page = browser.new_page()
    target = tmp_path / "written.nii.gz"
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n' % bytes(target)
    body += write_nifti(tmp_path / "ct.nii.gz").read_bytes() + b"\r\n--x--\r\n"

    def ask(method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection(address, timeout=60)
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Host": address, **headers}
        connection.request(method, path, body if method == "POST" else None, headers)
        return connection.getresponse().status

    try:
        other = page.goto(app.url.replace("127.0.0.1", "attacker.localhost"))  # it leads to this machine, too
        assert (other.status, page.evaluate(SOCKET, f"ws://{address}/ws")) == (403, "refused")
        page.goto(app.url)
        assert page.evaluate(SOCKET, f"ws://{address}/ws") == "open"
        for site in ("http://evil.example", "null", "http://localhost:1"):
            assert ask("POST", "/open", Origin=site) == 403
        assert ask("GET", "/index.html", Host="evil.example") == 403
        framed = {site: ask("GET", "/index.html", **{"Sec-Fetch-Site": site}) for site in ("cross-site", "same-origin")}
        assert framed == {"cross-site": 403, "same-origin": 200}
        assert ask("GET", "/result.seg.nrrd") == 404
        assert ask("POST", "/open", Origin=f"http://{address}") == 200
        wait_until(lambda: "12 × 14 × 9" in page.inner_text("#volume-note"), "the file that the page itself sent")
        assert not target.exists()
    finally:
        page.close()
        app.close()


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


@pytest.mark.parametrize("fault", ["no such file", "no volume", "broken series", "port in use"])
def test_what_the_user_can_mend_ends_with_one_line_and_2(drawable: None, tmp_path: Path, fault: str) -> None:
    (tmp_path / "letter.nii.gz").write_bytes(b"Dear Sir or Madam")
    write_series(tmp_path / "series", TransferSyntaxUID=BROKEN)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1]) if fault == "port in use" else "8137"
        name = {"no volume": "letter.nii.gz", "broken series": "series"}.get(fault, "nothing.nii.gz")
        command = [sys.executable, str(HERE / "app.py"), str(tmp_path / name), "--no-browser", "--port", port]
        result = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("app.py: ")
    assert {"no such file": "does not exist", "port in use": "--port"}.get(fault, "can't be read") in line
    assert "Traceback" not in result.stderr
