"""Gives access to pymatting's functions; the file of each is loaded when it is first needed.

numba compiles them when their file is loaded, which takes half a minute for the whole package, and
caches the result. So three files that import nothing else of pymatting are loaded alone, which
takes about eight seconds the first time on a machine, and one second afterwards. Compiled code is
kept in the server's cache folder, as the installation may not be writable.
"""

import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from kernels.cache_folder import cache_folder

_FOLDERS = {
    "cf_laplacian": "laplacian",
    "ichol": "preconditioner",
    "estimate_foreground_ml": "foreground",
}
"""The folder of each function; its file has the function's name."""


@cache
def pymatting(name: str) -> Callable[..., Any]:
    """The pymatting function of that name, as documented at pymatting.github.io."""
    import numba

    numba.config.CACHE_DIR = str(cache_folder() / "numba_files")
    # The package itself is found, but not imported.
    package = importlib.util.find_spec("pymatting")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("pymatting is not installed")
    file = Path(package.origin).parent / _FOLDERS[name] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{__name__}.{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where numba looks for what it finds in its cache
    spec.loader.exec_module(module)
    function: Callable[..., Any] = getattr(module, name)
    return function


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress pymatting's messages about a preconditioner's second try."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
