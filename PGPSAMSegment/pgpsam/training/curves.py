"""A run's losses on the disk, a line an iteration."""

from __future__ import annotations

import logging
from pathlib import Path

from pgpsam.errors import UserError, reason

CURVES = "curves.csv"
_log = logging.getLogger(__name__)


class Curves:
    """The run's losses as a CSV that grows by a line an iteration; a resumed run goes on after its first `kept`.

    A disk that refuses a line costs the training nothing: it is written with the next one.

    Raises:
        UserError: it refuses the first one, before the training.
    """

    def __init__(self, path: Path, kept: int) -> None:
        self.path, self.behind = path, False
        rows = path.read_text(encoding="utf-8").splitlines()[1 : kept + 1] if kept and path.exists() else []
        self.lines = ["iteration,loss,mean_loss,lr,seconds", *rows]
        try:
            self._write()
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason(error)}", "Check the free space") from error

    def add(self, *values: float) -> None:
        self.lines.append(",".join(f"{value:.6g}" for value in values))
        try:
            if self.behind:
                self._write()
            else:
                with self.path.open("a", encoding="utf-8", newline="") as file:
                    file.write(f"{self.lines[-1]}\n")
            self.behind = False
        except OSError as error:
            if not self.behind:
                _log.warning("the training goes on: cannot write %s: %s", self.path, reason(error))
            self.behind = True

    def _write(self) -> None:
        self.path.write_text("\n".join([*self.lines, ""]), encoding="utf-8", newline="")
