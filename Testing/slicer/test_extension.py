"""The extension's package: what a user gets, and what the Extensions Index asks for.

CMake is run for real, against a stand-in for Slicer's own macros (`standin_package`); what the real macros make
of it can only be seen in a real build.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "PGPSAMSegment"
MODELS = ROOT / "Resources" / "Models"
STANDIN = Path(__file__).resolve().parent / "standin_package"
NAME = "PGPSAMSegment"
REPOSITORY = f"Slicer{NAME}"
MODULES_FOLDER = "lib/Slicer-5.10/qt-scripted-modules"

# Fields of the Index's schema, version 1.0.1, and the values of those that have a choice.
FIELDS = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "build_subdirectory"}
FIELDS |= {"enabled", "tier"}
REQUIRED = {"$schema", "category", "scm_url"}
TIERS = (1, 3, 5)


def cmake_list(name: str) -> list[str]:
    """The values of a `set(NAME value...)` of the module's CMake file."""
    text = re.sub(r"#.*", "", (MODULE / "CMakeLists.txt").read_text(encoding="utf-8"))
    found = re.search(rf"set\(\s*{name}\s+([^)]*)\)", text)
    assert found, f"PGPSAMSegment/CMakeLists.txt sets no {name}"
    return found[1].replace("${MODULE_NAME}", NAME).split()


def extension_values() -> dict[str, str]:
    """The single-line `set(EXTENSION_... "...")` of the top CMake file, as the Index reads them."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return dict(re.findall(r'^set\(EXTENSION_(\w+) "([^"\n]+)"\)$', text, re.MULTILINE))


def files_below(folder: Path) -> set[str]:
    """The files that ship: all but those that Python or an editor leaves behind."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    hidden = ("__pycache__", ".")
    return {
        path.relative_to(folder).as_posix()
        for path in paths
        if not any(part.startswith(hidden) for part in path.relative_to(folder).parts)
    }


def shipped_module_files() -> set[str]:
    """What lies in the module's folder and belongs to the product, by path from there."""
    found = {path for path in files_below(MODULE) if not path.split("/")[0].endswith(".egg-info")}
    # py.typed speaks to type checkers only, and CMakeLists.txt to CMake.
    return found - {"CMakeLists.txt", "pgpsam/py.typed"}


# ------------------------------------------------------------------------------------------------ the file lists


def test_every_file_of_the_module_is_listed_and_every_listed_file_exists() -> None:
    scripts, resources = cmake_list("MODULE_PYTHON_SCRIPTS"), cmake_list("MODULE_PYTHON_RESOURCES")
    listed = [*scripts, *resources]
    there = shipped_module_files()
    assert sorted(there - set(listed)) == [], "these files are not in PGPSAMSegment/CMakeLists.txt"
    assert sorted(set(listed) - there) == [], "PGPSAMSegment/CMakeLists.txt lists files that don't exist"
    assert len(listed) == len(set(listed)), "a file is listed twice"
    assert [path for path in scripts if not path.endswith(".py")] == []
    assert [path for path in resources if path.endswith(".py")] == []


def test_every_file_of_every_shipped_model_is_listed() -> None:
    listed = cmake_list("MODEL_FILES")
    assert sorted(listed) == sorted(files_below(MODELS))
    assert {"abdomen-ct/model.json", "abdomen-ct/adapter.safetensors", "abdomen-ct/CARD.md"} <= set(listed)


# ------------------------------------------------------------------------------------------------- a real CMake


@pytest.fixture(scope="module")
def cmake() -> str:
    program = shutil.which("cmake")
    if not program or not any(map(shutil.which, ("make", "ninja"))) or not any(map(shutil.which, ("cc", "clang"))):
        pytest.skip("cmake with a compiler is not on this machine (Debian: apt-get install cmake g++ make)")
    return program


@pytest.fixture(scope="module")
def packed(cmake: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], Path]:
    """The extension configured and installed: (what the stand-in recorded, the folder of installed modules)."""
    build, installed = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("Slicer with spaces")
    run(*configure(cmake, ROOT, build))
    run(cmake, "--install", str(build), "--prefix", str(installed))
    record: dict[str, list[str]] = defaultdict(list)
    for line in (build / "record.txt").read_text(encoding="utf-8").splitlines():
        kind, _, value = line.partition("=")
        record[kind].append(value)
    return record, installed / MODULES_FOLDER


def configure(cmake: str, source: Path, build: Path) -> list[str]:
    # Nothing is compiled, so the compilers need not be tried.
    trust = ["-DCMAKE_C_COMPILER_WORKS=1", "-DCMAKE_CXX_COMPILER_WORKS=1"]
    return [cmake, "-S", str(source), "-B", str(build), f"-DSlicer_DIR={STANDIN}", *trust]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_cmake_configures_and_installs_exactly_what_is_listed(packed: tuple[dict[str, list[str]], Path]) -> None:
    record, installed = packed
    assert record["NAME"] == [NAME]
    assert record["EXTENSION_NAME"] == record["GENERATE_CONFIG"] == [NAME]
    assert record["WITH_GENERIC_TESTS"] == ["TRUE"]
    assert record["UNITTEST"] == [f"{NAME}.py"]
    assert set(record["SCRIPTS"]) | set(record["RESOURCES"]) == shipped_module_files()
    models = {f"Resources/Models/{path}" for path in files_below(MODELS)}
    assert files_below(installed) == shipped_module_files() | models
    for path in models:
        assert (installed / path).read_bytes() == (ROOT / path).read_bytes()


