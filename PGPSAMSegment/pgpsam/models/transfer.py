"""The download: one file over HTTP, through proxies and with an organisation's own certificates.

It goes on where it broke off, and tries again where that may help. It knows how large the file must be, and not what
is in it: its hash and its final name are for the caller.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import BinaryIO

from pgpsam import __version__
from pgpsam.errors import UserError
from pgpsam.models.published import BaseWeights, by_hand_hint, first_line
from pgpsam.models.watch import CHUNK, Watch

TIMEOUT_S = 20.0  # for the connection, and for each wait on the next bytes
RETRY_WAITS_S = (1.0, 2.0, 4.0)

_log = logging.getLogger(__name__)


class _BrokenOff(Exception):
    """The transfer ended early; what arrived is kept, and another attempt is worthwhile."""


class Transfer:
    """One file on its way from a server into its `.part` file, over as many attempts as are worthwhile."""

    def __init__(self, url: str, part: Path, entry: BaseWeights, watch: Watch) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"not an http or https address: {url}")
        self._url, self._part, self._entry, self._watch = url, part, entry, watch
        self._etag: str | None = None
        self._can_resume = True
        tls = urllib.request.HTTPSHandler(context=_tls_context())
        self._opener = urllib.request.build_opener(tls)  # takes the proxies from the environment

    def received(self) -> int:
        """Bytes in the `.part` file that another attempt can go on from."""
        size = file_size(self._part)
        return size if self._can_resume and size <= self._entry.size else 0

    def run(self) -> None:
        """Until the `.part` file has its full size; UserError when attempts stop helping."""
        waits = iter(RETRY_WAITS_S)
        while (before := self.received()) < self._entry.size:
            try:
                self._attempt(before)
                return
            except _BrokenOff as error:
                if self.received() - before >= CHUNK:
                    waits = iter(RETRY_WAITS_S)  # a long file over a bad line may break off often
                wait = next(waits, None)
                if wait is None:
                    done = f"{self.received()} of {self._entry.size} bytes"
                    hint = f"Run the command again: it goes on where it stopped. {by_hand_hint(self._entry)}"
                    raise UserError(f"cannot fetch {self._url}: {error} ({done} are here)", hint) from error
                _log.info("fetching %s: %s; next attempt in %g s", self._url, error, wait)
                self._watch.sleep(wait)

    def _attempt(self, offset: int) -> None:
        self._watch.report(offset)
        with self._open(offset) as response:
            start = self._first_byte(response, offset)
            etag = response.headers.get("ETag", "")
            self._etag = etag if etag.startswith('"') else None  # a weak one (W/...) cannot guard a range
            with self._part.open("ab" if start else "wb") as stream:
                end = self._receive(response, stream, start)
        if end > self._entry.size:
            self._part.unlink()
            raise self._wrong_length("more")
        if end < self._entry.size:
            raise _BrokenOff("the connection broke off")

    def _open(self, offset: int) -> http.client.HTTPResponse:
        headers = {"User-Agent": f"pgpsam/{__version__}", "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._etag:
                headers["If-Range"] = self._etag
        try:
            request = urllib.request.Request(self._url, headers=headers)
            response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._network_fault(error) from error
        return response

    def _first_byte(self, response: http.client.HTTPResponse, offset: int) -> int:
        """Where in the file the response's body begins; an exception if it is not this file's."""
        if response.headers.get_content_type() == "text/html":
            raise UserError(f"{self._url} answered with a web page, not a file", by_hand_hint(self._entry))
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != offset:
                raise self._start_over("the server sent another part than was asked for")
            start, total = offset, None if found[2] == "*" else int(found[2])
        elif response.status == 200:
            start, total = 0, response.length
        else:
            raise self._refusal(response.status, response.reason)
        if total not in (None, self._entry.size):
            raise self._wrong_length(f"{total}")
        return start

    def _receive(self, response: http.client.HTTPResponse, stream: BinaryIO, done: int) -> int:
        """Write what comes, up to the file's size; the offset after the last byte that came."""
        while done <= self._entry.size and (block := self._read(response)):
            stream.write(block)
            done += len(block)
            self._watch.report(done)
        return done

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(CHUNK)  # what is there already, so that a slow line can be cancelled
        except (OSError, http.client.HTTPException) as error:
            raise self._network_fault(error) from error

    def _refusal(self, status: int, reason: str) -> Exception:
        """What an answer other than 200 or 206 means: a UserError, or a reason to try again."""
        if status == 416:
            return self._start_over("the server has fewer bytes than are here")
        answer = f"HTTP {status} {reason}".strip()
        if status in (408, 429) or status >= 500:
            return _BrokenOff(answer)
        return UserError(f"cannot fetch {self._url}: {answer}", by_hand_hint(self._entry))

    def _wrong_length(self, got: str) -> UserError:
        fault = f"expected {self._entry.size} bytes, got {got}"
        message = f"{self._url} gave a wrong file for {self._entry.backbone}: {fault}"
        return UserError(message, by_hand_hint(self._entry))

    def _start_over(self, why: str) -> _BrokenOff:
        self._can_resume = False
        self._part.unlink(missing_ok=True)
        return _BrokenOff(why)

    def _network_fault(self, error: Exception) -> Exception:
        """A certificate that cannot be verified is for the user; anything else on the line may pass."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            hint = (
                "A proxy or virus scanner may replace certificates: set SSL_CERT_FILE to your organisation's"
                f" certificate file. {by_hand_hint(self._entry)}"
            )
            return UserError(f"the certificate of {self._url} cannot be verified: {reason.verify_message}", hint)
        return _BrokenOff(first_line(reason))


def file_size(path: Path) -> int:
    """In bytes; 0 for a file that is not there, or no longer."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tls_context() -> ssl.SSLContext:
    """The system's certificates or SSL_CERT_FILE's, and REQUESTS_CA_BUNDLE's besides."""
    context = ssl.create_default_context()
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle:
        try:
            context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"REQUESTS_CA_BUNDLE names {bundle}: {first_line(error)}", "Mend or unset it") from error
    return context
