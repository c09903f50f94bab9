#!/usr/bin/env python3
"""Takes pictures of the page: python Testing/browser/screenshot.py VOLUME [-o FILE] [--stages FOLDER] [--model MODEL]

The picture shows the page with a result. With --stages a folder gets those of a run half-way and of the prompts, too.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from driving import (
    CHROMIUM,
    CHROMIUM_OPTIONS,
    NOTE_PROGRESS,
    RUN_S,
    WINDOW,
    RunningApp,
    colored,
    progress_lines,
    wait_until,
)
from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parents[2] / "Resources" / "Screenshots" / "browser.jpg"
PATIENCE_S = 4 * RUN_S
SETTLE_S = 5.0
QUALITY = 78


def main() -> None:
    parser = argparse.ArgumentParser(description="Segments a volume in the page and takes a picture of it.")
    parser.add_argument("volume", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=PICTURE)
    parser.add_argument("--stages", type=Path, help="folder for pictures of a run half-way and of the prompts")
    parser.add_argument("--model", default="abdomen-ct")
    options = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit("screenshot.py: there is no Chromium: on Debian and Ubuntu, sudo apt install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = RunningApp([str(options.volume), "--model", options.model], {}, Path(folder) / "app.log")
        try:
            page = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS).new_page(viewport=WINDOW)
            page.set_default_timeout(PATIENCE_S * 1000)
            page.add_init_script(NOTE_PROGRESS)
            page.goto(app.url)
            wait_until(page.locator("#run:enabled").count, "the engine", PATIENCE_S)
            page.click("#run")
            if options.stages:
                options.stages.mkdir(parents=True, exist_ok=True)
                wait_until(lambda: colored(page, "Coronal") > 0.01 or ended(page), "finished slices", PATIENCE_S)
                take(page, options.stages / "running.jpg", settle_s=0)
            wait_until(lambda: ended(page), "the result", PATIENCE_S)
            if page.locator("#error").count():
                raise SystemExit(f"screenshot.py: {page.inner_text('#error')}")
            print(*progress_lines(page), sep="\n")
            for view in ("Axial", "3D"):
                wait_until(lambda view=view: colored(page, view) > 0.02, f"organs in the view {view}")
            take(page, options.out)
            if options.stages:
                page.click("#show-prompts")
                take(page, options.stages / "prompts.jpg")
            print(f"{options.out}: {page.inner_text('#run-note')}")
            page.close()
        finally:
            app.close()


def ended(page: Any) -> bool:
    return bool(page.locator("#figures, #error").count())


def take(page: Any, path: Path, settle_s: float = SETTLE_S) -> None:
    """Writes a picture of the whole page, as JPEG: a third of a PNG, and a palette would change the organs' colours."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(settle_s * 1000)  # for the last pictures on their way
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(path, quality=QUALITY, optimize=True)


if __name__ == "__main__":
    main()
