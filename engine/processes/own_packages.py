"""Finds Tandem's own packages and runs one of them as a program.

Their names are common words, so another distribution or a folder of the user may have the same
name; it must not be taken for them (docs/decisions/007-package-names.md).
"""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).parents[2]
"""The folder that holds all the packages."""
NAMES = ("server", "engine", "kernels", "loadtest", "evaluation")

_RUN = """import runpy, sys
if {home!r} not in sys.path:
    sys.path.insert(0, {home!r})
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)"""


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Like `python -m module arguments`, but always with our module, whatever the working folder
    contains."""
    code = _RUN.format(home=str(HOME), module=module)
    return (sys.executable, "-P", "-c", code, *arguments)


def module_alone(path: str) -> ModuleType:
    """A module of ours, such as `kernels/isa.py`, from its file alone: its package would import
    torch. It imports nothing of ours."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, HOME / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def foreign_distributions(home: Path = HOME) -> list[str]:
    """Other installed distributions with our packages' names, which write into the same folders."""
    found = []
    for name in NAMES:
        for distribution in importlib.metadata.distributions(name=name, path=[str(home)]):
            files = distribution.files or ()
            if any(file.parts[0] == name for file in files):
                found.append(name)
    return found
