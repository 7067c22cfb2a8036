"""Which weights a measurement speaks for, and how it is kept."""

import json
import logging
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kernels import (
    GGUFType,
    building,
    cache_folder,
    compilers,
    isa,
    linear_packed,
    linear_panels,
    native,
)
from kernels.linear_panels.panels import unpack
from kernels.measured import self_benchmark
from kernels.measured.product_times import MARGIN, ROWS, ProductTimes, mean_ratio, prefers_plain
from kernels.measured.product_times_file import ProductTimesFile
from tests.helpers.kernels.rungs import HAS_RUNGS

Q4, Q8 = GGUFType.Q4_0, GGUFType.Q8_0


def times(*ratios, at=0.0):
    plain = [random.uniform(1e-4, 1e-2) for _ in ratios]
    packed = [one * ratio for one, ratio in zip(plain, ratios, strict=True)]
    return ProductTimes(packed_s=tuple(packed), plain_s=tuple(plain), measured_at=at)


def test_packed_weights_are_left_only_where_they_are_slower_by_more_than_the_margin():
    cases = {(1, 1, 1): False, (0.5, 1.2, 1.3): False, (0.9, 1.3, 1.3): True, (3, 1, 1): True}
    for ratios, wanted in cases.items():
        assert prefers_plain(times(*ratios).mean_ratio) is wanted, ratios
    assert not prefers_plain(times(*[MARGIN - 1e-3] * 3).mean_ratio)
    assert prefers_plain(times(*[MARGIN + 1e-3] * 3).mean_ratio)


def test_no_number_of_rows_counts_more_for_taking_longer():
    assert times(0.5, 1, 2).mean_ratio == pytest.approx(1)
    assert times(2, 2, 2).ratios == pytest.approx([2] * len(ROWS))


def test_types_count_by_their_weights():
    both = {Q4: times(4, 4, 4), Q8: times(1, 1, 1)}
    assert mean_ratio(both, {Q4: 5, Q8: 5}) == pytest.approx(2)
    assert mean_ratio(both, {Q4: 1, Q8: 3}) == pytest.approx(2**0.5)
    assert mean_ratio(both, {Q8: 7}) == pytest.approx(1)


@pytest.mark.parametrize("wrong", [(1.0, 2.0), (1.0, 2.0, 0.0), (1.0, 2.0, float("nan"))])
def test_times_that_are_none(wrong):
    with pytest.raises(ValueError, match="times"):
        ProductTimes(packed_s=wrong, plain_s=(1.0, 1.0, 1.0), measured_at=0.0)


def test_a_file_holds_what_was_added_to_it(tmp_path):
    file = ProductTimesFile(tmp_path / "times.json", "this")
    first, second = times(1, 2, 3, at=5.5), times(3, 2, 1)
    assert file.read() == {}
    file.add({"first": first})
    file.add({"second": second})
    assert file.read() == {"first": first, "second": second}
    assert [path.name for path in tmp_path.iterdir()] == ["times.json"]
    assert ProductTimesFile(file.path, "another").read() == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"processor": "this"}',
        b'{"processor": "this", "times": []}',
        b'{"processor": "this", "times": {"first": null}}',
        b'{"processor": "this", "times": {"first": {"packed_s": [1, 1, 1]}}}',
        b'{"processor": "this", "times": {"first": {"packed_s": [1, 1, 1], '
        b'"plain_s": [1, 1, "x"], "measured_at": 0}}}',
        b'{"processor": "this", "times": {"first": {"packed_s": [1, 1, 1], '
        b'"plain_s": [1, 1, -1], "measured_at": 0}}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_counts_as_empty_and_is_replaced(content, tmp_path):
    file = ProductTimesFile(tmp_path / "times.json", "this")
    file.path.write_bytes(content)
    assert file.read() == {}
    kept = times(1, 1, 1)
    file.add({"first": kept})
    assert file.read() == {"first": kept}


def test_a_folder_in_place_of_the_file_is_no_failure(tmp_path):
    file = ProductTimesFile(tmp_path / "times.json", "this")
    file.path.mkdir()
    file.add({"first": times(1, 1, 1)})
    assert file.read() == {}
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_folder_that_cannot_be_written_is_no_failure(caplog):
    file = ProductTimesFile(Path("/proc/times.json"), "this")
    with caplog.at_level(logging.INFO):
        file.add({"first": times(1, 1, 1)})
    assert "cannot store the measured times" in caplog.text
    assert file.read() == {}


WRITER = """
import pathlib, sys
from kernels.measured.product_times import ProductTimes
from kernels.measured.product_times_file import ProductTimesFile
file = ProductTimesFile(pathlib.Path(sys.argv[1]), "this")
times = ProductTimes(packed_s=(1.0,) * 3, plain_s=(2.0,) * 3, measured_at=0.0)
for _ in range(200):
    file.add({"other": times})
"""


