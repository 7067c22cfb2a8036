"""Texts of models for pictures and text that have no family of their own, against transformers."""

import json
import random
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint
from tests.helpers.models.checkpoints import logits

TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 28,
    "patch_size": 14,
}
AXES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
QWEN_VISION = {"depth": 2, "num_heads": 3, "patch_size": 14, "hidden_size": 24}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "Llava": ("llama", "clip_vision_model", {}, {}),
    "LlavaNext": ("mistral", "clip_vision_model", {}, {}),
    "LlavaOnevision": ("qwen2", "siglip_vision_model", {}, {}),
    "Mistral3": ("mistral", "pixtral", {}, {"head_dim": 8}),
    "InternVL": ("qwen2", "internvl_vision", {}, {}),
    "Qwen2VL": (
        *("qwen2_vl_text", "qwen2_vl"),
        {"rope_parameters": AXES},
        QWEN_VISION | {"embed_dim": 24, "hidden_size": 48},
    ),
    "Qwen2_5_VL": (
        *("qwen2_5_vl_text", "qwen2_5_vl"),
        {"rope_parameters": AXES},
        QWEN_VISION | {"out_hidden_size": 48, "fullatt_block_indexes": [0]},
    ),
    "Qwen3VL": (
        *("qwen3_vl_text", "qwen3_vl"),
        {"rope_parameters": AXES | {"mrope_interleaved": True}},
        QWEN_VISION | {"out_hidden_size": 48, "deepstack_visual_indexes": [0]},
    ),
    "Qwen3VLMoe": (
        *("qwen3_vl_moe_text", "qwen3_vl_moe"),
        EXPERTS | {"rope_parameters": AXES | {"mrope_interleaved": True}},
        QWEN_VISION | {"out_hidden_size": 48, "deepstack_visual_indexes": [0]},
    ),
    "Qwen3_5Moe": (
        *("qwen3_5_moe_text", "qwen3_5_moe"),
        EXPERTS
        | {
            "head_dim": 16,
            "rope_parameters": AXES | {"mrope_interleaved": True, "partial_rotary_factor": 0.5},
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "shared_expert_intermediate_size": 40,
        },
        QWEN_VISION | {"out_hidden_size": 48},
    ),
    "Gemma4": (
        *("gemma4_text", "gemma4_vision"),
        {"global_head_dim": 16, "hidden_size_per_layer_input": 6, "num_kv_shared_layers": 0},
        {"head_dim": 8, "num_key_value_heads": 3},
    ),
    "Lfm2Vl": (
        *("lfm2", "siglip2_vision_model"),
        {"layer_types": ["conv", "full_attention"]},
        {"patch_size": 7},
    ),
    "Llama4": (
        *("llama4_text", "llama4_vision_model"),
        {"intermediate_size_mlp": 96, "num_local_experts": 3, "attention_chunk_size": 16},
        {"projector_input_dim": 24, "projector_output_dim": 24, "vision_output_dim": 24},
    ),
    "Glm4v": (
        *("glm4v_text", "glm4v_vision"),
        {"rope_parameters": AXES},
        QWEN_VISION | {"intermediate_size": 40, "out_hidden_size": 48},
    ),
    "Exaone4_5_": ("exaone4", "exaone4_5_vision", {}, {"depth": 1, "num_heads": 3}),
}
"""The types of their parts, and what these have besides. transformers' code runs the last two's
decoders; that of GLM-4V has no class with an output layer."""


