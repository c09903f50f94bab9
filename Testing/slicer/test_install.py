"""The engine's own packages, installed for real: pip, processes and folders are real, Slicer and the wheels stand in.

Nothing leaves this machine: see standin_slicer.py.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import standin_slicer

from PGPSAMSegmentLib import enginefolder, install, installplan, torchchoice
from PGPSAMSegmentLib.childprocess import clean_environment
from PGPSAMSegmentLib.installhints import explain

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = "torch>=2.6,<3\ntorchvision>=0.21,<1\nsegment-anything>=1.0,<2\n"
PROBE = "import torch, torchvision, segment_anything, pgpsam"
# Stands in for a Slicer in which Install was pressed: `python -c STANDIN_SLICER FOLDER PYTHON REQUIREMENTS`.
STANDIN_SLICER = f"""
import dataclasses, pathlib, sys, time
sys.path.insert(0, {str(ROOT / "PGPSAMSegment")!r})
from PGPSAMSegmentLib import install
folder, python, requirements = sys.argv[1:]
plan = install.make_plan(pathlib.Path(folder), python, build="auto", requirements=pathlib.Path(requirements))
work = install.Installation(dataclasses.replace(plan, problems=[]), print)
while work.busy:
    work.poll()
    time.sleep(0.05)
"""

posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for Slicer is a shell script")


def native(name: str) -> str:
    """A file's name as this Python has it: under LC_ALL=C an umlaut in it is two bytes that stand for themselves."""
    return os.fsdecode(name.encode())


@pytest.fixture(scope="module")
def slicer(tmp_path_factory) -> Path:
    return standin_slicer.make_slicer(tmp_path_factory.mktemp(native("Slicer 5.99 für alle")))


@pytest.fixture
def wheels(tmp_path) -> Path:
    folder = tmp_path / native("Räder & wheels")
    standin_slicer.make_wheel(folder, "torch", "2.9.1")
    standin_slicer.make_wheel(folder, "torchvision", "0.24.1", requires="torch (==2.9.1)")
    standin_slicer.make_wheel(folder, "segment_anything", "1.0")
    return folder


@pytest.fixture
def plan_for(tmp_path, slicer):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(REQUIREMENTS)

    def plan(**options):
        folder = tmp_path / native("Maschine für Ümläute") / "engine"
        return install.make_plan(folder, str(slicer), requirements=requirements, **options)

    plan.requirements = requirements
    return plan


def offline(**more):
    """This machine's settings for pip would offer more than the wheels of a test."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "2",
        **more,
    }


def run(plan, until=None, patience_s=300.0, **variables):
    """Runs an installation to its end, or until an event's stage, and returns its events."""
    events = []
    work = install.Installation(plan, events.append, offline(**variables), PROBE)
    limit = time.monotonic() + patience_s
    while work.busy:
        work.poll()
        if until and any(event.get("stage") == until for event in events):
            work.cancel()
        assert time.monotonic() < limit, events
        time.sleep(0.05)
    return events


def engine_says(folder, statement):
    """What the engine's Python prints for a statement, inside the engine's packages."""
    found = enginefolder.status(folder, folder.parent.parent / "requirements.txt")
    start = str(enginefolder.LIB / "enginestart.py")
    command = [found.python, "-S", "-s", start, str(folder / "packages"), "--probe", statement]
    environment = clean_environment() | {"PYTHONPATH": "/nowhere"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=60)


@posix
def test_an_installation_in_a_folder_with_spaces_and_umlauts(plan_for, wheels, slicer):
    before = standin_slicer.fingerprint(slicer.parents[1])
    plan = plan_for(wheels=wheels)
    assert plan.problems == []
    assert f"the folder {wheels}, without a network" in "\n".join(plan.describe())

    events = run(plan)
    assert events[-1] == {"event": "done"}
    fractions = [event["fraction"] for event in events[:-1]]
    assert fractions == sorted(fractions)
    assert events[0]["stage"] == "clean"
    assert events[-2]["stage"] == "check"

    found = install.status(plan.folder, plan_for.requirements)
    assert found.state == "ready"
    assert found.packages == {"segment_anything": "1.0", "torch": "2.9.1", "torchvision": "0.24.1"}
    assert found.python_version == sys.version.split()[0]
    assert not (plan.folder / "temp").exists()

    # The engine sees its own packages and the shipped pgpsam, and nothing of Slicer's.
    says = engine_says(plan.folder, "import torch, pgpsam; print(torch.__file__); print(pgpsam.__file__)")
    assert says.stdout.encode().splitlines() == [  # UTF-8 from the engine, whatever the locale here
        os.fsencode(plan.folder / "packages" / "torch" / "__init__.py"),
        os.fsencode(ROOT / "PGPSAMSegment" / "pgpsam" / "__init__.py"),
    ]
    for name in ("slicers_own", "slicer", "pip"):
        assert f"No module named '{name}'" in engine_says(plan.folder, f"import {name}").stderr
    # And Slicer's own folders are what they were.
    assert standin_slicer.fingerprint(slicer.parents[1]) == before

    install.remove(plan.folder)
    assert not plan.folder.exists()
    assert install.status(plan.folder).state == "missing"