@pytest.mark.parametrize(
    "missing",
    [
        f"{NAME}/PGPSAMSegmentLib/scene.py",
        f"{NAME}/PGPSAMSegmentLib/requirements.txt",
        "Resources/Models/abdomen-ct/model.json",
    ],
)
def test_a_listed_file_that_does_not_exist_stops_cmake(cmake: str, tmp_path: Path, missing: str) -> None:
    source = tmp_path / "source"
    listed = [*cmake_list("MODULE_PYTHON_SCRIPTS"), *cmake_list("MODULE_PYTHON_RESOURCES")]
    models = [f"Resources/Models/{path}" for path in cmake_list("MODEL_FILES")]
    for path in ["LICENSE", "README.md", *(f"{NAME}/{path}" for path in listed), *models]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).touch()
    for path in ("CMakeLists.txt", f"{NAME}/CMakeLists.txt"):
        shutil.copy(ROOT / path, source / path)
    (source / missing).unlink()
    command = configure(cmake, source, tmp_path / "build")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert Path(missing).name in done.stderr
    assert "does not exist" in done.stderr


def test_the_installed_engine_finds_its_models(packed: tuple[dict[str, list[str]], Path], tmp_path: Path) -> None:
    """As in Slicer: enginestart.py puts the installed pgpsam on the path, and that finds what lies beside it."""
    _, installed = packed
    find = "lookup.find_model('abdomen-ct')"
    probe = f"import pgpsam; from pgpsam.models import lookup; print(pgpsam.__file__, {find}, sep=chr(10))"
    start = installed / "PGPSAMSegmentLib" / "enginestart.py"
    clean = {"PATH": "", "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    command = [sys.executable, "-s", str(start), "own", "--probe", probe]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    package, model = map(Path, done.stdout.splitlines())
    assert package == installed / "pgpsam" / "__init__.py"
    assert model == installed / "Resources" / "Models" / "abdomen-ct"


def test_the_installed_module_imports(packed: tuple[dict[str, list[str]], Path]) -> None:
    """Nothing that the panel's side needs was left behind in the checkout."""
    _, installed = packed
    program = str(Path(__file__).with_name("import_all.py"))
    names = run(sys.executable, program, str(installed), "enginestart", "installsteps").split()
    assert names[-1] == NAME


# -------------------------------------------------------------------------------------------- the Extensions Index


def test_the_index_entry_is_what_the_schema_asks_for() -> None:
    entry = json.loads((ROOT / f"{NAME}.json").read_text(encoding="utf-8"))
    assert set(entry) >= REQUIRED
    assert set(entry) <= FIELDS
    assert re.fullmatch(
        r"https://raw\.githubusercontent\.com/Slicer/Slicer/main/Schemas/"
        r"slicer-extension-catalog-entry-schema-v\d+\.\d+\.\d+\.json#?",
        entry["$schema"],
    )
    assert entry["category"] == "Segmentation"
    assert re.fullmatch(rf"https://github\.com/[\w.-]+/{REPOSITORY}", entry["scm_url"])
    assert entry["tier"] in TIERS
    assert entry["scm_revision"] == "main"
    assert entry["build_dependencies"] == []


def test_the_project_has_the_extensions_name_and_describes_itself() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"project\(\s*(\w+)", text)
    assert found
    assert found[1] == NAME
    values = extension_values()
    assert set(values) >= {"HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"}
    assert values["DEPENDS"] == "NA"
    assert 1 <= len(re.findall(r"[.!?](?:\s|$)", values["DESCRIPTION"])) <= 2, "the Index asks for one or two sentences"


def test_all_addresses_are_of_one_repository() -> None:
    entry = json.loads((ROOT / f"{NAME}.json").read_text(encoding="utf-8"))
    owner = entry["scm_url"].split("/")[-2]
    values = extension_values()
    assert values["HOMEPAGE"] == entry["scm_url"]
    raw = f"https://raw.githubusercontent.com/{owner}/{REPOSITORY}/{entry['scm_revision']}/"
    for address in [values["ICONURL"], *values["SCREENSHOTURLS"].split()]:
        assert address.startswith(raw)
        path = ROOT / address.removeprefix(raw)
        assert path.is_file(), f"{address} points to {path.relative_to(ROOT)}, which does not exist"
        assert png_size(path)[0] > 0


def test_the_icon_is_a_png_of_128_by_128() -> None:
    icon = MODULE / "Resources" / "Icons" / f"{NAME}.png"
    assert png_size(icon) == (128, 128)
    assert extension_values()["ICONURL"].endswith(f"/{icon.relative_to(ROOT).as_posix()}")


def png_size(path: Path) -> tuple[int, int]:
    """(width, height) as the file's own header says."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n", f"{path.name} is no PNG"
    assert head[12:16] == b"IHDR"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_the_licence_lies_at_the_root_and_goes_into_the_package(packed: tuple[dict[str, list[str]], Path]) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0" in text
    record, _ = packed
    assert record["EXTENSION_LICENSE_FILE"] == [str(ROOT / "LICENSE")]
    assert record["EXTENSION_README_FILE"] == [str(ROOT / "README.md")]


def test_the_readme_has_what_the_index_asks_of_a_homepage() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for what, pattern in {
        "the extension's name": rf"^# .*{NAME}",
        "a picture that exists": r"!\[[^]]*\]\((?!http)([^)]+)\)",
        "the licence": r"Apache-2\.0",
        "the publication": r"arxiv\.org/abs/2501\.06692",
        "a way to Slicer's own guide": r"docs/slicer\.md",
        "what it is not": r"[Nn]ot for clinical use",
    }.items():
        found = re.search(pattern, text, re.MULTILINE)
        assert found, f"README.md lacks {what}"
        if found.groups():
            assert (ROOT / found[1]).is_file()
