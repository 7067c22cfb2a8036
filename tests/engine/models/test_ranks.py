"""Tensor-parallel ranks, as threads: together they compute what one rank computes."""

from typing import Any

import pytest
import torch

from engine.errors import ModelLoadError
from engine.models.layers.parallel import TensorParallel
from engine.models.registry import create_model
from tests.helpers.models.rank_threads import on_ranks
from tests.helpers.models.tiny_pairs import (
    PagedTexts,
    create_pair,
    named_weights,
    random_text,
    their_logits,
)

BIASES = {"attention_bias": True, "mlp_bias": True, "intermediate_size": 96}
MODELS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "biases": (2, "Llama", BIASES),
    "fewer_kv_heads_than_ranks": (6, "Llama", BIASES),
    "one_kv_head": (2, "Qwen2", {"num_key_value_heads": 1, "vocab_size": 132}),
    "head_norms": (3, "Qwen3", {"num_key_value_heads": 3, "intermediate_size": 96}),
    "fused": (2, "Phi3", {"num_attention_heads": 4, "head_dim": None}),
    "tied": (2, "Gemma3", {"tie_word_embeddings": True, "initializer_range": 0.1}),
    "sinks": (2, "GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "shared_expert": (
        2,
        "Qwen2Moe",
        {
            "head_dim": 8,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_ranks_together_equal_the_whole_model(name: str) -> None:
    """A row has the same bits on each rank and in any batch."""
    size, family, overrides = MODELS[name]
    _, theirs, config = create_pair(family, num_hidden_layers=2, **overrides)
    text, other = random_text(12), random_text(9)

    def compute(parallel: TensorParallel) -> tuple[torch.Tensor, torch.Tensor]:
        model = create_model(config, dtype=torch.float32, parallel=parallel)
        model.load_weights(named_weights(theirs))
        texts = PagedTexts(model, config)
        for number, tokens in enumerate((text, text, other)):
            texts.add(number, tokens)
        alone = texts.run(0, [7, 5])
        together = texts.step({2: 9, 1: 12})[1]
        return alone, together

    first, *others = on_ranks(size, compute)
    for alone, together in (first, *others):
        assert torch.equal(alone, first[0]) and torch.equal(together, alone)
    expected = their_logits(theirs, text)
    torch.testing.assert_close(first[0], expected, atol=1e-5 * expected.abs().max(), rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "overrides", "reason"),
    [
        (4, {}, "6 attention heads cannot be divided between 4 ranks; .* that divides 6"),
        (3, {}, "2 key/value heads cannot be divided between 3 ranks; .* that divides 2"),
        (2, {"intermediate_size": 81}, "81 output features cannot be divided between 2 ranks"),
    ],
)
def test_sizes_that_cannot_be_divided_are_refused(
    size: int, overrides: dict[str, Any], reason: str
) -> None:
    _, theirs, config = create_pair("Llama", **overrides)
    with pytest.raises(ModelLoadError, match=reason):
        parallel = TensorParallel(0, size, lambda tensor: [tensor])
        model = create_model(config, dtype=torch.float32, parallel=parallel)
        model.load_weights(named_weights(theirs))
