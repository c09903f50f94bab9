"""What an installation of the engine would do on this machine, and what would stop it; nothing is changed here."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import torchchoice
from .childprocess import ask, clean_environment
from .enginefolder import (
    GB,
    REQUIREMENTS,
    InstallError,
    default_folder,
    holds_others,
    read_requirements,
    requirements_key,
    size_of,
)
from .installhints import ANOTHER_PYTHON, OFFLINE

PYTHONS = ((3, 10), (3, 13))
# A file of the largest packages lies this deep in the folder while it is unpacked (measured with torch 2.15).
DEEPEST_PATH = 170
WINDOWS_PATHS = 259

# Measured on Linux: bytes that pip downloads, and bytes on the disk afterwards.
DOWNLOADS = {"cuda": 3.0 * GB, "cpu": 0.5 * GB, "slicer": 0.25 * GB}
INSTALLED = {"cuda": 6.5 * GB, "cpu": 1.6 * GB, "slicer": 0.8 * GB}


@dataclass(frozen=True)
class Plan:
    """What an installation will do; nothing is done before `Installation(plan)`.

    Attributes:
        folder: where it goes.
        python, python_version: what will run the engine.
        requirements: what pip is asked for.
        source: in words, where the packages come from.
        wheels: a folder that serves instead of a network, or "".
        build: torch's, see `torchchoice.Choice`, or "wheels" or "slicer"; `build_why` says why this one.
        torch_index: PyTorch's own index, or "".
        slicers_torch: the torch in Slicer that is used, or None.
        download_gb, disk_gb: estimates; the disk holds the downloads until the end.
        free_gb: on that disk, counting what the installation replaces.
        problems: (message, hint) of what would make it fail; with any, `Installation` refuses.
    """

    folder: Path
    python: str
    python_version: str
    requirements: list[str]
    source: str
    wheels: str
    build: str
    build_why: str
    torch_index: str
    slicers_torch: torchchoice.SlicersTorch | None
    download_gb: float
    disk_gb: float
    free_gb: float
    problems: list[tuple[str, str]]

    def order(self) -> dict[str, Any]:
        """What installsteps.py reads."""
        wheels = sum(wheel.stat().st_size for wheel in Path(self.wheels).glob("*.whl")) if self.wheels else 0
        return {
            **asdict(self),
            "download_bytes": wheels or int(self.download_gb * GB),
            "key": requirements_key(self.requirements),
        }

    def describe(self) -> list[str]:
        """What to show before the user agrees, line by line."""
        return [
            f"Folder: {self.folder}",
            f"Python: {self.python} ({self.python_version}); its own packages stay as they are",
            f"From: {self.source}",
            f"PyTorch: {self.build} ({self.build_why})",
            f"Download: about {self.download_gb:.1f} GB",
            f"Disk: about {self.disk_gb:.1f} GB of {self.free_gb:.1f} GB free",
        ]


def find_base_python() -> str:
    """The Python that runs this code, as a program that can be started.

    1. `sys.executable`, if it is a Python ("python3", "python.exe", "PythonSlicer");
    2. inside Slicer, where it is the application or the bare "python-real" that lacks its libraries: the
       launcher PythonSlicer on the path, beside the executable, in SLICER_HOME/bin, or beside Slicer's libraries.

    Raises:
        InstallError: there is none.
    """
    executable = Path(sys.executable or "")
    name = executable.name.lower()
    if name.startswith("python") and not name.startswith("python-real") and executable.is_file():
        return str(executable)
    launcher = "PythonSlicer.exe" if sys.platform == "win32" else "PythonSlicer"
    places = [executable.parent, Path(sys.prefix).parent.parent / "bin"]
    if os.environ.get("SLICER_HOME"):
        places.insert(0, Path(os.environ["SLICER_HOME"]) / "bin")
    candidates = [shutil.which("PythonSlicer"), *(place / launcher for place in places)]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return str(candidate)
    raise InstallError("Slicer's Python (PythonSlicer) was not found", ANOTHER_PYTHON)


def make_plan(
    folder: Path | None = None,
    python: str = "",
    wheels: Path | None = None,
    build: str = "",
    slicers_packages: Path | None = None,
    environment: Mapping[str, str] | None = None,
    requirements: Path = REQUIREMENTS,
) -> Plan:
    """Looks at this machine and says what an installation would do; takes about a second and changes nothing.

    Args:
        folder: default: `default_folder()`.
        python: the program that will run the engine; default: `find_base_python()`.
        wheels: install from this folder, without a network.
        build: torch's build, "auto", "cpu" or "cuXYZ"; default: by the graphics driver.
        slicers_packages: Slicer's site-packages, whose torch is used if it fits; None: not asked for. It must
            belong to `python`.
        environment: `slicer.util.startupEnvironment()`.
        requirements: the list of packages.

    Raises:
        InstallError: there is no Python to start with.
    """
    folder = (folder or default_folder()).absolute()
    python = python or find_base_python()
    clean = clean_environment(environment)
    lines = read_requirements(requirements)
    problems: list[tuple[str, str]] = []
    version = _python_version(python, clean, problems)

    torch = torchchoice.find_slicers_torch(slicers_packages, lines) if slicers_packages and not build else None
    index, kind = "", "slicer"
    if torch:
        build, why = "slicer", f"torch {torch.torch} of Slicer's PyTorch extension is used, nothing is downloaded"
    elif wheels:
        build, why, kind = "wheels", "the build that the folder holds", "cpu"
    else:
        choice = (
            torchchoice.Choice(build, "chosen") if build else torchchoice.choose_build(torchchoice.find_card(clean))
        )
        build, why, index, kind = choice.build, choice.why, choice.index, "cuda" if choice.brings_cuda else "cpu"

    download, installed = DOWNLOADS[kind], INSTALLED[kind]
    source = f"the package index{f' and {index}' if index else ''}"
    if wheels:
        source = f"the folder {wheels}, without a network"
        # Wheels unpack to less than three times their size; they are read where they are.
        download, installed = 0, 3 * sum(wheel.stat().st_size for wheel in wheels.glob("*.whl"))
        if not any(wheels.glob("*.whl")):
            problems.append((f"{wheels} holds no wheels", OFFLINE.format(python=version)))
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
    free += size_of(folder / "packages") + size_of(folder / "temp")  # they go before anything comes
    _check_folder(folder, download + installed, free, problems)
    return Plan(
        folder=folder,
        python=python,
        python_version=version,
        requirements=lines,
        source=source,
        wheels=str(wheels.absolute()) if wheels else "",
        build=build,
        build_why=why,
        torch_index=index,
        slicers_torch=torch,
        download_gb=download / GB,
        disk_gb=(download + installed) / GB,
        free_gb=free / GB,
        problems=problems,
    )


def _python_version(python: str, environment: Mapping[str, str], problems: list[tuple[str, str]]) -> str:
    """The version of a Python that can install, or "" with the reason added to `problems`."""
    try:
        code = "import sys; print(sys.version.split()[0]); import pip"
        answer = ask([python, "-s", "-c", code], environment, 60)
    except (OSError, subprocess.TimeoutExpired) as error:
        problems.append((f"{python} does not start ({error})", ANOTHER_PYTHON))
        return ""
    version = answer.stdout.strip()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) != 2:
        problems.append((f"{python} is not a Python", ANOTHER_PYTHON))
    elif not PYTHONS[0] <= numbers <= PYTHONS[1]:
        message = f"{python} is Python {version}; the engine needs 3.10 to 3.13"
        problems.append((message, f"Use Slicer 5.10 or later. {ANOTHER_PYTHON}"))
    elif answer.returncode:
        problems.append((f"{python} has no pip", f"Run: {python} -m ensurepip. {ANOTHER_PYTHON}"))
    return version


def _check_folder(folder: Path, needed: float, free: float, problems: list[tuple[str, str]]) -> None:
    with contextlib.suppress(FileNotFoundError):
        if holds_others(folder):
            problems.append((f"{folder} holds other files", "Choose a new or empty folder."))
    if free < needed:
        message = f"not enough disk space at {folder}: about {needed / GB:.1f} GB are needed and {free / GB:.1f} free"
        problems.append((message, "Make room, or choose a folder on a larger disk."))
    if sys.platform == "win32" and len(str(folder)) + DEEPEST_PATH > WINDOWS_PATHS:
        problems.append((f"{folder} is too long a path for Windows", "Choose a shorter folder, such as C:\\pgpsam."))
