"""Inputs for `score_tokens`: vocabularies, ties, bad rows, none to all alternatives."""

from dataclasses import dataclass

import torch

from kernels.score_tokens.token_scores import TokenScores
from kernels.shared.tolerances import FLOATS

# The order of a sum of up to 151 936 exponentials, and the rounding of values up to 30.
TOLERANCE = dict.fromkeys(FLOATS, 1e-5)


@dataclass(frozen=True)
class Case:
    """`rows` of `vocab_size` logits."""

    name: str
    rows: int
    vocab_size: int
    num_top: int
    kind: str = "normal"
    strided: bool = False


CASES = (
    Case("smollm2", 9, 49152, 5),
    Case("llama3", 2, 128256, 20),
    Case("chosen_only", 3, 49152, 0),
    Case("odd", 33, 997, 3),
    Case("many", 3, 4001, 200),
    Case("all_tokens", 4, 37, 50),
    Case("one_token", 3, 1, 1),
    Case("ties", 7, 1500, 40, kind="few"),
    Case("all_equal", 2, 700, 20, kind="equal"),
    Case("mostly_impossible", 5, 1100, 60, kind="masked"),
    Case("large_values", 3, 600, 5, kind="large"),
    Case("bad_rows", 6, 650, 4, kind="bad"),
    Case("strided", 5, 512, 6, strided=True),
    Case("no_rows", 0, 64, 3),
    Case("fewer_tokens", 4, 17, 20),
    Case("fewer_possible", 5, 300, 20, kind="masked"),
    Case("first_possible_is_late", 2, 8300, 20, kind="late"),
    Case("ties_far_apart", 2, 12289, 20, kind="far"),
    Case("both_zeros", 3, 500, 32, kind="zeros"),
    Case("bad_rows_in_parts", 6, 4500, 4, kind="bad"),
)
REFUSED = {"triton": ("many", "all_tokens", "ties", "mostly_impossible")}
"""Cases with more than 32 alternatives."""
BENCHMARKS = {
    "cpu": (Case("smollm2 top 5 32", 32, 49152, 5),),
    "cuda": (Case("llama3_8b top 5 64", 64, 128256, 5),),
}
"""Vocabularies of real models by type of device; `kernels.tools.bench` times them."""
COMPILED = (
    *BENCHMARKS["cuda"],
    Case("llama3_8b chosen only 64", 64, 128256, 0),
    Case("qwen3_0.6b top 5 64", 64, 151936, 5),
)
"""Launches that `kernels.tools.compile` compiles ahead of time."""
COMPILED_DTYPES = (torch.bfloat16, torch.float32)
"""The dtypes that output layers give."""


def make_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """Keyword arguments of the op."""
    shape = (case.rows, case.vocab_size)
    logits = torch.randn(shape) * 4
    if case.kind == "few":
        logits = logits.sign() * (logits.abs() > 4)
    elif case.kind == "equal":
        logits = torch.randn(case.rows, 1).repeat(1, case.vocab_size)
    elif case.kind == "masked":
        logits = logits.masked_fill(torch.rand(shape) < 0.97, -torch.inf)
        logits[:, 5] = 0.0
    elif case.kind == "late":
        logits[:, :8200] = -torch.inf
    elif case.kind == "far":
        logits = logits.clamp(max=8.0)
        logits[:, [63, 64, 4095, 4096, 8191, 8192, 12287, 12288]] = 9.0
    elif case.kind == "zeros":
        logits = logits.sign() * 0.0
    elif case.kind == "large":
        logits = logits + 900.0
    elif case.kind == "bad":
        logits[1, 3], logits[2, 649], logits[4] = torch.nan, torch.inf, -torch.inf
    values = logits.to(dtype).to(device)
    if case.strided:
        wide = torch.zeros(case.rows, case.vocab_size + 8, dtype=dtype, device=device)
        wide[:, 8:] = values
        values = wide[:, 8:]
    token_ids = torch.randint(case.vocab_size, (case.rows,), device=device)
    return {"logits": values, "token_ids": token_ids, "num_top": case.num_top}


def outputs(result: TokenScores, inputs: dict[str, object]) -> tuple[object, ...]:
    """Everything the op wrote, without meaningless numbers."""
    fine = result.is_finite
    return (
        fine,
        result.logprobs.where(fine, 0),
        result.ranks.where(fine, 0),
        result.entropies.where(fine, 0),
        result.varentropies.where(fine, 0),
        result.top_ids.where(fine.unsqueeze(1), 0),
        result.top_logprobs.where(fine.unsqueeze(1), 0),
    )
