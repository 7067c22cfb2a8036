"""Makes a tiny random model of any of transformers' language models."""

import re
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModel

VOCAB_SIZE = 384
NUM_POSITIONS = 2048
WINDOW = 24
_MOST_WEIGHTS = 250_000_000
_MOST_LAYERS = 8
_LAYER_COUNTS = re.compile(
    r"num_hidden_layers|num_layers|n_layers?|layers|(en|de)coder_layers|num_(en|de)coder_layers"
    r"|depth|num_blocks|decoder_num_layers"
)
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(.*_)?vocab_size(_.*)?|codebook_size", VOCAB_SIZE),
    (r".*max_(source_|target_)?position_embeddings|n_positions|n_ctx|max_seq_len", NUM_POSITIONS),
    (r"original_max_position_embeddings|model_max_length", NUM_POSITIONS),
    (
        r"(.*_)?sliding_window(_size)?|attention_chunk_size|(attention|local_attention)_window.*",
        WINDOW,
    ),
    (r"attention_window_size|window_size", WINDOW),
    (r"head_dim|.*_head_dim|qk_nope_head_dim|v_head_dim|d_kv|kv_channels|dim_head|d_head", 32),
    (r"rotary_dim|qk_rope_head_dim", 16),
    (r".*attention_heads|.*num_heads|n_heads?|linear_num_(key|value)_heads|mamba_n_heads", 4),
    (r"(q|kv|o)_lora_rank|.*_rank|time_step_rank", 32),
    (r"moe_.*intermediate_size|.*expert.*intermediate_size|expert_ffn.*", 80),
    (r".*intermediate_size.*|.*ffn_dim|.*ffn_hidden_size|n_inner|d_ff|dff|dim_ff|mlp_dim", 192),
    (
        r".*hidden_size.*|n_embd|d_model|.*embed_dim|codebook_dim|embedding_size|.*proj(ection)?_dim|width|adapter_.*(dim|size)",
        128,
    ),
    (r"dim|input_size|.*out_dim|output_dim|d_inner|.*hidden_dim", 128),
    (r".*num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_experts_per_layer", 8),
    (r".*experts_per_tok(en)?|moe_top_?k|moe_k|top_k", 2),
    (r"n_group|num_expert_group", 2),
    (r"topk_group", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|.*num_kv_shared_layers", 1),
    (r"image_size|max_image_size|resolution", 56),
    (r".*mamba_d_state|state_size|ssm_state_size|index_topk|index_block_size", 16),
    (r".*chunk_size", 16),
)
"""Names of sizes and their most, the first that fits."""
_KV_HEADS = (
    ("num_key_value_heads", "num_attention_heads"),
    ("swa_num_key_value_heads", "swa_num_attention_heads"),
    ("num_kv_heads", "num_attention_heads"),
)
"""Numbers of heads for keys and values, and of the heads that share them."""
_LISTS_OF_LAYERS = re.compile(r".*_index(e?s)?|.*layers|.*_idxs|.*layer_ids")

_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_TWO_ROPES = {"full_attention": _ROPE, "sliding_attention": _ROPE | {"rope_theta": 500.0}}
_MIXED = ["sliding_attention", "full_attention"]
_ZAMBA = {
    "attention_head_dim": 64,
    "attention_hidden_size": 256,
    "hybrid_layer_ids": [2, 5],
    "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    "mamba_headdim": 32,
    "num_hidden_layers": 6,
}
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "apertus1p5": {"image_token_offset": 0, "audio_token_offset": VOCAB_SIZE},
    "apertus1p5_text": {"vocab_size": 3 * VOCAB_SIZE},
    "blt": {"encoder_hash_byte_group_vocab": VOCAB_SIZE},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "intermediate_size": [192] * 6,
        "activation_sparsity_pattern": [0.5] * 6,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "nemotron_h": {"n_groups": 1},
    "cohere_compass_text": {
        "layer_types": _MIXED,
        "logit_scale": 0.25,
        "rope_parameters": {
            kind: one | {"mrope_section": [6, 5, 5]} for kind, one in _TWO_ROPES.items()
        },
    },
    "dbrx": {"attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0}},
    "dory": {
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
        "num_hidden_layers": 8,
        "n_input_layers": 2,
        "n_recurrent_layers": 4,
        "n_output_layers": 2,
    },
    "dots3_note_text": {"head_dim": 64},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2},
    "ernie4_5_vl_moe_text": {"rope_parameters": _ROPE | {"mrope_section": [6, 6, 4]}},
    "granite4_vision": {
        "deepstack_layer_map": [],
        "downsample_rate": "4/8",
        "spatial_target_layers": [],
    },
    "hunyuan_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [4, 4, 4, 4]}},
    "mimi": {"codebook_size": 512},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "moshi": {"codebook_size": 512},
    "timm_wrapper": {"model_args": {"embed_dim": 128}},
    "qwen4_exp_text": {
        "eos_token_id": 2,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "indexer_head_dim": 32,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 2,
        "ngram_vocab_size_base": 512,
        "number_of_conv_states": 3,
        "ple_layer_ids": [1],
        "split_ngram_parts": 1,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [64, 64], "is_decoder": True},
    "step3p5": {"layer_types": _MIXED, "rope_parameters": _TWO_ROPES, "sliding_window": WINDOW},
    "zamba": _ZAMBA,
    "zamba2": _ZAMBA,
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": {"<image>": 4}},
}
"""Values that the configurations of some models need, by `model_type`."""

