"""Where the user is at home, if anywhere."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The user's home folder; the root folder for a user who has none, as in a container or a batch job.

    Nothing is found there, and what cannot be written there says so; PGPSAM_MODELS and PGPSAM_CACHE name other folders.
    """
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.path.abspath(os.sep))
