import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.contract.kv_layout import KvShape
from engine.contract.kv_numbers import KvNumbers
from engine.errors import CorruptFile, ModelLoadError, UnsupportedArchitecture
from engine.models.config import ModelConfig
from engine.models.loading import Loader
from engine.models.qwen3_next import Qwen3NextConfig
from engine.models.registry import create_model
from engine.weights.config_json import read_config_json
from tests.helpers.models.published_hybrids import PUBLISHED

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
}


def read(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    """Read `LLAMA` with changes; a key changed to `...` is left out."""
    config = {name: value for name, value in (LLAMA | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_config_json(folder)


YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}},
        {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 2},
        {"sliding_window": 128, "use_sliding_window": False},
    ],
)
def test_reads_what_transformers_5_writes(model_type, options, tmp_path):
    from transformers import AutoConfig

    sizes = {name: size for name, size in LLAMA.items() if isinstance(size, int | float)}
    changes = sizes | options | {"eos_token_id": [3, 5], "bos_token_id": 1}
    theirs = AutoConfig.for_model(model_type, **changes)
    theirs.save_pretrained(tmp_path)
    ours = read_config_json(tmp_path)
    for name in (*sizes, "tie_word_embeddings", "hidden_act", "bos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == (theirs.head_dim if getattr(theirs, "head_dim", None) else 16)
    assert ours.eos_token_ids == (3, 5)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    expected = {k: v for k, v in theirs.rope_parameters.items() if k != "rope_theta"}
    assert ours.rope_scaling == (None if expected["rope_type"] == "default" else expected)
    window = None if model_type == "llama" else theirs.sliding_window
    types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * 4
    expected_windows = [window if entry == "sliding_attention" else None for entry in types]
    assert list(ours.layer_windows) == expected_windows


def test_reads_what_transformers_4_wrote(tmp_path):
    scaling = {"type": "linear", "factor": 2.0}
    more = {"eos_token_id": 7, "torch_dtype": "bfloat16"}
    config = read(tmp_path, rope_theta=500000.0, rope_scaling=scaling, **more)
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    assert config.eos_token_ids == (7,)
    assert config.head_dim == 16
    assert read(tmp_path, rope_scaling=None).rope_scaling is None
    assert read(tmp_path, rope_scaling={"rope_type": "default"}).rope_scaling is None


ALPHA = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "mscale": 1.0}
LATENT: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "moe_intermediate_size": 48,
    "moe_layer_freq": 1,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.5,
    "v_head_dim": 16,
}
LATENT_YARN: dict[str, Any] = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "Lfm2ForCausalLM": {
        "block_auto_adjust_ff_dim": True,
        "block_ff_dim": 12288,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "conv_L_cache": 3,
        "full_attn_idxs": [1, 3],
        "intermediate_size": ...,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    "Lfm2MoeForCausalLM": {
        "conv_L_cache": 3,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "moe_intermediate_size": 48,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "tie_embedding": True,
    },
    "Llama4ForCausalLM": {
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "head_dim": 16,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 256,
        "no_rope_layers": [],
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "rope_scaling": {**LLAMA3, "factor": 16.0, "high_freq_factor": 1.0},
        "rope_theta": 5e5,
    },
    "HunYuanDenseV1ForCausalLM": {
        "attention_head_dim": 128,
        "head_dim": 128,
        "rope_scaling": ALPHA,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_qk_norm": True,
    },
    "HunYuanMoEV1ForCausalLM": {
        "moe_intermediate_size": [128] * 4,
        "moe_topk": [8] * 4,
        "num_experts": 64,
        "num_shared_expert": [1] * 4,
        "rope_scaling": ALPHA,
    },
    "MiMoV2FlashForCausalLM": {
        "attention_value_scale": 0.707,
        "head_dim": 24,
        "hybrid_layer_pattern": [0, 1, 1, 1],
        "layernorm_epsilon": 1e-5,
        "moe_intermediate_size": 48,
        "moe_layer_freq": [0, 1, 1, 1],
        "n_group": 1,
        "n_routed_experts": 8,
        "norm_topk_prob": True,
        "num_experts_per_tok": 4,
        "partial_rotary_factor": 0.334,
        "rope_theta": 5e6,
        "routed_scaling_factor": None,
        "sliding_window": 128,
        "sliding_window_size": 128,
        "swa_num_key_value_heads": 4,
        "swa_rope_theta": 1e4,
        "v_head_dim": 16,
    },
    "DeepseekV2ForCausalLM": LATENT
    | {
        "n_group": 4,
        "norm_topk_prob": False,
        "q_lora_rank": None,
        "rope_scaling": LATENT_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        "scoring_func": "softmax",
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
    },
    "DeepseekV3ForCausalLM": LATENT
    | {
        "n_group": 8,
        "norm_topk_prob": True,
        "rope_scaling": LATENT_YARN,
        "scoring_func": "sigmoid",
        "topk_group": 4,
        "topk_method": "noaux_tc",
    },
    "Glm4MoeLiteForCausalLM": LATENT
    | {
        "n_group": 1,
        "norm_topk_prob": True,
        "partial_rotary_factor": 1.0,
        "rope_scaling": None,
        "rope_theta": 1e6,
        "topk_group": 1,
        "topk_method": "noaux_tc",
    },
    "KimiLinearForCausalLM": {
        "first_k_dense_replace": 1,
        "head_dim": 72,
        "kv_lora_rank": 32,
        "linear_attn_config": {
            "full_attn_layers": [4],
            "head_dim": 8,
            "kda_layers": [1, 2, 3],
            "num_heads": 2,
            "short_conv_kernel_size": 4,
        },
        "mla_use_nope": True,
        "model_max_length": 4096,
        "moe_intermediate_size": 48,
        "moe_renormalize": True,
        "num_expert_group": 1,
        "num_experts": 16,
        "num_experts_per_token": 4,
        "num_key_value_heads": 4,
        "num_shared_experts": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "rope_theta": 10000.0,
        "routed_scaling_factor": 2.446,
        "v_head_dim": 16,
    },
}
"""Keys as in the files of published models, with small sizes."""


