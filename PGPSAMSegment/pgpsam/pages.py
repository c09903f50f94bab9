"""Files that appear whole or not at all, and self-contained HTML pages: style and pictures lie in the file.

It knows nothing of what the pages are about.
"""

from __future__ import annotations

import base64
import csv
import errno
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .errors import UserError, reason

_STYLE = """
:root { color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --text: #16191d; --muted: #626b76; --line: #dde1e6;
  --accent: #0b6bcb; --warn: #8a5300; --warn-back: #fff3dc; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0e1114; --card: #171b20; --text: #e8eaed; --muted: #98a2ad; --line: #2b323a;
  --accent: #6cb2ff; --warn: #ffcf87; --warn-back: #33270f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 10px; }
p { margin: 4px 0 10px; }
.muted { color: var(--muted); }
.warn { color: var(--warn); background: var(--warn-back); border-radius: 8px; padding: 8px 14px;
  font-weight: 600; margin: 14px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px;
  margin: 16px 0; overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 18px;
  flex: 1 1 130px; }
.tiles b { display: block; font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--muted); font-size: 13px; }
img { display: block; max-width: 100%; height: auto; border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--muted); font-weight: 600; font-size: 13px; vertical-align: bottom; }
th, td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; }
td.wrap { white-space: normal; }
tr:last-child td { border-bottom: 0; }
tr.mean td { font-weight: 600; }
tr.absent td { color: var(--muted); }
table.matrix th { white-space: normal; }
table.matrix th, table.matrix td { padding: 6px 7px; }
table.narrow { max-width: 420px; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { background: #fff; } .card, .tiles div { break-inside: avoid; } }
"""


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Writes files that appear whole or not at all; none takes its name before all are written.

    Args:
        files: the content of each path; their folders must exist.

    Raises:
        UserError: a file can't be written, naming it.
    """
    partials: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in files.items():
            if path.is_dir():  # noticed now, not when other files have taken their names
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            partials[path] = path.with_name(f".{uuid.uuid4().hex}.part")
            partials[path].write_bytes(content)
        for path, partial in partials.items():
            os.replace(partial, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def check_can_write(path: Path) -> None:
    """Notices before the work what `write_whole` would notice after it, by making a file beside this one.

    Raises:
        UserError: no such folder, a folder of this name, or a file can't be written there.
    """
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        raise UserError(f"no such folder: {path.parent}", "Make it first.")
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder", "Name a file in it.")
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # refuses a name that is too long
        with NamedTemporaryFile(prefix=".", suffix=".part", dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    hint = "Check that the folder exists, may be written to and has room"
    return UserError(f"{path} can't be written: {reason(error)}", hint)


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table with its columns' names, UTF-8; a cell that a row lacks, or that is None, stays empty.

    A text that a spreadsheet would run as a formula gets an apostrophe before it; `csv_text` takes it away again.

    Raises:
        ValueError: a row with another column.
    """
    text = StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _cell(value) for column, value in row.items()} for row in rows)
    return text.getvalue().encode()


def csv_text(cell: str) -> str:
    """What a cell of `csv_bytes` stands for."""
    return cell.removeprefix("'")


def _cell(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "'")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def png(figure: Figure, dpi: float) -> bytes:
    """Draws a figure as a PNG; a figure without a background stays transparent."""
    FigureCanvasAgg(figure)
    content = BytesIO()
    with warnings.catch_warnings():  # a name in another script gets signs that stand for its letters
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return content.getvalue()


def image(content: bytes, alt: str) -> str:
    """An HTML image that holds its PNG."""
    return f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{escape(alt)}">'


def facts(items: Mapping[str, str]) -> str:
    """An HTML list of names and what they are; both are escaped."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items()) + "</dl>"


def page(title: str, body: str) -> bytes:
    """A whole HTML page, UTF-8, that loads nothing and follows the reader's light or dark theme.

    Args:
        title: plain text; it is escaped.
        body: HTML.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'
    return text.encode("utf-8", errors="replace")
