"""What a wheel holds, and for which systems it is."""

import json
import subprocess
import sys
import tomllib

import pytest

from kernels import compilers
from tests.helpers.plain_python import ROOT
from tools import wheel

PACKAGES = ("server", "engine", "kernels", "loadtest", "evaluation")
FOR_A_CHECKOUT = "loadtest/peers"
"""Scripts that run peers, of which the scenarios speak by their place in a checkout."""
LISTED = """
import json
from pathlib import Path
from setuptools.dist import Distribution
all_of_it = Distribution()
all_of_it.parse_config_files()
build = all_of_it.get_command_obj("build_py")
build.ensure_finalized()
files = [
    str(Path(source) / name)
    for _, source, _, names in build.get_data_files_without_manifest()
    for name in names
]
print(json.dumps([all_of_it.packages, files]))
"""


def test_all_files_of_the_packages_are_in_it():
    command = [sys.executable, "-c", LISTED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    packages, files = json.loads(done.stdout)
    folders = {package.replace(".", "/") for package in packages}
    missing = []
    for path in (path for name in PACKAGES for path in (ROOT / name).rglob("*")):
        name, folder = (str(one.relative_to(ROOT)) for one in (path, path.parent))
        if "__pycache__" in name or path.is_dir() or folder == FOR_A_CHECKOUT:
            continue
        if not (folder in folders if path.suffix == ".py" else name in files):
            missing.append(name)
    assert missing == []


def test_it_is_made_with_what_the_extra_brings():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = " ".join(extras["optional-dependencies"]["ship"])
    for used in ("build", "cyclonedx-bom", "wheel"):
        assert used in names


@pytest.fixture
def compiled(tmp_path):
    """`compiled(source, *options)`: a library."""
    compiler = compilers.find()
    if compiler is None:
        pytest.skip("no C++ compiler")

    def build(source, *options):
        path = tmp_path / "library.so"
        command = [compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", path, *options]
        subprocess.run(command, input=source, text=True, check=True)
        return path

    return build


def test_the_tag_is_that_of_the_newest_symbol(compiled):
    old = compiled('extern "C" int getpid(); int f() { return getpid(); }')
    assert wheel.oldest_glibc(old) < 30
    new = compiled('extern "C" int gettid(); int f() { return gettid(); }')  # since glibc 2.30
    assert wheel.oldest_glibc(new) == 30


def test_a_library_that_not_every_system_has_is_refused(compiled):
    library = compiled("#include <omp.h>\nint f() { return omp_get_max_threads(); }", "-fopenmp")
    with pytest.raises(ValueError, match=r"library\.so needs libgomp\.so\.1"):
        wheel.oldest_glibc(library)
