import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loadtest.widened_llama import widened


def small_llama() -> LlamaForCausalLM:
    """A random Llama with six query heads and two of keys and values."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        rms_norm_eps=1e-2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_the_wide_model_has_the_logits_of_the_small_one() -> None:
    small = small_llama()
    wide = widened(small, hidden=128, intermediate=96, heads=20, kv_heads=4).eval()
    tokens = torch.randint(97, (2, 11))
    expected = small(tokens).logits
    error = (wide(tokens).logits - expected).abs().max() / expected.abs().max()
    assert error < 1e-4
    embeddings = wide.get_input_embeddings().weight
    assert embeddings.shape == (97, 128)
    assert wide.lm_head.weight is embeddings


@pytest.mark.parametrize("smaller", [{"hidden": 32}, {"heads": 8}, {"kv_heads": 1}])
def test_sizes_only_grow(smaller: dict[str, int]) -> None:
    sizes = {"hidden": 128, "intermediate": 96, "heads": 20, "kv_heads": 4} | smaller
    with pytest.raises(ValueError, match="only grow"):
        widened(small_llama(), **sizes)