@pytest.mark.parametrize("architecture", AS_PUBLISHED)
def test_published_files_say_what_transformers_makes_of_them(architecture, tmp_path):
    import transformers

    ours = read(
        tmp_path, architectures=[architecture], model_type=..., **AS_PUBLISHED[architecture]
    )
    written = json.loads((tmp_path / "config.json").read_text())
    config_class = getattr(transformers, architecture).config_class
    config_class.from_dict(written).save_pretrained(tmp_path)
    theirs = read_config_json(tmp_path)
    assert replace(theirs, bos_token_id=None, eos_token_ids=()) == ours


def test_old_files_without_grouped_heads_or_architectures(tmp_path):
    config = read(tmp_path, num_key_value_heads=..., architectures=..., model_type="mistral")
    assert config.num_key_value_heads == 4
    assert config.architecture == "MistralForCausalLM"
    assert config.rope_theta == 10000.0


def test_yarn_extends_the_length(tmp_path):
    config = read(tmp_path, rope_scaling=YARN)
    assert config.max_position_embeddings == 8192
    assert config.rope_scaling == YARN | {"original_max_position_embeddings": 2048}
    original = {"original_max_position_embeddings": 512}
    assert read(tmp_path, rope_scaling=YARN | original).max_position_embeddings == 2048
    assert read(tmp_path, rope_scaling=LLAMA3).max_position_embeddings == 2048


def test_qwens_old_sliding_layers(tmp_path):
    options = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "max_window_layers": 3}
    config = read(tmp_path, use_sliding_window=True, **options)
    assert config.windows == (None, None, None, 64)
    assert read(tmp_path, **options).windows == ()


GEMMA4 = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "num_hidden_layers": 12,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 6,
    "use_double_wide_mlp": True,
    "sliding_window": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
OF_FULL_LAYERS = {"global_head_dim": 32, "num_global_key_value_heads": 2}


def test_gemma_4s_shapes_in_published_files_and_in_those_of_transformers_5(tmp_path):
    from transformers import AutoConfig

    published = read(tmp_path, **GEMMA4, **OF_FULL_LAYERS)
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert "global_head_dim" not in json.loads((tmp_path / "config.json").read_text())
    assert read_config_json(tmp_path) == published
    full, sliding = KvShape(2, 32), KvShape(4, 16)
    assert published.kv_shapes == ((sliding,) * 5 + (full,)) * 2
    assert published.kv_sources == (0, 1, 2, 3, 4, 5, 4, 4, 4, 4, 4, 5)
    assert published.windows == ((64,) * 5 + (None,)) * 2
    assert published.rope_scaling == {"rope_type": "proportional", "rotated": 0.25, "factor": 1.0}
    assert published.inner_sizes == (128,) * 6 + (256,) * 6
    assert published.kv_layers == (0, 1, 2, 3, 4, 5)
    # Published files have keys that nobody reads.
    for layer, is_read in ((5, True), (6, False)):
        part = f"model.layers.{layer}.self_attn.k_proj.weight", torch.zeros(1)
        assert list(published.parts_of(*part)) == [part] * is_read


