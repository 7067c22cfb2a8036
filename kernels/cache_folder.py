"""Where compiled operations, and what was measured on this machine, are kept between starts.

Whoever starts kernels may name a folder, before the first operation is built; a server names the
one of its `cache_dir`.
"""

import argparse
from pathlib import Path

from kernels import _triton

DEFAULT = Path("~/.cache/tandem/kernels")

_folder = DEFAULT


def cache_folder() -> Path:
    """The folder, which need not exist yet."""
    return _folder.expanduser()


def use_cache_folder(folder: Path) -> None:
    """Keep everything in `folder`; what Triton compiles, too, unless its own knob says where."""
    global _folder
    _folder = folder
    if _triton.AVAILABLE and _triton.cache_is_default():
        _triton.triton.knobs.cache.dir = str(folder / "triton")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """`--kernels-dir`, for programs that should find what a server compiled."""
    parser.add_argument(
        "--kernels-dir",
        type=Path,
        default=DEFAULT,
        help=f"where compiled operations are kept: `kernels` in a server's cache_dir ({DEFAULT})",
    )
