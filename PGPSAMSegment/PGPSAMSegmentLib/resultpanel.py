"""How the selected segmentation is shown: in 3D, with prompts, with confidence, and its figures as a table."""

from __future__ import annotations

from typing import Any

import slicer

from . import output, table
from .nodes import CONFIDENCE, PROMPTS, TABLE, VOLUME, companion
from .overlay import overlay_confidence
from .panel import Panel, slot
from .parameters import Layers
from .prompts import show

SURFACE = "Closed surface"


class ResultPanel(Panel):
    """Switches for the selected segmentation. What it cannot show, as it is not of this module, cannot be switched.

    When another one is selected, the switches follow what is shown of it, and nothing in the scene changes.
    """

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        self._node: Any = None
        self._volume: Any = None  # the input volume, whose result is selected when another one is
        self._chosen: dict[str, Any] = {}  # since the run began: a volume's ID -> its output, as the user chose it
        self._applied: tuple[Any, ...] = ()
        self._measured: Any = None  # the table whose columns have the width of its figures
        self._stamp: Any = None  # of the segments and the image that its figures are of

    def expect(self) -> None:
        """A run begins: another output that the user chooses from now on stays chosen when the result comes."""
        self._chosen = {}

    def show_fresh(self, node: Any, target: Any) -> bool:
        """Selects a run's result and shows it as the switches say.

        If the user has gone on to another volume, it is selected when he comes back to its own.

        Args:
            target: the output when the run began, or None for a new one.

        Returns:
            Whether it is selected, now or then: not if the user has chosen another output meanwhile.
        """
        volume = node.GetNodeReference(VOLUME)
        chosen = self._chosen.get(volume.GetID(), target)
        if chosen not in (target, node) and (chosen is None or chosen.GetScene() is not None):
            return False
        output.choose_output(volume, node)
        if volume is not self.parameters.inputVolume:
            return True
        self._node, self._applied, self._measured = node, (), None
        self.parameters.outputSegmentation = node
        if has_surfaces(node):  # made with the Segment Editor's own button, say: they stay
            self.parameters.show3D = True
        self.update()
        return True

    def enter(self) -> None:
        """The user comes back: the switches follow what he did in other modules, and a script's result is selected."""
        parameters = self.parameters
        if parameters.outputSegmentation is None:
            parameters.outputSegmentation = output.output_of(parameters.inputVolume)
            return
        with slicer.util.NodeModify(parameters.parameterNode):
            self._follow(None, parameters.outputSegmentation)

    @slot
    def update(self) -> None:
        followed = self._follow_volume()
        node = self.parameters.outputSegmentation
        if node is not self._node:
            before, self._node = self._node, node
            if not followed:
                self._remember(before, node)
            self._follow(before, node)
        elif node is not None:
            self._unhide(node)
        self._measure(node)
        self._enable(node)
        self._apply(node)

    def _follow_volume(self) -> bool:
        """Selects the output of another input volume; a scene that is loaded brings its own choice of both.

        A segmentation without results that was chosen before there was any volume is meant for the first one.

        Returns:
            Whether there is another input volume.
        """
        volume, node = self.parameters.inputVolume, self.parameters.outputSegmentation
        if volume is self._volume:
            return False
        before, self._volume = self._volume, volume
        unused = before is None and node is not None and companion(node, TABLE) is None
        fits = unused or (node is not None and node.GetNodeReference(VOLUME) is volume)
        if volume is not None and node is self._node and not fits:
            self.parameters.outputSegmentation = output.output_of(volume)
        return True

    def _remember(self, before: Any, node: Any) -> None:
        """Keeps the user's choice of an output; that one was removed is none."""
        if self._volume is not None and (node is not None or (before is not None and before.GetScene() is not None)):
            output.choose_output(self._volume, node)
            self._chosen[self._volume.GetID()] = node

    def _follow(self, before: Any, node: Any) -> None:
        """Sets the switches to what is shown of another segmentation."""
        if before is not None and before.GetScene() is not None and companion(before, CONFIDENCE) is not None:
            overlay_confidence(before, False)
        if node is not None:
            self._unhide(node)
            parameters = self.parameters
            parameters.show3D = has_surfaces(node)
            parameters.layers = shown_layers(node)
            parameters.confidenceOverlay = has_overlay(node)
        self._applied = self._wanted(node)

    def _unhide(self, node: Any) -> None:
        """Where the prompts were removed, by undo perhaps, while they alone were shown."""
        if self._applied[:3:2] == (node, Layers.PROMPTS) and companion(node, PROMPTS) is None:
            node.SetDisplayVisibility(True)
            self.parameters.layers = Layers.MASKS

    def _measure(self, node: Any) -> None:
        """Follows the user's edits, when he comes back from the Segment Editor, say, and the frames of a sequence."""
        measured = node is not None and companion(node, TABLE) is not None
        if measured and (node, table.stamp(node)) != self._stamp:
            table.measure(node)
        self._stamp = (node, table.stamp(node)) if measured else None

    def _enable(self, node: Any) -> None:
        """Without a segmentation the switches say how the next result will be shown."""
        self.ui.layers.setEnabled(node is None or companion(node, PROMPTS) is not None)
        self.ui.confidenceOverlay.setEnabled(node is None or companion(node, CONFIDENCE) is not None)
        shown = companion(node, TABLE) if node is not None else None
        self.ui.resultsTable.setMRMLTableNode(shown)
        if shown is not self._measured:
            self._measured = shown
            self.ui.resultsTable.resizeColumnsToContents()

    def _apply(self, node: Any) -> None:
        wanted, before = self._wanted(node), self._applied
        if node is None or wanted == before:
            return
        self._applied = wanted
        _, on_3d, layers, overlay = wanted
        if before[1:2] != (on_3d,):
            show_3d(node, on_3d)
        if before[2:3] != (layers,) and companion(node, PROMPTS) is not None:
            show(node, layers.value)
        if before[3:4] != (overlay,) and companion(node, CONFIDENCE) is not None:
            overlay_confidence(node, overlay)

    def _wanted(self, node: Any) -> tuple[Any, ...]:
        parameters = self.parameters
        return node, parameters.show3D, parameters.layers, parameters.confidenceOverlay


