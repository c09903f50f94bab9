#!/usr/bin/env python3
"""The module's own Logic in a web page: real MRML, real views, the real engine, no Slicer application.

    python Testing/browser/app.py [FILE] [--port 8080] [--no-browser] [--model NAME] [--engine-python PYTHON]

`python3 setup_env.py view FILE` installs what this needs and starts it. It listens on this machine alone.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
ADDRESS = "127.0.0.1"
POLL_S = 0.1

sys.path[:0] = [str(HERE), str(HERE.parent / "slicer"), str(PROJECT / "PGPSAMSegment")]

if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")  # it would look for an X server first

from needs import rendering_trouble  # noqa: E402  the path is set above


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Segments organs of a CT in a web page on this machine.")
    parser.add_argument("file", type=Path, nargs="?", help="NIfTI, NRRD, MHA or a DICOM folder")
    parser.add_argument("--port", type=int, default=8080, help="of the page (8080)")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--model", default="", help="the model that is chosen at first")
    parser.add_argument("--engine-python", default=sys.executable, help="the Python that the engine runs in")
    return parser.parse_args(arguments)


class App:
    """Scene, logic, session and page of one run.

    Args:
        options: see `parse`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from host import make_host  # the first to import slicer
        from page import Page
        from session import Session
        from trame.app import get_server
        from trame_slicer import module as trame_slicer_module
        from trame_slicer.core import SlicerApp
        from views import Views
        from vtkmodules.vtkCommonCore import vtkLogger, vtkOutputWindow
        from web import Web

        self.server = get_server(f"pgpsam-{options.port}")
        self.server.enable_module(trame_slicer_module)
        vtkLogger.SetStderrVerbosity(vtkLogger.VERBOSITY_ERROR)  # trame-slicer and VTK 9.6 warn about each other
        self.slicer_app = SlicerApp()
        vtkOutputWindow.GetInstance().SetDisplayModeToNever()  # it says again what the logger says
        self.host = make_host(self.slicer_app.scene, self.slicer_app.app_logic)
        self.views = Views(self.server, self.slicer_app)
        command = [options.engine_python, "-m", "pgpsam", "worker"]
        self.session = Session(self.server, self.views, command, options.model)
        self.page = Page(self.server, self.session, self.views)
        self.web = Web(self.server, self.session)
        self.server.controller.on_server_ready.add(self._begin)
        self._polling: asyncio.Task[None] | None = None

    def _begin(self, **_: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_fault)
        self._polling = loop.create_task(self._poll())

    async def _poll(self) -> None:
        """Turns the logic's crank; what goes wrong in it is told on the page and does not end the page."""
        while True:
            with self.server.state:
                try:
                    self.session.poll()
                except Exception as error:
                    logging.exception("while polling")
                    self.session.fail(f"A fault of this program, see its output: {type(error).__name__}: {error}")
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        self.session.close()
        self.host.close()


def _on_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tells faults of tasks, except that a browser's window was closed while a picture was on its way to it."""
    if not isinstance(context.get("exception"), ConnectionResetError):
        loop.default_exception_handler(context)


def port_trouble(port: int) -> str:
    """One line that says why nothing can listen on a port, or ""."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            return f"port {port} cannot be used ({error.strerror}): choose another one with --port"
    return ""


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    sys.argv[1:] = []  # trame would read it, too
    trouble = rendering_trouble() or port_trouble(options.port)
    if not trouble:
        from pgpsam.errors import UserError

        app = App(options)
        try:
            if options.file:
                app.session.open_path(options.file)
        except UserError as error:
            trouble = str(error)
    if trouble:
        sys.stderr.write(f"app.py: {trouble}\n")
        return 2
    print(f"PGPSAM Segment: http://{ADDRESS}:{options.port}/  (Ctrl-C ends it)", flush=True)
    try:
        app.server.start(
            host=ADDRESS, port=options.port, open_browser=not options.no_browser, show_connection_info=False, timeout=0
        )
    finally:
        app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
