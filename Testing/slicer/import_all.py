"""Run as a program: imports a module's folder as Slicer would, where what Slicer lacks cannot be imported.

`python import_all.py FOLDER [FILE_STEM_TO_LEAVE_OUT ...]`: everything in FOLDER/PGPSAMSegmentLib and
FOLDER/PGPSAMSegment.py, on real MRML. An import that reaches for torch, opens a connection or starts a program
ends it with a traceback. Prints the names of the imported modules.
"""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

BLOCKED = {"torch", "torchvision", "pgpsam", "scipy", "nibabel", "SimpleITK", "monai", "peft", "requests", "PySide6"}


class Refuse:
    """A finder that comes before all others."""

    blocked = BLOCKED

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.blocked:
            raise AssertionError(f"imports {name}")


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("an import starts a program or opens a connection")


def main(folder: Path, left_out: set[str]) -> None:
    from host import make_host

    make_host()
    for name in [name for name in sys.modules if name.partition(".")[0] in BLOCKED]:
        del sys.modules[name]
    sys.meta_path.insert(0, Refuse())
    subprocess.Popen.__init__ = socket.socket.connect = refuse  # type: ignore[method-assign]
    sys.path.insert(0, str(folder))
    stems = sorted({path.stem for path in (folder / "PGPSAMSegmentLib").glob("*.py")} - left_out)
    for name in [*(f"PGPSAMSegmentLib.{stem}".removesuffix(".__init__") for stem in stems), "PGPSAMSegment"]:
        module = importlib.import_module(name)
        assert str(module.__file__).startswith(str(folder)), f"{name} came from {module.__file__}"
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), set(sys.argv[2:]))
