"""Which torch the engine gets: the build that suits the graphics driver, or the one that Slicer already has.

torch is never imported here: versions are read from the metadata files that every installed package has.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .childprocess import ask

TORCH_INDEX = "https://download.pytorch.org/whl"

# The newest CUDA that an NVIDIA driver can run, by the driver's major version, newest first; and torch's build
# for it. torch refuses an older driver, and then computes on the CPU without a word.
BUILDS_BY_DRIVER = ((580, "cu130"), (570, "cu128"), (560, "cu126"), (550, "cu124"), (520, "cu118"))
# Builds from cu128 on no longer hold code for graphics cards before Turing (compute capability 7.5).
OLDEST_CARD_OF_NEW_BUILDS = 7.5
NEWEST_BUILD_FOR_OLD_CARDS = "cu126"


@dataclass(frozen=True)
class Choice:
    """A build of torch: "auto" (the package index's default), "cpu" or "cuXYZ", and why."""

    build: str
    why: str

    @property
    def index(self) -> str:
        """PyTorch's own index of this build, or "" where the usual one serves."""
        return "" if self.build == "auto" else f"{TORCH_INDEX}/{self.build}"

    @property
    def brings_cuda(self) -> bool:
        """Whether CUDA's libraries come along, which makes it several times as large."""
        return self.build.startswith("cu") or (self.build == "auto" and sys.platform.startswith("linux"))


@dataclass(frozen=True)
class SlicersTorch:
    """torch and torchvision in Slicer's own site-packages, put there by the PyTorch extension."""

    folder: Path
    torch: str
    torchvision: str


def choose_build(card: str | None, platform: str = sys.platform) -> Choice:
    """The build for this machine.

    Args:
        card: what `find_card` has answered.
        platform: as `sys.platform`.
    """
    if platform == "darwin":
        return Choice("auto", "macOS: one build serves all")
    plain = "auto" if platform == "win32" else "cpu"  # on Windows the index's default is the CPU's
    if card is None:
        return Choice(plain, "no NVIDIA driver was found: the engine computes on the CPU")
    name, driver, *capability = (part.strip() for part in card.split(","))
    build = next((build for oldest, build in BUILDS_BY_DRIVER if _number(driver) >= oldest), None)
    if build is None:
        return Choice(plain, f"{name}: its driver {driver} is too old for torch; update it to use the GPU")
    if capability and _number(capability[0]) < OLDEST_CARD_OF_NEW_BUILDS and build in ("cu128", "cu130"):
        build = NEWEST_BUILD_FOR_OLD_CARDS
    return Choice(build, f"{name}, driver {driver}")


def find_card(environment: Mapping[str, str]) -> str | None:
    """The first NVIDIA card as "name, driver version, compute capability", or None without a working driver.

    An old driver does not know of compute capabilities: its answer has the first two alone.
    """
    for query in ("name,driver_version,compute_cap", "name,driver_version"):
        try:
            answer = ask(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], environment, 10)
        except (OSError, subprocess.TimeoutExpired):  # no driver, or one that does not answer
            return None
        first = answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else ""
        if first.count(",") == query.count(","):
            return first
    return None


def find_slicers_torch(site_packages: Path, requirements: list[str]) -> SlicersTorch | None:
    """torch and torchvision in a folder of installed packages, if both fit the engine's requirements.

    Args:
        site_packages: Slicer's own; it is only read.
        requirements: the engine's, as in requirements.txt; those of torch and torchvision count.
    """
    found = {name: installed_version(site_packages, name) for name in ("torch", "torchvision")}
    for line in requirements:
        name, specifiers = split_requirement(line)
        if name in found and not (found[name] and fits(found[name] or "", specifiers)):
            return None
    torch, torchvision = found["torch"], found["torchvision"]
    if not torch or not torchvision or not (site_packages / "torch" / "__init__.py").is_file():
        return None
    # torchvision holds compiled code for one torch, which its own metadata names.
    wanted = [split_requirement(line) for line in _metadata(site_packages, "torchvision", "Requires-Dist")]
    if not all(fits(torch, specifiers) for name, specifiers in wanted if name == "torch"):
        return None
    return SlicersTorch(site_packages, torch, torchvision)


def installed_version(site_packages: Path, name: str) -> str | None:
    """The version of a package in a folder of installed packages, or None."""
    return next(iter(_metadata(site_packages, name, "Version")), None)


def _metadata(site_packages: Path, name: str, field: str) -> list[str]:
    """All values of a field of a package's metadata."""
    for folder in sorted(site_packages.glob(f"{name}-*.dist-info")):
        try:
            text = (folder / "METADATA").read_text(encoding="utf-8", errors="replace")
        except OSError:  # the remains of a package that was removed
            continue
        return re.findall(rf"^{field}:\s*(.+?)\s*$", text.split("\n\n")[0], re.MULTILINE)
    return []


def split_requirement(line: str) -> tuple[str, str]:
    """ "torch (>=2.6,<3) ; extra" or "torch>=2.6,<3" as ("torch", ">=2.6,<3")."""
    found = re.match(r"\s*([A-Za-z0-9._-]+)\s*\(?([^;)]*)", line)
    return (found[1].lower(), found[2].strip()) if found else ("", "")


def fits(version: str, specifiers: str) -> bool:
    """Whether a version's release number meets specifiers such as ">=2.6,<3" (==, !=, >=, <=, >, <)."""
    have = _release(version)
    for specifier in filter(None, (part.strip() for part in specifiers.split(","))):
        found = re.fullmatch(r"(==|!=|>=|<=|>|<)\s*([0-9.]+)(?:\.\*)?(?:\+.*)?", specifier)
        if not found:
            return False  # a form that is not known here: better a torch of our own
        want = _release(found[2])
        length = max(len(have), len(want))
        left, right = (number + (0,) * (length - len(number)) for number in (have, want))
        order = (left > right) - (left < right)
        if order not in {"==": (0,), "!=": (-1, 1), ">=": (0, 1), "<=": (-1, 0), ">": (1,), "<": (-1,)}[found[1]]:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0].partition("rc")[0]))


def _number(text: str) -> float:
    found = re.match(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else 0.0


def write_pointers(found: SlicersTorch, folder: Path) -> list[str]:
    """Writes a wheel each for torch and torchvision that holds no code but a pointer to Slicer's folder.

    pip installs them in place of the gigabytes that they stand for: the pointer is a .pth file, and whatever
    else the engine needs comes before it on the path.

    Args:
        found: what Slicer has.
        folder: receives the wheels.

    Returns:
        what pip is to install: exactly these.
    """
    pins = []
    for name, version in (("torch", found.torch), ("torchvision", found.torchvision)):
        # Its own local version: no index has the same one, so pip cannot prefer that of an index.
        local = f"{version}.slicer" if "+" in version else f"{version}+slicer"
        info = f"{name}-{local}.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {local}\nSummary: Slicer's own {name}\n"
        files = {
            f"slicers_{name}.pth": f"{found.folder}\n",
            f"{info}/METADATA": metadata,
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: pgpsam\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
        with zipfile.ZipFile(folder / f"{name}-{local}-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text.encode("utf-8", "surrogateescape"))  # a folder as the system names it
        pins.append(f"{name}=={local}")
    return pins
