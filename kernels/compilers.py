"""The C++ compilers of this machine. This file imports nothing else, so that it can be used without
torch."""

import functools
import shutil
import subprocess

NAMES = ("c++", "g++", "clang++")


def find() -> str | None:
    """Return the path of the first C++ compiler that is found."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@functools.cache
def version(compiler: str) -> str:
    """Return what a compiler says of itself; the first line names it."""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return done.stdout
