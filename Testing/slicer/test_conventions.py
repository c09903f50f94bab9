"""What Slicer asks of code that runs inside it, read from the code itself: PGPSAMSegment.py and PGPSAMSegmentLib.

Most is read from the syntax tree, so it holds for whatever lies there, also for lines that no test reaches. That
the rules find what they forbid is shown on samples.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "PGPSAMSegment"
LIB = MODULE / "PGPSAMSegmentLib"
ENGINE = MODULE / "pgpsam"
MAIN = MODULE / "PGPSAMSegment.py"

# Run by the engine's Python as scripts, never imported inside Slicer; enginestart.py is where pgpsam begins.
SCRIPTS = {"enginestart.py", "installsteps.py"}
STARTS_THE_ENGINE = {"enginestart.py"}

INSIDE_SLICER = {"numpy", "vtk", "slicer", "qt", "ctk", "PGPSAMSegmentLib"}
THREADS = {"threading", "_thread", "concurrent", "multiprocessing", "asyncio"}
POPUPS = {"QMessageBox", "QDialog", "QInputDialog", "QFileDialog", "QProgressDialog", "ctkMessageBox"}
POPUPS |= {f"{kind}Display" for kind in ("error", "warning", "info", "message", "confirmOkCancel", "confirmYesNo")}
POPUPS |= {f"confirm{kind}Display" for kind in ("RetryClose", "YesNoCancel")}
POPUPS |= {"delayDisplay", "tryWithErrorDisplay", "createProgressDialog", "showStatusMessage"}
# What fetches, installs, or starts a program.
HEAVY = {"pip_install", "pip_ensure", "pip_uninstall", "urlopen", "urlretrieve", "downloadFile", "downloadFromURL"}
HEAVY |= {"downloadSample", "downloadVolumes", "downloadNodes", "Installation", "Popen", "check_call", "check_output"}
HEAVY |= {"system", "make_plan", "launchConsoleProcess"}
CONSTRUCTORS = {"__init__", "setup", "enter"}
# Widgets' methods whose text the user reads.
TEXT_SETTERS = {"setText", "setToolTip", "setWindowTitle", "setTitle", "setPlaceholderText", "setHtml", "addItem"}
TEXT_SETTERS |= {"setStatusTip", "setLabelText", "setInformativeText", "setDetailedText", "QLabel", "QPushButton"}
TEXT_SETTERS |= {"QCheckBox", "QGroupBox", "QAction", "QRadioButton", "addAction", "setSuffix", "showStatusMessage"}
TEXT_ATTRIBUTES = {"title", "helpText", "acknowledgementText", "text", "toolTip", "placeholderText"}


def sources() -> list[Path]:
    return [MAIN, *sorted(LIB.rglob("*.py"))]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST) -> str:
    return f"{path.name}:{getattr(node, 'lineno', 0)}"


# ----------------------------------------------------------------------------------- what the rules look for


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Each import in a tree with the name of the top-level package; "" for one of this very package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, "" if node.level else (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"} and node.args:
            name = node.args[0]
            yield node, str(name.value).partition(".")[0] if isinstance(name, ast.Constant) else "?"


def at_file_scope(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a file is imported: all but the bodies of functions."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        if isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test):
            continue
        yield statement
        for inner in ("body", "orelse", "finalbody"):
            yield from at_file_scope(getattr(statement, inner, []))
        for handler in getattr(statement, "handlers", []):
            yield from at_file_scope(handler.body)


def called(node: ast.Call) -> str:
    """The last part of a called name: `slicer.util.errorDisplay(...)` gives "errorDisplay"."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def calls(nodes: list[ast.AST], names: set[str]) -> Iterator[ast.Call]:
    """Calls of one of `names` in these nodes themselves; a lambda or function made there runs later."""
    for node in nodes:
        if isinstance(node, (ast.Lambda, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.Call) and (called(node) in names or is_subprocess(node)):
            yield node
        yield from calls(list(ast.iter_child_nodes(node)), names)


def is_subprocess(node: ast.Call) -> bool:
    return ast.unparse(node.func) in {"subprocess.run", "subprocess.call"}


def text_without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that read or write text in whatever encoding the locale of that moment has."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg for keyword in node.keywords}
        modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        modes += [keyword.value.value for keyword in node.keywords if isinstance(keyword.value, ast.Constant)]
        name = ast.unparse(node.func)
        opens = name == "open" or (name.endswith(".open") and not name.startswith(("os.", "tarfile.", "zipfile.")))
        if opens:
            text = [mode for mode in modes if isinstance(mode, str) and set(mode) <= set("rwaxt+") and mode]
        else:
            text = called(node) in {"read_text", "write_text"} or given & {"text", "universal_newlines", "errors"}
            text = text and called(node) in {"read_text", "write_text", "run", "Popen", "check_output"}
        if text and "encoding" not in given:
            yield node


def names_in(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Every name and attribute that is mentioned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, ast.Name):
            yield node, node.id


def bare_texts(tree: ast.AST) -> Iterator[ast.AST]:
    """Words that are given to the user without having passed through a translation."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in TEXT_SETTERS | POPUPS:
            yield from (value for value in node.args if is_words(value))
        elif isinstance(node, ast.Assign) and is_words(node.value):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr in TEXT_ATTRIBUTES:
                    yield node.value


def is_words(node: ast.expr) -> bool:
    """Whether an expression is a literal text that holds a word, such as "Done" or f"{n} organs"."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and any(map(str.isalpha, node.value))
    if isinstance(node, ast.JoinedStr):
        return any(is_words(part) for part in node.values if isinstance(part, ast.Constant))
    if isinstance(node, ast.BinOp):
        return is_words(node.left) or is_words(node.right)
    if isinstance(node, ast.IfExp):
        return is_words(node.body) or is_words(node.orelse)
    return False


# ------------------------------------------------------------------------------------------------------- imports


def test_only_what_slicer_has_is_imported_at_file_scope() -> None:
    allowed = set(sys.stdlib_module_names) | INSIDE_SLICER | {""}
    found = [
        f"{where(path, node)} imports {name}"
        for path in sources()
        for statement in at_file_scope(parsed(path).body)
        if isinstance(statement, (ast.Import, ast.ImportFrom))
        for node, name in imports(statement)
        if name not in allowed
    ]
    assert found == []


def test_the_engine_is_never_imported_inside_slicer() -> None:
    found = [
        f"{where(path, node)} imports {name}"
        for path in sources()
        if path.name not in STARTS_THE_ENGINE
        for node, name in imports(parsed(path))
        if name in {"torch", "torchvision", "pgpsam", "segment_anything", "peft", "monai", "?"}
    ]
    assert found == []


def test_scripts_of_the_engines_python_are_not_imported_inside_slicer() -> None:
    stems = {name.removesuffix(".py") for name in SCRIPTS}
    found = [
        f"{where(path, node)} imports {alias.name}"
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
        if stems & {alias.name, *(getattr(node, "module", None) or "").split("."), *alias.name.split(".")}
    ]
    assert found == []


def test_everything_imports_without_torch_scipy_nibabel_or_simpleitk() -> None:
    """In a Python of its own with real MRML; nothing is fetched or started by an import, either."""
    program = str(Path(__file__).with_name("import_all.py"))
    command = [sys.executable, program, str(MODULE), *(name.removesuffix(".py") for name in sorted(SCRIPTS))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {"PGPSAMSegment", "PGPSAMSegmentLib.engine", "PGPSAMSegmentLib.scene"} <= set(done.stdout.split())


def test_panel_logic_and_review_run_without_torch_scipy_nibabel_or_simpleitk() -> None:
    """Their own tests, in a Python that cannot import the engine's packages; the engine there is a stand-in."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "without_engine", "-p", "no:cacheprovider"]
    command += [str(here / name) for name in ("test_panel.py", "test_review.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------- behaviour in Slicer


def test_the_syntax_is_that_of_python_3_10() -> None:
    for path in sources():
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_nothing_is_fetched_installed_or_started_at_import_or_in_a_constructor() -> None:
    found = []
    for path in sources():
        tree = parsed(path)
        loose = [
            statement
            for statement in at_file_scope(tree.body)
            if not isinstance(statement, (ast.ClassDef, ast.If, ast.Try, ast.With))
        ]
        builders = [
            statement
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and path not in (LIB / "childprocess.py", LIB / "install.py")
            for function in node.body
            if isinstance(function, ast.FunctionDef) and function.name in CONSTRUCTORS
            for statement in function.body
        ]
        found += [f"{where(path, call)} calls {called(call)}" for call in calls([*loose, *builders], HEAVY)]
    assert found == []


def test_logic_and_library_open_no_popups() -> None:
    found = []
    for path in sources():
        tree = parsed(path)
        library = path != MAIN and "qt" not in {name for _, name in imports(tree)}
        logics = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Logic")]
        for part in [tree] if library else logics:
            found += [
                f"{where(path, node)} uses {name}" for node, name in names_in(part) if name in POPUPS | {"qt", "ctk"}
            ]
    assert found == []


def test_no_event_loop_is_turned_by_hand_and_no_thread_is_started() -> None:
    found = []
    for path in sources():
        tree = parsed(path)
        found += [
            f"{where(path, node)} uses {name}"
            for node, name in names_in(tree)
            if name in {"processEvents", "QEventLoop", "QThread", "QThreadPool", "QtConcurrent"}
        ]
        if path.name not in SCRIPTS:
            found += [f"{where(path, node)} imports {name}" for node, name in imports(tree) if name in THREADS]
    assert found == []


def test_text_is_utf_8_whatever_the_locale() -> None:
    """Under LC_ALL=C, and on Windows, a text without a stated encoding fails at the first umlaut."""
    files = [
        *sources(),
        *sorted(ENGINE.rglob("*.py")),
        ROOT / "setup_env.py",
        *sorted((ROOT / "Training").glob("*.py")),
    ]
    found = [where(path, node) for path in files for node in text_without_encoding(parsed(path))]
    assert found == []


def test_items_of_a_list_are_made_by_the_list() -> None:
    """One that Python makes and hands over is deleted under the list by some versions of PythonQt."""
    made = {"QListWidgetItem", "QTableWidgetItem", "QTreeWidgetItem"}
    found = [
        f"{where(path, node)} makes a {called(node)}"
        for path in sources()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and called(node) in made
    ]
    assert found == []


def test_no_exception_is_swallowed_whole() -> None:
    """`except: ...` and `except Exception: pass` hide what went wrong."""
    found = []
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}
                silent = all(isinstance(each, (ast.Pass, ast.Continue)) for each in node.body)
                if node.type is None or (broad and silent):
                    found.append(where(path, node))
    assert found == []


def test_texts_of_the_panel_are_translated() -> None:
    found = [
        f"{where(path, node)}: {ast.unparse(node)[:80]}" for path in sources() for node in bare_texts(parsed(path))
    ]
    assert found == []
    assert any(isinstance(node, ast.ImportFrom) and node.module == "slicer.i18n" for node in ast.walk(parsed(MAIN))), (
        "PGPSAMSegment.py takes its translations from slicer.i18n"
    )


def test_the_module_has_the_four_classes_that_slicer_looks_for() -> None:
    classes = {node.name: node for node in parsed(MAIN).body if isinstance(node, ast.ClassDef)}
    for suffix in ("", "Widget", "Logic", "Test"):
        assert f"PGPSAMSegment{suffix}" in classes
    widget = classes["PGPSAMSegmentWidget"]
    assert "VTKObservationMixin" in ast.unparse(ast.Tuple(widget.bases, ast.Load()))
    methods = {node.name for node in widget.body if isinstance(node, ast.FunctionDef)}
    assert methods >= {"setup", "enter", "exit", "cleanup"}
    mentioned = {name for _, name in names_in(widget)}
    assert {"StartCloseEvent", "EndCloseEvent"} <= mentioned


# ---------------------------------------------------------------------------- that the rules find what they forbid


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("label.setText('Done')", 1),
        ("label.setText(f'{n} organs')", 1),
        ("label.setText('Done ' + name)", 1),
        ("parent.title = 'Organs'", 1),
        ("slicer.util.errorDisplay('no volume')", 1),
        ("label.setText(_('Done'))", 0),
        ("label.setText(_('{n} organs').format(n=n))", 0),
        ("label.setText(message)", 0),
        ("label.setText('')", 0),
        ("label.setText('%')", 0),
        ("parent.title = _('Organs')", 0),
    ],
)
def test_bare_texts_are_found(code: str, count: int) -> None:
    assert len(list(bare_texts(ast.parse(code)))) == count


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("slicer.util.pip_install('torch')", 1),
        ("x = [urllib.request.urlopen(u) for u in us]", 1),
        ("subprocess.run(['nvidia-smi'])", 1),
        ("button.clicked.connect(lambda: pip_install('torch'))", 0),
        ("self.run = run", 0),
        ("logic.run()", 0),
    ],
)
def test_heavy_calls_are_found(code: str, count: int) -> None:
    assert len(list(calls(list(ast.parse(code).body), HEAVY))) == count


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("path.read_text()", 1),
        ("path.read_text(encoding='utf-8')", 0),
        ("open(path, 'w')", 1),
        ("path.open('rb')", 0),
        ("path.open('a', encoding='utf-8')", 0),
        ("subprocess.run(command, text=True)", 1),
        ("subprocess.run(command, text=True, encoding='utf-8')", 0),
        ("subprocess.run(command, capture_output=True)", 0),
    ],
)
def test_texts_without_an_encoding_are_found(code: str, count: int) -> None:
    assert len(list(text_without_encoding(ast.parse(code)))) == count


def test_imports_are_found_wherever_they_hide() -> None:
    code = "try:\n    import torch\nexcept ImportError:\n    from scipy import ndimage\ndef f():\n    import nibabel\n"
    tree = ast.parse(code)
    assert {name for _, name in imports(tree)} == {"torch", "scipy", "nibabel"}
    direct = [each for each in at_file_scope(tree.body) if isinstance(each, (ast.Import, ast.ImportFrom))]
    assert len(direct) == 2
    assert [name for _, name in imports(ast.parse("importlib.import_module('pgpsam.cli')"))] == ["pgpsam"]
