"""The slices that are most likely wrong, one after the other, and what was corrected in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import slicer
from slicer.i18n import tr as _

from . import corrections, output, review, segments, training
from .nodes import VOLUME
from .panel import Panel, read, slot
from .review import REVIEW_ATTRIBUTE


class ReviewPanel(Panel):
    """Goes through the list of `review` for the selected segmentation."""

    def __init__(self, host: Any) -> None:
        super().__init__(host)
        ui = self.ui
        self._listed: list[review.Item] = []
        self._shown: Any = None  # the segmentation, its list as it is stored and as it is now, when last shown
        self._compared: Any = None  # the voxels that the text about changes is of
        self._filling = False
        ui.changesText.setVisible(False)
        ui.reviewList.currentRowChanged.connect(self.onRow)
        ui.reviewList.itemPressed.connect(self.onRow)  # the current one again, to come back to its place
        ui.nextButton.clicked.connect(self.onNext)
        ui.previousButton.clicked.connect(self.onPrevious)
        ui.checkedButton.clicked.connect(self.onChecked)
        ui.editButton.clicked.connect(self.onEdit)
        ui.compareButton.clicked.connect(self.onCompare)
        ui.useCorrectedButton.clicked.connect(self.onUseCorrected)

    @property
    def node(self) -> Any:
        return self.parameters.outputSegmentation

    @slot
    def update(self) -> None:
        node = self.node
        if self._compared != self._voxels():
            self._tell_changes("")
        text = (node.GetAttribute(REVIEW_ATTRIBUTE) or "") if node is not None else ""
        listed = review.items(node) if node is not None else []
        if self._shown == (node, text, listed):
            return
        self._shown, self._listed = (node, text, listed), listed
        self._fill()

    def _fill(self) -> None:
        node, ui = self.node, self.ui
        here = review.current(node) if self._listed else None
        self._filling = True
        try:
            ui.reviewList.clear()
            for item in self._listed:
                line = _("{organ}, slice {slices}: confidence {n} %")
                line = line.format(organ=item.organ, slices=item.slices, n=round(100 * item.confidence))
                ui.reviewList.addItem(f"✓ {line}" if item.checked else line)
            if here is not None:
                ui.reviewList.setCurrentRow(self._listed.index(here))
        finally:
            self._filling = False
        ours = bool(node is not None and node.GetAttribute(REVIEW_ATTRIBUTE))
        for button in (ui.nextButton, ui.previousButton):
            button.setEnabled(any(not item.checked for item in self._listed))
        for button in (ui.editButton, ui.compareButton, ui.useCorrectedButton):
            button.setEnabled(ours)
        ui.checkedButton.setEnabled(here is not None)
        ui.checkedButton.setText(_("Not checked") if here is not None and here.checked else _("Checked"))
        ui.reviewProgress.setText(
            review.progress(node) if ours else _("Segment first: the list comes with the result.")
        )

    # ------------------------------------------------------------------------------------------ the user's clicks

    @slot
    def onNext(self) -> None:
        self._step(1)

    @slot
    def onPrevious(self) -> None:
        self._step(-1)

    @slot
    def onChecked(self) -> None:
        """Marks the current place, and goes on to the next one; a checked place is unmarked."""
        here = review.current(self.node) if self.node is not None else None
        if here is None:
            return
        review.mark(self.node, here, not here.checked)
        if here.checked:
            self.update()
        else:
            self._step(1)

    @slot
    def onRow(self) -> None:
        row = read(self.ui.reviewList, "currentRow")
        if self._filling or not 0 <= row < len(self._listed):
            return
        try:
            go_to(self.node, self._listed[row])
        finally:
            self.update()

    @slot
    def onEdit(self) -> None:
        slicer.util.selectModule("SegmentEditor")

    @slot
    def onCompare(self) -> None:
        self._tell_changes("\n".join(describe(corrections.changes(self.node))))

    @slot
    def onUseCorrected(self) -> None:
        volume = output.volume_of(self.node, self.parameters.inputVolume)
        training.add(self.node, volume, corrected=True)
        self.host.say(_("The corrected slices of '{name}' are ready for training.").format(name=self.node.GetName()))
        self.host.show_training()

    def _voxels(self) -> Any:
        """Changes when somebody, or a run, changes the segments."""
        return (self.node, segments.stamp(self.node.GetSegmentation())) if self.node is not None else None

    def _tell_changes(self, text: str) -> None:
        self._compared = self._voxels()
        self.ui.changesText.setText(text)
        self.ui.changesText.setVisible(bool(text))

    def _step(self, by: int) -> None:
        """Goes to a place; also from a shortcut, when there may be nothing to go to."""
        node = self.node
        if node is None:
            return
        item = review.step(node, by)
        if item is not None:
            jump(node, item)
        self.update()


def go_to(segmentationNode: Any, item: review.Item) -> None:
    """Makes any item of the list the current one, also a checked one, and shows it."""
    review.select(segmentationNode, item)
    jump(segmentationNode, item)


def jump(segmentationNode: Any, item: review.Item) -> None:
    """Centres the slice views on an item and selects its segment in the Segment Editor."""
    segment_id = review.jump(segmentationNode, item)
    editor = editor_node(segmentationNode.GetScene())
    editor.SetAndObserveSegmentationNode(segmentationNode)
    volume = segmentationNode.GetNodeReference(VOLUME)
    if volume is not None:
        editor.SetAndObserveSourceVolumeNode(volume)
    editor.SetSelectedSegmentID(segment_id)


def editor_node(scene: Any) -> Any:
    """The Segment Editor's own state in the scene; the editor takes the one that is there when it opens."""
    node = scene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.vtkMRMLSegmentEditorNode()
        node.SetSingletonTag("SegmentEditor")
        node = scene.AddNode(node)
    return node


def describe(found: Sequence[corrections.Change]) -> list[str]:
    """A line for each organ that was changed."""
    line = _("{organ}: {added} voxels added, {removed} removed, Dice with the first result {dice:.3f}")
    lines = [line.format(organ=c.organ, added=c.added, removed=c.removed, dice=c.dice) for c in found if c.changed]
    return lines or [_("Nothing was changed since the result came.")]
