"""Makes a release in `dist/`: the source distribution, a wheel for each kind of processor with the
C++ operations compiled for each of its rungs, a list of what an installation brings, and checksums.

    python -m tools.wheel        # make wheel; needs the extra `ship`, a C++ compiler and binutils

The wheel for 64-bit ARM is made where Debian's g++-aarch64-linux-gnu is installed. The wheel for
this machine is tried out at the end (`tools/wheel_trial.py`).
"""

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from kernels import compilers, isa
from kernels.tools.prebuild import prebuild
from tools.wheel_trial import try_out

HOME = Path(__file__).parents[1]
DIST = HOME / "dist"
CROSS_COMPILER = "aarch64-linux-gnu-g++"
LIBRARIES = re.compile(r"(libc|libm|libstdc\+\+|libgcc_s|ld-linux-[\w-]+)\.so\.\d+")
"""What every Linux has that the wheel's tag names (PEP 600)."""
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
_GLIBC = re.compile(r"\bGLIBC_(\d+)\.(\d+)")


def main() -> int:
    compiler, cross = compilers.find(), shutil.which(CROSS_COMPILER)
    if compiler is None:
        sys.exit("no C++ compiler found: the wheel's operations cannot be compiled; install g++")
    shutil.rmtree(DIST, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", str(DIST), str(HOME))
    (pure,) = DIST.glob("*.whl")
    ours = wheel_of(pure, compiler, platform.machine())
    if cross is None:
        print(f"no wheel for 64-bit ARM: {CROSS_COMPILER} is not installed", flush=True)
    elif platform.machine() != "aarch64":
        wheel_of(pure, cross, "aarch64")
    pure.unlink()  # what has no compiled operations is installed from the source distribution
    try_out(ours, components=DIST / "components.cdx.json")
    sums = [f"{_sha256(path)}  {path.name}\n" for path in sorted(DIST.iterdir())]
    (DIST / "SHA256SUMS").write_text("".join(sums))
    return 0


def wheel_of(pure: Path, compiler: str, machine: str) -> Path:
    """Make a wheel with compiled operations from one without, and return its path."""
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, str(pure))
        (unpacked,) = Path(folder).iterdir()
        place = unpacked / isa.PREBUILT.relative_to(HOME)
        libraries = prebuild(compiler, machine, place)
        tag = f"manylinux_2_{max(map(oldest_glibc, libraries))}_{machine}"
        (metadata,) = unpacked.glob("*.dist-info/WHEEL")
        text = metadata.read_text().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
        metadata.write_text(text.replace("py3-none-any", f"py3-none-{tag}"))
        _run(sys.executable, "-m", "wheel", "pack", "--dest-dir", str(DIST), str(unpacked))
    (made,) = DIST.glob(f"*{tag}.whl")
    return made


def oldest_glibc(library: Path) -> int:
    """Return N of the oldest glibc 2.N that has all that a library needs.

    Raises:
        ValueError: it needs a library that not every Linux has.
    """
    said = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--version-info", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    foreign = [name for name in _NEEDED.findall(said) if not LIBRARIES.fullmatch(name)]
    if foreign:
        raise ValueError(f"{library.name} needs {', '.join(foreign)}, which not every Linux has")
    return max(int(minor) for major, minor in _GLIBC.findall(said) if major == "2")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
