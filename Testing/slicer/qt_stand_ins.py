"""The Qt side of the host: PySide6 for the `qt` of PythonQt, and stand-ins for Slicer's and CTK's own widgets.

The module's .ui file is loaded as it is. Stand-ins copy the split that PythonQt makes: what is a property of the
real widget is an attribute here, what is a method is a method, and there is nothing else, so code that asks for more
fails here as it would in Slicer. They draw themselves plainly, for panel_picture.py. Qt's own widgets cannot be made
so: PySide has methods for their properties, which is why the module reads them with `panel.read`, and
test_panel_file.py looks through its code for other ways.
"""

from __future__ import annotations

import enum
import os
import sys
import types
import typing
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import parameter_node
import shiboken6
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

SCENE_ARGUMENT = "vtkMRMLScene*"
ROW = 25  # pixels; the height of a field, and of a section's head
QWIDGETSIZE_MAX = 16777215
# PySide takes a reference from None with each call that returns nothing, and Python 3.11 aborts where none is left:
# a long run of tests needs more of them than the interpreter has.
_NONES = [None] * 1_000_000


# ----------------------------------------------------------------------------------------------- the module `qt`


class StandInFileDialog:
    """`qt.QFileDialog`, whose static functions give a text in PythonQt and no tuple; `answer` is what is chosen."""

    answer = ""

    @staticmethod
    def getOpenFileName(*_: Any) -> str:
        return StandInFileDialog.answer


class _Flat(types.ModuleType):
    """Every class of Qt in one place, as PythonQt has them."""

    QFileDialog = StandInFileDialog

    def __getattr__(self, name: str) -> Any:
        for module in (QtWidgets, QtGui, QtCore):
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"qt has no {name}")


# -------------------------------------------------------------------------------------------------- the widgets


class StandInMRMLWidget(QtWidgets.QWidget):
    """`qMRMLWidget`: hands its scene on to whom the .ui file connects."""

    mrmlSceneChanged = QtCore.Signal(SCENE_ARGUMENT)

    def setMRMLScene(self, scene: Any) -> None:
        for child in self.findChildren(QtWidgets.QWidget):
            if isinstance(child, (StandInNodeComboBox, StandInTableView)):
                child.setMRMLScene(scene)


class StandInNodeComboBox(QtWidgets.QWidget):
    """`qMRMLNodeComboBox`: the scene's nodes of some classes, and none of them where that is allowed."""

    currentNodeChanged = QtCore.Signal(object)
    nodeTypes = QtCore.Property("QStringList", lambda self: self._types, lambda self, value: self._set("_types", value))
    noneEnabled = QtCore.Property(bool, lambda self: self._none, lambda self, value: self._set("_none", value))
    noneDisplay = QtCore.Property(str, lambda self: self._none_text, lambda self, value: self._set("_none_text", value))
    showChildNodeTypes = QtCore.Property(
        bool, lambda self: self._children, lambda self, value: self._set("_children", value)
    )
    addEnabled = QtCore.Property(bool, lambda self: self._add, lambda self, value: self._set("_add", value))
    removeEnabled = QtCore.Property(bool, lambda self: self._remove, lambda self, value: self._set("_remove", value))
    renameEnabled = QtCore.Property(bool, lambda self: self._rename, lambda self, value: self._set("_rename", value))
    currentNodeID = QtCore.Property(str, lambda self: self._current.GetID() if self._current is not None else "")

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._types: list[str] = []
        self._none, self._children, self._add, self._remove, self._rename = False, True, True, True, False
        self._none_text = "None"
        self._scene: Any = None
        self._current: Any = None
        self._tags: list[int] = []
        self.setFocusPolicy(QtCore.Qt.FocusPolicy.StrongFocus)

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(160, ROW)

    def paintEvent(self, event: Any) -> None:
        option, painter = QtWidgets.QStyleOptionComboBox(), QtWidgets.QStylePainter(self)
        option.initFrom(self)
        option.currentText = self._current.GetName() if self._current is not None else self._none_text
        painter.drawComplexControl(QtWidgets.QStyle.ComplexControl.CC_ComboBox, option)
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_ComboBoxLabel, option)

    def currentNode(self) -> Any:
        return self._current

    def nodeCount(self) -> int:
        return len(self._nodes())

    @QtCore.Slot(SCENE_ARGUMENT)
    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene = scene
        self._tags = []
        if scene is not None:
            events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent)
            self._tags = [scene.AddObserver(event, lambda *_: self._refresh()) for event in events]
        self._refresh()

    def setCurrentNode(self, node: Any) -> None:
        node = node if node in self._nodes() else None
        if node is None and not self._none:
            node = next(iter(self._nodes()), None)
        if node is not self._current:
            self._current = node
            self.currentNodeChanged.emit(node)

    def _nodes(self) -> list[Any]:
        found = []
        for name in self._types if self._scene is not None else []:
            for node in slicer.util.getNodesByClass(name, self._scene):
                exact = self._children or node.GetClassName() == name
                if exact and not node.GetHideFromEditors():
                    found.append(node)
        return found

    def _set(self, name: str, value: Any) -> None:
        setattr(self, name, value)
        self._refresh()

    def _refresh(self) -> None:
        if self._scene is not None and not self._scene.IsBatchProcessing():
            self.setCurrentNode(self._current)


