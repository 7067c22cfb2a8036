"""Compiling ahead of time: each fault is found, and the project's own kernels have none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kernels.tools import compile as compile_command
from kernels.tools.chip import CHIPS, KIB
from kernels.tools.compile import Job
from kernels.tools.compiled_kernel import CompiledKernel
from kernels.tools.document import Section, table
from kernels.tools.launches import Launch
from tests.helpers.plain_python import printed

SOURCE = """
import json, sys
from tests.helpers.kernels.faulty_kernels import CALLS, launch
from kernels.tools.chip import CHIPS
from kernels.tools.compiled_kernel import cached, compiled

found = {}
for name in CALLS:
    for chip in CHIPS:
        one = launch(name, chip.capability)
        try:
            kernel = cached(one, chip) or compiled(one, chip)
        except Exception as error:
            faults = [f"{error}: {error.__cause__}"]
        else:
            assert cached(one, chip) == kernel
            faults = kernel.faults(chip, uses_tensor_cores=one.name == "_product_kernel")
        found[f"{name}, {chip.name}"] = faults
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def faults():
    """Name of a kernel in `faulty_kernels` and chip → its faults."""
    return json.loads(printed("-W", "error", "-c", SOURCE))


@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", None),
        ("good product", None),
        ("any number of rows", None),
        ("many rows", None),
        ("spills", "bytes of registers per thread"),
        ("too much shared memory", "KiB of shared memory; a block has"),
        ("no tensor cores", "has no tensor-core instruction"),
        ("single row", "no attribute 'to'"),
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
    printed("-W", "error", "-m", "kernels.tools.compile", "--check")


def test_it_does_not_run_where_kernels_are_interpreted(capsys):
    assert compile_command.main([]) == 2
    assert "interpreter" in capsys.readouterr().err


def jobs(*cases, chips=CHIPS):
    launch = Launch(
        module="m", name="kernel", signature={}, constants={}, attributes={}, options={}
    )
    return [Job("an_op", case, launch, chip, False) for case in cases for chip in chips]


def test_a_chip_may_have_so_many_kernels_and_no_more():
    many = jobs(*map(str, range(150)))
    assert compile_command.too_many(many) == []
    assert compile_command.too_many(many + jobs("one more", chips=CHIPS[1:2])) == [
        "sm_90 has 151 kernels; the limit is 150"
    ]


def test_kernels_of_the_same_name_are_a_fault():
    same = jobs("decode", "prompt", "decode", chips=CHIPS[:1])
    assert compile_command.same_name(same) == [
        "an_op kernel (decode) on sm_80: two kernels have this name"
    ]


def test_nothing_is_compiled_for_a_page_that_was_written_from_the_same(tmp_path, monkeypatch):
    keys = {"a": "source"}
    monkeypatch.setattr(compile_command, "Section", lambda name: section)
    monkeypatch.setattr(
        compile_command, "cache_path", lambda launch, chip: Path(keys["a"] + chip.name)
    )
    (tmp_path / "page.md").write_text("<!-- compiled: by x -->\n<!-- end of compiled -->\n")
    section = Section("compiled", tmp_path / "page.md")
    results = dict.fromkeys(
        (job.name for job in jobs("a", "b")),
        CompiledKernel(registers=1, spilled_bytes=0, shared_bytes=0, num_warps=1),
    )
    assert not compile_command.is_current(jobs("a", "b"), section)
    assert compile_command._documented(jobs("a", "b"), results, only_check=False) == []
    assert compile_command.is_current(jobs("a", "b"), section)
    assert compile_command._documented(jobs("a", "b"), results, only_check=True) == []
    assert not compile_command.is_current(jobs("a", "c"), section), "another case"
    first, *others = jobs("a", "b")
    smaller = replace(first.chip, max_shared_bytes_per_block=1)
    for changed in (replace(first, chip=smaller), replace(first, uses_tensor_cores=True)):
        assert not compile_command.is_current([changed, *others], section)
    keys["a"] = "another source"
    assert not compile_command.is_current(jobs("a", "b"), section)
    # What it becomes is compared then.
    assert compile_command._documented(jobs("a", "b"), results, only_check=True) == []
    results[first.name] = replace(results[first.name], registers=2)
    assert compile_command._documented(jobs("a", "b"), results, only_check=True) != []


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