@posix
def test_a_cancelled_installation_is_seen_and_repaired(plan_for, wheels):
    plan = plan_for(wheels=wheels)
    events = run(plan, until="download")
    assert [event.get("kind") for event in events if event["event"] != "progress"] == ["cancelled"]
    assert processes_naming(str(plan.folder)) == []
    found = install.status(plan.folder, plan_for.requirements)
    assert (found.state, found.why) == ("broken", "the installation was not finished: install again")
    with pytest.raises(install.InstallError, match="not finished"):
        install.worker_command(plan.folder)
    (plan.folder / "packages" / "torch").mkdir(parents=True)  # as cut short while pip was moving its files

    assert run(plan_for(wheels=wheels))[-1] == {"event": "done"}
    assert install.status(plan.folder, plan_for.requirements).state == "ready"
    assert (plan.folder / "packages" / "torch" / "__init__.py").is_file()


def test_what_an_installation_replaces_counts_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr(installplan.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 9 * 10**9))
    enginefolder.claim(tmp_path)
    problems = install.make_plan(tmp_path, build="cu128").problems
    assert ["about 9.5 GB are needed and 9.0 free" in message for message, _ in problems] == [True]
    for part, size in (("packages", 400_000_000), ("temp", 200_000_000)):
        (tmp_path / part / "torch").mkdir(parents=True)
        with (tmp_path / part / "torch" / "large").open("wb") as file:
            file.truncate(size)  # takes no room on the disk
    plan = install.make_plan(tmp_path, build="cu128")
    assert plan.problems == []
    assert "Disk: about 9.5 GB of 9.6 GB free" in plan.describe()


@posix
def test_slicers_torch_is_used_where_it_fits(plan_for, wheels, slicer):
    packages = standin_slicer.site_packages(slicer)
    standin_slicer.put_package(packages, "torch", "2.8.0+cu128")
    standin_slicer.put_package(packages, "torchvision", "0.23.0+cu128", requires="torch (==2.8.0)")
    plan = plan_for(wheels=wheels, slicers_packages=packages)
    assert plan.build == "slicer"
    assert "2.8.0+cu128" in plan.build_why
    try:
        assert run(plan)[-1] == {"event": "done"}
        assert install.status(plan.folder, plan_for.requirements).packages["torch"] == "2.8.0+cu128.slicer"
        says = engine_says(plan.folder, "import torch, segment_anything as s; print(torch.__file__); print(s.__file__)")
        assert says.stdout.encode().splitlines() == [
            os.fsencode(packages / "torch" / "__init__.py"),
            os.fsencode(plan.folder / "packages" / "segment_anything" / "__init__.py"),
        ]
        standin_slicer.put_package(packages, "torch", "2.9.0")
        found = install.status(plan.folder, plan_for.requirements)
        assert found.why == "the torch of Slicer that it uses was changed or removed: repair it"
        # torchvision asks for the torch that is gone: the engine gets a torch of its own.
        assert plan_for(wheels=wheels, slicers_packages=packages).build == "wheels"
    finally:
        for name in ("torch", "torchvision"):
            shutil.rmtree(packages / name)
            for info in packages.glob(f"{name}-*.dist-info"):
                shutil.rmtree(info)


@posix
def test_the_chosen_build_of_torch_wins_over_a_newer_one(plan_for, wheels, tmp_path):
    builds = tmp_path / "torch builds"
    standin_slicer.make_wheel(builds, "torch", "2.9.0+cu126")
    standin_slicer.make_wheel(builds, "torchvision", "0.24.0+cu126", requires="torch (==2.9.0)")
    index = standin_slicer.make_index(builds)
    plan = dataclasses.replace(plan_for(wheels=wheels), torch_index=index)
    assert run(plan)[-1] == {"event": "done"}
    packages = install.status(plan.folder, plan_for.requirements).packages
    assert (packages["torch"], packages["torchvision"]) == ("2.9.0+cu126", "0.24.0+cu126")


