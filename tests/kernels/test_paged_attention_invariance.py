"""On the CPU a token's attention has the same bits alone, among others, in any chunk, decoded."""

import ctypes
import itertools
import random
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from kernels import native, paged_attention
from kernels.paged_attention import PagedBatch, cases, cpu
from kernels.tools.check import check

CPU = torch.device("cpu")
SOURCES = native.KERNELS / "paged_attention"


@dataclass(frozen=True)
class Setup:
    """A model's heads and the kind of its cache."""

    dtype: torch.dtype = torch.bfloat16
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    kv_dtype: torch.dtype | None = None


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
}


class Sequences:
    """Queries and a filled cache; any part of them can be asked for."""

    def __init__(self, setup, lengths, run=cpu.paged_attention):
        self.setup, self.run, self.lengths = setup, run, lengths
        blocks = [-(-length // setup.block_size) for length in lengths]
        order = np.random.permutation(sum(blocks)).astype(np.int32)
        self.tables = np.split(order, np.cumsum(blocks)[:-1])
        heads = (setup.num_heads, setup.head_dim)
        # Far from uniform weights: maxima must change on the way.
        self.q = [torch.randn(n, *heads).mul(3).to(setup.dtype) for n in lengths]
        shape = (sum(blocks), 2, setup.num_kv_heads, setup.block_size, setup.head_dim)
        self.cache, self.scales = torch.randn(shape), None
        if setup.kv_dtype is None:
            self.cache = self.cache.to(setup.dtype)
        else:
            self.cache, self.scales = cases.quantised(self.cache, setup.kv_dtype)

    def attend(self, *parts):
        """Parts are (sequence, first query, last query + 1); their rows come back in order."""
        order = sorted(range(len(parts)), key=lambda i: _place(*parts[i]))
        ordered = [parts[i] for i in order]
        num_queries = [last - first for _, first, last in ordered]
        width = max(len(table) for table in self.tables)
        batch = PagedBatch.from_host(
            np.stack([np.resize(self.tables[s], width) for s, _, _ in ordered]),
            np.array([last for _, _, last in ordered], dtype=np.int32),
            np.concatenate(([0], np.cumsum(num_queries))).astype(np.int32),
            num_queries.count(1),
            CPU,
        )
        found = self.run(
            torch.cat([self.q[s][first:last] for s, first, last in ordered]),
            self.cache,
            batch,
            scale=self.setup.head_dim**-0.5,
            window=self.setup.window,
            soft_cap=self.setup.soft_cap,
            kv_scales=self.scales,
        ).split(num_queries)
        assert all(rows.isfinite().all() for rows in found)
        return [found[order.index(i)] for i in range(len(parts))]

    def random_part(self):
        """A decode or a chunk somewhere in one of the sequences."""
        s = random.randrange(len(self.lengths))
        first = random.randrange(self.lengths[s])
        return s, first, random.choice([first + 1, random.randint(first + 1, self.lengths[s])])


def _place(sequence, first, last):
    """Decodes first, the longest context first of all."""
    return last - first > 1, -last


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


def check_neighbours(sequences):
    for _ in range(4):
        part = sequences.random_part()
        others = [sequences.random_part() for _ in range(random.randint(1, 6))]
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
    """`build(replacements)` → makes `cpu.paged_attention` run a changed build of itself."""

    def built(**constants):
        text = (SOURCES / "task.h").read_text()
        for name, value in constants.items():
            line = next(line for line in text.splitlines() if f" {name} = " in line)
            text = text.replace(line, f"constexpr int64_t {name} = {value};")
        for path in [SOURCES / "cpu.cpp", *SOURCES.glob("*.h")]:
            shutil.copy(path, tmp_path)
        (tmp_path / "task.h").write_text(text)
        source, library = tmp_path / "cpu.cpp", tmp_path / "cpu.so"
        command = [
            native._compiler(),
            *native.flags(),
            f"-I{native.KERNELS / native.SHARED}",
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
def test_machines_without_avx512_give_right_results_and_the_same_bits(run_build_of):
    run_build_of(cpu, "x86-64-v3")
    for case in cases.CASES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            check(paged_attention, "cpu", case, dtype, CPU)
    for setup in SETUPS.values():
        lengths = random_lengths()
        sequences = Sequences(setup, lengths)
        check_neighbours(sequences)
        check_chunks(sequences, lengths[0])
