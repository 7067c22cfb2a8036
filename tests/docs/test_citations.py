"""The pages cite code as `path` and `path::symbol`; `::symbol` alone is of the path before it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOLDERS = "server|engine|kernels|loadtest|evaluation|tools|tests|configs|docker|docs"
CITATION = re.compile(rf"`((?:{FOLDERS})/[\w./-]*)?(?:::(\w+))?`")


def citations(page):
    """(path, symbol or None) in the page's order."""
    path = None
    for match in CITATION.finditer(page.read_text()):
        if match[1]:
            path = match[1]
        if match[1] or match[2]:
            yield path, match[2]


def defined(path):
    """Names of all classes and functions of a module, and of its variables."""
    tree = ast.parse(path.read_text())
    names = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_cites_exists(page):
    for path, symbol in citations(page):
        assert (ROOT / path).exists(), path
        assert symbol is None or symbol in defined(ROOT / path), f"{path}::{symbol}"


def test_both_forms_of_a_citation_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("`engine/worker/loop.py::Loop`, `::serve`, `engine/`, `run()`, `a/b.py`, ``")
    assert list(citations(page)) == [
        ("engine/worker/loop.py", "Loop"),
        ("engine/worker/loop.py", "serve"),
        ("engine/", None),
    ]
