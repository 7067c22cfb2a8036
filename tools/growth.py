"""Shows how much the code has grown since another commit: lines, the central classes, and what each
capability costs.

python -m tools.growth [COMMIT]        # compares the working tree with COMMIT, or with main
"""

import ast
import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SOURCE = ("server", "engine", "kernels", "loadtest", "evaluation", "tools")
CENTRAL = {
    "Scheduler": "engine/llm/",
    "LLMEngine": "engine/",
    "ModelRunner": "engine/",
    "Supervisor": "engine/",
    "DiffusionEngine": "engine/",
    "EngineConfig": "engine/",
    "SamplingParams": "engine/",
    "Settings": "server/",
    "ImageParams": "engine/",
    "ProcessEngineClient": "engine/",
}
"""The classes that grow when a capability is not a piece of its own, and where each one is.
The engine's other classes of settings (`…Settings`) count as parts of `EngineConfig`."""
_METHODS = frozenset({"get", "post", "put", "patch", "delete"})


@dataclass(frozen=True)
class Tree:
    """The source of one commit, by path."""

    texts: dict[str, str]

    def lines(self, folder: str, *endings: str) -> int:
        """The lines of the files of a folder whose names end like that."""
        return sum(
            text.count("\n")
            for path, text in self.texts.items()
            if path.startswith(f"{folder}/") and path.endswith(endings)
        )

    def size(self, name: str) -> dict[str, int]:
        """The size of a central class. It is 0 where the class does not exist."""
        found = [
            one
            for path, one in self._classes
            if path.startswith(CENTRAL[name])
            and (one.name == name or (name == "EngineConfig" and _has_settings(one)))
        ]
        return {
            "lines": sum((one.end_lineno or 0) - one.lineno + 1 for one in found),
            "fields": sum(len(_fields(one)) for one in found),
            "methods": sum(_num_methods(one) for one in found),
        }

    def num_capabilities(self) -> int:
        """How many different names users can write: paths of the API, settings, and fields of
        request and response bodies."""
        bodies = {"WireModel"}
        while more := {one.name for _, one in self._classes if bodies & _bases(one)} - bodies:
            bodies |= more
        names = [
            _fields(one) for _, one in self._classes if one.name in bodies or _has_settings(one)
        ]
        calls = (node for tree in self._trees.values() for node in ast.walk(tree))
        return len(set[str]().union(*names)) + sum(_is_route(node) for node in calls)

    @cached_property
    def _trees(self) -> dict[str, ast.Module]:
        return {
            path: ast.parse(text)
            for path, text in self.texts.items()
            if path.startswith(("server/", "engine/")) and path.endswith(".py")
        }

    @cached_property
    def _classes(self) -> list[tuple[str, ast.ClassDef]]:
        return [
            (path, node)
            for path, tree in self._trees.items()
            for node in tree.body
            if isinstance(node, ast.ClassDef)
        ]


def committed(commit: str, *, repository: Path) -> Tree:
    """The source as a commit has it."""
    archive = _git(repository, "archive", "--format=tar", commit)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return Tree({one.name: _text(files, one) for one in files if _is_source(one.name)})


def present(repository: Path) -> Tree:
    """The source as it is in the working tree, new files included."""
    listed = _git(repository, "ls-files", "--cached", "--others", "--exclude-standard")
    paths = sorted(set(listed.decode().splitlines()))
    files = {path: repository / path for path in paths if _is_source(path)}
    return Tree({path: file.read_text() for path, file in files.items() if file.exists()})


def table(before: Tree, after: Tree, *, name: str) -> str:
    """The comparison, a row per folder and per class."""
    both = (before, after)
    rows = [f"{'lines':<28}{_columns(name)}"]
    source = [sum(tree.lines(folder, ".py") for folder in SOURCE) for tree in both]
    for folder in SOURCE:
        rows.append(_row(folder, [tree.lines(folder, ".py") for tree in both]))
    rows.append(_row("all source in Python", source))
    rows.append(_row("C++ of kernels", [tree.lines("kernels", ".cpp", ".h") for tree in both]))
    rows.append(_row("tests", [tree.lines("tests", ".py") for tree in both]))
    counts = [tree.num_capabilities() for tree in both]
    rows.append(_row("capabilities (names)", counts))
    rows.append(_row("lines per capability", _each(source, counts)))
    for what in ("lines", "fields", "methods"):
        rows += ["", f"{what} of central classes".ljust(28) + _columns(name)]
        rows += [_row(one, [tree.size(one)[what] for tree in both]) for one in CENTRAL]
    return "\n".join(rows) + "\n"


def _fields(one: ast.ClassDef) -> set[str]:
    """The names that a class declares, or gives to `self` in a method."""
    declared = {
        node.target.id
        for node in one.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    given = {
        node.attr
        for node in ast.walk(one)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return declared | given


def _num_methods(one: ast.ClassDef) -> int:
    return sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in one.body)


def _has_settings(one: ast.ClassDef) -> bool:
    return one.name == "EngineConfig" or one.name.endswith("Settings")


def _bases(one: ast.ClassDef) -> set[str]:
    return {base.id for base in one.bases if isinstance(base, ast.Name)}


def _is_route(node: ast.AST) -> bool:
    """Whether this is the call `router.get(…)` or the like."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _METHODS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.endswith("router")
    )


def _is_source(path: str) -> bool:
    return path.startswith((*SOURCE, "tests")) and path.endswith((".py", ".cpp", ".h"))


def _text(files: tarfile.TarFile, one: tarfile.TarInfo) -> str:
    file = files.extractfile(one)
    assert file is not None
    return file.read().decode()


def _git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def _columns(name: str) -> str:
    return f"{name[:10]:>10}{'now':>10}{'change':>10}"


def _row(label: str, counts: list[int]) -> str:
    before, after = counts
    return f"  {label:<26}{before:>10,}{after:>10,}{after - before:>+10,}"


def _each(lines: list[int], counts: list[int]) -> list[int]:
    return [round(some / max(1, count)) for some, count in zip(lines, counts, strict=True)]


if __name__ == "__main__":
    commit = sys.argv[1] if len(sys.argv) > 1 else "main"
    here = Path(__file__).parents[1]
    sys.stdout.write(table(committed(commit, repository=here), present(here), name=commit))
