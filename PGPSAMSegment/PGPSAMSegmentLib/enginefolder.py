"""The folder that holds the engine's packages: what is in it, how to start the worker, how to be rid of it.

owner.txt     says whose folder it is; without it nothing here is ever deleted
packages/     what pip has installed
engine.json   the marker: written last, so a folder without it is unfinished
install.log   what pip said; install.lock: held by an installation or a removal
engine.log    what the worker logs, and older parts of it: engine.log.1, ...
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import torchchoice

LIB = Path(__file__).resolve().parent
REQUIREMENTS = LIB / "requirements.txt"
OWNER = "This folder belongs to PGPSAMSegment's engine. It can be deleted as a whole.\n"
GB = 10**9


class InstallError(Exception):
    """Something the user can mend: `message` is one line, `hint` is what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}. {hint}")
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Status:
    """What a folder holds. `state` is "missing", "broken" (`why` says what is wrong) or "ready".

    `packages` maps names to versions; `own` is true for a Python with packages of its own.
    """

    state: str
    why: str = ""
    python: str = ""
    python_version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    size_gb: float = 0.0
    own: bool = False


def default_folder() -> Path:
    """Where the engine goes unless told otherwise: the user's data folder of this system."""
    if sys.platform == "win32":  # not the roaming profile, which is copied over the network at each log-in
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "PGPSAMSegment" / "engine"


def read_requirements(path: Path) -> list[str]:
    """The lines that count."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def status(folder: Path | None = None, requirements: Path = REQUIREMENTS) -> Status:
    """What a folder holds, from its marker alone: no program is started."""
    folder = folder or default_folder()
    try:
        facts = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
        key, torch = facts["key"], facts["slicers_torch"]
        version, packages, own = facts["python_version"], facts["packages"], facts["build"] == "own"
        ready = Status("ready", "", facts["python"], version, packages, facts["size"] / GB, own)
    except FileNotFoundError:
        if (folder / "owner.txt").exists():
            return Status("broken", "the installation was not finished: install again")
        return Status("missing", "the engine is not installed")
    except (OSError, ValueError, LookupError, TypeError) as error:
        return Status("broken", f"its marker cannot be read ({error}): repair it")
    why = ""
    if not Path(ready.python).is_file():
        why = f"its Python is gone ({ready.python}): repair it"
    elif not ready.own and key != requirements_key(read_requirements(requirements)):
        why = "it was installed for another version of this extension: repair it"
    elif not ready.own and not (folder / "packages").is_dir():
        why = "its packages are gone: repair it"
    elif torch and torchchoice.installed_version(Path(torch["folder"]), "torch") != torch["torch"]:
        why = "the torch of Slicer that it uses was changed or removed: repair it"
    return Status("broken", why, ready.python, ready.python_version) if why else ready


def worker_command(folder: Path | None = None, log: Path | None = None) -> list[str]:
    """The command that starts the installed engine's worker, for `Engine`.

    Raises:
        InstallError: the engine is not ready.
    """
    folder = folder or default_folder()
    found = status(folder)
    if found.state != "ready":
        raise InstallError(f"the engine cannot be used: {found.why}", "Install or repair it.")
    if found.own:
        return own_worker_command(found.python, log)
    return _start(found.python, ["-S"], str(folder / "packages"), log)


def own_worker_command(python: str, log: Path | None = None) -> list[str]:
    """The command for a Python that has all packages already; a "hello" to this worker shows whether it does."""
    return _start(python, [], "own", log)


def worker_log(folder: Path | None = None) -> Path | None:
    """The file that an installed engine's worker can log to, which is made: in the engine's folder or, where nothing
    can be written there, in the user's data folder; None if it cannot be written there either."""
    for place in (folder or default_folder(), default_folder().parent):
        path = place / "engine.log"
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
            return path
    return None


def use_python(python: str, hello: Mapping[str, Any], folder: Path | None = None) -> None:
    """Makes a Python with packages of its own the engine, after its worker has answered a hello.

    Raises:
        InstallError: the folder holds something else.
        OSError: the folder cannot be written.
    """
    folder = folder or default_folder()
    claim(folder)
    facts: dict[str, Any] = {"python": python, "build": "own", "key": "", "slicers_torch": None, "size": 0}
    facts |= {"python_version": str(hello.get("python", "")), "packages": {"pgpsam": str(hello.get("version", ""))}}
    part = folder / "engine.json.part"
    part.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    os.replace(part, folder / "engine.json")


def remove(folder: Path | None = None) -> None:
    """Deletes the engine's folder; one that is not the engine's is refused.

    Raises:
        InstallError: the folder holds something else, or the engine is being installed.
        OSError: a file is in use: close the engine first.
    """
    folder = folder or default_folder()
    if not folder.exists():
        return
    if not (folder / "owner.txt").is_file():
        raise InstallError(f"{folder} was not made by this extension", "Nothing was deleted.")
    last = [folder / "install.lock", folder / "owner.txt"]  # where a file is in use, Remove can be pressed again
    with last[0].open("ab") as lock:
        if not try_lock(lock):
            raise InstallError("an installation of the engine is running", "Wait until it has ended.")
        (folder / "engine.json").unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path not in last:
                path.unlink()
    for path in last:
        path.unlink()
    if not folder.is_symlink():  # a link and the place that it leads to are the user's
        folder.rmdir()


def _start(python: str, options: list[str], packages: str, log: Path | None) -> list[str]:
    command = [python, *options, "-s", str(LIB / "enginestart.py"), packages, "worker"]
    return [*command, "--log", str(log)] if log else command


def claim(folder: Path) -> None:
    """Makes the folder and marks it as the engine's.

    Raises:
        InstallError: it holds something else, which Remove would delete one day.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if holds_others(folder):
        raise InstallError(f"{folder} holds other files", "Choose a new or empty folder.")
    (folder / "owner.txt").write_text(OWNER, encoding="utf-8")


def holds_others(folder: Path) -> bool:
    """Whether a folder that exists has something in it and is not the engine's."""
    return any(folder.iterdir()) and not (folder / "owner.txt").is_file()


def requirements_key(requirements: list[str]) -> str:
    """Changes when the packages that are needed do."""
    return hashlib.sha256("\n".join(requirements).encode()).hexdigest()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; none where there is no folder."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += os.lstat(os.path.join(at, name)).st_size
    return total


def try_lock(file: Any) -> bool:
    """Takes the lock that the system frees when this process ends; False while another installation holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
