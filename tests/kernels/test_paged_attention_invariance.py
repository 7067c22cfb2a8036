"""A token's attention has the same bits alone, in company, in any chunk and decoded, on a CPU."""

import ctypes
import itertools
import random
import shutil
import subprocess

import numpy as np
import pytest
import torch

from kernels import building, compilers, native, paged_attention
from kernels.paged_attention import cpu, reference
from tests.helpers.kernels.sequences import Sequences, Setup

SOURCES = building.KERNELS / "paged_attention"


SETUPS = {
    "bf16": Setup(),
    "fp32": Setup(torch.float32, 4, 2, 32, 32),
    "fp16": Setup(torch.float16, 8, 1, 40, 7),
    "bf16_odd_blocks": Setup(torch.bfloat16, 7, 1, 128, 7),
    "window": Setup(num_heads=4, num_kv_heads=4, block_size=32, window=77),
    "fp32_window": Setup(torch.float32, 2, 1, 16, window=530),
    "soft_cap": Setup(num_heads=4, num_kv_heads=2, head_dim=80, soft_cap=3.0),
    "gemma": Setup(torch.float16, 2, 1, 256, window=64, soft_cap=5.0),
    "int8": Setup(num_heads=4, num_kv_heads=2, kv_dtype=torch.int8),
    "fp8": Setup(torch.float32, 3, 1, 24, 32, kv_dtype=torch.float8_e4m3fn),
    "sinks": Setup(num_heads=8, num_kv_heads=1, window=128, has_sinks=True),
}


def random_lengths():
    return random.randint(513, 1300), random.randint(1, 600), random.randint(1, 70)


def random_cuts(length):
    """A prompt's chunks: some of one row, some of many."""
    cuts = {0, length}
    while random.random() < 0.9:
        first = random.randrange(length)
        cuts |= {first, min(length, first + random.choice([1, 2, 5, 16, 64, 97]))}
    ends = sorted(cuts)
    return list(itertools.pairwise(ends))


@pytest.fixture(autouse=True)
def seed():
    """Shown with a failing test."""
    value = random.randrange(1 << 31)
    print("seed", value)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@pytest.fixture(params=SETUPS)
def setup(request):
    return SETUPS[request.param]


def random_part(sequences):
    """A decode or a chunk somewhere in one of the sequences."""
    s = random.randrange(len(sequences.q))
    length = len(sequences.q[s])
    first = random.randrange(length)
    return s, first, random.choice([first + 1, random.randint(first + 1, length)])


def check_neighbours(sequences):
    for _ in range(4):
        part = random_part(sequences)
        others = [random_part(sequences) for _ in range(random.randint(1, 6))]
        assert torch.equal(sequences.attend(part, *others)[0], sequences.attend(part)[0])


def check_chunks(sequences, length):
    (whole,) = sequences.attend((0, 0, length))
    for _ in range(3):
        cuts = random_cuts(length)
        chunks = [sequences.attend((0, first, last))[0] for first, last in cuts]
        assert torch.equal(torch.cat(chunks), whole), cuts
    decoded = sequences.attend(*((0, position, position + 1) for position in range(length)))
    assert torch.equal(torch.cat(decoded), whole)


def test_a_part_does_not_depend_on_its_neighbours(setup):
    check_neighbours(Sequences(setup, random_lengths()))


def test_a_prompt_has_the_same_bits_in_any_chunks_and_decoded(setup):
    lengths = random_lengths()
    check_chunks(Sequences(setup, lengths), lengths[0])


def test_rows_that_see_each_other_have_the_same_bits_in_any_chunks(setup):
    length = random.randint(560, 900)
    marks = sorted(random.sample(range(length + 1), 4))
    stretches = [tuple(marks[:2]), tuple(marks[2:])]
    sequences = Sequences(setup, (length, length), both_ways=stretches)
    check_stretches(sequences, length, stretches)


def check_stretches(sequences, length, stretches):
    """Chunks end where no stretch does, or with it; other rows are decoded."""
    (whole,) = sequences.attend((0, 0, length))
    (exact,) = sequences.attend((0, 0, length), run=reference.paged_attention)
    torch.testing.assert_close(whole, exact, atol=2e-2, rtol=2**-6)
    (first, middle), (later, last) = stretches
    cuts = sorted({0, first, middle, later, last, length})
    parts = list(itertools.pairwise(cuts))
    alone = torch.cat([sequences.attend((0, *part))[0] for part in parts])
    assert torch.equal(alone, whole)
    others = [(1, *part) for part in parts]
    assert torch.equal(
        torch.cat(sequences.attend(*((0, *p) for p in parts), *others)[: len(parts)]), whole
    )
    decoded = [i for i in range(length) if not any(a <= i < b - 1 for a, b in stretches)]
    rows = torch.cat(sequences.attend(*((0, i, i + 1) for i in decoded)))
    assert torch.equal(rows, whole[decoded])


def test_the_number_of_threads_does_not_matter(setup):
    # Long decodes of few heads are cut into segments for the threads, short ones are not.
    sequences = Sequences(setup, (3000, 700, 90))
    parts = [(0, 2998, 2999), (0, 2999, 3000), (1, 0, 700), (2, 89, 90)]
    threads = torch.get_num_threads()
    for some in (parts[:1], parts[:2], parts):
        found = []
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            try:
                found.append(torch.cat(sequences.attend(*some)))
            finally:
                torch.set_num_threads(threads)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_comparison_sees_what_pytorch_does_differently(dtype):
    composed = paged_attention.implementations()["composed"].function
    with pytest.raises(AssertionError, match="equal"):
        check_chunks(Sequences(Setup(dtype), (600, 40), composed), 600)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """`build(replacements)` → makes `cpu.paged_attention` run a changed build of itself, for bf16
    alone, which is built sooner."""

    def built(**constants):
        text = (SOURCES / "task.h").read_text()
        for name, value in constants.items():
            line = next(line for line in text.splitlines() if f" {name} = " in line)
            text = text.replace(line, f"constexpr int64_t {name} = {value};")
        for path in [SOURCES / "cpu.cpp", *SOURCES.glob("*.h")]:
            shutil.copy(path, tmp_path)
        (tmp_path / "task.h").write_text(text)
        source, library = tmp_path / "cpu.cpp", tmp_path / "cpu.so"
        *most, last = source.read_text().splitlines()[:-1]
        assert "with_type" in last
        source.write_text("\n".join([*most, "attend<native::BFloat16>(a); }"]))
        command = [
            compilers.find(),
            *building.flags(),
            f"-I{building.KERNELS / building.SHARED}",
            "-shared",
        ]
        subprocess.run([*command, source, "-o", library], check=True)
        function = ctypes.CDLL(str(library)).tandem_paged_attention
        function.argtypes = [native._CTYPES[letter] for letter in cpu.SIGNATURE]
        function.restype = None
        monkeypatch.setattr(cpu, "_function", lambda: function)

    return built


@pytest.mark.slow
def test_the_comparison_sees_another_tile(build):
    sequences = Sequences(Setup(), (600,))
    (expected,) = sequences.attend((0, 0, 600))
    build(kTile=32)
    assert not torch.equal(sequences.attend((0, 0, 600))[0], expected)


@pytest.mark.slow
def test_machines_without_avx512_give_the_same_bits(run_build, setup):
    """That they are right is told by `test_isa.py`."""
    run_build("x86-64-v3")
    length = random.randint(513, 700)
    sequences = Sequences(setup, (length, random.randint(1, 600), random.randint(1, 70)))
    check_neighbours(sequences)
    check_chunks(sequences, length)
