"""What the page needs of the machine besides Python packages: libraries that VTK renders with.

Without them VTK does not raise an error, the process dies; so they are looked for before anything is drawn.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

INSTALL = "on Debian and Ubuntu: sudo apt install libegl1 libgl1-mesa-dri"
# Mesa's software renderer under its names of old and new, and NVIDIA's own.
_DRIVERS = ("dri/swrast_dri.so", "dri/libdril_dri.so", "libgallium*.so*", "libEGL_nvidia.so*")
_DRAW = """
from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow
import vtkmodules.vtkRenderingOpenGL2
window = vtkRenderWindow()
window.SetOffScreenRendering(1)
window.AddRenderer(vtkRenderer())
window.Render()
"""


def rendering_trouble() -> str:
    """One line that says why nothing can be drawn here and what to install, or ""."""
    if not sys.platform.startswith("linux") or (_has_egl() and _has_driver()):
        return ""
    # The libraries may lie where nobody looked: a small picture, drawn by a process that may die, decides.
    drawn = subprocess.run([sys.executable, "-c", _DRAW], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if drawn.returncode == 0:
        return ""
    return f"the views cannot be drawn: a rendering library is missing; {INSTALL}"


def _has_egl() -> bool:
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    return True


def _has_driver() -> bool:
    folders = [*Path("/usr/lib").glob("*-linux-gnu*"), Path("/usr/lib64"), Path("/usr/lib")]
    return any(any(folder.glob(pattern)) for folder in folders for pattern in _DRIVERS)
