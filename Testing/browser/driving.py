"""Starts the app and looks at its page: what the tests and the screenshot share."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

HERE = Path(__file__).resolve().parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
WINDOW = {"width": 1600, "height": 1000}
# With a busy processor; an idle one needs a hundredth of it.
RUN_S = 900.0  # for the engine
LOOK_S = 180.0  # for the page and its pictures
# Before the page's own scripts: notes each line of progress when it appears, however long a look from outside takes.
NOTE_PROGRESS = """
window.progressLines = [];
new MutationObserver(() => {
  const line = document.querySelector('#stage')?.innerText;
  if (line && line !== window.progressLines.at(-1)) window.progressLines.push(line);
}).observe(document, {subtree: true, childList: true, characterData: true});
"""


def wait_until(seen: Callable[[], Any], what: str, patience_s: float = LOOK_S) -> Any:
    """What `seen` returns once it is true.

    Playwright's own waiting looks at every frame, and so keeps a browser without a GPU drawing; it is for moments only.
    """
    limit = time.monotonic() + patience_s
    while not (found := seen()):
        assert time.monotonic() < limit, f"not seen within {patience_s:.0f} s: {what}"
        time.sleep(0.2)
    return found


class RunningApp:
    """The app in its process.

    Args:
        arguments: of app.py, without the port.
        variables: of the environment.
        log: file for all that it writes.
    """

    def __init__(self, arguments: list[str], variables: dict[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}/", log
        command = [sys.executable, str(HERE / "app.py"), *arguments, "--port", str(port), "--no-browser"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT
            )
        wait_until(self._answers, f"the page at {self.url}", RUN_S)

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the app ended with {self.process.returncode}:\n{self.log.read_text()}"
        try:
            with urllib.request.urlopen(self.url, timeout=10):
                return True
        except (urllib.error.URLError, TimeoutError):
            return False

    def workers(self) -> list[int]:
        """The process ids of the engine's workers."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child.pid for child in children if "worker" in child.cmdline()]

    @contextmanager
    def engine_paused(self) -> Iterator[None]:
        """Stops the engine's clock, to look at a run half-way; the app itself goes on."""
        workers = [psutil.Process(pid) for pid in self.workers()]
        for worker in workers:
            worker.suspend()
        try:
            yield
        finally:
            for worker in workers:
                worker.resume()

    def close(self) -> None:
        """Ends the app as Ctrl-C does, and sees that its worker goes with it."""
        workers = [psutil.Process(pid) for pid in self.workers()]
        self.process.terminate()
        self.process.wait(120)
        assert not psutil.wait_procs(workers, timeout=60)[1], "the engine outlived the app"


def progress_lines(page: Any) -> list[str]:
    """The lines of progress that the page has shown since `forget_progress`."""
    return list(page.evaluate("window.progressLines"))


def forget_progress(page: Any) -> None:
    page.evaluate("window.progressLines.length = 0")


def picture(page: Any, view: str) -> np.ndarray:
    """What a view shows: [height, width, 3] in 0..255, without what the page writes over it."""
    box = page.locator(".layout-grid-item", has=page.get_by_text(view, exact=True)).bounding_box()
    edge = {"x": box["x"] + 20, "y": box["y"] + 40, "width": box["width"] - 40, "height": box["height"] - 100}
    with Image.open(io.BytesIO(page.screenshot(clip=edge))) as image:
        return np.asarray(image.convert("RGB"))


def still_picture(page: Any, view: str) -> np.ndarray:
    """The same, once it no longer changes: pictures of what was done before may still be on their way."""
    seen = [picture(page, view)]

    def is_still() -> bool:
        page.wait_for_timeout(2000)
        seen.append(picture(page, view))
        return np.array_equal(seen[-1], seen[-2])

    wait_until(is_still, f"an end of the changes in the view {view}")
    return seen[-1]


def colored(page: Any, view: str) -> float:
    """The share of a view's pixels that are in colour; a CT is gray, and the 3D view's ground a dark blue."""
    image = picture(page, view).astype(int)
    return float((image.max(axis=2) - image.min(axis=2) > (45 if view == "3D" else 25)).mean())
