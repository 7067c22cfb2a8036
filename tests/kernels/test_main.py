"""`python -m kernels`, which `tandem kernels` runs."""

import pytest
import torch

import kernels
import kernels.__main__ as kernels_main
from kernels import GGUFType, _triton, compilers, machine, native
from kernels.__main__ import IN_RESERVE, main
from kernels.measured.product_times import ProductTimes


def rows(capsys):
    """Op → (what runs, the rest of its line)."""
    assert main([]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]
    lines = (line.split(maxsplit=2) for line in table)
    return {line[0]: (line[1], "".join(line[2:])) for line in lines}


def test_each_op_has_a_line_that_says_why(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_triton, "runs_on", lambda *tensors: False)
    found = rows(capsys)
    assert list(found) == [op.name for op in kernels.OPS]
    assert found["rms_norm"][0] == ("cpu" if native.missing() is None else "composed")
    assert f"composed: {IN_RESERVE}" in found["rms_norm"][1]
    for op in kernels.OPS:
        others = [name for name in op.implementations() if name != found[op.name][0]]
        assert all(f"{name}: " in found[op.name][1] for name in others)
        if "triton" in op.implementations():
            assert "triton: no NVIDIA GPU" in found[op.name][1]


def test_it_tells_by_what_auto_decides(capsys, monkeypatch):
    if native.missing() is not None:
        pytest.skip("no C++ operations")
    times = {
        GGUFType.Q4_0: ProductTimes(
            packed_s=(0.5, 1.0, 2.0), plain_s=(1.0, 1.0, 1.0), measured_at=0.0
        ),
        GGUFType.Q6_K: ProductTimes(
            packed_s=(1.0, 2.0, 4.0), plain_s=(1.0, 1.0, 1.0), measured_at=86_400.0
        ),
    }
    monkeypatch.setattr(kernels_main, "product_times", lambda types, dtype: times)
    monkeypatch.setattr(kernels, "OPS", [kernels.rms_norm])
    assert main([]) == 0
    heading, *lines = capsys.readouterr().out.split("\n\n")[2].splitlines()
    assert heading.split()[:3] == ["weights", "auto", "keeps"]
    assert [line.split()[:6] for line in lines] == [
        ["Q4_0", "packed", "0.50", "1.00", "2.00", "1.00"],
        ["Q6_K", "plain", "1.00", "2.00", "4.00", "2.00"],
    ]
    assert all("measured 1970-01-0" in line or "measured 1969-12" in line for line in lines)


def test_it_says_what_is_lost_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "OPS", [kernels.rms_norm])
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(compilers, "NAMES", ("no-such-compiler",))
    runs, others = rows(capsys)["rms_norm"]
    assert runs == "composed"
    assert "cpu: no C++ compiler" in others
    assert machine.facts()["C++"] == "no C++ compiler; slower PyTorch operations run instead"


def test_facts_of_this_machine(monkeypatch):
    facts = machine.facts()
    assert list(facts) == ["CPU", "C++", "GPU", "Triton", "torch"]
    assert f"{machine.num_cores()} cores" in facts["CPU"]
    assert facts["torch"] == torch.__version__
    assert machine.last_level_cache_bytes() >= 1 << 18
    monkeypatch.setattr(_triton, "AVAILABLE", False)
    assert machine.facts()["Triton"] == "not installed"