class StandInTableView(QtWidgets.QTableView):
    """`qMRMLTableView`: a table node's cells."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None

    @QtCore.Slot(SCENE_ARGUMENT)
    def setMRMLScene(self, scene: Any) -> None: ...

    def mrmlTableNode(self) -> Any:
        return self._node

    def setMRMLTableNode(self, node: Any) -> None:
        self._node = node
        model = QtGui.QStandardItemModel()
        if node is not None:
            table = node.GetTable()
            columns = range(table.GetNumberOfColumns())
            model.setHorizontalHeaderLabels([table.GetColumnName(column) for column in columns])
            for row in range(table.GetNumberOfRows()):
                values = [table.GetValue(row, column).ToString() for column in columns]
                model.appendRow([QtGui.QStandardItem(value) for value in values])
        self.setModel(model)


class StandInCollapsibleButton(QtWidgets.QWidget):
    """`ctkCollapsibleButton`."""

    text = QtCore.Property(str, lambda self: self._text, lambda self, value: setattr(self, "_text", value))
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, lambda self, value: self._collapse(value))

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, ROW, 0, 0)

    def paintEvent(self, event: Any) -> None:
        painter, bar = QtGui.QPainter(self), QtCore.QRect(0, 0, self.width(), ROW - 2)
        painter.fillRect(bar, self.palette().color(QtGui.QPalette.ColorRole.Button).darker(112))
        arrow = (
            "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}" if self._collapsed else "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"
        )
        painter.drawText(bar.adjusted(8, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, f"{arrow}  {self._text}")

    def _collapse(self, value: bool) -> None:
        self._collapsed = value
        self.setMaximumHeight(ROW if value else QWIDGETSIZE_MAX)  # what lies below the bar is cut off


class StandInPathLineEdit(QtWidgets.QWidget):
    """`ctkPathLineEdit`."""

    Dirs = 0x001
    currentPathChanged = QtCore.Signal(str)
    currentPath = QtCore.Property(str, lambda self: self._path, lambda self, value: self.setCurrentPath(value))

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._path = ""
        self.filters: Any = None
        self.setFocusPolicy(QtCore.Qt.FocusPolicy.StrongFocus)

    def sizeHint(self) -> QtCore.QSize:
        return QtCore.QSize(160, ROW)

    def paintEvent(self, event: Any) -> None:
        option, painter = QtWidgets.QStyleOptionFrame(), QtWidgets.QStylePainter(self)
        option.initFrom(self)
        option.rect.setRight(self.width() - 36)
        option.lineWidth = 1
        painter.drawPrimitive(QtWidgets.QStyle.PrimitiveElement.PE_PanelLineEdit, option)
        shown = self.fontMetrics().elidedText(self._path, QtCore.Qt.TextElideMode.ElideMiddle, self.width() - 48)
        painter.drawText(option.rect.adjusted(5, 0, 0, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, shown)
        button = QtWidgets.QStyleOptionButton()
        button.initFrom(self)
        button.rect.setLeft(self.width() - 32)
        button.text = "..."
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButton, button)

    def setCurrentPath(self, path: str) -> None:
        if path != self._path:
            self._path = path
            self.currentPathChanged.emit(path)


WIDGETS: dict[str, type[QtWidgets.QWidget]] = {
    "qMRMLWidget": StandInMRMLWidget,
    "qMRMLNodeComboBox": StandInNodeComboBox,
    "qMRMLTableView": StandInTableView,
    "ctkCollapsibleButton": StandInCollapsibleButton,
    "ctkPathLineEdit": StandInPathLineEdit,
}


class _Loader(QtUiTools.QUiLoader):
    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> QtWidgets.QWidget:
        if class_name not in WIDGETS:
            return super().createWidget(class_name, parent, name)
        widget = WIDGETS[class_name](parent)
        widget.setObjectName(name)
        return widget


def load_ui(path: str) -> QtWidgets.QWidget:
    """`slicer.util.loadUI`."""
    return _Loader().load(str(path), None)


def child_widgets(widget: QtWidgets.QWidget) -> Any:
    """`slicer.util.childWidgetVariables`: the named widgets as attributes."""
    ui = types.SimpleNamespace()
    for child in widget.findChildren(QtWidgets.QWidget):
        if child.objectName() and not child.objectName().startswith("qt_"):
            setattr(ui, child.objectName(), child)
    return ui


# ------------------------------------------------------------------------------------------- parameters to widgets


def connect_gui(wrapper: Any, mapping: dict[str, Any]) -> Any:
    """What a parameter node does with widgets that it is bound to; returns what undoes it.

    As in Slicer, a widget binds only to types that are meant for it, and any change of the node is written to all.

    Args:
        mapping: parameter -> widget.
    """
    bound = {name: _connector(widget, wrapper.dataType(name)) for name, widget in mapping.items()}
    updating = False

    def to_widgets(*_: Any) -> None:
        nonlocal updating
        if updating:
            return
        updating = True
        try:
            for name, (_signal, _read, write) in bound.items():
                write(wrapper.getValue(name))
        finally:
            updating = False

    def to_node(name: str, value: Any) -> None:
        if not updating:
            wrapper.setValue(name, value)

    slots = []
    to_widgets()
    for name, (signal, read, _write) in bound.items():
        slots.append((signal, lambda *_, name=name, read=read: to_node(name, read())))
        signal.connect(slots[-1][1])
    tag = wrapper.AddObserver(vtk.vtkCommand.ModifiedEvent, to_widgets)

    def undo() -> None:
        wrapper.RemoveObserver(tag)
        for signal, slot in slots:
            signal.disconnect(slot)

    return undo


def _connector(widget: Any, hint: Any) -> tuple[Any, Any, Any]:
    """(signal, read, write) of a widget for a type, or RuntimeError as in Slicer."""
    notes = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    kind = typing.get_args(hint)[0] if notes else hint
    match type(widget):
        case QtWidgets.QCheckBox if kind is bool:
            return widget.toggled, widget.isChecked, widget.setChecked
        case QtWidgets.QLineEdit if kind is str:
            return widget.textChanged, widget.text, widget.setText
        case QtWidgets.QSpinBox if kind is int:
            for note in notes:
                if isinstance(note, parameter_node.WithinRange):
                    widget.setRange(int(note.minimum), int(note.maximum))
            return widget.valueChanged, widget.value, widget.setValue
        case QtWidgets.QComboBox if isinstance(kind, type) and issubclass(kind, enum.Enum):
            members = list(kind)
            widget.clear()
            widget.addItems([each.label() if hasattr(each, "label") else each.name for each in members])
            return (
                widget.currentIndexChanged,
                lambda: members[widget.currentIndex()],
                lambda value: widget.setCurrentIndex(members.index(value)),
            )
        case stand_in if stand_in is StandInNodeComboBox and issubclass(kind, slicer.vtkMRMLNode):
            widget.nodeTypes = [kind.__name__]
            return widget.currentNodeChanged, widget.currentNode, widget.setCurrentNode
    raise RuntimeError(f"Unable to create GUI connector from datatype '{hint}' to widget type '{type(widget)}'")


# ------------------------------------------------------------------------------------------------ the application


class StandInMainWindow(QtWidgets.QMainWindow):
    """Slicer's main window: the panel, and what its menus were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.panel = QtWidgets.QWidget(self)
        QtWidgets.QVBoxLayout(self.panel)
        self.setCentralWidget(self.panel)
        self.selected_modules: list[str] = []
        self.questions: list[str] = []
        self.agrees = True

    def selectModule(self, name: str) -> None:
        self.selected_modules.append(name)

    def confirm(self, text: str, windowTitle: str | None = None, **_: Any) -> bool:
        """`slicer.util.confirmOkCancelDisplay`."""
        self.questions.append(text)
        return self.agrees


