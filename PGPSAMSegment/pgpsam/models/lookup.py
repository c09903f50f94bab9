"""Where models lie, and how a name finds one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pgpsam.errors import UserError
from pgpsam.home import home
from pgpsam.models.spec import SPEC_FILE, ModelSpec, is_model_name
from pgpsam.models.store import load_spec


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a model.

    Args:
        name_or_path: a folder that holds a model.json, or the name of a model in one of `model_folders`.

    Raises:
        UserError: neither; the hint lists the known names.
    """
    path = Path(os.path.expanduser(name_or_path))
    if os.path.isfile(path / SPEC_FILE):  # os.path, which takes what it may not look at for missing
        return path
    if is_model_name(str(name_or_path)):
        for folder in model_folders():
            if os.path.isfile(folder / path / SPEC_FILE):
                return folder / path
    if os.path.isdir(path):
        raise UserError(f"{path} is not a model folder: it has no {SPEC_FILE}", _known_hint())
    raise UserError(f"no model '{name_or_path}'", _known_hint())


def list_models() -> list[tuple[Path, ModelSpec | UserError]]:
    """Every model in the `model_folders`, sorted by name; of one that is damaged or misnamed, what is wrong with it."""
    return [(path, _spec_or_error(path)) for _, path in sorted(_known_models().items())]


def model_folders() -> list[Path]:
    """Where models are looked up by name, the first hit winning.

    The folders in PGPSAM_MODELS, the user's own, and the nearest `Resources/Models` above this file, which is
    the repository's in a checkout and the extension's inside Slicer.
    """
    chosen = [Path(os.path.expanduser(part)) for part in os.environ.get("PGPSAM_MODELS", "").split(os.pathsep) if part]
    shipped = [parent / "Resources" / "Models" for parent in Path(__file__).resolve().parents]
    return [*chosen, _user_data_dir() / "pgpsam" / "models", *[path for path in shipped if path.is_dir()][:1]]


def _user_data_dir() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return home() / "Library" / "Application Support"
    xdg = Path(os.environ.get("XDG_DATA_HOME", ""))
    return xdg if xdg.is_absolute() else home() / ".local" / "share"


def _known_models() -> dict[str, Path]:
    known: dict[str, Path] = {}
    for folder in model_folders():
        for spec_file in sorted(folder.glob(f"*/{SPEC_FILE}")):
            if not spec_file.parent.name.startswith("."):  # of `save_model`
                known.setdefault(spec_file.parent.name, spec_file.parent)
    return known


def _known_hint() -> str:
    names = sorted(filter(is_model_name, _known_models()))
    return f"Known models: {', '.join(names) or 'none'}. Or give the path of a model folder"


def _spec_or_error(folder: Path) -> ModelSpec | UserError:
    if not is_model_name(folder.name):
        return UserError(f"{folder}: this cannot name a model", "Rename the folder: letters, digits, '.', '-' and '_'")
    try:
        return load_spec(folder)
    except UserError as error:
        return error
