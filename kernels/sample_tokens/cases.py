"""Inputs for `sample_tokens`: all kinds of rows in one call, over real and odd vocabularies."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.sample_tokens.columns import COLUMNS
from kernels.sample_tokens.rows import (
    PARAMETERS,
    EditLists,
    LogitEdits,
    SampledTokens,
    SamplingRows,
    packed_row,
)
from kernels.shared.tolerances import FLOATS
from kernels.shared.work import Work, num_bytes

# The results are decisions, not numbers: every implementation makes the same ones.
TOLERANCE = dict.fromkeys(FLOATS, 0.0)

KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
    {"top_p": 0.9},
    {"min_p": 0.05, "temperature": 1.3},
    {"typical_p": 0.9},
    {"top_k": 1},
    {"top_k": 1000, "typical_p": 0.5},
    {"top_k": 1 << 30, "top_p": 1.0 - 1e-16},
    {"top_p": 1e-300},
    {"temperature": 1e30, "top_p": 0.5},
    {"temperature": 1.1e-5},
    {"temperature": 0.6, "top_k": 300, "top_p": 0.999, "min_p": 1e-6, "typical_p": 0.95},
    {"top_n_sigma": 1.5},
    {"top_n_sigma": 0.5, "top_k": 20, "temperature": 1.7},
    {"dynatemp_range": 0.5},
    {"dynatemp_range": 5.0, "dynatemp_exponent": 3.0, "top_n_sigma": 2.0, "top_p": 0.9},
    {"least_probability": 0.001},
    {"least_probability": 1.0, "temperature": 0.7},
    {"xtc_probability": 1.0, "xtc_threshold": 0.0005},
    {"xtc_probability": 0.7, "xtc_threshold": 0.02, "min_p": 0.03, "temperature": 1.4},
)
"""Parameters of rows; the rows of a case use them in turn."""


@dataclass(frozen=True)
class Case:
    """A case with one row for each of `kinds`, which index `KINDS`, and `num_random` rows with
    random parameters."""

    name: str
    vocab_size: int
    kinds: tuple[int, ...] = tuple(range(len(KINDS)))
    logits: str = "normal"
    edited: bool = False
    strided: bool = False
    num_random: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.kinds) + self.num_random


CASES = (
    Case("smollm2_batch", 49152, (0, 1, 2)),
    Case("llama3_edited", 128256, (1,), edited=True),
    Case("qwen3_plain", 151936, (1,)),
    Case("all_kinds", 997),
    Case("edited", 811, (0, 1, 2, 3, 1, 5, 8), edited=True),
    Case("one_token", 1, (0, 1, 2, 3, 5)),
    Case("two_tokens", 2, (1, 3, 5, 6)),
    Case("ties", 1500, (0, 2, 3, 5, 8, 12, 19, 20), logits="few"),
    Case("all_equal", 700, (0, 2, 3, 5, 19), logits="equal"),
    Case("mostly_impossible", 1100, (0, 1, 2, 3, 5, 19), logits="masked"),
    Case("extreme", 700, (1, 2, 3, 5, 10, 19), logits="extreme"),
    Case("flat_tail", 2000, (1, 3, 5, 19, 20), logits="flat"),
    Case("bad_rows", 650, (0, 0, 2, 3, 4, 5, 6), logits="bad"),
    Case("edited_bad_rows", 650, (0, 1, 2, 3, 4, 5), logits="bad", edited=True),
    Case("strided", 512, (0, 1, 2), strided=True),
    Case("no_rows", 64, ()),
    Case("random_rows", 301, (), num_random=12),
    Case("random_rows_of_ties", 150, (), logits="few", num_random=8),
)
_GREEDY, _PLAIN, _TOP_K, _NUCLEUS = 0, 1, 2, 3
BENCHMARKS = {
    "cpu": (
        Case("smollm2 greedy 32", 49152, (_GREEDY,) * 32),
        Case("smollm2 plain 32", 49152, (_PLAIN,) * 32),
        Case("smollm2 top_k and top_p 32", 49152, (_TOP_K,) * 32),
        Case("smollm2 top_p 32", 49152, (_NUCLEUS,) * 32),
    ),
    "cuda": (
        Case("llama3_8b greedy 64", 128256, (_GREEDY,) * 64),
        Case("llama3_8b plain 64", 128256, (_PLAIN,) * 64),
        Case("llama3_8b top_k and top_p 64", 128256, (_TOP_K,) * 64),
        Case("llama3_8b edited 64", 128256, (_NUCLEUS,) * 64, edited=True),
    ),
}
"""Vocabularies of real models by type of device; `kernels.tools.bench` times them."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    rng = np.random.default_rng(int(torch.randint(1 << 31, ())))
    logits = torch.stack(
        [_LOGITS[case.logits](rng, case.vocab_size, row) for row in range(case.num_rows)]
        or [torch.zeros(0)]
    ).view(case.num_rows, case.vocab_size)
    kinds = [KINDS[kind] for kind in case.kinds]
    kinds += [_random_kind(rng) for _ in range(case.num_random)]
    packed = [
        packed_row(**kind, seed=int(rng.integers(-(2**63), 2**63)), index=row % 3)
        for row, kind in enumerate(kinds)
    ]
    positions = rng.integers(0, 1 << 20, len(packed)).tolist()
    edits = _edits(rng, len(packed), case.vocab_size) if case.edited else None
    values = logits.to(dtype).to(device)
    if case.strided:
        wide = torch.zeros(len(packed), case.vocab_size + 24, dtype=dtype, device=device)
        wide[:, 8 : case.vocab_size + 8] = values
        values = wide[:, 8 : case.vocab_size + 8]
    rows = SamplingRows.from_host(packed, positions, edits, torch.device("cpu"))
    return {"logits": values, "rows": _on(device, rows)}