def test_processes_that_write_at_once_leave_a_whole_file(tmp_path):
    file = ProductTimesFile(tmp_path / "times.json", "this")
    command = [sys.executable, "-c", WRITER, str(file.path)]
    other = subprocess.Popen(command, cwd=building.KERNELS.parent)
    while other.poll() is None:
        if file.path.exists():  # the other one has begun
            file.add({"own": times(1, 2, 3)})
            json.loads(file.path.read_bytes())
        time.sleep(0.001)
    assert other.returncode == 0
    assert file.read().keys() & {"own", "other"}
    assert [path.name for path in tmp_path.iterdir()] == ["times.json"]


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Measurements that take next to no time, of a library with a name; → what was measured."""
    if native.missing() is not None:
        pytest.skip("no C++ operations")
    measured = []

    def note(types, dtype):
        measured.extend(types)
        return [(one, times(1, 1, 1)) for one in types]

    monkeypatch.setattr(self_benchmark, "_measured", note)
    monkeypatch.setattr(native, "library_path", lambda: Path("/elsewhere/cpu-abc.so"))
    monkeypatch.setattr(cache_folder, "_folder", tmp_path)
    return measured


def test_nothing_is_measured_twice(quick, tmp_path):
    first = self_benchmark.product_times([Q4], torch.bfloat16)
    assert self_benchmark.product_times([Q4], torch.bfloat16) == first
    assert quick == [Q4]
    assert self_benchmark.product_times([Q8, Q4], torch.bfloat16)[Q4] == first[Q4]
    assert quick == [Q4, Q8]
    assert [path.name for path in tmp_path.iterdir()] == ["cpu-abc.times.json"]


def test_each_type_of_activations_is_measured(quick):
    for dtype in (torch.bfloat16, torch.float32):
        self_benchmark.product_times([Q4], dtype)
    assert quick == [Q4, Q4]


def test_another_library_or_processor_is_measured(quick, monkeypatch):
    self_benchmark.product_times([Q4], torch.bfloat16)
    monkeypatch.setattr(native, "library_path", lambda: Path("/elsewhere/cpu-def.so"))
    self_benchmark.product_times([Q4], torch.bfloat16)
    assert len(quick) == 2
    monkeypatch.setattr(self_benchmark.machine, "cpu_name", lambda: "another")
    self_benchmark.product_times([Q4], torch.bfloat16)
    assert len(quick) == 3


def test_the_library_of_another_rung_has_another_name(monkeypatch):
    if native.missing() is not None or not HAS_RUNGS:
        pytest.skip("no C++ operations, or no rungs")
    compiler = compilers.find()
    names = set()
    for rung in ("native", *isa.RUNGS):
        monkeypatch.setattr(isa, "_chosen", rung)
        names.add(building.library_file(compiler).name)
    assert len(names) == 1 + len(isa.RUNGS)


def test_there_is_nothing_to_measure_without_operations(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(RuntimeError, match="not available"):
        self_benchmark.product_times([Q4], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_products_are_of_whole_weights(dtype, monkeypatch):
    """What is timed is what a model runs: the same sizes, numbers that are finite and not zero."""
    if native.missing() is not None:
        pytest.skip("no C++ operations")
    monkeypatch.setattr(self_benchmark, "NUM_WEIGHTS", 2 * self_benchmark.SIZE**2)
    monkeypatch.setattr(self_benchmark, "_COPIES", 2)
    monkeypatch.setattr(self_benchmark, "MIN_ROUNDS", 1)
    monkeypatch.setattr(self_benchmark, "TYPE_S", 0.0)
    seen = []

    def noted(run):
        def product(x, weight):
            out = run(x, weight)
            seen.append((x, weight, out))
            return out

        return product

    monkeypatch.setattr(self_benchmark, "linear_panels", noted(linear_panels))
    monkeypatch.setattr(self_benchmark, "linear_packed", noted(linear_packed))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    ((_, found),) = self_benchmark._measured([GGUFType.Q4_K], dtype)
    assert (torch.get_num_threads(), torch.get_rng_state().tolist()) == (threads, state.tolist())
    assert len(found.ratios) == len(ROWS)
    assert {x.shape[0] for x, _, _ in seen} == set(ROWS)
    for x, weight, out in seen:
        assert out.shape == (x.shape[0], self_benchmark.SIZE)
        plain = weight.unpack() if hasattr(weight, "unpack") else unpack(weight).dequantised()
        wanted = x.float() @ plain.to(dtype).float().T
        torch.testing.assert_close(out.float(), wanted, rtol=2e-2, atol=0.6)
