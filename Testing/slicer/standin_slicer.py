"""Stand-ins for what an installation meets: Slicer's Python, and the packages that it would download.

The Slicer is laid out as the real one: `bin/python-real` finds its libraries only through the launcher
`bin/PythonSlicer`, which sets PYTHONHOME, PYTHONPATH and LD_LIBRARY_PATH; `lib/Python` holds the standard
library (this Python's own, linked) and site-packages with pip. The wheels hold one line of code each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

LAUNCHER = """#!/bin/sh
home="$(cd "$(dirname "$0")/.." && pwd)"
export PYTHONHOME="$home/lib/Python"
export PYTHONPATH="$home/bin/Python:$home/lib/Python/lib/{version}/site-packages"
export LD_LIBRARY_PATH="$home/lib/Python/lib:$LD_LIBRARY_PATH"
"$home/bin/python-real" "$@"
"""


def make_slicer(home: Path) -> Path:
    """Makes the stand-in below `home` and returns its PythonSlicer."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    standard = Path(sysconfig.get_path("stdlib"))
    library = home / "lib" / "Python" / "lib" / version
    library.mkdir(parents=True)
    for entry in standard.iterdir():
        if entry.name not in ("site-packages", "__pycache__"):
            (library / entry.name).symlink_to(entry)
    shared = Path(sysconfig.get_config_var("LIBDIR") or "") / str(sysconfig.get_config_var("INSTSONAME"))
    if shared.is_file():
        (library.parent / shared.name).symlink_to(shared)
    pip = next((standard / "ensurepip" / "_bundled").glob("pip-*.whl"))
    packages = library / "site-packages"
    with zipfile.ZipFile(pip) as wheel:
        wheel.extractall(packages)
    (packages / "slicers_own.py").write_text("# nothing of the engine's business\n")
    (home / "bin" / "Python").mkdir(parents=True)
    (home / "bin" / "Python" / "slicer.py").write_text("raise ImportError('not outside of Slicer')\n")
    real = Path(os.path.realpath(sys.executable))
    shutil.copy2(real, home / "bin" / "python-real")
    launcher = home / "bin" / "PythonSlicer"
    launcher.write_text(LAUNCHER.format(version=version))
    launcher.chmod(0o755)
    return launcher


def site_packages(launcher: Path) -> Path:
    return next((launcher.parents[1] / "lib" / "Python" / "lib").glob("python*/site-packages"))


def make_wheel(folder: Path, name: str, version: str, code: str = "", requires: str = "") -> Path:
    """A wheel by hand: one package with one line of code."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = package_files(name, version, code, requires)
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
    return path


def put_package(packages: Path, name: str, version: str, requires: str = "") -> None:
    """The same, as if it had been installed into a folder of packages."""
    for old in packages.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    for member, text in package_files(name, version, "", requires).items():
        (packages / member).parent.mkdir(parents=True, exist_ok=True)
        (packages / member).write_text(text)


def package_files(name: str, version: str, code: str, requires: str) -> dict[str, str]:
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {requires}\n" if requires else ""
    return {
        f"{name}/__init__.py": f"__version__ = {version!r}\n{code}\n",
        f"{name}-{version}.dist-info/METADATA": metadata,
    }


def make_index(folder: Path) -> str:
    """A package index over the wheels in a folder, as a file: URL."""
    for wheel in folder.glob("*.whl"):
        page = folder / "simple" / wheel.name.split("-")[0].replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f'<a href="{wheel.as_uri()}">{wheel.name}</a>')
    return (folder / "simple").as_uri()


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder by its SHA-256; links by their target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        elif path.is_file() and "__pycache__" not in path.parts:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