def test_generation_defaults_and_the_tokens_that_end(tmp_path):
    config = read(
        tmp_path,
        {"temperature": 0.6, "top_k": 20, "top_p": None, "do_sample": True, "eos_token_id": [5, 2]},
        eos_token_id=2,
    )
    assert config.generation == {"temperature": 0.6, "top_k": 20.0}
    assert config.eos_token_ids == (5, 2)
    assert config.never_token_ids == ()
    assert read(tmp_path, {"suppress_tokens": [7, 5]}).never_token_ids == (7, 5)
    assert read(tmp_path, {}, eos_token_id=2).eos_token_ids == (2,)
    assert read(tmp_path, {}, eos_token_id=None).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": ...}, "no hidden_size"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": 66}, "hidden_size is 66"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        (GEMMA4 | {"num_kv_shared_layers": 7}, "num_kv_shared_layers is 7"),
        (GEMMA4 | {"use_bidirectional_attention": "all"}, "bidirectional attention"),
        (GEMMA4 | {"per_layer_config": {"12": {}}}, "layers below 12"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ({"vocab_size": 2**40}, "vocab_size is"),
        ({"vocab_size": "x" * 1000}, r"vocab_size is 'x{70,80}\.\.\."),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "no factor"),
        ({"rope_scaling": {"rope_type": 7}}, "rope_type is 7"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [1, -1]}, "eos_token_id is"),
        ({"eos_token_id": [[1]]}, "eos_token_id is"),
        ({"architectures": []}, "architectures is"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is"),
        ({"architectures": ..., "model_type": ...}, "no architectures"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 4, "layer_types": ["x"]},
            "layer_types is",
        ),
    ],
)
def test_missing_and_nonsense_keys_are_named(changes, words, tmp_path):
    with pytest.raises(ModelLoadError, match=words):
        read(tmp_path, **changes)


def test_nonsense_about_sampling_is_left_to_who_samples(tmp_path):
    assert read(tmp_path, {"temperature": "hot"}).generation == {"temperature": "hot"}


def test_another_architecture_is_named_before_its_missing_keys(tmp_path):
    with pytest.raises(UnsupportedArchitecture, match="T5ForConditionalGeneration"):
        name = "T5ForConditionalGeneration"
        read(tmp_path, architectures=[name], hidden_size=..., rms_norm_eps=...)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a": ', "\x00", "[" * 100_000])
def test_not_json(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"config\.json"):
        read_config_json(tmp_path)


def test_not_utf8(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CorruptFile):
        read_config_json(tmp_path)


FALCON_MAMBA: dict[str, Any] = {
    "architectures": ["FalconMambaForCausalLM"],
    "vocab_size": 65024,
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "conv_kernel": 4,
    "expand": 16,
    "intermediate_size": 8192,
    "state_size": 16,
    "time_step_rank": 256,
    "tie_word_embeddings": False,
}
CODESTRAL_MAMBA: dict[str, Any] = {
    "architectures": ["Mamba2ForCausalLM"],
    "vocab_size": 32768,
    "hidden_size": 4096,
    "num_hidden_layers": 64,
    "num_heads": 128,
    "n_groups": 8,
    "norm_before_gate": True,
    "time_step_limit": [0.0, float("inf")],
    "time_step_rank": 256,
}


def test_models_without_attention_as_published(tmp_path):
    """FalconMamba 7B and Codestral Mamba 7B, whose files state no longest text."""
    (tmp_path / "config.json").write_text(json.dumps(FALCON_MAMBA))
    falcon = read_config_json(tmp_path)
    assert falcon.shapes == ((8192, 3), (8192, 1, 16))
    assert falcon.mixer["rank"] == 256
    (tmp_path / "config.json").write_text(json.dumps(CODESTRAL_MAMBA))
    codestral = read_config_json(tmp_path)
    assert codestral.shapes == ((8192 + 2 * 8 * 128, 3), (128, 64, 128))
    assert not codestral.tie_word_embeddings
    for config in (falcon, codestral):
        assert config.recurrent_layers == tuple(range(64))
        assert [group.layers for group in config.layer_groups] == [()]
        assert config.max_position_embeddings == 1 << 18


INFINITY = {"__float__": "Infinity"}
"""As transformers 5 writes it."""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"time_step_limit": [0.5]}, "time_step_limit is"),
        ({"time_step_limit": 3}, "time_step_limit is 3"),
        ({"time_step_limit": [2.0, 1.0]}, "two numbers from 0 up"),
        ({"time_step_limit": [0.0, float("nan")]}, "time_step_limit is"),
        ({"time_step_limit": [{"__float__": "much"}, 1.0]}, "time_step_limit is"),
        ({"n_groups": 7}, "num_heads is 128"),
        ({"conv_kernel": 9}, "conv_kernel is 9"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"time_step_limit": [0.25, INFINITY]}, None),
    ],
)
def test_mixers_of_mamba_2_are_checked(changes, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CODESTRAL_MAMBA | changes))
    if words is None:
        assert read_config_json(tmp_path).mixer["dt_limits"] == (0.25, float("inf"))
        return
    with pytest.raises(ModelLoadError, match=words):
        read_config_json(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hybrids_have_all_their_weights(name, tmp_path):
    values, millions = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    model = create_model(read_config_json(tmp_path), dtype=torch.bfloat16, device="meta")
    shapes = Loader(model, model.options).shapes()
    assert round(sum(map(math.prod, shapes.values())) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("granite-4.0-h-tiny", {"layer_types": ["mamba"]}, "a list of 40 entries"),
        ("granite-4.0-h-tiny", {"layer_types": ["mamba", 3]}, "linear_attention, full_attention"),
        ("granite-4.0-h-tiny", {"position_embedding_type": "alibi"}, "rope or nope"),
        ("granite-4.0-h-tiny", {"hidden_act": "gelu"}, "silu, the only activation"),
        ("granite-4.0-h-tiny", {"mamba_n_groups": 5}, "multiple of mamba_n_groups, which is 5"),
        ("Falcon-H1-0.5B", {"mlp_bias": True}, "layers with biases are not supported"),
        ("Falcon-H1-0.5B", {"ssm_multipliers": [1.0]}, "a list of 5 numbers"),
        ("Nemotron-H-8B", {"hybrid_override_pattern": "M*X"}, "a text of"),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B", {"n_group": 2}, "routing in groups"),
        ("Bamba-9B-v2", {"attn_layer_indices": [40]}, "a list of layer numbers"),
        ("AI21-Jamba-Mini", {"attn_layer_offset": 8}, "from 0 to 7"),
        ("Zamba2-7B", {"use_long_context": True}, "its rotation is not supported"),
        ("Zamba2-7B", {"tie_word_embeddings": False}, "shared layers depend on it"),
    ],
)
def test_what_hybrids_do_not_support_is_refused(name, changes, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name][0] | changes))
    with pytest.raises(ModelLoadError, match=words):
        read_config_json(tmp_path)


