"""pgpsam: prototype-guided, few-shot-tuned Segment Anything for organs in CT. The engine; it knows no Slicer."""

import getpass
import os
from importlib.util import find_spec

__version__ = "0.1.0"

_backend = os.environ.get("MPLBACKEND", "").partition("module://")[2].partition(".")[0]
if _backend and find_spec(_backend) is None:
    os.environ["MPLBACKEND"] = "agg"  # a notebook's or an editor's that this Python lacks: matplotlib would refuse it

try:
    getpass.getuser()
except (KeyError, ImportError, OSError):
    # A number without a name, as in a container: MONAI would refuse to be imported.
    os.environ["LOGNAME"] = "nobody"