def make(folder, name, **overrides):
    """Save a random model; its text model may differ from the usual one."""
    kind, tower, text, vision = MODELS[name]
    create = getattr(transformers, f"{name}ForConditionalGeneration")
    with torch.random.fork_rng():
        torch.manual_seed(random.randrange(1 << 31))
        config = create.config_class(
            text_config=TEXT | {"model_type": kind} | text,
            vision_config=VISION | {"model_type": tower} | vision,
            **overrides,
        )
        model = create(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.normal_(1.0, 0.2)
    model.save_pretrained(folder)
    return model, Checkpoint("folder", folder, "tiny")


def random_text():
    return [random.randrange(300) for _ in range(random.randint(1, 40))]


def assert_alike(model, checkpoint):
    text = random_text()
    if isinstance(model, transformers.Llama4ForConditionalGeneration):
        model = model.language_model  # the whole one fails without a picture
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([text])).logits[0]
    torch.testing.assert_close(logits(checkpoint, text), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_transformers(tmp_path, name):
    model, checkpoint = make(tmp_path, name)
    config = load_model_config(checkpoint)
    assert config.pictures is None and config.is_wrapped
    assert_alike(model, checkpoint)


@pytest.mark.parametrize("is_tied", [False, True])
def test_files_say_whether_the_output_layer_is_the_embedding(tmp_path, is_tied):
    model, checkpoint = make(tmp_path, "Mistral3", tie_word_embeddings=is_tied)
    (tmp_path / "config.json").write_text(
        json.dumps(
            json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
        )
    )
    assert load_model_config(checkpoint).tie_word_embeddings == is_tied
    assert_alike(model, checkpoint)


def test_files_of_older_releases(tmp_path):
    model, checkpoint = make(tmp_path, "Qwen2VL")
    path = tmp_path / "model.safetensors"
    older = {
        name.replace("language_model.", "").replace("model.visual.", "visual."): tensor
        for name, tensor in load_file(path).items()
    }
    assert "model.layers.0.self_attn.q_proj.weight" in older
    save_file(older, path, {"format": "pt"})
    assert_alike(model, checkpoint)


@pytest.mark.parametrize("name", ["Qwen3VLMoe", "Qwen3_5Moe"])
def test_files_with_stacked_experts(tmp_path, name):
    """Published files of Qwen3-VL have them transposed."""
    model, checkpoint = make(tmp_path, name)
    weights = model.state_dict()
    for path in weights:
        if name == "Qwen3VLMoe" and ".experts." in path:
            weights[path] = weights[path].mT.contiguous()
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in weights
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert_alike(model, checkpoint)


def test_scales_of_stacked_experts(tmp_path):
    """Those of 8-bit floats, one for each block of 4 x 4 weights."""
    config = load_model_config(make(tmp_path, "Qwen3VLMoe")[1])
    scales = torch.randn(5, 48 // 4, 2 * 20 // 4)
    experts = "model.layers.0.mlp.experts"
    parts = dict(config.parts_of(f"{experts}.gate_up_proj_scale_inv", scales))
    assert len(parts) == 2 * 5
    gate, up = (parts[f"{experts}.3.{one}_proj.weight_scale_inv"] for one in ("gate", "up"))
    assert torch.equal(torch.cat((gate, up)), scales[3].T)


def test_keys_that_files_leave_out_are_transformers(tmp_path):
    values = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    values |= {"text_config": {"model_type": "llama", "vocab_size": 32_064}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({"language_model.lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = load_model_config(Checkpoint("folder", tmp_path, "tiny"))
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (32_064, 4096, 32)
    assert not config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_of_a_model_that_also_speaks_the_part_for_texts_is_served(tmp_path, kind):
    text = {"model_type": f"{kind}_text", "vocab_size": 320, "num_hidden_layers": 3}
    text |= {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    thinker = {"model_type": f"{kind}_thinker", "text_config": text}
    values = {"model_type": kind, "architectures": ["AnyOmni"], "thinker_config": thinker}
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensors = {"thinker.lm_head.weight": torch.zeros(1), "talker.model.norm.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    config = load_model_config(Checkpoint("folder", tmp_path, "tiny"))
    assert (config.vocab_size, config.num_hidden_layers) == (320, 3)
    names = {
        "thinker.model.layers.0.x": "model.layers.0.x",
        "thinker.lm_head.weight": "lm_head.weight",
    }
    assert {name: config.tensor_name(name) for name in names} == names
    assert config.tensor_name("talker.model.layers.0.x").startswith("picture_encoder.")


REFUSED = {
    "PaliGemma": ("paligemma", {"text_config": {"model_type": "gemma"}}, "in both directions"),
    "Florence2": ("florence2", {}, "encoder-decoder"),
    "PI0": ("pi0", {}, "does not continue texts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_decoders_that_cannot_be_served_alone_are_refused(tmp_path, name):
    kind, keys, reason = REFUSED[name]
    architecture = f"{name}ForConditionalGeneration"
    values = {"model_type": kind, "architectures": [architecture], **keys}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UnsupportedArchitecture, match=reason) as caught:
        load_model_config(Checkpoint("folder", tmp_path, "tiny"))
    assert architecture in caught.value.message


@pytest.mark.parametrize("wrong", ["text", 7, {"model_type": "llama", "hidden_size": "many"}])
def test_impossible_keys_are_refused(tmp_path, wrong):
    values = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(values | {"text_config": wrong}))
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        load_model_config(Checkpoint("folder", tmp_path, "tiny"))
