"""The folder that keeps compiled operations and measured times of this machine between starts.

A program may set the folder before the first operation is built; a server uses one in its
`cache_dir`.
"""

import argparse
from pathlib import Path

from kernels import _triton

DEFAULT = Path("~/.cache/tandem/kernels")

_folder = DEFAULT


def cache_folder() -> Path:
    """Return the folder, which need not exist yet."""
    return _folder.expanduser()


def use_cache_folder(folder: Path) -> None:
    """Keep everything in `folder`, including Triton's compiled kernels unless its own setting names
    a folder."""
    global _folder
    _folder = folder
    if _triton.AVAILABLE and _triton.cache_is_default():
        _triton.triton.knobs.cache.dir = str(folder / "triton")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--kernels-dir`, for programs that should find the operations that a server compiled."""
    parser.add_argument(
        "--kernels-dir",
        type=Path,
        default=DEFAULT,
        help=f"where compiled operations are kept: `kernels` in a server's cache_dir ({DEFAULT})",
    )
