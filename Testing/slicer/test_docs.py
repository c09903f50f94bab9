"""The documents say what is so: named tests exist, messages are the code's own, links lead somewhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
COMPLAINTS, FAULTS = DOCS / "complaints.md", DOCS / "faults.md"
TEST_ID = re.compile(r"Testing/[\w/]+\.py(?:::\w+)+")
GAP = "…"  # what a message says of this case: a name, a number


@cache
def defined_in(path: Path) -> frozenset[str]:
    """The tests that a file defines: "test_x" and "TestClass::test_y"."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        for function in [node, *inner]:
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and function.name.startswith("test_"):
                found.add(function.name if function is node else f"{getattr(node, 'name', '')}::{function.name}")
    return frozenset(found)


def exists(test_id: str) -> bool:
    file, _, name = test_id.partition("::")
    return (ROOT / file).is_file() and name in defined_in(ROOT / file)


def rows(path: Path, columns: int) -> list[list[str]]:
    """The cells of a document's tables, without heads."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    tables = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    body = [
        row for n, row in enumerate(tables) if not is_rule(row) and not (n + 1 < len(tables) and is_rule(tables[n + 1]))
    ]
    assert all(len(row) == columns for row in body), [row for row in body if len(row) != columns]
    return body


def is_rule(row: list[str]) -> bool:
    return all(set(cell) <= set("-|: ") for cell in row)


@cache
def said_by_the_code() -> tuple[str, ...]:
    """Every text in the product's source, with a gap where a value is put in."""
    page = sorted((ROOT / "Testing" / "browser").glob("[!t]*.py"))  # all but the tests
    files = [*sorted((ROOT / "PGPSAMSegment").rglob("*.py")), ROOT / "setup_env.py", *page]
    return tuple(dict.fromkeys(text for path in files for text in texts(ast.parse(path.read_text(encoding="utf-8")))))


def texts(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"\{\w*\}|%[.\d]*[a-z]", GAP, node.value))  # a template for format or logging
    return [re.sub(rf"{GAP}+", GAP, " ".join(text.split())) for text in found]


def is_said(quote: str) -> bool:
    return any(" ".join(quote.split()) in text for text in said_by_the_code())


@pytest.mark.parametrize("document", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    named = TEST_ID.findall(document.read_text(encoding="utf-8"))
    assert [test_id for test_id in named if not exists(test_id)] == []


def test_each_of_the_fifteen_complaints_has_an_answer_and_a_test() -> None:
    table = rows(COMPLAINTS, 4)
    assert [row[0] for row in table] == [str(number) for number in range(1, 16)]
    for number, complaint, answer, tests in table:
        assert len(complaint) > 20, number
        assert len(answer) > 20, number
        assert TEST_ID.findall(tests), f"complaint {number} names no test"


def test_each_fault_has_a_message_of_the_codes_own_and_a_test() -> None:
    table = rows(FAULTS, 4)
    assert len(table) > 30
    for fault, message, remedy, tests in table:
        quotes = re.findall(r"`([^`]+)`", f"{message} {remedy}")
        assert quotes, f"{fault}: no message"
        assert [quote for quote in quotes if not is_said(quote)] == [], f"{fault}: nowhere in the code"
        assert TEST_ID.findall(tests), f"{fault}: no test"


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [target for target in targets if target and not (document.parent / target).exists()] == []


def test_the_guide_names_buttons_and_keys_as_they_are() -> None:
    guide = (DOCS / "slicer.md").read_text(encoding="utf-8")
    panel = ElementTree.parse(ROOT / "PGPSAMSegment" / "Resources" / "UI" / "PGPSAMSegment.ui")
    labels = {(text.text or "").replace("&", "") for text in panel.iter("string")}
    module = ROOT / "PGPSAMSegment" / "PGPSAMSegment.py"
    labels |= set(texts(ast.parse(module.read_text(encoding="utf-8"))))
    own = {"bold", "The self-test."}  # not words of the panel
    named = {" ".join(text.split()) for text in re.findall(r"\*\*([^*]+)\*\*", guide)} - own
    assert len(named) > 25
    assert sorted(named - labels) == []
    keys = re.compile(r"Ctrl\+Shift\+\w+")
    assert set(keys.findall(guide)) == set(keys.findall(module.read_text(encoding="utf-8")))


def test_the_checks_above_can_fail() -> None:
    assert exists("Testing/slicer/test_docs.py::test_the_checks_above_can_fail")
    assert not exists("Testing/slicer/test_docs.py::test_that_was_never_written")
    assert not exists("Testing/slicer/no_such_file.py::test_the_checks_above_can_fail")
    assert {"… is gone: …", "no …", "… of …"} <= set(
        texts(ast.parse('say(f"{a}{b} is gone: " f"{c}", "no {name}", "%s of %d")'))
    )
    assert is_said("the disk is full")
    assert not is_said("the moon is " + "full")
