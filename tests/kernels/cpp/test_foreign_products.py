"""The products of 64-bit ARM: cross-compiled and emulated, where Debian's packages
g++-aarch64-linux-gnu and qemu-user are installed."""

import concurrent.futures
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kernels import building, linear_packed, native
from kernels.linear_packed import PackedWeight
from kernels.linear_packed import reference as packed_reference
from kernels.linear_panels import cases
from kernels.linear_panels import reference as panels_reference

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# Our own vectors become NEON's instructions, which every server has, and loops SVE's.
ARCHITECTURE = "armv8.2-a+fp16+sve"
SOURCES = [
    path
    for name in ("linear_packed", "linear_panels")
    for path in sorted((building.KERNELS / name).glob("*.cpp"))
]
QUICKLY_BUILT = "linear_panels"
"""A tenth of the time: arithmetic does not depend on the optimisation, and the other product shows
what becomes of loops."""
CASES = [case for case in cases.CASES if case.rows and not case.strided and case.inputs < 2048]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
        reason="needs a cross compiler and an emulator: g++-aarch64-linux-gnu, qemu-user",
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    flags = [f"-march={ARCHITECTURE}", *building.FLAGS]
    flags.append(f"-I{building.KERNELS / building.SHARED}")

    def compiled(source: Path) -> str:
        target = str(folder / f"{source.parent.name}-{source.stem}.o")
        own = building._OWN_FLAGS.findall(source.read_text())
        if source.parent.name == QUICKLY_BUILT:
            own += ["-O0", "-Wno-psabi"]
        command = [COMPILER, *flags, *own, "-c", str(source), "-o", target]
        subprocess.run(command, check=True, timeout=building.BUILD_TIMEOUT_S)
        return target

    sources = [*SOURCES, Path(__file__).with_name("foreign_products.cpp")]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    target = folder / "program"
    command = [COMPILER, "-fopenmp", "-static", *objects, "-o", str(target)]
    subprocess.run(command, check=True, timeout=600)
    return target


def execute(program, tmp_path, arguments, x, weight, bias, out):
    def octets(tensor):
        data = b"" if tensor is None else bytes(tensor.contiguous().view(torch.uint8).numpy())
        return len(data).to_bytes(8, "little") + data

    given, taken = tmp_path / "in", tmp_path / "out"
    parts = (torch.tensor(arguments, dtype=torch.int64), x, weight, bias, out)
    given.write_bytes(b"".join(map(octets, parts)))
    command = [EMULATOR, "-cpu", "max", str(program), str(given), str(taken)]
    subprocess.run(command, check=True, timeout=600)
    data = torch.frombuffer(bytearray(taken.read_bytes()), dtype=out.dtype)
    return data.view(out.shape)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 19])
def test_plain_weights(program, tmp_path, dtype, rows):
    x, weight, bias = torch.randn(rows, 96), torch.randn(37, 96) / 10, torch.randn(37)
    x, packed = x.to(dtype), PackedWeight.pack(weight.to(dtype))
    out = torch.zeros(rows, 37, dtype=dtype)
    arguments = (native.DTYPES[dtype], 96, rows, packed.padded_inputs, len(packed.data), 37, 0)
    found = execute(program, tmp_path, arguments, x, packed.data, bias, out)
    expected = packed_reference.linear_packed(x, packed, bias)
    tolerance = linear_packed.cases.TOLERANCE[dtype]
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_weights_of_few_bits(program, tmp_path, case, dtype):
    inputs = cases.make_inputs(case, dtype, torch.device("cpu"))
    x, panels, bias = inputs["x"], inputs["panels"], inputs["bias"]
    form = panels.format
    out_dtype = torch.float32 if case.fp32_out else dtype
    out = torch.zeros(case.rows, case.outputs, dtype=out_dtype)
    arguments = (
        native.DTYPES[dtype],
        x.stride(0),
        case.rows,
        panels.in_features // 32,
        form.bits,
        form.group,
        form.scale_type,
        form.has_min,
        form.offset,
        form.meaning,
        case.int8_activations,
        case.fp32_out,
        case.outputs,
    )
    found = execute(program, tmp_path, arguments, x, panels.data, bias, out)
    expected = panels_reference.linear_panels(
        x, panels, bias, int8_activations=case.int8_activations, fp32_out=case.fp32_out
    )
    tolerance = cases.TOLERANCE[dtype]
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)
