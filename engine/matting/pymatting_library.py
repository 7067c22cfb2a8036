"""Gives access to pymatting's functions; each module is imported when it is first needed.

numba compiles them when their module is imported, which takes half a minute for the whole package,
and caches the result. So modules are imported one by one, bypassing the packages that would import
them all: closed-form matting takes about eight seconds the first time on a machine, and one second
afterwards. Compiled code is kept in the server's cache folder, as the installation may not be
writable.
"""

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from kernels.cache_folder import cache_folder

_PACKAGES = ("alpha", "foreground", "laplacian", "preconditioner", "solver", "util")
_PLACES = {
    "cf_laplacian": "laplacian.cf_laplacian",
    "knn_laplacian": "laplacian.knn_laplacian",
    "lbdm_laplacian": "laplacian.lbdm_laplacian",
    "ichol": "preconditioner.ichol",
    "jacobi": "preconditioner.jacobi",
    "estimate_foreground_ml": "foreground.estimate_foreground_ml",
}


@cache
def pymatting(name: str) -> Callable[..., Any]:
    """The pymatting function of that name, as documented at pymatting.github.io."""
    function: Callable[..., Any] = getattr(pymatting_module(_PLACES[name]), name)
    return function


def pymatting_module(name: str) -> ModuleType:
    """A module of pymatting, such as `laplacian.cf_laplacian`."""
    if "pymatting" not in sys.modules:
        _open_packages()
    return importlib.import_module(f"pymatting.{name}")


def _open_packages() -> None:
    """Make pymatting's modules importable without the packages' own imports."""
    import numba

    numba.config.CACHE_DIR = str(cache_folder() / "numba")
    found = importlib.util.find_spec("pymatting")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("pymatting is not installed")
    root = Path(found.origin).parent
    for name in ("", *_PACKAGES):
        package = ModuleType(f"pymatting.{name}".rstrip("."))
        package.__path__ = [str(root / name)]
        sys.modules[package.__name__] = package


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress pymatting's messages about a preconditioner's second try."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