_originals: dict[str, Any] = {}


def install_qt(app: Any, settings: Path) -> StandInMainWindow:
    """Gives a host (see `host.make_host`) its Qt side; returns the main window.

    Args:
        app: the host's `slicer.app`.
        settings: a folder for what QSettings keeps.
    """
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    application.setOrganizationName("StandIn")
    application.setApplicationName("Slicer")
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
    QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, str(settings))
    ctk = types.ModuleType("ctk")
    ctk.ctkPathLineEdit = StandInPathLineEdit
    sys.modules.update({"qt": _Flat("qt"), "ctk": ctk})
    window = StandInMainWindow()
    app.started = []
    app.startupEnvironment = QtCore.QProcessEnvironment.systemEnvironment
    app.connect = lambda signal, call: app.started.append((signal, call))
    # What slicer.util has for these asks the application for widgets that only it has.
    replaced = {
        "loadUI": load_ui,
        "childWidgetVariables": child_widgets,
        "mainWindow": lambda: window,
        "selectModule": window.selectModule,
        "confirmOkCancelDisplay": window.confirm,
    }
    for name, function in replaced.items():
        _originals.setdefault(name, getattr(slicer.util, name))
        setattr(slicer.util, name, function)
    parameter_node.set_connector(connect_gui)
    return window


def remove_qt(window: StandInMainWindow) -> None:
    """Deletes the window now, as Qt's objects must not outlive the application, and takes `qt` and `ctk` away.

    Code that must do without them is then found out.
    """
    for child in window.findChildren(StandInMRMLWidget):
        child.setMRMLScene(None)
    shiboken6.delete(window)
    for name in ("qt", "ctk"):
        sys.modules.pop(name, None)
    for name, function in _originals.items():
        setattr(slicer.util, name, function)
    parameter_node.set_connector(None)
