"""A host for Slicer modules without the application: real MRML and logics, and honest stand-ins for the rest.

Used by tests, by the panel under PySide6 and by the browser host. Import it before anything else that imports
`slicer`. What is real comes from slicer-core: the scene, all nodes, storage, logics and `slicer.util`. What is
stood in for is named so: `StandInApp`, `StandInIO`, and the modules of `stand_ins.py`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_HERE = Path(__file__).resolve().parent


def _import_slicer() -> Any:
    """Imports slicer-core's `slicer`.

    It takes every folder named `slicer` on the path for part of itself and imports all files in it. This folder
    is one, as pytest puts its parent on the path, so the parent is taken off while `slicer` is imported.
    """
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() / "slicer" != _HERE]
    try:
        return importlib.import_module("slicer")
    finally:
        sys.path[:] = path


slicer = _import_slicer()

import stand_ins  # noqa: E402  needs slicer to be there
import vtk  # noqa: E402

stand_ins.register()

# Name of the module -> name in the application logic, the logic's class, a folder of its shared files.
_LOGICS = {
    "terminologies": ("Terminologies", "vtkSlicerTerminologiesModuleLogic"),
    "volumes": ("Volumes", "vtkSlicerVolumesLogic"),
    "segmentations": ("Segmentations", "vtkSlicerSegmentationsModuleLogic"),
    "subjecthierarchy": ("SubjectHierarchy", "vtkSlicerSubjectHierarchyModuleLogic"),
    "markups": ("Markups", "vtkSlicerMarkupsLogic"),
    "tables": ("Tables", "vtkSlicerTablesLogic"),
    "sequences": ("Sequences", "vtkSlicerSequencesLogic"),
}


class Host:
    """A scene with Slicer's logics at work on it.

    Attributes:
        scene: the vtkMRMLScene; `slicer.mrmlScene` is the same one.
        application_logic: its vtkSlicerApplicationLogic.
        app: what `slicer.app` is.
    """

    def __init__(self, scene: Any, application_logic: Any, temporary: Path) -> None:
        self.scene = scene
        self.application_logic = application_logic
        self.modules = SimpleNamespace()
        for module, (name, class_name) in _LOGICS.items():
            self._register(module, name, class_name)
        self.app = stand_ins.StandInApp(scene, application_logic, self.modules, temporary)
        self._observers = [
            scene.AddObserver(scene.NodeAddedEvent, self._on_node_added),
            scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._on_node_removed),
            scene.AddObserver(scene.EndImportEvent, lambda *_: self._add_missing_items()),
        ]
        self._add_missing_items()

    def install(self) -> None:
        """Makes this the host that `slicer.mrmlScene`, `slicer.app` and `slicer.modules` speak of."""
        slicer.mrmlScene = self.scene
        slicer.app = self.app
        slicer.modules = self.modules

    def close(self) -> None:
        for tag in self._observers:
            self.scene.RemoveObserver(tag)
        self.scene.Clear(True)

    def add_view(self, name: str = "Red", orientation: str = "Axial") -> tuple[Any, Any]:
        """A slice view's node and its composite node, which the application's layout would make."""
        view = self.scene.CreateNodeByClass("vtkMRMLSliceNode")  # it knows the orientations, a bare one does not
        view.UnRegister(None)
        view.SetName(name)
        view.SetLayoutName(name)
        view.SetSingletonTag(name)
        view = self.scene.AddNode(view)
        view.SetOrientation(orientation)
        composite = slicer.vtkMRMLSliceCompositeNode()
        composite.SetLayoutName(name)
        composite.SetSingletonTag(name)
        return view, self.scene.AddNode(composite)

    def _register(self, module: str, name: str, class_name: str) -> None:
        logic = self.application_logic.GetModuleLogic(name)
        if logic is None:
            logic = getattr(slicer, class_name)()
            if module == "terminologies":
                logic.SetModuleShareDirectory(str(terminology_folder()))
            if hasattr(logic, "SetMRMLApplicationLogic"):
                logic.SetMRMLApplicationLogic(self.application_logic)
            logic.SetMRMLScene(self.scene)
            self.application_logic.SetModuleLogic(name, logic)
        setattr(self.modules, module, SimpleNamespace(logic=lambda: logic, name=name))

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_added(self, scene: Any, event: str, node: Any) -> None:
        """Adds the subject hierarchy item that Qt plugins add in the application; a scene file brings its own."""
        if not scene.IsImporting():
            self._add_item(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_removed(self, scene: Any, event: str, node: Any) -> None:
        """Takes the item away with its node, as those plugins do."""
        hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
        item = hierarchy.GetItemByDataNode(node) if hierarchy is not None and node is not hierarchy else 0
        if item:
            hierarchy.RemoveItem(item, False, False)

    def _add_missing_items(self) -> None:
        nodes = self.scene.GetNodes()
        for node in [nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())]:
            self._add_item(node)

    def _add_item(self, node: Any) -> None:
        wanted = ("vtkMRMLDisplayableNode", "vtkMRMLTableNode", "vtkMRMLTextNode")
        views = ("vtkMRMLAbstractViewNode", "vtkMRMLCameraNode")
        if node.GetHideFromEditors() or not any(map(node.IsA, wanted)) or any(map(node.IsA, views)):
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        if not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


def terminology_folder() -> Path:
    """Slicer's own terminology files, which trame-slicer brings along."""
    from trame_slicer.resources import resources_path

    return Path(resources_path()) / "terminologies"


def _add_cache(scene: Any, folder: Path) -> None:
    """Gives the scene the folder that it unpacks scene bundles into."""
    cache = slicer.vtkCacheManager()
    cache.SetRemoteCacheDirectory(str(folder))
    cache.SetMRMLScene(scene)
    scene.SetCacheManager(cache)
    manager = slicer.vtkDataIOManager()
    manager.SetCacheManager(cache)
    scene.SetDataIOManager(manager)


def make_host(scene: Any = None, application_logic: Any = None, temporary: Path | None = None) -> Host:
    """A host, installed.

    Args:
        scene: an existing one, such as trame-slicer's `SlicerApp.scene`, together with its application logic.
        application_logic: as above; logics that are registered with it are used, not made again.
        temporary: the folder that `slicer.app.temporaryPath` names.
    """
    if scene is None:
        scene = slicer.vtkMRMLScene()
        application_logic = slicer.vtkSlicerApplicationLogic()
        application_logic.SetMRMLScene(scene)
        application_logic.GetColorLogic().SetMRMLScene(scene)
        application_logic.GetColorLogic().AddDefaultColorNodes()
        application_logic.SetModuleLogic("Colors", application_logic.GetColorLogic())
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    folder = temporary or stand_ins.own_folder()
    if scene.GetDataIOManager() is None:
        _add_cache(scene, folder)
    host = Host(scene, application_logic, folder)
    host.install()
    return host