DEEPSEEK_V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_scaling": LATENT_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def test_deepseek_v2_lite_has_all_its_weights_and_a_small_cache(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V2_LITE))
    config = read_config_json(tmp_path)
    assert config.kv_bytes_per_token(KvNumbers("bfloat16")) == 27 * (512 + 64) * 2
    assert config.kv_bytes_per_token(KvNumbers("int8")) == 27 * (512 + 64 + 4)
    assert config.score_scale == pytest.approx((1 + 0.0707 * math.log(40)) ** 2 / math.sqrt(192))
    model = create_model(config, dtype=torch.bfloat16, device="meta")
    shapes = Loader(model, model.options).shapes()
    assert round(sum(map(math.prod, shapes.values())) / 1e6) == 15706


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_group": 5}, "n_group is 5; it must be a divisor of the 64 experts, at most half"),
        ({"n_group": 64}, "n_group is 64; it must be a divisor of the 64 experts, at most half"),
        ({"n_group": 16}, "topk_group is 1; it must be 2 or more, as 6 experts are chosen"),
        ({"topk_method": "best"}, "topk_method is 'best'; it must be greedy or group_limited"),
        ({"scoring_func": "sigmoid"}, "it must be softmax, as topk_method is greedy"),
        ({"attention_bias": True}, "DeepseekV2ForCausalLM with biases is not supported"),
        ({"norm_topk_prob": True}, "DeepseekV2ForCausalLM with norm_topk_prob is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "has no factor"),
        ({"kv_lora_rank": ...}, "has no kv_lora_rank"),
        ({"qk_rope_head_dim": 63}, "qk_rope_head_dim is 63; it must be an even number"),
        (
            {"architectures": ["Mistral4ForCausalLM"], "n_group": 2, "topk_group": 1},
            "Mistral4ForCausalLM with groups of experts is not supported",
        ),
    ],
)
def test_what_deepseek_does_not_support_is_refused(changes, words, tmp_path):
    values = {name: one for name, one in (DEEPSEEK_V2_LITE | changes).items() if one is not ...}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match=words):
        read_config_json(tmp_path)


QWEN3_NEXT_80B: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "shared_expert_intermediate_size": 512,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_reads_qwen3_next_80b_as_published(tmp_path):
    period = random.choice((4, 6))
    changes = {"full_attention_interval": period}
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_NEXT_80B | changes))
    config = read_config_json(tmp_path)
    assert isinstance(config, Qwen3NextConfig)
    attending = {layer for group in config.layer_groups for layer in group.layers}
    assert attending == set(range(period - 1, 48, period))
    assert (config.rotary_dim, config.rope_theta, config.rope_scaling) == (64, 1e7, None)
    assert config.experts == (512, 10) and config.normalised and not config.plain_layers
    assert config.shared == ("shared_expert", 512, True)
    assert config.shapes.state == (32, 128, 128)
