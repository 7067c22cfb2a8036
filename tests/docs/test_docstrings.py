"""Docstrings of modules, classes and functions begin with a sentence."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Cost): ?")
LIBRARIES = "bitsandbytes|diffusers|llguidance|ncnn|pydantic|pymatting|transformers|uvicorn"
# A capital letter, or what stands for code: `code`, [T], 4, llama.cpp, int8, cuBLAS, a library.
BEGINNING = re.compile(rf"[A-Z]|[^\w\s]|\d|\w+[\d._/-]\w|[a-z]+[A-Z\d]|({LIBRARIES})\b")


def summaries(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and first paragraph of each docstring in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, " ".join(text.partition("\n\n")[0].split())


def fault_of(summary: str) -> str | None:
    """Say what is wrong with a docstring's first paragraph, if anything is."""
    if not summary or SECTION.match(summary):
        return "has no summary"
    if not BEGINNING.match(summary):
        return "begins with a small letter"
    if summary.startswith("Of "):
        return "begins with a loose genitive"
    if not re.search(r"[.:!?…][)\"'`”]*$", summary):
        return "does not end with a full stop"
    return None


@pytest.mark.parametrize(
    "folder", ["engine", "evaluation", "kernels", "loadtest", "server", "tools"]
)
def test_docstrings_begin_with_a_sentence(folder):
    faults = [
        f"{path.relative_to(ROOT)}:{line} {fault}: {summary[:80]}"
        for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
        for line, summary in summaries(path)
        if (fault := fault_of(summary)) is not None
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("summary", "fault"),
    [
        ("Reads a file.", None),
        ("`load` reads a file.", None),
        ("llama.cpp's grammars, read into rules.", None),
        ("Three columns follow:", None),
        ("", "has no summary"),
        ("Raises: ValueError: the file is damaged.", "has no summary"),
        ("reads a file.", "begins with a small letter"),
        ("Of the last step.", "begins with a loose genitive"),
        ("Reads a file", "does not end with a full stop"),
    ],
)
def test_faults_are_found(summary, fault):
    assert fault_of(summary) == fault
