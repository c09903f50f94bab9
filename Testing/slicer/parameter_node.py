"""A stand-in for Slicer's `parameterNodeWrapper`, which slicer-core lacks.

Values really live in a vtkMRMLScriptedModuleNode, as strings and node references under the same names as in
Slicer, so that saving and loading a scene keeps them. Stood in for are numbers, text, bool, paths, enumerations,
nodes, and lists of those; widgets are bound by whoever sets `connect`.
"""

from __future__ import annotations

import enum
import json
import typing
import weakref
from collections.abc import Callable
from typing import Any

import slicer


class Default:
    """``Annotated[int, Default(5)]``."""

    def __init__(self, value: Any) -> None:
        self.value = value


class WithinRange:
    """``Annotated[float, WithinRange(0, 1)]``: other values are refused with ValueError, as in Slicer."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum} and {self.maximum}")


class Choice:
    """``Annotated[str, Choice(["a", "b"])]``."""

    def __init__(self, choices: list[Any]) -> None:
        self.choices = choices

    def validate(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"{value!r} is not one of {self.choices}")


class _Parameter:
    """One typed attribute of a wrapper class: how it is kept in the node, and its default."""

    def __init__(self, name: str, hint: Any, given: Any) -> None:
        self.name, self.hint = name, hint
        self.kind = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        notes = typing.get_args(hint)[1:] if self.kind is not hint else ()
        self.validators = [note for note in notes if hasattr(note, "validate")]
        defaults = [note.value for note in notes if isinstance(note, Default)]
        self.default = given if given is not None else defaults[0] if defaults else self._empty()

    @property
    def is_node(self) -> bool:
        return isinstance(self.kind, type) and issubclass(self.kind, slicer.vtkMRMLNode)

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.kind) is list

    def _empty(self) -> Any:
        if self.is_node:
            return None
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            return next(iter(self.kind))
        return [] if self.is_list else self.kind()

    def write(self, node: Any, value: Any) -> None:
        if self.is_node:
            if value is not None and not isinstance(value, self.kind):
                raise TypeError(f"{self.name}: {value!r} is not a {self.kind.__name__}")
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            return
        plain = typing.get_origin(self.kind) or self.kind
        if not isinstance(value, (int, float) if plain is float else plain) or (plain is int and value is True):
            raise TypeError(f"{self.name}: {value!r} is not of type {plain.__name__}")
        for validator in self.validators:
            validator.validate(value)
        node.SetParameter(self.name, self._text(value))

    def _text(self, value: Any) -> str:
        if self.is_list:
            return json.dumps(value)
        return value.name if isinstance(value, enum.Enum) else str(value)

    def read(self, node: Any) -> Any:
        if self.is_node:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if self.kind is bool:
            return text == "True"
        if self.is_list:
            return json.loads(text)
        return self.kind[text] if issubclass(self.kind, enum.Enum) else self.kind(text)


class _Wrapper:
    """The methods that Slicer adds to a wrapped class."""

    allParameters: typing.ClassVar[dict[str, _Parameter]]
    connect: typing.ClassVar[Callable[[Any, Any], Callable[[], None]] | None] = None

    def __init__(self, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._connections: dict[int, Callable[[], None]] = {}
        self._cache: dict[str, Any] = {}
        self._refresh()
        me = weakref.ref(self)
        tag = parameterNode.AddObserver("ModifiedEvent", lambda *_: (kept := me()) and kept._refresh())
        weakref.finalize(self, parameterNode.RemoveObserver, tag)

    def _refresh(self) -> None:
        """Reads all values, as Slicer does whenever the node says that it was modified, and at no other time: not when
        a node that it refers to comes into the scene."""
        for name, parameter in self.allParameters.items():
            if not self.parameterNode.HasParameter(name):
                parameter.write(self.parameterNode, parameter.default)
            self._cache[name] = parameter.read(self.parameterNode)

    def default(self, name: str) -> Default:
        return Default(self._parameter(name).default)

    def dataType(self, name: str) -> Any:
        return self._parameter(name).hint

    def isCached(self, name: str) -> bool:
        self._parameter(name)
        return True

    def getValue(self, name: str) -> Any:
        self._parameter(name)
        return self._cache[name]

    def setValue(self, name: str, value: Any) -> None:
        with slicer.util.NodeModify(self.parameterNode):  # who observes the node hears of it when the value is there
            self._parameter(name).write(self.parameterNode, value)
            self._cache[name] = self._parameter(name).read(self.parameterNode)

    def connectGui(self, gui: Any) -> None:
        """Binds the widgets of `gui` that carry a `SlicerParameterName`. Like Slicer's own, it forgets to return a tag,
        so what it binds stays bound.
        """
        named = {widget.property("SlicerParameterName"): widget for widget in vars(gui).values()}
        self.connectParametersToGui({name: widget for name, widget in named.items() if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        """Binds parameters, by name, to widgets, as `connect` does it; returns a tag."""
        if type(self).connect is None:
            raise NotImplementedError("this host has no widgets: call parameter_node.set_connector first")
        tag = len(self._connections)
        self._connections[tag] = type(self).connect(self, mapping)
        return tag

    def disconnectGui(self, tag: int | None) -> None:
        if tag in self._connections:
            self._connections.pop(tag)()

    def StartModify(self) -> int:
        return self.parameterNode.StartModify()

    def EndModify(self, was: int) -> None:
        self.parameterNode.EndModify(was)

    def AddObserver(self, event: Any, callback: Callable[..., None], priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def _parameter(self, name: str) -> _Parameter:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}")
        return self.allParameters[name]


def parameterNodeWrapper(cls: type | None = None) -> Any:
    """The decorator, with or without brackets."""
    if cls is None:
        return parameterNodeWrapper
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: _Parameter(name, hint, getattr(cls, name, None)) for name, hint in hints.items()}
    members = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__", *hints)}
    members["allParameters"] = parameters
    for name in parameters:
        members[name] = property(
            lambda self, name=name: self.getValue(name), lambda self, value, name=name: self.setValue(name, value)
        )
    return type(cls.__name__, (_Wrapper,), members)


def set_connector(connect: Callable[[Any, Any], Callable[[], None]] | None) -> None:
    """Says how widgets are bound.

    Args:
        connect: gets the wrapper and a widget for each name, binds both ways, and returns what undoes it.
    """
    _Wrapper.connect = staticmethod(connect) if connect is not None else None  # type: ignore[assignment]


EXPORTS: dict[str, Any] = {
    "Choice": Choice,
    "Default": Default,
    "WithinRange": WithinRange,
    "parameterNodeWrapper": parameterNodeWrapper,
}
