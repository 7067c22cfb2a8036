"""The architecture page cites code as `path::symbol`; each must exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/ARCHITECTURE.md").read_text()


@pytest.mark.parametrize("path, symbol", sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)", PAGE))))
def test_cited_symbol_exists(path, symbol):
    tree = ast.parse((ROOT / path).read_text())
    defined = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert symbol in defined


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", PAGE))))
def test_cited_path_exists(path):
    assert (ROOT / path).exists()
