"""What the user does on the page and what it shows of it: the module's Logic on one side, trame's state on the other.

Every decision about segmenting is the Logic's; here its events become words and numbers on the page.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import slicer
from loading import describe, open_volume, series_name
from state import FIRST, css

from pgpsam.errors import UserError
from pgpsam.image import ITK_IN, NIFTI
from PGPSAMSegment import PGPSAMSegmentLogic
from PGPSAMSegmentLib import output, overlay, prompts, review, table
from PGPSAMSegmentLib.engine import Engine
from PGPSAMSegmentLib.nodes import VOLUME, SceneError
from PGPSAMSegmentLib.panel import duration, progress, sentence
from PGPSAMSegmentLib.resultpanel import show_3d
from PGPSAMSegmentLib.reviewpanel import go_to, jump

LOG_LINES = 200
DETACHED = (".raw", ".zraw", ".gz")  # the voxels of an .mhd or .nhdr beside it
GRAY = "#888888"


class Session:
    """One user at work on the page.

    Args:
        server: trame's.
        views: see `views.Views`.
        command: starts the engine's worker.
        model: name of the model that is chosen at first, or "".
    """

    def __init__(self, server: Any, views: Any, command: Sequence[str], model: str = "") -> None:
        self._state, self._views = server.state, views
        self._first_model = model
        self._scratch = TemporaryDirectory(prefix="pgpsam-view-")
        self._volumes: list[Any] = []
        self._shown_volume: Any = None
        self._notes: dict[str, str] = {}  # ID of a segmentation -> what its latest run found
        self._began = 0.0
        self._state.update(FIRST)
        self.logic = PGPSAMSegmentLogic(engineFactory=lambda: Engine(command, self._scratch.name))
        self._follow("volume", self._on_volume)
        self._follow("model", self._on_model)
        self._follow("show", self._on_show)
        self._follow("confidence", self._on_confidence)
        self._follow("show_3d", self._on_show_3d)
        self._follow("layout", self._on_layout)
        self._follow("panel_open", self._views.fit_at_resize)
        self._follow("results_open", self._views.fit_at_resize)
        self.greet()

    def greet(self) -> None:
        """Starts the engine and asks for its models and devices."""
        self._state.update({"engine": "starting", "error": ""})
        self.logic.hello(self._on_hello, self._on_no_hello)

    # ------------------------------------------------------------------------------------------------ the input

    @property
    def volume(self) -> Any:
        """The node of the chosen volume, or None."""
        return slicer.mrmlScene.GetNodeByID(self._state.volume) if self._state.volume else None

    def open_path(self, path: Path) -> None:
        """Loads a file or folder of this machine.

        Raises:
            UserError: it is no volume.
        """
        self._add_volume(open_volume(path))

    def open_files(self, files: Sequence[Path]) -> None:
        """Loads what the browser has sent into a folder: volumes, or else a DICOM series; tells what it leaves out."""
        if self.logic.busy:  # its organs would be drawn over the other volume
            self.fail("A volume is being segmented: open another one when it is done, or cancel.")
            return
        folder = files[0].parent
        volumes = [file for file in files if file.name.lower().endswith((*NIFTI, *ITK_IN))]
        name, wrong = "" if volumes else series_name(files), []
        for path in volumes or [folder]:
            try:
                self._add_volume(open_volume(path, name))
            except UserError as error:
                wrong.append(str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "the selection"))
        known = (*NIFTI, *ITK_IN, *DETACHED)
        left_out = [file.name for file in files if volumes and not file.name.lower().endswith(known)]
        if left_out:
            wrong.append(f"Left out, as they are no volumes: {', '.join(left_out)}. Open a DICOM series by itself")
        if wrong:
            self.fail("; ".join(wrong))

    def _add_volume(self, volume: Any) -> None:
        self._volumes.append(volume)
        self._state.volumes = [{"title": each.GetName(), "value": each.GetID()} for each in self._volumes]
        self._state.volume = volume.GetID()
        self.say(f"Opened '{volume.GetName()}': {describe(volume)}.")
        self._on_volume()

    def _on_volume(self) -> None:
        volume = self.volume
        if volume is None or volume is self._shown_volume:
            return
        self._shown_volume = volume
        self._state.update({"volume_note": describe(volume), "error": ""})
        self._views.show_volume(volume)
        for node in self._segmentations():
            prompts.show(node, "masks")
            overlay.overlay_confidence(node, False)
            node.SetDisplayVisibility(False)
        self._show_result()

    # -------------------------------------------------------------------------------------------------- the run

    def start(self) -> None:
        """The button "Auto-segment"."""
        state, volume, node = self._state, self.volume, self.segmentation
        if self.logic.busy:  # the second click of two that were quicker than the page
            return
        try:
            self.logic.segment(
                volume,
                node,
                organs=list(state.chosen),
                model=state.model,
                device=state.device,
                onProgress=self._on_progress,
                onDone=self._on_done,
                onError=self._on_error,
            )
        except SceneError as error:
            self.fail(str(error))
            return
        self._began = time.monotonic()
        state.update({"engine": "working", "cancelling": False, "error": ""})
        state.update({"stage": "Starting", "known": False, "percent": 0.0, "spent": ""})
        self.say(f"Segmenting '{volume.GetName()}' with '{state.model}', {len(state.chosen)} organs.")
        for _, name in output.kept(node, state.chosen) if node is not None else []:
            self.say(f"'{name}' is your work: it stays, and the result goes beside it.")

    def cancel(self) -> None:
        """The button "Cancel"."""
        self._state.cancelling = True
        self.logic.cancel()

    def poll(self) -> None:
        """Lets the Logic hear what the engine has said, and the run's clock go on."""
        self.logic.poll()
        if self._state.engine == "working" and not self._state.known:
            self._state.spent = duration(time.monotonic() - self._began)

    def undo(self) -> None:
        """The button "Undo": takes the last run back, if it is the shown volume's."""
        node = self.segmentation
        if not self._can_undo(node):
            return
        segmentation_id = node.GetID()
        try:
            self.logic.undo()
        except SceneError as error:
            self.fail(str(error))
            return
        self._notes.pop(segmentation_id, None)
        self._state.error = ""
        self.say(f"The last run on '{self.volume.GetName()}' was undone.")
        self._show_result()

    def fail(self, message: str) -> None:
        """Tells what went wrong, below the button and in the log."""
        self._state.error = message
        self.say(message)

    def say(self, line: str) -> None:
        """A line for the log."""
        self._state.log = [*self._state.log, f"{time.strftime('%H:%M:%S')}  {line}"][-LOG_LINES:]

    def close(self) -> None:
        self.logic.close()
        self._scratch.cleanup()

    def _on_hello(self, hello: dict[str, Any]) -> None:
        state = self._state
        titles = {device["name"]: device["title"] for device in hello["devices"] if device["available"]}
        best = titles[hello["default_device"]]
        state.devices = [
            {"title": f"Automatic ({best})", "value": "auto"},
            *({"title": title, "value": name} for name, title in titles.items()),
        ]
        state.device_note = hello["device_note"]
        names = [model["name"] for model in hello["models"]]
        state.models = [{"title": model["title"], "value": model["name"]} for model in hello["models"]]
        wanted = [name for name in (state.model, self._first_model, *names) if name in names]
        state.update({"model": wanted[0] if wanted else None, "engine": "ready"})
        self._on_model()
        self.say(f"Engine {hello['version']} is ready on {best} (process {hello['pid']}).")

    def _on_no_hello(self, event: dict[str, Any]) -> None:
        self._state.engine = "failed"
        self.fail(sentence(event))

    def _on_model(self) -> None:
        state = self._state
        model = next((each for each in self.logic.models if each["name"] == state.model), None)
        organs = model["organs"] if model else []
        names = [organ["name"] for organ in organs]
        if names != [organ["name"] for organ in state.organs]:
            state.organs = [{"name": organ["name"], "css": css(organ["color"])} for organ in organs]
            state.chosen = names
        state.model_note = (model["score"] or model["description"]) if model else ""

    def _on_progress(self, event: dict[str, Any]) -> None:
        text, share = progress(event)
        self._state.update({"stage": text, "known": share is not None, "percent": round(100 * (share or 0), 1)})

    def _on_done(self, segmentationNode: Any, event: dict[str, Any]) -> None:
        titles = {device["name"]: device["title"] for device in self.logic.facts["devices"]}
        found = sum(1 for organ in event["organs"] if organ["volume_ml"])
        where, took = titles.get(event["device"], event["device"]), duration(time.monotonic() - self._began)
        line = f"{found} of {len(event['organs'])} organs found in {took} on {where}."
        self._state.engine = "ready"
        self._notes[segmentationNode.GetID()] = line
        self.say(line)
        if not self._state.has_result:
            self._views.fit_at_resize()  # the results' drawer opens and takes some of their width
        self._show_result()
        self._views.show_organs(segmentationNode)

    def _on_error(self, event: dict[str, Any]) -> None:
        self._state.engine = "ready"  # after any error the next run starts a new worker if need be
        if event["kind"] == "cancelled":
            self.say("Cancelled; the scene is as before.")
        else:
            self.fail(sentence(event))
        for line in event.get("log") or []:
            self.say(f"    {line}")

    # ----------------------------------------------------------------------------------------------- the result

    @property
    def segmentation(self) -> Any:
        """The segmentation that belongs to the chosen volume, or None."""
        return output.segmentation_of(self.volume)

    def _segmentations(self) -> list[Any]:
        nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        return [node for node in nodes if node.GetNodeReferenceID(VOLUME)]

    def _show_result(self) -> None:
        """Everything on the right of the page, as the scene has it."""
        node = self.segmentation
        self._state.update({"has_result": node is not None, "can_undo": self._can_undo(node)})
        if node is None:
            return
        self._state.run_note = self._notes.get(node.GetID(), "")
        colors, cut = self._colors(node), table.cut_off(node)
        self._state.cut_off = bool(cut)
        self._state.rows = [
            {
                "organ": organ,
                "mark": " †" if organ in cut else "",
                "css": colors.get(organ, GRAY),
                "ml": _figure(volume, 1) if volume else None,  # it was not found
                "hu": _figure(intensity, 0),
                "percent": _percent(confidence),
            }
            for organ, (volume, intensity, confidence, _) in table.rows(node).items()
        ]
        self._on_show()
        self._on_confidence()
        self._on_show_3d()
        self._show_review()

    def _on_show(self) -> None:
        if self.segmentation is not None:
            prompts.show(self.segmentation, self._state.show)

    def _on_confidence(self) -> None:
        if self.segmentation is None:
            return
        try:
            overlay.overlay_confidence(self.segmentation, self._state.confidence)
        except SceneError as error:
            self._state.confidence = False
            self.fail(str(error))

    def _on_show_3d(self) -> None:
        if self.segmentation is not None:
            show_3d(self.segmentation, self._state.show_3d)
            self._views.draw()

    def save(self, path: Path) -> str:
        """Writes the shown volume's segments, as they are now, to a .seg.nrrd.

        Returns:
            What the file may be called; "" where there is nothing to write, or no room.
        """
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(str(path))
        written = self.segmentation is not None and storage.WriteData(self.segmentation)
        return f"{self.volume.GetName()}.seg.nrrd" if written else ""

    def _can_undo(self, node: Any) -> bool:
        """Whether the latest run is this segmentation's: another volume's is not taken back from here."""
        return node is not None and self.logic.history.can_undo and self.logic.history.last is node

    def _on_layout(self) -> None:
        self._views.layouts.set_layout(self._state.layout)

    # ----------------------------------------------------------------------------------------------- the review

    def step(self, by: int) -> None:
        """The buttons "Next" and "Previous"."""
        item = review.step(self.segmentation, by)
        if item is not None:
            jump(self.segmentation, item)
        self._show_review()

    def go(self, number: int) -> None:
        """A click on a line of the list."""
        go_to(self.segmentation, review.items(self.segmentation)[number])
        self._show_review()

    def check(self) -> None:
        """The button "Mark as checked": notes it and goes on to the next place; a checked place is unmarked."""
        item = review.current(self.segmentation)
        if item is None:
            return
        review.mark(self.segmentation, item, not item.checked)
        self.step(1) if not item.checked else self._show_review()

    def _show_review(self) -> None:
        node = self.segmentation
        items, here, colors = review.items(node), review.current(node), self._colors(node)
        self._state.review = [
            {
                "organ": item.organ,
                "slices": item.slices,
                "percent": _percent(item.confidence),
                "checked": item.checked,
                "current": item == here,
                "css": colors.get(item.organ, GRAY),
            }
            for item in items
        ]
        checked = sum(item.checked for item in items)
        self._state.update(
            {
                "review_note": review.progress(node),
                "review_percent": 100 * checked / len(items) if items else 0,
                "review_here": "" if here is None else "checked" if here.checked else "open",
            }
        )

    def _colors(self, segmentationNode: Any) -> dict[str, str]:
        """Name of an organ or a segment -> its colour; an organ that was not found has no segment."""
        segmentation = segmentationNode.GetSegmentation()
        segments = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
        theirs = {each.GetName(): css([round(255 * channel) for channel in each.GetColor()]) for each in segments}
        return {**{organ["name"]: organ["css"] for organ in self._state.organs}, **theirs}

    def _follow(self, name: str, call: Callable[[], None]) -> None:
        """Calls when the page has changed a name of the state."""
        self._state.change(name)(lambda **_: call())


def _figure(value: float, digits: int) -> str:
    return "" if value != value else f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0"


def _percent(share: float) -> int | None:
    """None for an organ that was not found."""
    return None if share != share else round(100 * share)