@posix
def test_a_wheel_that_is_missing_is_named(plan_for, wheels):
    next(wheels.glob("segment*")).unlink()
    end = run(plan_for(wheels=wheels))[-1]
    version = sys.version.split()[0]
    assert end["message"] == f"{wheels} holds no segment-anything for this system and Python {version}"
    assert "pip download" in end["hint"]
    assert end["log"]


@posix
def test_an_index_out_of_reach_is_one_line_and_a_remedy(plan_for):
    plan = dataclasses.replace(plan_for(build="auto"), problems=[])
    end = run(plan, PIP_INDEX_URL="http://127.0.0.1:9/simple")[-1]
    assert end["message"] == "the package index is out of reach"
    assert "HTTPS_PROXY" in end["hint"]
    assert "PIP_CERT" in end["hint"]
    assert "pip download" in end["hint"]


@posix
def test_packages_that_do_not_start_are_no_success(plan_for, wheels):
    message = "ImportError: libcudart.so.12: cannot open shared object file"
    code = f"raise ImportError({message.split(': ', 1)[1]!r})"
    standin_slicer.make_wheel(wheels, "torch", "2.9.1", code=code)
    plan = plan_for(wheels=wheels)
    end = run(plan)[-1]
    assert end["message"] == f"all is installed, but the engine does not start: {message}"
    assert "system package" in end["hint"]
    assert install.status(plan.folder, plan_for.requirements).state == "broken"


@posix
@pytest.mark.parametrize("setting", ["[global]\nrequire-virtualenv = true\n", "[install]\nuser = true\n"])
def test_the_users_pip_settings_do_not_stand_in_the_way(plan_for, wheels, tmp_path, setting):
    (tmp_path / "pip.conf").write_text(setting)
    assert run(plan_for(wheels=wheels), PIP_CONFIG_FILE=str(tmp_path / "pip.conf"))[-1] == {"event": "done"}


@pytest.mark.parametrize("name", ["MPLBACKEND", "PYTHONPATH", "PIP_TARGET"])
def test_what_others_have_set_does_not_reach_the_engine(name):
    """Jupyter names a module as Matplotlib's backend, which the engine lacks."""
    assert name not in clean_environment({name: "module://matplotlib_inline.backend_inline"})


@posix
def test_two_installations_at_once(plan_for, wheels):
    """The lock of the first one is held here; neither the second one nor a removal touches what the first has made."""
    import fcntl

    plan = plan_for(wheels=wheels)
    enginefolder.claim(plan.folder)
    (plan.folder / "packages").mkdir()
    (plan.folder / "packages" / "half.py").touch()
    with (plan.folder / "install.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = standin_slicer.fingerprint(plan.folder)
        assert run(plan)[-1]["message"] == "another installation of the engine is running"
        assert [path.name for path in plan.folder.iterdir() if "install-" in path.name] == []
        (plan.folder / "install.log").unlink(missing_ok=True)
        assert standin_slicer.fingerprint(plan.folder) == before
        with pytest.raises(install.InstallError, match="an installation of the engine is running"):
            install.remove(plan.folder)
        assert standin_slicer.fingerprint(plan.folder) == before
    install.remove(plan.folder)
    assert not plan.folder.exists()


@posix
def test_an_installation_ends_with_its_slicer(plan_for, wheels, slicer):
    """A socket that accepts and never answers stands in for a stalled package index."""
    plan = plan_for(wheels=wheels)
    with socket.create_server(("127.0.0.1", 0)) as index:
        variables = offline(PIP_INDEX_URL=f"http://127.0.0.1:{index.getsockname()[1]}/simple", PIP_TIMEOUT="30")
        command = [sys.executable, "-c", STANDIN_SLICER, str(plan.folder), str(slicer), str(plan_for.requirements)]
        with subprocess.Popen(command, env=variables) as dying:
            index.settimeout(60)
            connection, _ = index.accept()
            dying.kill()
        with connection:
            limit = time.monotonic() + 10
            while processes_naming(str(plan.folder)):
                assert time.monotonic() < limit, processes_naming(str(plan.folder))
                time.sleep(0.05)
    assert run(plan)[-1] == {"event": "done"}


@posix
def test_an_engine_behind_a_link_is_removed_and_can_be_installed_again(tmp_path):
    (tmp_path / "large disk").mkdir()
    folder = tmp_path / "engine"
    folder.symlink_to(tmp_path / "large disk")
    for _ in range(2):
        install.use_python(sys.executable, {"version": "0.1.0"}, folder)
        (folder / "packages" / "torch").mkdir(parents=True)
        install.remove(folder)
        assert install.status(folder).state == "missing"
        assert list((tmp_path / "large disk").iterdir()) == []


@posix
def test_what_would_stop_an_installation_is_said_before_it(plan_for, wheels, tmp_path, monkeypatch):
    def only_problem(plan):
        assert len(plan.problems) == 1, plan.problems
        with pytest.raises(install.InstallError):
            install.Installation(plan, print)
        return plan.problems[0][0]

    empty = tmp_path / "empty"
    empty.mkdir()
    assert only_problem(plan_for(wheels=empty)) == f"{empty} holds no wheels"

    plan = plan_for(wheels=wheels)
    plan.folder.mkdir(parents=True)
    (plan.folder / "thesis.docx").write_text("")
    assert only_problem(plan_for(wheels=wheels)) == f"{plan.folder} holds other files"
    with pytest.raises(install.InstallError, match="was not made by this extension"):
        install.remove(plan.folder)
    assert (plan.folder / "thesis.docx").exists()
    (plan.folder / "thesis.docx").unlink()

    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho 3.9.10\n")
    old.chmod(0o755)
    assert only_problem(install.make_plan(tmp_path / "new", str(old), wheels)) == (
        f"{old} is Python 3.9.10; the engine needs 3.10 to 3.13"
    )
    monkeypatch.setattr(installplan.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**9))
    assert only_problem(plan_for(build="cu128")).startswith("not enough disk space at ")
    assert "about 9.5 GB are needed and 1.0 free" in only_problem(plan_for(build="cu128"))


