"""What the parts of the panel share: reading widgets, telling errors, and a button that turns into Cancel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from slicer.i18n import tr as _

from .engine import EngineBusy
from .enginefolder import InstallError
from .nodes import SceneError


def read(widget: Any, name: str) -> Any:
    """A property's value: PythonQt has it as an attribute, PySide as a method of that name."""
    value = getattr(widget, name)
    return value() if callable(value) else value


def problem(error: Exception) -> dict[str, Any]:
    """What the user can mend, in the form of the engine's "error" events.

    Args:
        error: a SceneError, InstallError, EngineBusy or OSError.
    """
    message = getattr(error, "message", None) or str(error)
    return {"event": "error", "kind": "user", "message": message, "hint": getattr(error, "hint", "")}


def slot(method: Callable[[Any], None]) -> Callable[..., None]:
    """Makes a method fit for signals and observers: it takes any arguments, and what the user can mend is told him.

    The method's object has `report`, see `Panel`.
    """

    @functools.wraps(method)
    def called(self: Any, *_arguments: Any) -> None:
        try:
            method(self)
        except (SceneError, InstallError, EngineBusy, OSError) as error:
            self.report(problem(error))

    return called


class Panel:
    """A part of the panel.

    Args:
        host: the module's widget: it has `ui`, `logic`, `parameters`, `say(line)`, `report(event)`, `watch()`.
    """

    def __init__(self, host: Any) -> None:
        self.host = host
        self.ui, self.logic = host.ui, host.logic

    @property
    def parameters(self) -> Any:
        return self.host.parameters

    def report(self, event: Mapping[str, Any]) -> None:
        """Tells an error where the user looks."""
        self.host.report(event)

    def update(self) -> None:
        """Shows what the parameter node says; called at each change of it."""


class JobView:
    """A button that starts a job and then reads Cancel, a progress bar, and a line of text that hides when empty.

    Args:
        button, bar, label: the widgets.
    """

    def __init__(self, button: Any, bar: Any, label: Any) -> None:
        self.button, self.bar, self.label = button, bar, label
        self.title = read(button, "text")
        self.running = False
        bar.setVisible(False)
        label.setVisible(False)

    def begin(self, text: str) -> None:
        self.running = True
        self.button.setText(_("Cancel"))
        self.show(text, None)
        self.bar.setVisible(True)

    def show(self, text: str, fraction: float | None) -> None:
        """Args: fraction: 0..1, or None where it is not known."""
        self.bar.setMaximum(0 if fraction is None else 100)
        if fraction is not None:
            self.bar.setValue(round(100 * fraction))
        self.tell(text)

    def end(self, text: str, error: bool = False) -> None:
        self.running = False
        self.button.setText(self.title)
        self.bar.setVisible(False)
        self.tell(text, error)

    def tell(self, text: str, error: bool = False) -> None:
        self.label.setText(text)
        self.label.setVisible(bool(text))  # an empty one would leave a gap
        self.label.setStyleSheet("color: #d03b2f; font-weight: bold" if error else "")


class JobPanel(Panel):
    """A part with a job of its own: errors are told below that job's button.

    Attributes:
        view: the job's button, bar and line.
    """

    view: JobView

    def report(self, event: Mapping[str, Any]) -> None:
        """Tells an error below this part's button and in the log."""
        self.view.tell(sentence(event), error=True)
        self.host.log_error(event)


def progress(event: Mapping[str, Any]) -> tuple[str, float | None]:
    """A "progress" event in words, and as 0..1, or None where there is nothing to count."""
    stages = {
        "load": _("Loading the model"),
        "prepare": _("Preparing the volume"),
        "slices": _("Segmenting slices"),
        "refine": _("Comparing neighbouring slices"),
        "compare": _("Comparing slices"),
        "clean": _("Cleaning up"),
        "write": _("Writing the result"),
        "training": _("Training"),
        "scoring": _("Scoring"),
    }
    done, total, left = event["done"], event["total"], event.get("eta_s") or 0
    text = stages.get(event["stage"], str(event["stage"]).capitalize())
    if total <= 1:
        return text, None
    text = _("{stage}: {done} of {total}").format(stage=text, done=done, total=total)
    if event.get("note"):
        text += f", {event['note']}"
    if left:
        text += ", " + _("about {time} left").format(time=duration(left))
    return text, done / total


def duration(seconds: float) -> str:
    """ "40 s", "3 min"."""
    return _("{n} s").format(n=round(seconds)) if seconds < 100 else _("{n} min").format(n=round(seconds / 60))


def sentence(event: Mapping[str, Any]) -> str:
    """An error event as one line: what is wrong, and what to do."""
    message, hint = str(event["message"]), str(event.get("hint") or "")
    text = message[:1].upper() + message[1:]
    return f"{text.rstrip('.')}. {hint}" if hint else text
