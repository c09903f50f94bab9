"""What the browser asks for beside trame's own page: files go in, a result comes out, and no other site may ask.

A file that is being sent belongs to its own request. If the tab is closed meanwhile, nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from aiohttp import web

from pgpsam.errors import of_system

OPEN, RESULT = "open", "result.seg.nrrd"  # paths on the server
OWN_NAMES = ("127.0.0.1", "localhost")  # of this machine, at any port: it may be reached through a tunnel
BLOCK = 2**20  # bytes that are written at once


class Web:
    """Serves these paths beside trame's.

    Args:
        server: trame's.
        session: see `session.Session`.
    """

    def __init__(self, server: Any, session: Any) -> None:
        self._state, self._session = server.state, session
        server.controller.on_server_bind.add(self._bind)

    def _bind(self, server: Any) -> None:
        server.app.middlewares.append(own_page_only)
        server.app.add_routes([web.post(f"/{OPEN}", self._open), web.get(f"/{RESULT}", self._result)])

    async def _open(self, request: web.Request) -> web.Response:
        """Takes one file, several, or those of a DICOM series."""
        with TemporaryDirectory(prefix="pgpsam-open-") as folder:
            files = []
            try:
                async for part in await request.multipart():
                    path = Path(folder) / Path(part.filename or "").name
                    if path.name in (Path(folder).name, ".."):  # an empty selection, or a name that is none
                        continue
                    with path.open("wb") as file:
                        while block := await part.read_chunk(BLOCK):
                            file.write(block)
                    files.append(path)
            except ConnectionError:
                pass  # the tab was closed: nobody waits for an answer
            except OSError as error:
                with self._state:
                    self._session.fail(str(of_system(error)))
            else:
                if files:
                    with self._state:
                        self._session.open_files(files)
        return web.Response()

    async def _result(self, request: web.Request) -> web.Response:
        with TemporaryDirectory(prefix="pgpsam-result-") as folder:
            path = Path(folder) / RESULT
            name = self._session.save(path)
            if not name:
                raise web.HTTPNotFound
            named = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
            return web.Response(body=path.read_bytes(), content_type="application/octet-stream", headers=named)


@web.middleware
async def own_page_only(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuses what other sites in the user's browser ask, under this machine's name or one that leads to it."""
    own = request.host.partition(":")[0] in OWN_NAMES
    own = own and request.headers.get("Origin", f"http://{request.host}") == f"http://{request.host}"
    # A frame or a picture in another site's page names no origin, but the browser says whose it is.
    if not own or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise web.HTTPForbidden(text="This page answers to its own tab on this machine alone.")
    return await handler(request)
