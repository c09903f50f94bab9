#!/usr/bin/env python3
"""Takes the picture of the page with a result: python Testing/browser/screenshot.py VOLUME [-o PNG] [--model MODEL]"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from driving import CHROMIUM, CHROMIUM_OPTIONS, RUN_S, WINDOW, RunningApp, colored, wait_until
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parents[2] / "Resources" / "Screenshots" / "browser.png"
SETTLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Segments a volume in the page and takes a picture of it.")
    parser.add_argument("volume", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=PICTURE)
    parser.add_argument("--model", default="abdomen-ct")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = RunningApp([str(options.volume), "--model", options.model], {}, Path(folder) / "app.log")
        try:
            page = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS).new_page(viewport=WINDOW)
            page.set_default_timeout(4 * RUN_S * 1000)
            page.goto(app.url)
            page.locator("#run:enabled").click()
            page.wait_for_selector("#figures, #error")
            if page.locator("#error").count():
                raise SystemExit(f"screenshot.py: {page.inner_text('#error')}")
            page.click("#review-next")
            for view in ("Axial", "3D"):
                wait_until(lambda view=view: colored(page, view) > 0.02, f"organs in the view {view}")
            page.mouse.move(5, 5)
            page.wait_for_timeout(SETTLE_S * 1000)  # for the last pictures on their way
            page.screenshot(path=options.out)
            print(f"{options.out}: {page.inner_text('#run-note')}")
            page.close()
        finally:
            app.close()


if __name__ == "__main__":
    main()
