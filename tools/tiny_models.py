"""Tiny random models of all families, with a tokenizer, in folders as transformers writes them.

Tests serve them, and so does the GPU exam (`tools.gpu_exam`). Nothing here needs more than torch,
transformers and tokenizers.
"""

import functools
import string
from pathlib import Path
from typing import Any

import torch

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TinyModel:
    """A family and what its configuration has beside the common sizes."""

    def __init__(self, family: str, **particular: Any) -> None:
        self.family = family
        self._particular = particular

    def save(
        self, folder: Path, *, seed: int = 0, dtype: str = "float32", **overrides: Any
    ) -> None:
        """Make a model with random weights and write it."""
        import transformers

        tokenizer = tiny_tokenizer()
        sizes: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
            # Large enough that the next token is clear.
            "initializer_range": 0.15,
        }
        model_class = getattr(transformers, f"{self.family}ForCausalLM")
        config = model_class.config_class(**(sizes | self._particular | overrides))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = model_class(config)
            randomise_vectors(model)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@torch.no_grad()
def randomise_vectors(model: Any, spread: float = 0.2) -> None:
    """Randomise norms and biases. transformers starts them at 1 and 0, which would hide that they
    are ignored."""
    learned = [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name.endswith(("bias", "layer_scalar")) and buffer.is_floating_point()
    ]
    for name, tensor in (*model.named_parameters(), *learned):
        if tensor.ndim == 1 or name.endswith("bias"):
            tensor.normal_(0.0 if name.endswith("bias") else 1.0, spread)


def tiny_tokenizer() -> Any:
    """Make a byte-level BPE over 500 tokens, so that any text round-trips."""
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=_tokens(),  # which it copies
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=_CHAT_TEMPLATE,
    )


@functools.cache
def _tokens() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew"
    raw.train_from_iterator([words, words.title(), string.printable] * 3, trainer)
    return raw


