"""Compiling ahead of time: each fault is found, and the project's own kernels have none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import compile as compile_command
from kernels._triton import Variant
from kernels.chip import CHIPS, KIB
from kernels.document import Section, table

ROOT = Path(__file__).parents[2]
SOURCE = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from faulty_kernels import variants
from kernels.chip import CHIPS
from kernels.compiled_kernel import cached, compiled

found = {{}}
for name, variant in variants().items():
    for chip in CHIPS:
        try:
            kernel = cached(variant, chip) or compiled(variant, chip)
        except ValueError as error:
            faults = [str(error)]
        else:
            assert cached(variant, chip) == kernel
            faults = kernel.faults(variant, chip)
        found[f"{{name}}, {{chip.name}}"] = faults
json.dump(found, sys.stdout)
"""


def plain_python(*arguments):
    """In a process of its own: in this one kernels are interpreted."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def faults():
    """Name of a kernel in `faulty_kernels` and chip → its faults."""
    done = plain_python("-c", SOURCE)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", None),
        ("good product", None),
        ("spills", "bytes of registers per thread"),
        ("too much shared memory", "KiB of shared memory, a block has"),
        ("no tensor cores", "has no tensor-core instruction"),
        ("incomplete", "['NO_SUCH', 'size']"),
    ],
)
def test_each_fault_is_found(faults, chip, name, expected):
    found = faults[f"{name}, {chip}"]
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]


@pytest.mark.slow
def test_all_kernels_compile_and_the_page_shows_what_they_need():
    done = plain_python("-m", "kernels.compile", "--check")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_it_does_not_run_where_kernels_are_interpreted(capsys):
    assert compile_command.main([]) == 2
    assert "interpreter" in capsys.readouterr().err


def test_a_chip_may_have_so_many_variants_and_no_more(monkeypatch):
    def kernel():
        pass

    variants = [Variant(kernel=kernel, name=f"{n}", signature={}) for n in range(150)]
    monkeypatch.setattr(compile_command, "_variants", lambda op: variants)
    assert compile_command.too_many(list(compile_command.all_jobs(["an_op"]))) == []
    variants.append(Variant(kernel=kernel, name="", signature={}, capabilities=(90,)))
    assert compile_command.too_many(list(compile_command.all_jobs(["an_op"]))) == [
        "sm_90 has 151 variants, at most 150 are allowed"
    ]


def test_variants_of_the_same_name_are_a_fault(monkeypatch):
    def kernel():
        pass

    variants = [
        Variant(kernel=kernel, name=name, signature={}, capabilities=(80,))
        for name in ("decode", "prompt", "decode")
    ]
    monkeypatch.setattr(compile_command, "_variants", lambda op: variants)
    assert compile_command.same_name(list(compile_command.all_jobs(["an_op"]))) == [
        "an_op kernel (decode) on sm_80: two variants have this name"
    ]


@pytest.mark.parametrize(
    ("capability", "registers", "shared", "warps", "expected"),
    [
        # From NVIDIA's occupancy calculator.
        (80, 32, 0, 4, 64),
        (80, 128, 0, 4, 16),
        (80, 168, 0, 8, 8),
        (80, 255, 0, 8, 8),
        (80, 255, 0, 16, 0),
        (80, 32, 0, 1, 32),
        (80, 64, 48 * KIB, 4, 12),
        (90, 64, 48 * KIB, 4, 16),
        (90, 64, 227 * KIB, 4, 4),
        (80, 64, 164 * KIB, 4, 0),
    ],
)
def test_warps_that_fit(capability, registers, shared, warps, expected):
    (chip,) = [chip for chip in CHIPS if chip.capability == capability]
    found = chip.resident_warps(registers=registers, shared_bytes=shared, num_warps=warps)
    assert found == expected


def test_only_its_own_section_of_the_page_is_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one: by x -->\nold\n<!-- end of one -->\n<!-- two: -->\nb\n")
    section = Section("one", page)
    assert section.read() == "old\n"
    section.write(table(["name", "size:"], [["x", "1"]]))
    assert page.read_text() == (
        "a\n<!-- one: by x -->\n| name | size |\n| --- | --: |\n| x | 1 |\n"
        "<!-- end of one -->\n<!-- two: -->\nb\n"
    )
