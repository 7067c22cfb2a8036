"""A row's result has the same bits whatever rows share its launch, in all our own kernels.

The engine's promise that a text does not depend on its neighbours rests on this. Implementations
by PyTorch promise nothing here, except those of `ALSO`.
"""

import random

import pytest
import torch

import kernels

pytestmark = pytest.mark.usefixtures("interpreted")
CPU = torch.device("cpu")
DEVICES = {"triton": torch.device("cuda" if torch.cuda.is_available() else "cpu")}
"""Triton's kernels are interpreted where there is no GPU."""
ROWS = {
    "rms_norm": ("x",),
    "add_rms_norm": ("x", "residual"),
    "silu_mul": ("gate_up", "up"),
    "gelu_mul": ("gate_up",),
    "geglu": ("up_gate",),
    "group_norm_silu": ("x",),
    "linear": ("x",),
    "score_tokens": ("logits", "token_ids"),
    "attention": ("query", "key", "value"),
}
"""Op → its arguments that have a row per row, if they are given."""
OWN = ("cpu", "triton")
ALSO = {"linear": "reference", "attention": "composed"}
"""Op → what else promises it."""


def own_kernels():
    """Each op's kernels, and what else promises the same."""
    for op in kernels.OPS:
        if op.name in ROWS:
            names = [name for name in op.implementations() if name in OWN]
            for name in [*names, *([ALSO[op.name]] if op.name in ALSO else [])]:
                yield pytest.param(op, name, id=f"{op.name}-{name}")


def run(op, function, inputs, index):
    """Everything the op writes for some rows of its inputs, which stay as they are."""
    rows = {name: inputs[name] for name in ROWS[op.name] if name in inputs}
    few = inputs | {name: one[list(index)] for name, one in rows.items()}
    return [output.clone() for output in op.outputs(function(**few), few)]


def differing_rows(op, function, inputs, size):
    """Whether some row, alone or among a few others, has other bits than among all."""
    everything = run(op, function, inputs, range(size))
    for count in (1, random.randrange(1, size)):
        index = random.sample(range(size), count)
        found = run(op, function, inputs, index)
        if not all(torch.equal(a, b[index]) for a, b in zip(found, everything, strict=True)):
            return True
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("op", "name"), list(own_kernels()))
def test_a_row_has_the_same_bits_alone_and_among_others(op, name, dtype):
    function = op.reference if name == "reference" else op.implementations()[name].function
    # The reference promises what Triton's kernel does.
    refusing = "triton" if name == "reference" else name
    refused = getattr(op.cases, "REFUSED", {}).get(refusing, ())
    for case in op.cases.CASES:
        if case.name in refused:
            continue
        inputs = op.cases.make_inputs(case, dtype, DEVICES.get(name, CPU))
        rows = inputs[ROWS[op.name][0]]
        size = len(rows)
        # Interpreted kernels take seconds for the larger ones.
        if size > 1 and rows.numel() < 70_000:
            assert not differing_rows(op, function, inputs, size), case.name


def test_a_kernel_that_sums_over_its_neighbours_is_found():
    op = kernels.rms_norm

    def careless(x, weight, eps, *, offset):
        return op.reference(x, weight, eps + 1e-3 * len(x), offset=offset)

    inputs = op.cases.make_inputs(op.cases.CASES[1], torch.float32, CPU)
    assert differing_rows(op, careless, inputs, len(inputs["x"]))
