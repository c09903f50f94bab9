"""The installation itself, step by step: `python installsteps.py`, started by install.py.

Run as a script by the Python that the engine will use, in a process group of its own, so that Slicer stays free and
a cancel can end all of it. Standard library only. The plan, that of `installplan.Plan.order`, is one line of JSON on
standard input; where that ends, Slicer has gone, and all of this ends too. Answers one JSON object a line on standard
output; whatever pip says goes to standard error, which is the log.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script does not know its package

from PGPSAMSegmentLib.enginefolder import size_of, try_lock
from PGPSAMSegmentLib.torchchoice import SlicersTorch, write_pointers

# Shares of the whole, by the time they take on a usual line.
DOWNLOADED, INSTALLED = 0.70, 0.92


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def fail(step: str) -> NoReturn:
    say(event="failed", step=step)
    sys.exit(1)


def end_with_slicer() -> None:
    """Ends this process and all that it has started when Slicer, which holds the other end of the pipe, is gone."""
    os.read(0, 1)  # nothing comes after the plan
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(os.getpid())], stdin=subprocess.DEVNULL)
    else:
        os.killpg(0, signal.SIGKILL)


def main(plan: dict[str, Any]) -> None:
    folder = Path(plan["folder"])
    packages, temp, marker = folder / "packages", folder / "temp", folder / "engine.json"
    lock = (folder / "install.lock").open("ab")
    if not try_lock(lock):
        fail("lock")

    say(event="progress", stage="clean", fraction=0.0, package="")
    marker.unlink(missing_ok=True)  # from here on the engine counts as unfinished, until the last step
    for remains in (packages, temp):
        if remains.exists():
            shutil.rmtree(remains)
    wheels = temp / "wheels"
    wheels.mkdir(parents=True)
    # pip downloads and unpacks here, not in the system's temporary folder, which may be small or on another disk.
    os.environ.update(TMPDIR=str(temp), TEMP=str(temp), TMP=str(temp))
    tempfile.tempdir = None

    offline = ["--no-index", "--find-links", plan["wheels"]] if plan["wheels"] else []
    pins: list[str] = []
    if plan["slicers_torch"]:
        pins = write_pointers(SlicersTorch(**plan["slicers_torch"]), wheels)
    elif plan["torch_index"]:
        torch = [line for line in plan["requirements"] if re.match(r"torch(vision)?\b", line)]
        pip(plan, ["download", "--dest", str(wheels), "--index-url", plan["torch_index"], *torch])
        pins = [exact(next(wheels.glob(f"{name}-[0-9]*.whl"))) for name in ("torch", "torchvision")]
    found = ["--find-links", str(wheels), *pins]
    pip(plan, ["install", "--target", str(packages), *offline, *found, *plan["requirements"]])

    say(event="progress", stage="check", fraction=INSTALLED, package="")
    probe = [str(Path(__file__).with_name("enginestart.py")), str(packages), "--probe", plan["probe"]]
    command = [sys.executable, "-S", "-s", *probe]
    if subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=folder).returncode:
        fail("probe")
    shutil.rmtree(temp, ignore_errors=True)  # an unfinished download is no reason to fail now
    facts = {key: plan[key] for key in ("python", "build", "key", "slicers_torch")}
    facts |= {"python_version": sys.version.split()[0], "size": size_of(packages), "packages": versions(packages)}
    write_whole(marker, json.dumps(facts, indent=1))
    say(event="done")


def exact(wheel: Path) -> str:
    """The very version that a wheel's file name states: torch-2.9.0+cpu-... -> torch==2.9.0+cpu."""
    name, version = wheel.name.split("-")[:2]
    return f"{name}=={version.replace('%2B', '+')}"


def pip(plan: dict[str, Any], arguments: list[str]) -> None:
    """Runs pip to its end; its output goes to the log, and how far it is to Slicer."""
    verb, *rest = arguments
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--only-binary", ":all:"]
    if verb == "install":
        options += ["--no-warn-conflicts", "--no-warn-script-location", "--no-compile"]
    command = [sys.executable, "-m", "pip", verb, *options, *rest]
    log(f"\n$ {' '.join(command)}\n")
    temp = Path(plan["folder"]) / "temp"
    with (temp / "pip.txt").open("wb") as output, (temp / "pip.txt").open("rb") as reader:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.3)
            report(plan, temp, reader.read())
        report(plan, temp, reader.read())
    if process.returncode:
        fail("pip")


def report(plan: dict[str, Any], temp: Path, output: bytes) -> None:
    """Logs what pip has just said and says where it is."""
    text = output.decode("utf-8", "replace")
    log(text)
    if re.search(r"^Installing collected packages", text, re.MULTILINE):
        say(event="progress", stage="install", fraction=DOWNLOADED, package="")
        plan["installing"] = True
    elif not plan.get("installing"):
        named = re.findall(r"^\s*(?:Collecting|Downloading|Using cached|Processing)\s+(\S+)", text, re.MULTILINE)
        package = re.split(r"[<>=!~;(]|-\d", os.path.basename(named[-1]))[0] if named else ""
        share = min(downloaded(temp) / max(plan["download_bytes"], 1), 1.0)
        say(event="progress", stage="download", fraction=round(DOWNLOADED * share, 3), package=package)


def log(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def downloaded(temp: Path) -> int:
    """Bytes of the wheels that pip has in its hands. Few files: it unpacks them elsewhere."""
    total = 0
    for wheel in (*temp.glob("wheels/*.whl"), *temp.glob("pip-*/*.whl")):
        try:
            total += wheel.stat().st_size
        except OSError:  # pip has moved it meanwhile
            continue
    return total


def versions(packages: Path) -> dict[str, str]:
    """Name and version of each installed package, from the names of their metadata folders."""
    names = sorted(folder.name.removesuffix(".dist-info") for folder in packages.glob("*.dist-info"))
    return {name: version for name, _, version in (each.partition("-") for each in names)}


def write_whole(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=end_with_slicer, daemon=True).start()
    main(order)