_SMALL = (".lambda_1", ".lambda_2", ".logit_scale", ".qk_scale")
"""Weights that models multiply by large numbers."""

_AXES = (
    *("glm4v_moe_text", "glm4v_text", "glm_ocr_text", "paddleocr_vl_text"),
    *("qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text"),
)
"""Text models whose positions have axes, which their default configuration does not state."""


def architectures() -> dict[str, str]:
    """All causal and picture-and-text classes of the installed transformers, with their kind."""
    causal = dict.fromkeys(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), "text")
    both = dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values(), "pictures and text")
    return dict(sorted((causal | both).items()))


def tiny_model(architecture: str) -> Any:
    """Make a model in fp32 whose numbers are all random."""
    model_class = getattr(transformers, architecture)
    config_class = model_class.config_class
    values = config_class().to_dict()
    _shrink(values)
    config = config_class.from_dict(values)
    config._attn_implementation = "eager"
    # This encoder of pictures needs another package, and text does not need it.
    with mock.patch.object(TimmWrapperModel, "__init__", PreTrainedModel.__init__):
        with torch.device("meta"):
            size = sum(one.numel() for one in model_class(config).parameters())
        if size > _MOST_WEIGHTS:
            raise ValueError(f"the model has {size:,} weights")
        model = model_class(config).float().eval()
    _randomise(model)
    return model


@torch.inference_mode()
def their_logits(model: Any, token_ids: list[int]) -> Tensor:
    """transformers' logits of a text, [T, V]. Some models need a picture; their part for texts is
    asked then."""
    inputs = {"input_ids": torch.tensor([token_ids]), "use_cache": False}
    try:
        found: Tensor = model(**inputs).logits[0]
    except Exception:
        if not hasattr(model, "language_model"):
            raise
        found = model.language_model(**inputs).logits[0]
    return found


def _shrink(values: dict[str, Any]) -> None:
    """Make the sizes of a configuration small, and those of the configurations in it."""
    old_values = dict(values)
    counts = {k: v for k, v in values.items() if _LAYER_COUNTS.fullmatch(str(k)) and _is_size(v)}
    kinds = values.get("layer_types") or values.get("layers_block_type") or []
    wanted = min(max(2, _layers_with_all_kinds(kinds)), _MOST_LAYERS)
    for name, value in counts.items():
        values[name] = min(value, wanted)
    old = max(counts.values(), default=0)
    for name, value in values.items():
        if isinstance(value, dict):
            if name == "per_layer_config":
                values[name] = {one: part for one, part in value.items() if int(one) < wanted}
            _shrink(values[name])
        elif isinstance(value, list) and counts:
            if len(value) == old:
                values[name] = value[:wanted]
            elif _LISTS_OF_LAYERS.fullmatch(name) and all(_is_size(one) for one in value):
                values[name] = [one for one in value if one < wanted] or [0]
        elif _is_size(value) and name not in counts:
            values[name] = _small(str(name), value)
    for name, heads in _KV_HEADS:
        if _is_size(values.get(name)) and _is_size(values.get(heads)):
            values[name] = min(old_values[name], 4 if old_values[name] == old_values[heads] else 2)
    exceptions = EXCEPTIONS.get(values.get("model_type", ""), {})
    values |= exceptions
    parts = ("qk_nope_head_dim", "qk_rope_head_dim")
    if all(_is_size(values.get(one)) for one in parts):
        sums = sum(old_values[one] for one in parts), sum(values[one] for one in parts)
        for name, value in old_values.items():
            if str(name).endswith("head_dim") and name not in parts:
                if value == sums[0]:
                    values[name] = sums[1]
                elif name == "head_dim" and value == old_values[parts[1]]:
                    values[name] = values[parts[1]]
    if "num_key_value_heads" in values and not values["num_key_value_heads"]:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if not values.get("head_dim", 1):
        values["head_dim"] = 32
    rope = None if "rope_parameters" in exceptions else values.get("rope_parameters")
    if isinstance(rope, dict) and ("mrope_section" in rope or values.get("model_type") in _AXES):
        dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
        pairs = int(dim * rope.get("partial_rotary_factor", 1)) // 2
        rope["mrope_section"] = [pairs - 2 * (3 * pairs // 8), 3 * pairs // 8, 3 * pairs // 8]


def _small(name: str, value: int) -> int:
    if re.fullmatch(r".*token_(id|index)|.*_id", name):
        return value if value < VOCAB_SIZE else VOCAB_SIZE - 1 - value % 97
    most = next((most for pattern, most in _SIZES if re.fullmatch(pattern, name)), value)
    return min(value, most)


def _layers_with_all_kinds(kinds: list[Any]) -> int:
    """The number of first layers among which each kind is."""
    return max((kinds.index(one) + 1 for one in set(map(str, kinds)) if one in kinds), default=0)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@torch.no_grad()
def _randomise(model: Any) -> None:
    """Draw norms and biases, which transformers starts at 1 and 0, and matrices large enough that
    attention tells tokens apart."""
    for name, parameter in model.named_parameters():
        if name.endswith(_SMALL):
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        elif parameter.ndim == 1 or name.endswith("bias"):
            parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
        else:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
