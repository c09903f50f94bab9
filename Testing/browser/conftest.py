"""The page as a user has it: the real app in a process of its own, a real CT, a real engine, a real Chromium."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from driving import CHROMIUM, CHROMIUM_OPTIONS, NOTE_PROGRESS, RUN_S, WINDOW, RunningApp, wait_until
from needs import rendering_trouble

MODEL_VARIABLE = "PGPSAM_TEST_MODEL"
INSTALL_CHROMIUM = "on Debian and Ubuntu, sudo apt install chromium"
SLICES = slice(74, 84)  # through liver, spleen, stomach, pancreas and kidneys of the sample CT


def need_package(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the package {name} is missing: python3 setup_env.py test installs it")


@pytest.fixture(scope="session")
def drawable() -> None:
    """Whether the app can run here; without it, why not."""
    need_package("trame_slicer")
    trouble = rendering_trouble()
    if trouble:
        pytest.skip(trouble)


@pytest.fixture(scope="session")
def browser(drawable: None) -> Iterator[Any]:
    need_package("playwright")
    if CHROMIUM is None:
        pytest.skip(f"there is no Chromium: {INSTALL_CHROMIUM}")
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        except Error as error:
            pytest.skip(f"{CHROMIUM} does not start ({error.message.splitlines()[0]}): {INSTALL_CHROMIUM}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def ct(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten slices of a real CT, in raw HU."""
    whole = nibabel.load(shared_data / "samples" / "ts_abdomen_ct.nii.gz")
    path = tmp_path_factory.mktemp("ct") / "abdomen.nii.gz"
    nibabel.save(whole.slicer[:, :, SLICES], path)
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """The model's name, and the variables that the engine needs to know it: `PGPSAM_TEST_MODEL`, a name or a folder."""
    chosen = os.environ.get(MODEL_VARIABLE) or "abdomen-ct"
    if not Path(chosen).is_dir():
        return chosen, {}
    name = json.loads((Path(chosen) / "model.json").read_text(encoding="utf-8"))["name"]
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(chosen, folder / name)
    return name, {"PGPSAM_MODELS": str(folder)}


@pytest.fixture(scope="module")
def app(
    drawable: None, ct: Path, model: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningApp]:
    name, variables = model
    log = tmp_path_factory.mktemp("app") / "app.log"
    cpu = {"CUDA_VISIBLE_DEVICES": ""}  # where ten slices take long enough to be watched
    running = RunningApp([str(ct), "--model", name], {**variables, **cpu}, log)
    yield running
    running.close()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def page(browser: Any, app: RunningApp) -> Iterator[Any]:
    """The page in the browser, with the engine ready; the tests of a file share it and go on from each other."""
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(RUN_S * 1000)
    faults: list[str] = []
    page.add_init_script(NOTE_PROGRESS)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(app.url)
    wait_until(lambda: "Engine ready" in page.inner_text("#engine"), "the engine", RUN_S)
    yield page
    page.close()
    assert faults == []
