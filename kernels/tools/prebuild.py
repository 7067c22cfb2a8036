"""Compiles the C++ operations for every rung, so that an installation needs no compiler.

`python -m kernels.tools.prebuild` compiles them into the installation that it is run from, for all
processors of this machine's kind. `tools/wheel.py` does so for wheels.
"""

import platform
import sys
from pathlib import Path

from kernels import building, compilers, isa

_NAMES = {"x86_64": "x86-64", "aarch64": "armv8"}


def prebuild(compiler: str, machine: str, folder: Path) -> list[Path]:
    """Compile for each rung of a kind of machine, whatever this processor has, and return the
    libraries' paths."""
    folder.mkdir(exist_ok=True)
    made = []
    for rung in (name for name in isa.RUNGS if name.startswith(_NAMES[machine])):
        sys.stderr.write(f"compiling the operations for {rung}\n")
        with isa.compiling_for(rung):
            made.append(building.prebuild(compiler, folder))
    return made


def main() -> int:
    compiler, machine = compilers.find(), platform.machine()
    if compiler is None:
        sys.exit("no C++ compiler found, so no operations can be compiled; install g++")
    if machine not in _NAMES:
        sys.exit(f"there are no rungs of {machine}, only of {' and '.join(_NAMES)}")
    prebuild(compiler, machine, isa.PREBUILT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