def shown_layers(segmentationNode: Any) -> Layers:
    prompts = companion(segmentationNode, PROMPTS)
    if prompts is None or not prompts.GetDisplayVisibility():
        return Layers.MASKS
    return Layers.BOTH if segmentationNode.GetDisplayVisibility() else Layers.PROMPTS


def has_overlay(segmentationNode: Any) -> bool:
    """Whether a slice view shows the segmentation's confidence."""
    node = companion(segmentationNode, CONFIDENCE)
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode", segmentationNode.GetScene())
    return node is not None and any(each.GetForegroundVolumeID() == node.GetID() for each in composites)


def has_surfaces(segmentationNode: Any) -> bool:
    """Whether the segmentation has surfaces, and the 3D views are to show them."""
    display = segmentationNode.GetDisplayNode()
    contained = segmentationNode.GetSegmentation().ContainsRepresentation(SURFACE)
    return bool(contained and display is not None and display.GetVisibility3D())


def show_3d(segmentationNode: Any, on: bool) -> None:
    """Makes the organs' surfaces for the 3D views, or removes them: with them, every edit has to make them anew.

    Where the surfaces are what the segmentation consists of, as one of an STL file, they are only hidden.
    """
    segmentation = segmentationNode.GetSegmentation()
    if on:
        if not segmentation.ContainsRepresentation(SURFACE):
            segmentationNode.CreateClosedSurfaceRepresentation()
        segmentationNode.CreateDefaultDisplayNodes()  # none where there is one
        segmentationNode.GetDisplayNode().SetVisibility3D(True)
    elif segmentation.GetSourceRepresentationName() == SURFACE:
        segmentationNode.GetDisplayNode().SetVisibility3D(False)
    elif segmentation.ContainsRepresentation(SURFACE):
        segmentationNode.RemoveClosedSurfaceRepresentation()
