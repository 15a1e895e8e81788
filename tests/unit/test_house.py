"""Rules of the house that a machine can hold: sizes, names, and what the repository may say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "workflows", "actors", "serve_app")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LONGER_FOR_A_REASON: dict[str, str] = {
    "workflows/errors.py": "one tree, drawn once and read in one place",
    "workflows/durable/migrations/versions/0001_first_tables.py:upgrade": "a list of columns, frozen once released",
}
"""`path` or `path:function` -> the reason."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_longer_than_400_lines_and_no_function_longer_than_60(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    too_long = [name_of(path)] if text.count("\n") > MAX_FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                too_long.append(f"{name_of(path)}:{node.name}")
    assert [name for name in too_long if name not in LONGER_FOR_A_REASON] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_first_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_are_the_ones_of_this_checkout_or_its_wheel(room: str) -> None:
    """`configs` and `actors` are common names: a stray package on the path must not answer for ours."""
    module = __import__(room)
    assert (Path(str(module.__file__)).parent / "__init__.py").read_text() == (ROOT / room / "__init__.py").read_text()


def test_only_one_module_loads_pipelines_and_one_language_models() -> None:
    callers = [name_of(path) for path in FILES
               if any(isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
                      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    # The training recipe of the embedded model builds and checks what the loader loads later.
    assert [name for name in callers if "/sketch/" not in name] == ["serve_app/models/chat_model.py",
                                                                      "serve_app/models/pipelines.py"]


def test_only_one_module_makes_deployments() -> None:
    makers = [name_of(path) for path in FILES if "serve.deployment(" in path.read_text(encoding="utf-8")]
    assert makers == ["serve_app/app.py"]


def test_only_one_module_reads_the_environment() -> None:
    readers = [name_of(path) for path in FILES
               if any(isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
                      for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))]
    # They set what ray and NCCL read, and hand it on to processes of theirs; they read nothing themselves.
    setters = {"serve_app/cluster.py", "serve_app/models/crew.py"}
    assert [name for name in readers if name not in setters] == ["configs/load.py"]
