"""The sizes at which Triton's interpreter runs a case of a real model. It would take seconds for a
real vocabulary or all heads of a layer, which are only more of the same tiles and programs: those
run on a GPU."""

import dataclasses
from typing import Any

from kernels.registry import Op

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "add_rms_norm": {"llama_chunk": {"rows": 5}},
    "gated_delta": {
        "mixed": {"num_k_heads": 1, "num_v_heads": 2},
        "qwen3_5_decode": {"num_k_heads": 2, "num_v_heads": 2},
        "qwen3_5_mixed": {"num_k_heads": 1, "num_v_heads": 2},
        "slow_decay": {"num_k_heads": 1, "num_v_heads": 1},
        "kimi": {"num_k_heads": 2, "num_v_heads": 2},
    },
    "geglu": {"shapes": {"num_tokens": 65}},
    "gelu_mul": {"gemma3_1b_batch": {"num_tokens": 5}},
    "group_norm_silu": {"sd15_first": {"size": 12}, "sd15_no_silu": {"size": 12}},
    "paged_attention": {
        "smollm2_batch": {"sequences": tuple((1, 190 - 3 * i) for i in range(5))},
        "llama_mixed": {"num_heads": 8, "num_kv_heads": 2},
        "gpt_oss_mixed": {"num_heads": 16, "num_kv_heads": 2},
    },
    "rms_norm": {"llama_chunk": {"rows": 5}},
    "rope_store_kv": {
        "smollm2_chunk": {"num_tokens": 9},
        "llama_chunk": {"num_tokens": 5},
        "qwen3_chunk": {"num_tokens": 5},
    },
    "route_experts": {
        "qwen3_30b_chunk": {"tokens": 33},
        "deepseek_v2": {"tokens": 22},
        "deepseek_v3": {"tokens": 17},
    },
    "sample_tokens": {
        "smollm2_batch": {"vocab_size": 2500},
        "llama3_edited": {"vocab_size": 3100},
        "qwen3_plain": {"vocab_size": 9000},
    },
    "score_tokens": {"smollm2": {"rows": 2}},
    "selective_scan": {
        "mixed": {"num_heads": 2},
        "slow_decay": {"num_heads": 1},
        "mamba1_mixed": {"num_heads": 300},
        "mamba2_decode": {"num_heads": 2},
        "mamba2_mixed": {"num_heads": 2},
        "codestral_groups": {"num_heads": 4, "num_groups": 2},
        "falcon_h1": {"num_heads": 2},
    },
    "short_conv": {"qwen3_5_decode": {"size": 300}, "qwen3_5_batch": {"size": 300}},
    "silu_mul": {"llama_chunk": {"num_tokens": 5}},
    "sum_experts": {"qwen3_30b_batch": {"tokens": 5}},
}
"""Op → case → what is smaller; still more than one tile, block of pairs or program in each
direction."""


def as_interpreted(op: Op[..., Any], case: Any) -> Any:
    """Return the case at the size for the interpreter."""
    return dataclasses.replace(case, **SIZES.get(op.name, {}).get(case.name, {}))