def test_a_python_of_the_users_own(tmp_path):
    folder = tmp_path / "engine"
    install.use_python(sys.executable, {"version": "0.1.0"}, folder)
    found = install.status(folder)
    assert (found.state, found.python, found.own) == ("ready", sys.executable, True)
    log = tmp_path / "w.log"
    start = str(enginefolder.LIB / "enginestart.py")
    command = install.worker_command(folder, log)
    assert command == [sys.executable, "-s", start, "own", "worker", "--log", str(log)]
    marker = folder / "engine.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "python": "/gone"}))
    assert install.status(folder).why == "its Python is gone (/gone): repair it"
    marker.write_text("{")
    assert install.status(folder).state == "broken"


def test_the_log_lies_in_the_engines_folder_or_where_it_can_be_written(tmp_path, monkeypatch):
    """A folder in the file's place stands for one that may not be written: to root, everything may."""
    monkeypatch.setattr(enginefolder, "default_folder", lambda: tmp_path / "data" / "engine")
    folder = tmp_path / "engine"
    install.use_python(sys.executable, {"version": "0.1.0"}, folder)
    assert install.worker_log(folder) == folder / "engine.log"
    (folder / "engine.log").unlink()
    (folder / "engine.log").mkdir()
    assert install.worker_log(folder) == tmp_path / "data" / "engine.log"
    assert not (tmp_path / "data" / "engine").exists(), "a file in it would keep the engine from being installed there"
    (tmp_path / "data" / "engine.log").unlink()
    (tmp_path / "data" / "engine.log").mkdir()
    assert install.worker_log(folder) is None


def test_other_requirements_ask_for_a_repair(tmp_path):
    folder = tmp_path / "engine"
    (folder / "packages").mkdir(parents=True)
    facts = {"python": sys.executable, "python_version": "", "packages": {}, "size": 0, "build": "cpu", "key": "old"}
    (folder / "engine.json").write_text(json.dumps({**facts, "slicers_torch": None}))
    assert install.status(folder).why == "it was installed for another version of this extension: repair it"


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"python": 1}', "half a fi", '"python"'])
def test_a_marker_of_another_shape_asks_for_a_repair(tmp_path, text):
    (tmp_path / "engine.json").write_text(text)
    found = install.status(tmp_path)
    assert (found.state, found.why[:26]) == ("broken", "its marker cannot be read ")


def test_the_requirements_are_those_of_the_engine():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^dependencies = (\[.*?^\])", pyproject, re.MULTILINE | re.DOTALL)
    assert installplan.read_requirements(enginefolder.REQUIREMENTS) == ast.literal_eval(found[1])


@posix
def test_the_base_python_is_found_inside_and_outside_of_slicer(slicer, monkeypatch, tmp_path):
    assert install.find_base_python() == sys.executable
    application = slicer.parent / "SlicerApp-real"
    for inside in (application, slicer.parent / "python-real"):
        monkeypatch.setattr(sys, "executable", str(inside))
        assert install.find_base_python() == str(slicer)
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("SLICER_HOME", str(slicer.parents[1]))
    assert install.find_base_python() == str(slicer)
    monkeypatch.delenv("SLICER_HOME")
    monkeypatch.setattr(sys, "prefix", str(slicer.parents[1] / "lib" / "Python"))
    assert install.find_base_python() == str(slicer)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(install.InstallError, match="PythonSlicer"):
        install.find_base_python()


