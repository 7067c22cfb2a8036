"""What the table of all ops does not see: exact codes of quantised caches, rows that stay alone."""

import random

import pytest
import torch

from kernels import rope_store_kv
from kernels.rope_store_kv import cases

pytestmark = pytest.mark.usefixtures("interpreted")
CPU = torch.device("cpu")
DEVICES = {
    "cpu": CPU,
    "composed": CPU,
    "triton": torch.device("cuda" if torch.cuda.is_available() else "cpu"),
}
"""Triton's kernels are interpreted where there is no GPU."""
CASES = {case.name: case for case in cases.CASES}
IMPLEMENTATIONS = [one for one in rope_store_kv.implementations() if one != "composed"]


def run(name, inputs):
    """The queries and the cache's bytes and scales, of new copies of `inputs`."""
    inputs = inputs | {
        key: inputs[key].clone() for key in ("heads", "kv_cache", "kv_scales") if key in inputs
    }
    function = rope_store_kv.reference
    if name != "reference":
        function = rope_store_kv.implementations()[name].function
    function(**inputs)
    queries = inputs["heads"][:, : inputs["num_heads"]]
    return queries, inputs["kv_cache"], inputs.get("kv_scales", torch.zeros(0))


def rows(inputs, index):
    blocks, slots = inputs["slot_mapping"]
    return inputs | {
        "heads": inputs["heads"][index],
        "positions": inputs["positions"][index],
        "slot_mapping": (blocks[index], slots[index]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["smollm2_chunk", "qwen3_chunk", "odd", "int8_odd", "float8"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_row_has_the_same_bits_alone_and_among_others(name, case, dtype):
    inputs = cases.make_inputs(CASES[case], dtype, DEVICES[name])
    queries, cache, scales = run(name, inputs)
    blocks, slots = inputs["slot_mapping"]
    size = len(queries)
    for some in [[random.randrange(size)], random.sample(range(size), size // 2)]:
        index = torch.tensor(some, device=DEVICES[name])
        found = run(name, rows(inputs, index))
        assert torch.equal(found[0], queries[index])
        at = (blocks[index], slice(None), slice(None), slots[index])
        assert torch.equal(found[1].view(torch.uint8)[at], cache.view(torch.uint8)[at])
        if len(scales):
            assert torch.equal(found[2][at], scales[at])


@pytest.mark.parametrize("case", ["int8", "int8_norm", "int8_odd", "float8", "float8_norm"])
@pytest.mark.parametrize("name", rope_store_kv.implementations())
def test_quantised_codes_are_those_of_the_reference(name, case):
    inputs = cases.make_inputs(CASES[case], torch.float32, DEVICES[name])
    _, cache, scales = run(name, inputs)
    _, expected, expected_scales = run("reference", inputs)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    steps = (codes(cache) - codes(expected)).abs()
    # fp32 may differ in the last bit, which moves what lies between two codes.
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 1e-3


def codes(cache):
    """Integers that count up with the numbers of a quantised cache."""
    bits = cache.contiguous().view(torch.int8).int()
    if cache.dtype is torch.int8:
        return bits
    return torch.where(bits < 0, -(bits & 0x7F), bits)


@pytest.mark.parametrize("name", rope_store_kv.implementations())
def test_every_float8_is_stored_as_itself(name):
    """Values of a head are the codes' own numbers; the largest makes the scale 1."""
    finite = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = finite[finite.isfinite()]
    device = DEVICES[name]
    heads = torch.zeros(2, 3, 256)
    heads[:, 2, : len(values)] = values
    # Between two numbers the even one is nearer; the first of these lies below all but 0.
    heads[1, 2, :4] = torch.tensor([2.0**-10, 3 * 2.0**-10, 17.0, 19.0])
    cache = torch.zeros(2, 2, 1, 4, 256).to(torch.float8_e4m3fn)
    inputs = {
        "heads": heads.to(device),
        "positions": torch.tensor([0, 1], device=device),
        "cos_sin": torch.zeros(2, 0, device=device),
        "kv_cache": cache.to(device),
        "slot_mapping": tuple(torch.tensor([[1, 0], [2, 3]], device=device)),
        "num_heads": 1,
        "kv_scales": torch.full((2, 2, 1, 4), torch.nan, device=device),
    }
    _, cache, scales = run(name, inputs)
    assert torch.equal(cache[1, 1, 0, 2, : len(values)].float().cpu(), values)
    assert cache[0, 1, 0, 3, :4].tolist() == [0.0, 2 * 2.0**-9, 16.0, 20.0]
    assert (scales[1, 0, 0, 2], scales[1, 1, 0, 2]) == (0.0, 1.0)
