"""Starts the engine inside its own packages: `python -S -s enginestart.py PACKAGES worker`.

Run as a script, never imported. PACKAGES is the folder that the installation has filled, or "own" for a Python
whose own packages are complete. `enginestart.py PACKAGES --probe STATEMENT` runs a statement instead.

Why not a virtual environment: Slicer's Python cannot make one everywhere. It lacks the program that `venv`
copies on Windows, and on Linux it starts only through its launcher, whose PYTHONHOME a virtual environment
does not know. Every Python can be started with -S, which leaves all site-packages out, and be given a folder.
"""

import os
import runpy
import site
import sys


def is_within(path: str, folder: str) -> bool:
    path, folder = (os.path.normcase(os.path.realpath(each)) for each in (path, folder))
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def isolate(packages: str) -> None:
    """Leaves the standard library and `packages` on the path, and nothing that Slicer's launcher has put there."""
    given = [folder for folder in os.environ.pop("PYTHONPATH", "").split(os.pathsep) if folder]
    foreign = [folder for folder in given if not is_within(folder, sys.base_prefix)]
    sys.path[:] = [
        folder
        for folder in sys.path
        if os.path.basename(folder) not in ("site-packages", "dist-packages")
        and not any(is_within(folder, each) for each in foreign)
    ]
    site.addsitedir(packages)


def main(packages: str, arguments: list[str]) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or ".") != here]
    if packages != "own":
        isolate(packages)
    shipped = os.path.dirname(here)
    sys.path.insert(0, shipped)  # before any pgpsam that the Python may hold: the two sides have to match
    import pgpsam  # noqa: F401

    sys.path.remove(shipped)
    sys.path.append(shipped)  # last: Slicer keeps other modules in this folder, whose names mean nothing here
    if arguments[0] == "--probe":
        exec(arguments[1], {})
        return
    sys.argv = ["pgpsam", *arguments]
    runpy.run_module("pgpsam", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