def work(inputs: dict[str, Any]) -> Work:
    """The work: each logit is read once; the rest is small."""
    return Work(num_bytes(inputs["logits"]))


def outputs(result: SampledTokens, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote."""
    return (result.token_ids, result.errors, result.num_kept, result.masses)


def _on(device: torch.device, rows: SamplingRows) -> SamplingRows:
    edits = rows.edits
    if edits is not None:
        names = [field.name for field in dataclasses.fields(edits)]
        edits = LogitEdits(**{name: getattr(edits, name).to(device) for name in names})
    return SamplingRows(table=rows.table.to(device), edits=edits)


def _random_kind(rng: np.random.Generator) -> dict[str, Any]:
    """Make random parameters from the columns, so that a new column is compared automatically."""
    kind = {"temperature": float(rng.uniform(0.2, 2.0))}
    for column in COLUMNS:
        if column.name in {*PARAMETERS, "least_probability"} and rng.random() < 0.5:
            share = float(rng.random() ** rng.choice([1, 4]))
            kind[column.name] = share if column.is_float else int(rng.integers(1, 400))
    return kind


def _normal(rng: np.random.Generator, size: int, row: int) -> Tensor:
    return torch.from_numpy(rng.normal(0, rng.choice([0.3, 2.5, 6.0]), size)).float()


def _few(rng: np.random.Generator, size: int, row: int) -> Tensor:
    values = _normal(rng, size, row).round()
    return torch.where(values == 0, torch.from_numpy(rng.choice([0.0, -0.0], size)), values).float()


def _equal(rng: np.random.Generator, size: int, row: int) -> Tensor:
    return torch.full((size,), float(rng.normal()))


def _masked(rng: np.random.Generator, size: int, row: int) -> Tensor:
    hidden = torch.from_numpy(rng.random(size) < 0.95)
    hidden[rng.integers(size)] = False
    return _normal(rng, size, row).masked_fill(hidden, -torch.inf)


def _extreme(rng: np.random.Generator, size: int, row: int) -> Tensor:
    largest = 6e4  # finite in fp16 too
    return torch.linspace(-1, 1, size)[torch.from_numpy(rng.permutation(size))] * largest


def _flat(rng: np.random.Generator, size: int, row: int) -> Tensor:
    values = torch.zeros(size)
    values[int(rng.integers(size))] = float(np.log(size))
    return values


def _bad(rng: np.random.Generator, size: int, row: int) -> Tensor:
    values = _normal(rng, size, row)
    spoilt = (None, torch.nan, None, torch.inf, None, -torch.inf)[row % 6]
    if spoilt == -torch.inf:
        return values.fill_(spoilt)
    if spoilt is not None:
        values[int(rng.integers(size))] = spoilt
    return values


_LOGITS: dict[str, Callable[[np.random.Generator, int, int], Tensor]] = {
    "normal": _normal,
    "few": _few,
    "equal": _equal,
    "masked": _masked,
    "extreme": _extreme,
    "flat": _flat,
    "bad": _bad,
}


def _edits(rng: np.random.Generator, num_rows: int, vocab_size: int) -> EditLists:
    """Make edits of every kind for some rows, in any order; one row has no token left."""
    edits = EditLists()
    for row in rng.permutation(num_rows).tolist():
        ids = rng.permutation(vocab_size)[: int(rng.integers(1, 300))].astype(np.int64)
        if rng.random() < 0.7:
            counts = rng.integers(0, 4, len(ids))
            extreme = rng.random() < 0.1
            edits.penalise(
                row,
                ids,
                counts,
                repetition=float(1e300 if extreme else rng.uniform(0.5, 2.0)),
                frequency=float(rng.uniform(-2, 2)),
                presence=float(rng.uniform(-2, 2)),
            )
        if rng.random() < 0.7:
            some = rng.permutation(ids)[: int(rng.integers(1, 20))]
            edits.add(row, some, rng.uniform(-100, 100, len(some)))
        if rng.random() < 0.7:
            edits.forbid(row, rng.integers(0, vocab_size, int(rng.integers(1, 4))))
        if rng.random() < 0.5:
            edits.allow(row, _mask(rng, vocab_size))
    if num_rows > 4:
        edits.forbid(4, np.arange(vocab_size))
    return edits


def _mask(rng: np.random.Generator, vocab_size: int) -> NDArray[np.int64]:
    """Make a mask of many or few tokens, in words that are full, empty or mixed, with bits beyond
    the vocabulary."""
    bits = rng.random((-(-vocab_size // 64), 64)) < rng.choice([0.05, 0.9])
    bits[rng.random(len(bits)) < 0.3] = True
    bits[rng.random(len(bits)) < 0.3] = False
    bits.flat[rng.integers(vocab_size)] = True
    return np.packbits(bits, axis=1, bitorder="little").view(np.int64).ravel()
