"""Benchmarks: what is timed is checked first, stated in bytes and products, and reported whole."""

import json
import types
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import kernels
from kernels.paged_attention.cases import Case as PagedCase
from kernels.registry import op
from kernels.shared.work import Work, work_of
from kernels.tools import bench, ceilings, stopwatch
from kernels.tools.stopwatch import median_seconds
from kernels.tools.timing import Timing

CPU = torch.device("cpu")
MODELS = (
    "smollm2",
    "llama3_8b",
    "llama3.2_1b",
    "qwen3_0.6b",
    "qwen3_30b",
    "qwen3.5_0.8b",
    "qwen3.5_4b",
    "deepseek_v2_lite",
    "deepseek_v3",
    "lfm2_1.2b",
    "mamba_130m",
    "mamba2_130m",
    "falcon_mamba_7b",
    "codestral_7b",
    "gemma",
    "shapes",
    "sd15",
    "sdxl",
    "compact",
    "esrgan",
    "the same",
)
CEILINGS = ceilings.Ceilings(
    copy_one_thread=5.0, copy=10.0, read=12.0, gemm_fp32=100.0, gemm_bf16=200.0
)


@dataclass(frozen=True)
class Case:
    name: str
    rows: int


def make_op(function, *, rows=3):
    def make_inputs(case, dtype, device):
        return {"x": torch.randn(case.rows, 4).to(dtype)}

    cases = types.ModuleType("cases")
    cases.BENCHMARKS = {"cpu": (Case("a case", rows),)}
    cases.TOLERANCE = {torch.bfloat16: 1e-2}
    cases.make_inputs = make_inputs

    @op(cases)
    def double(x: Tensor) -> Tensor:
        """Twice x."""
        return 2 * x

    double.implementation("composed", supports=lambda x: True)(function)
    double.implementation("cpu", supports=lambda x: False)(lambda x: None)
    return double


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(ops, *arguments)` → (exit code, output, errors), in no time."""
    monkeypatch.setattr(ceilings, "measure", lambda device: CEILINGS)
    monkeypatch.setattr(stopwatch, "ROUND_S", 1e-5)
    monkeypatch.setattr(stopwatch, "TOTAL_S", 1e-4)

    def call(ops, *arguments):
        monkeypatch.setattr(kernels, "OPS", ops)
        code = bench.main(["--device", "cpu", *arguments])
        return code, *capsys.readouterr()

    return call


def test_a_right_op_is_timed_and_reported(run, tmp_path):
    path = tmp_path / "found.json"
    code, output, errors = run([make_op(lambda x: x + x)], "--json", str(path))
    assert (code, errors) == (0, "")
    assert "| double | a case | composed |" in output
    assert "| double | a case | reference |" in output
    assert "copy 5.0 GB/s with one thread and 10.0 with all" in output
    found = json.loads(path.read_text())
    assert found["ceilings"]["gemm_bf16"] == 200.0
    assert [timing["implementation"] for timing in found["timings"]] == ["composed", "reference"]
    assert all(timing["bytes"] == 2 * 3 * 4 * 2 for timing in found["timings"])
    assert all(timing["seconds"] > 0 for timing in found["timings"])


def test_a_wrong_op_is_not_timed(run, monkeypatch):
    monkeypatch.setattr(bench, "median_seconds", lambda *_: pytest.fail("timed"))
    code, output, errors = run([make_op(lambda x: x + 1)], "--write")
    assert code == 1
    assert "not timed: double composed a case" in errors
    assert "0 timings, 1 ops refused" in output


def test_only_the_named_ops_are_timed(run):
    code, output, _ = run([make_op(lambda x: x + x)], "another")
    assert code == 0
    assert "0 timings" in output


@pytest.mark.parametrize(("rows", "expected"), [(64, 1), (1 << 18, 9)])
def test_large_inputs_take_turns_with_copies(run, monkeypatch, rows, expected):
    monkeypatch.setattr(ceilings, "cache_bytes", lambda device: 16 << 20)
    used = set()

    def function(x):
        used.add(x.data_ptr())
        return x + x

    double = make_op(function, rows=rows)
    list(bench.timings_of(double, torch.bfloat16, CPU))
    assert len(used) == expected


def test_a_median_is_of_single_calls(monkeypatch):
    clock = iter(range(1000))
    clocks = types.SimpleNamespace(perf_counter=lambda: next(clock) / 100)
    monkeypatch.setattr(stopwatch, "time", clocks)
    calls = []
    seconds = median_seconds(lambda x: calls.append(x), [{"x": 1}, {"x": 2}], CPU)
    assert seconds == pytest.approx(0.01)
    assert calls[:4] == [1, 2, 1, 2]


def test_shares_are_of_the_ceilings():
    timing = Timing(
        op="an_op",
        case="a case",
        implementation="cpu",
        seconds=1e-3,
        bytes=5_000_000,
        flops=50_000_000,
    )
    cells = timing.cells(CEILINGS, torch.bfloat16)
    assert cells == ["an_op", "a case", "cpu", "1.00 ms", "5.0", "50%", "50.0", "25%"]
    assert timing.cells(CEILINGS, torch.float32)[-1] == "50%"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("one", kernels.OPS, ids=lambda one: one.name)
def test_each_op_has_shapes_of_real_models(one, device):
    cases = one.cases.BENCHMARKS[device]
    assert len({case.name for case in cases}) == len(cases)
    assert cases or (device == "cuda" and set(one.implementations()) <= {"cpu"})
    assert all(case.name.startswith(MODELS) for case in cases)


@pytest.mark.parametrize("one", kernels.OPS, ids=lambda one: one.name)
def test_each_op_states_its_work(one):
    inputs = one.cases.make_inputs(one.cases.BENCHMARKS["cpu"][0], torch.bfloat16, CPU)
    work = work_of(one, inputs, one.outputs(one.reference(**inputs), inputs))
    assert work.bytes > 0
    assert work.flops >= 0
    if one.name.startswith("linear"):
        assert work.flops > work.bytes / 4


@pytest.mark.parametrize(
    ("sequences", "window", "slots", "pairs"),
    [
        (((1, 5), (1, 3)), None, 8, 8),
        (((3, 5),), None, 5, 3 + 4 + 5),
        (((1, 5), (1, 3)), 4, 7, 7),
        (((3, 5),), 2, 4, 6),
        (((2, 2),), 4, 2, 3),
    ],
)
def test_work_of_paged_attention(sequences, window, slots, pairs):
    cases = kernels.paged_attention.cases
    case = PagedCase("a case", sequences, 4, 2, 8, window=window)
    inputs = cases.make_inputs(case, torch.bfloat16, CPU)
    q_bytes = sum(queries for queries, _ in sequences) * 4 * 8 * 2
    assert cases.work(inputs) == Work(2 * q_bytes + slots * 2 * 2 * 8 * 2, 4 * pairs * 4 * 8)
