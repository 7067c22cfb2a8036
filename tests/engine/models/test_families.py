"""Each family against transformers: whole prompts, odd chunks, single tokens, mixed batches."""

import random
from dataclasses import replace
from typing import Any

import gguf
import pytest
import torch

from engine.models.registry import create_model
from engine.quantization.gguf import GgufMethod
from engine.quantization.int4_groups import takes_panels
from kernels import GGUFType
from tests.helpers.models.tiny_pairs import (
    PagedTexts,
    create_pair,
    error_of_bf16,
    named_weights,
    random_text,
    run_alone,
    their_logits,
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
MODELS = {
    "llama": ("Llama", {}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_gelu": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_one_kv_head": ("Llama", {"num_key_value_heads": 1}),
    "llama_no_grouping": ("Llama", {"num_key_value_heads": 6}),
    "llama_wide_heads": ("Llama", {"head_dim": 24, "num_attention_heads": 4}),
    "llama_llama3_rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama_linear_rope": ("Llama", {"rope_parameters": LINEAR}),
    "llama_dynamic_rope": ("Llama", {"rope_parameters": DYNAMIC}),
    "llama_yarn_rope": ("Llama", {"rope_parameters": YARN}),
    "mistral_window": ("Mistral", {"sliding_window": 7}),
    "ministral3": (
        "Ministral3",
        {"rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "factor": 16.0}},
    ),
    "mistral_no_window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2_yarn_rope": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2_mixed_windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {}),
    "qwen3_yarn_rope": ("Qwen3", {"rope_parameters": YARN}),
    "qwen3_tied_window": (
        "Qwen3",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 0,
        },
    ),
}
PHI3: dict[str, Any] = {"num_attention_heads": 3, "num_key_value_heads": 1}
"""A configuration that takes the size of a head from the other sizes."""
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.25, 1.5, 2.0, 3.0, 4.0],
    "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 12.0],
    "original_max_position_embeddings": 4,
    "partial_rotary_factor": 0.75,
}
"""Texts of up to four tokens would have other divisors in transformers."""
MODELS |= {
    "phi3": ("Phi3", PHI3),
    "phi3_tied_window": ("Phi3", PHI3 | {"tie_word_embeddings": True, "sliding_window": 7}),
    "phi3_partial_rope": (
        "Phi3",
        PHI3 | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "phi3_longrope": (
        "Phi3",
        PHI3 | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 4},
    ),
}
GEMMA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": None,
    "sliding_window": 7,
    "initializer_range": 0.1,
}
"""Norms behind each part would make logits large otherwise, and their roundings with them."""
MODELS |= {
    "gemma3": ("Gemma3", GEMMA | {"sliding_window_pattern": 4}),
    "gemma3_untied_scaled": (
        "Gemma3",
        GEMMA
        | {
            "sliding_window_pattern": 2,
            "tie_word_embeddings": False,
            "query_pre_attn_scalar": 30,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
        },
    ),
    "gemma3_soft_cap": ("Gemma3", GEMMA | {"final_logit_softcapping": 3.0}),
}
MODELS |= {
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral_window": (
        "Mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 7},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 24},
    ),
    "qwen3_moe_mixed": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [0],
            "attention_bias": True,
        },
    ),
}
QWEN2_MOE: dict[str, Any] = {
    "head_dim": 8,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
MODELS |= {
    "qwen2_moe": ("Qwen2Moe", QWEN2_MOE),
    "qwen2_moe_mixed": (
        "Qwen2Moe",
        QWEN2_MOE
        | {
            "norm_topk_prob": True,
            "qkv_bias": False,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 7,
        },
    ),
}
GLM4_MOE: dict[str, Any] = {
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
}
MODELS |= {
    "glm4_moe": ("Glm4Moe", GLM4_MOE),
    "glm4_moe_mixed": (
        "Glm4Moe",
        GLM4_MOE
        | {
            "num_hidden_layers": 3,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "first_k_dense_replace": 2,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": False,
            "use_qk_norm": True,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25},
        },
    ),
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_hidden_layers": 4,
    # Roundings of transformers' chunks grow with the states.
    "initializer_range": 0.05,
}
MODELS |= {
    "qwen3_5": ("Qwen3_5", DELTA),
    "qwen3_5_mixed": (
        "Qwen3_5",
        DELTA
        | {
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "num_hidden_layers": 3,
            "linear_num_value_heads": 2,
            "linear_conv_kernel_dim": 3,
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
    ),
}
MAMBA = {"state_size": 5, "initializer_range": 0.1, "layer_norm_epsilon": 1e-4}
MAMBA2 = MAMBA | {"num_heads": 6, "n_groups": 2}
MODELS |= {
    "mamba": ("Mamba", MAMBA | {"tie_word_embeddings": False}),
    "mamba_tied": ("Mamba", MAMBA | {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}),
    "falcon_mamba": ("FalconMamba", MAMBA | {"time_step_rank": 7, "mixer_rms_eps": 1e-3}),
    "mamba2": ("Mamba2", MAMBA2 | {"chunk_size": 7}),
    "mamba2_tied": (
        "Mamba2",
        MAMBA2
        | {
            "n_groups": 1,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": True,
            "conv_kernel": 2,
            "time_step_limit": (0.5, 0.9),
        },
    ),
}
DELTA_EXPERTS = DELTA | {
    "num_experts": 9,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
MODELS |= {
    "qwen3_5_moe": ("Qwen3_5Moe", DELTA_EXPERTS),
    "qwen3_next": ("Qwen3Next", DELTA_EXPERTS),
    "qwen3_next_mixed": (
        "Qwen3Next",
        DELTA_EXPERTS
        | {
            "mlp_only_layers": [0],
            "decoder_sparse_step": 2,
            "norm_topk_prob": False,
            "linear_num_value_heads": 6,
            "attention_bias": True,
        },
    ),
}
GEMMA4 = GEMMA | {
    "global_head_dim": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
NO_INPUTS = {"hidden_size_per_layer_input": 0}
PER_LAYER = {"hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 131}
MODELS |= {
    "gemma4": ("Gemma4", GEMMA4 | NO_INPUTS | {"final_logit_softcapping": 3.0}),
    "gemma4_values_are_keys": (
        "Gemma4Unified",
        GEMMA4
        | {
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
    "gemma4_shared_keys": (
        "Gemma4",
        GEMMA4
        | PER_LAYER
        | {
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma4_experts": (
        "Gemma4",
        GEMMA4
        | NO_INPUTS
        | {
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 3,
            "moe_intermediate_size": 24,
        },
    ),
}
GEMMA3N = (
    GEMMA
    | PER_LAYER
    | {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 3,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.8, 0.0, 0.0],
    }
)
MODELS |= {
    "gemma3n": ("Gemma3n", GEMMA3N),
    "gemma3n_streams": (
        "Gemma3n",
        GEMMA3N
        | {
            "altup_num_inputs": 3,
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": 100,
            "intermediate_size": [80, 96, 64, 80, 32, 80],
        },
    ),
}
LFM2: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
}
MODELS |= {
    "lfm2": ("Lfm2", LFM2),
    "lfm2_untied": (
        "Lfm2",
        LFM2
        | {
            "layer_types": None,
            "full_attn_idxs": [0, 3],
            "conv_L_cache": 4,
            "conv_bias": True,
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
            "rope_parameters": YARN,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        LFM2 | {"num_experts": 9, "num_experts_per_tok": 4, "moe_intermediate_size": 24},
    ),
    "lfm2_moe_no_bias": (
        "Lfm2Moe",
        LFM2
        | {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "num_dense_layers": 0,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
        },
    ),
}
LLAMA4: dict[str, Any] = {
    "num_hidden_layers": 4,
    "intermediate_size_mlp": 96,
    "num_local_experts": 5,
    "attention_chunk_size": 11,
    "floor_scale": 16,
}
MODELS |= {
    "llama4": ("Llama4", LLAMA4 | {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}}),
    "llama4_mixed": (
        "Llama4",
        LLAMA4
        | {
            "no_rope_layers": [0, 1, 1, 0],
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "llama4_whole": ("Llama4", LLAMA4 | {"attention_chunk_size": None, "moe_layers": [1]}),
}
ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 1000.0}
MODELS |= {
    "hunyuan": ("HunYuanDenseV1", {"rope_parameters": ALPHA, "tie_word_embeddings": True}),
    "hunyuan_bias": ("HunYuanDenseV1", {"attention_bias": True}),
    "hunyuan_moe": (
        "HunYuanMoEV1",
        {"num_experts": 6, "moe_topk": [3, 3], "rope_parameters": ALPHA},
    ),
}
MODELS["kimi_linear"] = (
    "KimiLinear",
    {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_heads": 3,
        "linear_head_dim": 8,
        "num_key_value_heads": 6,
        "kv_lora_rank": 20,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "n_group": 3,
        "topk_group": 2,
        "moe_intermediate_size": 24,
        "initializer_range": 0.1,
    },
)
LATENT: dict[str, Any] = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 6,
    "q_lora_rank": 28,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "head_dim": 8,
    "v_head_dim": 10,
    "initializer_range": 0.1,
}
LATENT_MOE = LATENT | {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT_YARN = YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}
MODELS |= {
    "deepseek_v2": (
        "DeepseekV2",
        LATENT_MOE
        | {
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 3.0,
            "rope_parameters": LATENT_YARN,
        },
    ),
    "deepseek_v2_lite": (
        "DeepseekV2",
        LATENT_MOE | {"q_lora_rank": None, "first_k_dense_replace": 0, "n_shared_experts": 1},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        LATENT_MOE | {"n_group": 4, "topk_group": 2, "rope_parameters": LATENT_YARN},
    ),
    "deepseek_v3_halves": (
        "DeepseekV3",
        LATENT_MOE | {"rope_interleave": False, "norm_topk_prob": False, "q_lora_rank": None},
    ),
    "glm4_moe_lite": ("Glm4MoeLite", LATENT_MOE | {"v_head_dim": 20}),
    "mistral4": (
        "Mistral4",
        LATENT_MOE
        | {
            "head_dim": 20,
            "rope_parameters": LATENT_YARN
            | {
                "llama_4_scaling_beta": 0.3,
                "original_max_position_embeddings": 16,
                "partial_rotary_factor": 0.4,
            },
        },
    ),
    "youtu": ("Youtu", LATENT),
    "minicpm3": (
        "MiniCPM3",
        LATENT | {"scale_emb": 3, "scale_depth": 0.9, "dim_model_base": 20},
    ),
}
MODELS["mimo_v2_flash"] = (
    "MiMoV2Flash",
    {
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "num_attention_heads": 8,
        "v_head_dim": 12,
        "sliding_window": 7,
        "n_routed_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
    },
)
GPT_OSS: dict[str, Any] = {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 7}
GPT_OSS_YARN = YARN | {"factor": 32.0, "rope_theta": 150000.0, "truncate": False}
MODELS |= {
    "gpt_oss": ("GptOss", GPT_OSS | {"rope_parameters": GPT_OSS_YARN, "swiglu_limit": 1.0}),
    "gpt_oss_layers": (
        "GptOss",
        GPT_OSS
        | {"layer_types": ["full_attention", "sliding_attention"], "num_key_value_heads": 1},
    ),
}
HYBRID: dict[str, Any] = {
    "num_hidden_layers": 3,
    "head_dim": 8,
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "initializer_range": 0.1,
}
GRANITE = HYBRID | {
    "layer_types": ["mamba", "attention", "mamba"],
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 72,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
MODELS |= {
    "granite_hybrid": ("GraniteMoeHybrid", GRANITE),
    "granite_hybrid_experts": (
        "GraniteMoeHybrid",
        GRANITE
        | {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
            "mamba_n_groups": 1,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
            "attention_bias": True,
        },
    ),
    "granite_hybrid_attention": (
        "GraniteMoeHybrid",
        GRANITE | {"layer_types": ["full_attention"] * 3, "position_embedding_type": "rope"},
    ),
    "bamba": ("Bamba", HYBRID | {"attn_layer_indices": [1]}),
    "bamba_biases": (
        "Bamba",
        HYBRID
        | {
            "attn_layer_indices": [0, 1],
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
FALCON_H1 = HYBRID | {
    "num_hidden_layers": 2,
    "mamba_d_ssm": 96,
    "embedding_multiplier": 2.5,
    "lm_head_multiplier": 0.3,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.6,
    "ssm_multipliers": [0.5, 0.9, 1.5, 0.8, 1.1],
    "mlp_multipliers": [0.9, 0.5],
}
MODELS |= {
    "falcon_h1": ("FalconH1", FALCON_H1),
    "falcon_h1_norm_first": (
        "FalconH1",
        FALCON_H1 | {"mamba_rms_norm": True, "mamba_norm_before_gate": True},
    ),
    "falcon_h1_gate_first": (
        "FalconH1",
        FALCON_H1
        | {
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "projectors_bias": True,
            "tie_word_embeddings": True,
        },
    ),
}
NEMOTRON_H: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 12,
    "initializer_range": 0.1,
}
MODELS |= {
    "nemotron_h": ("NemotronH", NEMOTRON_H),
    "nemotron_h_biases": (
        "NemotronH",
        NEMOTRON_H
        | {
            "layers_block_type": ["full_attention", "linear_attention", "mlp", "full_attention"],
            "n_groups": 1,
            "mlp_bias": True,
            "use_bias": True,
            "use_conv_bias": False,
        },
    ),
}
NEMOTRON_EXPERTS = NEMOTRON_H | {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"],
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 1.5,
}
MODELS |= {
    "nemotron_h_experts": ("NemotronH", NEMOTRON_EXPERTS),
    "nemotron_h_latent_experts": (
        "NemotronH",
        NEMOTRON_EXPERTS | {"moe_latent_size": 20, "norm_topk_prob": False, "mlp_bias": True},
    ),
}
JAMBA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "attn_layer_period": 3,
    "attn_layer_offset": 1,
    "num_experts": 5,
    "mamba_d_state": 5,
    "initializer_range": 0.1,
}
MODELS |= {
    "jamba": ("Jamba", JAMBA),
    "jamba_plain": (
        "Jamba",
        JAMBA
        | {
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "mamba_dt_rank": 7,
            "tie_word_embeddings": True,
        },
    ),
}
ZAMBA2: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid", "linear_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "n_mamba_heads": 6,
    "mamba_ngroups": 2,
    "mamba_d_state": 12,
    "adapter_rank": 5,
    "initializer_range": 0.1,
}
MODELS |= {
    "zamba2": ("Zamba2", ZAMBA2),
    "zamba2_in_turn": (
        "Zamba2",
        ZAMBA2
        | {
            "num_mem_blocks": 2,
            "use_mem_rope": True,
            "use_shared_attention_adapter": True,
            "add_bias_linear": True,
            "rms_norm_eps": 1e-3,
        },
    ),
}
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    family, overrides = MODELS[request.param]
    return create_pair(family, **overrides)


def assert_same(found, expected, way=""):
    assert found.shape == expected.shape
    error = (found - expected).abs().max().item()
    largest = expected.abs().max().item()
    assert error < TOLERANCE * max(1, largest), f"logits differ by {error} {way}"


def test_whole_prompts_chunks_and_decodes_equal_transformers(pair):
    ours, theirs, config = pair
    text = random_text(90)
    expected = their_logits(theirs, text)
    texts = PagedTexts(ours, config)
    ways = {
        "at once": [90],
        "odd chunks": [1, 3, 17, 4, 31, 34],
        "chunks that end at block borders": [4, 16, 70],
        "one by one": [1] * 20 + [70],
        "a prompt, then decodes": [75] + [1] * 15,
    }
    for number, (way, sizes) in enumerate(ways.items()):
        texts.add(number, text)
        assert_same(texts.run(number, sizes), expected, way)


def test_neighbours_in_a_batch_change_nothing(pair):
    ours, theirs, config = pair
    lengths = {0: 70, 1: 5, 2: 33, 3: 1, 4: 48, 5: 16, 6: 17}
    texts = PagedTexts(ours, config)
    found = {}
    for text_id, length in lengths.items():
        texts.add(text_id, random_text(length))
        found[text_id] = []
    while left := [i for i, n in lengths.items() if texts.computed[i] < n]:
        chosen = random.sample(left, random.randint(1, len(left)))
        pieces = {
            i: min(random.choice([1, 1, 2, 7, 19]), lengths[i] - texts.computed[i]) for i in chosen
        }
        for text_id, logits in texts.step(pieces).items():
            found[text_id].append(logits)
    for text_id, logits in found.items():
        assert_same(torch.cat(logits), their_logits(theirs, texts.texts[text_id]))


def test_a_shared_prefix_is_read_from_another_texts_blocks(pair):
    ours, theirs, config = pair
    prefix = random_text(24)
    texts = PagedTexts(ours, config)
    texts.add(0, prefix + random_text(8))
    texts.run(0, [24])
    texts.add(1, prefix + random_text(21))
    texts.share(0, 1, 24)
    found = [texts.run(1, [8, 13]), texts.run(0, [8])]
    for text_id, logits in zip((1, 0), found, strict=True):
        assert_same(logits, their_logits(theirs, texts.texts[text_id])[24:])


def test_steps_with_large_heads_are_not_recorded_on_a_gpu():
    ours, _, _ = create_pair("Gemma4", **(GEMMA4 | NO_INPUTS | {"global_head_dim": 512}))
    assert ours.can_be_recorded
    ours.options = replace(ours.options, device=torch.device("cuda"))
    assert not ours.can_be_recorded


@pytest.mark.skipif(not takes_panels(), reason="no C++ compiler")
def test_latents_are_multiplied_by_packed_weights():
    """Whatever form the weights have that make keys and values, they are divided."""
    family, overrides = MODELS["deepseek_v3"]
    _, theirs, config = create_pair(family, **overrides | {"kv_lora_rank": 32})
    kind, method = gguf.GGMLQuantizationType.Q8_0, GgufMethod(GGUFType.Q8_0)
    weights = dict(named_weights(theirs))
    for name in [name for name in weights if ".kv_b_proj." in name]:
        packed = gguf.quants.quantize(weights[name].numpy(), kind)
        weights[name].copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
        weights[name] = torch.from_numpy(packed)
    ours = create_model(
        config,
        dtype=torch.float32,
        linear_method=lambda name: method if name.endswith(".kv_b_proj") else None,
    )
    assert ours.load_weights(weights.items()) == []
    text = random_text(40)
    assert_same(run_alone(ours, config, text, [33] + [1] * 7), their_logits(theirs, text))


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_any_block_size(block_size):
    ours, theirs, config = create_pair("Llama")
    text = random_text(66)
    found = run_alone(ours, config, text, [32, 1, 31, 1, 1], block_size=block_size)
    assert_same(found, their_logits(theirs, text))


@pytest.mark.parametrize(
    ("family", "overrides"),
    [*((name, {}) for name in ("Llama", "Qwen2", "Qwen3", "Gemma3", "Phi3")), MODELS["youtu"]],
)
def test_bf16_on_packed_weights_stays_near_fp32(family, overrides):
    # Two layers of bf16 roundings, 2^-9 each, add up to about a percent.
    assert error_of_bf16(family, **overrides | {"initializer_range": 0.1}) < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Gemma3", "Phi3"])
def test_cuda_equals_transformers(family):
    _, theirs, config = create_pair(family)
    text = random_text(60)
    ours = create_model(config, dtype=torch.float32, device="cuda")
    ours.load_weights(named_weights(theirs))
    found = run_alone(ours, config, text, [33] + [1] * 27, device=torch.device("cuda"))
    assert_same(found.cpu(), their_logits(theirs, text))
