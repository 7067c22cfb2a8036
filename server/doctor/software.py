"""Python, the packages that an installation brings, and the compiler of the C++ operations."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from engine.processes.own_packages import foreign_distributions, module_alone
from server.doctor.finding import Finding

_DISTRIBUTION = "tandem-server"
_OLDEST_PYTHON = (3, 11)
_INSTALLERS = {
    "apt-get": "apt-get install g++",
    "dnf": "dnf install gcc-c++",
    "apk": "apk add g++",
    "pacman": "pacman -S gcc",
    "zypper": "zypper install gcc-c++",
}
"""How a distribution of Linux installs a compiler, by its own program for that."""
_PROGRAM = '#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n'
_BUILD_S = 20.0


def python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _OLDEST_PYTHON:
        return Finding(
            "Python",
            "broken",
            f"{found}; Tandem needs 3.11 or newer",
            "make serve PYTHON=python3.12",
        )
    return Finding("Python", "ok", found)


def packages() -> Finding:
    """Whether everything that the installation names is there, and nothing has written into our
    own folders."""
    foreign = " ".join(foreign_distributions())
    if foreign:
        return Finding(
            "packages",
            "broken",
            f"the distribution {foreign} has written files into Tandem's own folders",
            f"pip uninstall {foreign} && pip install --force-reinstall --no-deps {_DISTRIBUTION}",
        )
    names = _required()
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        return Finding(
            "packages",
            "broken",
            f"{', '.join(missing)} not installed",
            f"pip install {' '.join(missing)}",
        )
    return Finding("packages", "ok", f"all {len(names)} that Tandem needs are installed")


def compiler(cpu_isa: str) -> Finding:
    """Whether a small program can be compiled for this processor, with threads."""
    compilers, isa = module_alone("kernels/compilers.py"), module_alone("kernels/isa.py")
    wanted = isa.best() if cpu_isa == "auto" else cpu_isa
    if any(isa.PREBUILT.glob(f"{wanted}.*.so")):
        return Finding(
            "compiler",
            "ok",
            f"not needed: the installation includes operations compiled for {wanted}",
        )
    path = compilers.find()
    install = _installation()
    if path is None:
        return Finding(
            "compiler", "limited", "no C++ compiler, so models run much more slowly", install
        )
    problem = _build_problem(path, isa, cpu_isa)
    if problem is not None:
        return Finding(
            "compiler",
            "limited",
            f"{path} cannot build the fast operations, so models run much more slowly: {problem}",
            install,
        )
    return Finding("compiler", "ok", compilers.version(path).splitlines()[0])


def _required() -> list[str]:
    """The distributions that an installation without extras needs."""
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from its folder
        return []
    plain = [text for text in requirements if "extra ==" not in text]
    return [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in plain if "win32" not in text]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _installation() -> str:
    found = next((how for name, how in _INSTALLERS.items() if shutil.which(name)), None)
    if found is None:
        return "install g++"
    return found if os.geteuid() == 0 else f"sudo {found}"


def _build_problem(path: str, isa: ModuleType, cpu_isa: str) -> str | None:
    """What the compiler says of a small program; None if it builds it."""
    if isa.missing(cpu_isa):
        return None  # the processor's finding says so
    isa.choose(cpu_isa)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(_PROGRAM)
        options = ("-fopenmp", "-std=c++17", "-fPIC", "-shared", "-o", f"{folder}/probe.so")
        command = [path, *isa.compiler_flags(), *options, str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return type(error).__name__
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no reason given"]
    return lines[0].rpartition("error: ")[2].strip()
