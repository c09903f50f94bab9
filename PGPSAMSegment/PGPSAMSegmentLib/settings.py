"""What is the user's and not the scene's: Slicer's application settings, under the module's name."""

from __future__ import annotations

GROUP = "PGPSAMSegment/"


def setting(name: str, default: str = "") -> str:
    """A setting, or what holds while the user has not chosen."""
    import qt

    return str(qt.QSettings().value(GROUP + name, default) or default)


def store(name: str, value: str) -> None:
    """Keeps a setting."""
    import qt

    qt.QSettings().setValue(GROUP + name, value)
