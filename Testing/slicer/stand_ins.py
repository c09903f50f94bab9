"""Stand-ins for what slicer-core lacks of Slicer: the application, its file dialogs' logic, scripted modules.

They copy names and behaviour that modules rely on, and nothing more. A test that passes with them says nothing
about Qt, PythonQt or packaging. Import `host` first.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import types
import unittest
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import parameter_node
import slicer


class StandInApp:
    """`slicer.app`."""

    applicationName = "Slicer"
    majorVersion, minorVersion, revision = 5, 11, "host"
    applicationVersion = "5.11.0-host"

    def __init__(self, scene: Any, application_logic: Any, modules: Any, temporary: Path) -> None:
        self._scene, self._logic, self.temporaryPath = scene, application_logic, str(temporary)
        self._io = StandInIO(scene, modules)

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def coreIOManager(self) -> StandInIO:
        return self._io

    def layoutManager(self) -> None:
        return None

    def testingEnabled(self) -> bool:
        return True

    def startupEnvironment(self) -> StandInProcessEnvironment:
        return StandInProcessEnvironment(os.environ)

    def pauseRender(self) -> None: ...

    def resumeRender(self) -> None: ...

    def processEvents(self) -> None:
        raise AssertionError("a module must not turn the event loop itself")


class StandInProcessEnvironment:
    """`QProcessEnvironment`, of which `slicer.util.startupEnvironment` makes a dict; it is no mapping itself."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)

    def keys(self) -> list[str]:
        return list(self._variables)

    def value(self, name: str, defaultValue: str = "") -> str:
        return self._variables.get(name, defaultValue)


class StandInIO:
    """`slicer.app.coreIOManager()` over MRML's real storage nodes: `slicer.util.load...` and `save...` work."""

    def __init__(self, scene: Any, modules: Any) -> None:
        self._scene, self._modules = scene, modules

    def fileType(self, name: Any) -> str:
        name = str(name).lower()
        endings = {
            (".seg.nrrd", ".seg.nhdr"): "SegmentationFile",
            (".mrml", ".mrb"): "SceneFile",
            (".mrk.json", ".fcsv"): "MarkupsFile",
            (".tsv", ".csv"): "TableFile",
            (".h5", ".tfm", ".mat"): "TransformFile",
        }
        return next((kind for ends, kind in endings.items() if name.endswith(ends)), "VolumeFile")

    def fileWriterFileType(self, node: Any) -> str:
        return node.GetClassName()

    def loadNodes(self, kind: str, properties: dict[str, Any], loaded: Any, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        name = str(properties.get("name") or Path(path).name.partition(".")[0])
        if kind == "SceneFile":
            return self.load_scene(path, bool(properties.get("clear", True)))
        if kind == "VolumeFile":
            options = 1 if properties.get("labelmap") else 0
            node = self._modules.volumes.logic().AddArchetypeVolume(path, name, options)
        else:
            classes = {
                "SegmentationFile": "vtkMRMLSegmentationNode",
                "MarkupsFile": "vtkMRMLMarkupsFiducialNode",
                "TableFile": "vtkMRMLTableNode",
                "TransformFile": "vtkMRMLTransformNode",
            }
            node = self._scene.AddNewNodeByClass(classes[kind], name)
            node.AddDefaultStorageNode(path)
            if not node.GetStorageNode().ReadData(node):
                self._scene.RemoveNode(node)
                node = None
        if node is not None:
            loaded.AddItem(node)
        return node is not None

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if kind == "SceneFile":
            return self.save_scene(path)
        node = self._scene.GetNodeByID(properties["nodeID"])
        node.AddDefaultStorageNode(path)
        node.GetStorageNode().SetFileName(path)
        return bool(node.GetStorageNode().WriteData(node))

    def save_scene(self, path: str) -> bool:
        if path.endswith(".mrb"):
            return bool(self._scene.WriteToMRB(path))
        self._scene.SetURL(path)
        return bool(self._scene.Commit())

    def load_scene(self, path: str, clear: bool) -> bool:
        if path.endswith(".mrb"):
            return bool(self._scene.ReadFromMRB(path, clear))
        self._scene.SetURL(path)
        return bool(self._scene.Connect() if clear else self._scene.Import())


class ScriptedLoadableModule:
    """The base of a module's description."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies, parent.contributors = "", [], [], []
        parent.helpText, parent.acknowledgementText, parent.hidden = "", "", False

    def resourcePath(self, filename: str) -> str:
        return _resource(self, filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        return ""


class ScriptedLoadableModuleWidget:
    """The base of a module's panel; `parent` brings the layout, as Slicer's module panel does."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.layout = parent.layout() if parent is not None else None

    def resourcePath(self, filename: str) -> str:
        return _resource(self, filename)

    def setup(self) -> None: ...

    def cleanup(self) -> None: ...


class ScriptedLoadableModuleLogic:
    """The base of a module's logic, with its one parameter node in the scene."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        for node in slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode"):
            if node.GetAttribute("ModuleName") == self.moduleName:
                return node
        node = slicer.vtkMRMLScriptedModuleNode()
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(self.moduleName)
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The base of a module's self-test."""

    def runTest(self) -> None: ...

    def delayDisplay(self, message: str, msec: int | None = None) -> None:
        print(message)


def _resource(thing: Any, filename: str) -> str:
    return str(Path(inspect.getfile(type(thing))).parent / "Resources" / filename)


def _no_install(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing may be installed into Slicer's own Python")


@cache
def own_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="slicer-host-"))


def register() -> None:
    """Puts the stand-in modules where `import` finds them; what a newer slicer-core brings itself is left alone."""
    bases = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    _module("slicer.ScriptedLoadableModule", {base.__name__: base for base in bases})
    _module("slicer.parameterNodeWrapper", parameter_node.EXPORTS)
    _module(
        "slicer.i18n",
        {
            "tr": lambda text: text,
            "translate": lambda context, text: text,
            "getContext": lambda path: Path(path).stem,
        },
    )
    _module("slicer.packaging", {"pip_install": _no_install, "pip_uninstall": _no_install, "pip_ensure": _no_install})


def _module(name: str, members: dict[str, Any]) -> None:
    if name in sys.modules:
        return
    module = types.ModuleType(name, "A stand-in of the test host.")
    vars(module).update(members)
    sys.modules[name] = module
    setattr(slicer, name.rpartition(".")[2], module)
