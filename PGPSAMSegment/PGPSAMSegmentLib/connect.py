"""Run by Slicer, once: from its next start on Slicer finds this module, and the module a Python with the engine.

`setup_env.py install --slicer PATH` starts Slicer with this script. The variable PGPSAM_CONNECT holds JSON: `python`,
a Python that has the engine's packages, its `python_version`, pgpsam's `version`, and `answer`, the file that gets
what was done, as JSON: `module` and `engine`, each whether it is new. An engine that was installed in Slicer and is
ready stays.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

MODULE = Path(__file__).resolve().parent.parent
PATHS = "Modules/AdditionalPaths"  # of the settings that belong to this Slicer alone


def add_module_path(application: Any, folder: Path) -> bool:
    """Adds a folder to Slicer's additional module paths; False where it is one of them."""
    settings = application.revisionUserSettings()
    value = settings.value(PATHS)
    paths = [value] if isinstance(value, str) else list(value or ())
    if any(Path(application.toSlicerHomeAbsolutePath(path)) == folder for path in paths):
        return False
    settings.setValue(PATHS, [*paths, str(folder)])
    settings.sync()
    return True


def choose_engine(order: dict[str, str]) -> bool:
    """Makes the order's Python the engine, unless one that was installed in Slicer is ready."""
    from PGPSAMSegmentLib import enginefolder

    now = enginefolder.status()
    if now.state == "ready" and not now.own:
        return False
    enginefolder.use_python(order["python"], {"python": order["python_version"], "version": order["version"]})
    return True


def main() -> int:
    """Exit code: a Slicer without a window must end, whatever happens."""
    try:
        import slicer

        order = json.loads(os.environ["PGPSAM_CONNECT"])
        sys.path.insert(0, str(MODULE))
        done = {"engine": choose_engine(order), "module": add_module_path(slicer.app, MODULE)}
        Path(order["answer"]).write_text(json.dumps(done), encoding="utf-8")
    except Exception:  # said on standard error; an exception that leaves a script leaves Slicer running
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
