"""The slice views: what they show, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer


def show_place(scene: Any, place: Sequence[float], volumeNode: Any) -> None:
    """Centres all slice views on a place of a volume, which becomes the background of those that don't show it.

    Args:
        place: RAS mm as the views show it.
        volumeNode: None where it is gone: the views then show what they did.
    """
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", scene):
        shown = composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()
        if volumeNode is not None and volumeNode.GetID() not in shown:
            composite.SetBackgroundVolumeID(volumeNode.GetID())
    for view in slicer.util.getNodesByClass("vtkMRMLSliceNode", scene):
        view.JumpSliceByCentering(*place)