_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 32}
_DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
_SHARED = _EXPERTS | {"num_experts": 6, "shared_expert_intermediate_size": 96}
_HYBRID = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 24}
_CONV = {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]}
_PER_LAYER = {
    "num_hidden_layers": 6,
    "sliding_window": 24,
    "head_dim": 32,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 500,
}
TINY_MODELS = {
    "llama": TinyModel("Llama"),
    "qwen2": TinyModel("Qwen2"),
    "qwen3": TinyModel("Qwen3", head_dim=32),
    "phi3": TinyModel("Phi3"),
    "mixtral": TinyModel("Mixtral", num_local_experts=5),
    "gpt_oss": TinyModel("GptOss", num_local_experts=5, sliding_window=24, head_dim=32),
    # A mixture of experts whose second layer has none.
    "qwen3_moe": TinyModel(
        "Qwen3Moe", **_EXPERTS, num_experts=8, norm_topk_prob=True, mlp_only_layers=[1], head_dim=32
    ),
    # Three of four layers keep a state instead of keys and values.
    "qwen3_5": TinyModel("Qwen3_5", **_DELTA),
    "qwen3_5_moe": TinyModel("Qwen3_5Moe", **_DELTA, **_SHARED),
    "qwen3_next": TinyModel("Qwen3Next", **_DELTA, **_SHARED, mlp_only_layers=[1]),
    "qwen2_moe": TinyModel("Qwen2Moe", **_SHARED),
    "glm4_moe": TinyModel("Glm4Moe", **_EXPERTS, n_routed_experts=6, head_dim=32, use_qk_norm=True),
    # No layer has keys and values.
    "mamba": TinyModel("Mamba"),
    "falcon_mamba": TinyModel("FalconMamba"),
    "mamba2": TinyModel(
        "Mamba2", hidden_size=96, num_heads=3, head_dim=64, n_groups=3, state_size=24
    ),
    # Mamba 2 and attention: in one layer or another, or side by side.
    "granite_hybrid": TinyModel(
        "GraniteMoeHybrid",
        **_HYBRID,
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=5,
        shared_intermediate_size=80,
        embedding_multiplier=3.0,
        attention_multiplier=0.1,
        residual_multiplier=0.5,
        logits_scaling=0.5,
    ),
    "bamba": TinyModel("Bamba", **_HYBRID, attn_layer_indices=[1]),
    "falcon_h1": TinyModel(
        "FalconH1",
        **_HYBRID,
        mamba_d_ssm=128,
        key_multiplier=0.7,
        ssm_in_multiplier=1.2,
        ssm_out_multiplier=0.6,
        mlp_multipliers=[0.9, 0.8],
    ),
    "nemotron_h": TinyModel(
        "NemotronH",
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
        n_routed_experts=6,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=64,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        ssm_state_size=24,
        head_dim=16,
    ),
    "jamba": TinyModel(
        "Jamba", attn_layer_period=3, attn_layer_offset=1, num_experts=5, mamba_d_state=12
    ),
    # Three layers call one transformer layer.
    "zamba2": TinyModel(
        "Zamba2",
        num_hidden_layers=4,
        layers_block_type=["hybrid", "linear_attention", "hybrid", "hybrid"],
        num_key_value_heads=4,
        n_mamba_heads=8,
        mamba_ngroups=2,
        mamba_d_state=24,
        adapter_rank=8,
        use_mem_rope=True,
    ),
    # Three of four layers keep only the last inputs of a convolution.
    "lfm2": TinyModel("Lfm2", **_CONV),
    "lfm2_moe": TinyModel("Lfm2Moe", **_CONV, **_EXPERTS, num_experts=8, num_dense_layers=1),
    # All layers but the fourth have aligned windows; the second and fourth have experts.
    "llama4": TinyModel(
        "Llama4",
        num_hidden_layers=4,
        head_dim=32,
        intermediate_size_mlp=96,
        num_local_experts=5,
        interleave_moe_layer_step=2,
        attention_chunk_size=24,
        floor_scale=32,
    ),
    # Every second layer attends, to keys and values from a latent.
    "kimi_linear": TinyModel(
        "KimiLinear",
        **_EXPERTS,
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_num_heads=2,
        linear_head_dim=16,
        num_key_value_heads=4,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        num_local_experts=6,
    ),
    # The cache keeps a latent; experts come in groups.
    "deepseek": TinyModel(
        "DeepseekV3",
        **_EXPERTS,
        num_hidden_layers=3,
        num_key_value_heads=4,
        q_lora_rank=40,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=64,
        head_dim=64,
        v_head_dim=12,
        n_routed_experts=8,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
    ),
    # Layers with a window, the last two, have twice as many key heads.
    "mimo_v2_flash": TinyModel(
        "MiMoV2Flash",
        **_EXPERTS,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        num_key_value_heads=1,
        head_dim=32,
        v_head_dim=16,
        sliding_window=24,
        n_routed_experts=6,
    ),
    "hunyuan_moe": TinyModel(
        "HunYuanMoEV1",
        num_experts=6,
        moe_topk=2,
        head_dim=32,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0},
    ),
    # Models without a family here. GPT-NeoX's checkpoint has other names than its modules.
    "gpt_neox": TinyModel("GPTNeoX"),
    "olmo2": TinyModel("Olmo2"),
    "olmoe": TinyModel("Olmoe", num_experts_per_tok=3, num_experts=6),
    # Every second layer looks back only 24 tokens.
    "gemma3": TinyModel(
        "Gemma3",
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=24,
        head_dim=32,
        query_pre_attn_scalar=32,
    ),
    # The last layers read the keys of earlier ones.
    "gemma3n": TinyModel(
        "Gemma3n",
        **_PER_LAYER,
        layer_types=["sliding_attention", "full_attention"] * 3,
        num_kv_shared_layers=4,
        activation_sparsity_pattern=[0.9, 0.5] + [0.0] * 4,
    ),
    # Heads are larger where all is seen.
    "gemma4": TinyModel(
        "Gemma4",
        **_PER_LAYER,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=3,
        global_head_dim=128,
    ),
}
"""The models by a short name."""
