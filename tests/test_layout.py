"""Test files share code through `tests.helpers` only."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
OF_THEIR_OWN = (TESTS / "helpers", TESTS / "clients")
"""Folders with other files. Those of clients run in the environments of the clients."""


def is_collected(module: str) -> bool:
    name = module.rpartition(".")[2]
    return name.startswith("test_") or name == "conftest"


def test_other_folders_hold_tests_and_fixtures_only() -> None:
    files = [path for path in TESTS.rglob("*.py") if path.name != "__init__.py"]
    outside = [path for path in files if not any(map(path.is_relative_to, OF_THEIR_OWN))]
    assert [path for path in outside if not is_collected(path.stem)] == []


def test_no_file_imports_tests_or_fixtures() -> None:
    found = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{one.name}" for one in node.names)]
            elif isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            else:
                continue
            found += [f"{path}: {name}" for name in names if is_collected(name)]
    assert found == []
