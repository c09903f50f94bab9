"""The two exceptions that callers of the engine handle: what the user can mend, and a wanted stop."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend.

    Args:
        message: one line: what is wrong and where (the file or value by name).
        hint: one line: what to do about it; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class Cancelled(Exception):
    """The caller's cancel callback said stop; nothing was written."""


def of_system(error: OSError) -> UserError:
    """What the system refused, as one line: a full disk, a folder that is a file, a file that may not be read."""
    place = f": {error.filename}" if error.filename else ""
    return UserError(f"{reason(error)}{place}", "Check the path, its permissions and the disk.")


def reason(error: Exception) -> str:
    """What a file's error says, in one line: the system's own words without their number, or a parser's."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())