@pytest.mark.parametrize(
    ("card", "platform", "build"),
    [
        (None, "linux", "cpu"),
        (None, "win32", "auto"),
        (None, "darwin", "auto"),
        ("NVIDIA GeForce RTX 5090, 580.65.06, 12.0", "linux", "cu130"),
        ("NVIDIA RTX A4000, 572.16, 8.6", "win32", "cu128"),
        ("NVIDIA TITAN V, 580.65.06, 7.0", "linux", "cu126"),
        ("Quadro P2000, 535.183.01, 6.1", "linux", "cu118"),
        ("GeForce GTX 780, 470.256.02, 3.5", "linux", "cpu"),
        ("GeForce GTX 780, 470.256.02, 3.5", "win32", "auto"),
    ],
)
def test_the_build_of_torch_suits_driver_and_card(card, platform, build):
    assert torchchoice.choose_build(card, platform).build == build


@posix
@pytest.mark.parametrize("answers", ["", "case $1 in *compute_cap*) exit 2; esac"])
def test_a_driver_that_is_too_old_is_said(tmp_path, answers):
    """A script stands in for the driver's own program; an old one does not know of compute capabilities."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!/bin/sh\n{answers}\necho 'GTX 780, 470.256.02'$(echo $1 | sed -n 's/.*compute_cap/, 3.5/p')\n"
    )
    program.chmod(0o755)
    card = torchchoice.find_card({"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"})
    choice = torchchoice.choose_build(card, "linux")
    assert choice.why == "GTX 780: its driver 470.256.02 is too old for torch; update it to use the GPU"
    assert choice.build == "cpu"


@pytest.mark.parametrize(
    ("version", "specifiers", "answer"),
    [
        ("2.6.0", ">=2.6,<3", True),
        ("2.6", ">=2.6.0", True),
        ("2.5.1+cu124", ">=2.6,<3", False),
        ("3.0.0", ">=2.6,<3", False),
        ("2.9.0+cpu", "==2.9.0", True),
        ("2.10.0", ">=2.9", True),
        ("2.9.0", "!=2.9.0", False),
        ("2.9.0", "~=2.9", False),
        ("2.9.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version, specifiers, answer):
    assert torchchoice.fits(version, specifiers) is answer


@pytest.mark.parametrize(
    ("log", "message", "remedy"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full", "Make room"),
        ("ERROR: ... SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED", "certificate", "PIP_CERT"),
        ("WARNING: Retrying ... ProxyError('Cannot connect to proxy.')", "the proxy refuses", "HTTPS_PROXY"),
        ("HINT: This error might have occurred since Windows Long Path support", "paths this long", "C:\\pgpsam"),
        ("ERROR: No matching distribution found for torchvision<1", "the package index has no torchvision for", "3.13"),
        ("PermissionError: [WinError 5] Access is denied: 'c10.dll'", "could not be written", "Close programs"),
        ("Zombies", "the installation failed: Zombies", "see the log"),
    ],
)
def test_what_pip_says_in_one_line(log, message, remedy):
    found, hint = explain(log, "pip", "", "", "3.12.10")
    assert message in found
    assert remedy in hint
    assert "\n" not in found + hint


def test_a_hint_names_only_what_the_panel_has():
    """It has a folder of wheels, and takes a Python that has all packages; it has no choice of torch's build."""
    panel = (ROOT / "PGPSAMSegment" / "Resources" / "UI" / "PGPSAMSegment.ui").read_text(encoding="utf-8")
    hints = [
        explain("Max retries exceeded", "pip", "", "https://download.pytorch.org/whl/cu128", "3.12.10")[1],
        explain("No matching distribution found for torchvision<1", "pip", "", "", "3.12.10")[1],
        explain("No module named pip", "pip", "", "", "3.12.10")[1],
        explain("Zombies", "probe", "", "", "3.12.10")[1],
    ]
    for hint in hints:
        assert "'Use this Python...'" in hint
        assert "torch build" not in hint
        assert "\n" not in hint
    assert "setup_env.py install --cuda auto" in hints[0]
    assert "'Wheels folder'" in hints[0]
    assert all("has all packages already" in hint for hint in hints[1:])
    assert ">Use this Python...<" in panel
    assert "Wheels folder:<" in panel.replace("&amp;", "")


def processes_naming(text):
    """Command lines of running processes that hold a text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # ended meanwhile
            continue
        if text in command:
            found.append(command)
    return found
