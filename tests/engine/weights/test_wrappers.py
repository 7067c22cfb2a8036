"""Checkpoints of models for pictures and text: what is read from files of any release."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

from engine.commands.quantizing.rounded import write_rounded
from engine.contract.resolved_config import MachineFacts
from engine.contract.settings import EngineConfig
from engine.errors import UnsupportedArchitecture
from engine.models.causal_lm import CausalLM
from engine.models.registry import create_model
from engine.weights.config_json import read_config_json
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.weight_plan import WeightPlan, plan_weights
from tests.helpers.models.checkpoints import in_folder
from tests.helpers.models.json_files import change_json
from tests.helpers.models.tiny_wrappers import (
    CROP_KINDS,
    GEMMA3_LAYOUTS,
    GRID_KINDS,
    KINDS,
    encoded,
    make_wrapper,
    rename_tensors,
    split_processor_files,
)

GEMMA3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
GEMMA3_IMAGES: dict[str, Any] = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 896, "width": 896},
}
SMOLVLM_256M: dict[str, Any] = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_token_id": 49190,
    "model_type": "idefics3",
    "scale_factor": 4,
    "text_config": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "vocab_size": 49280,
        "eos_token_id": 49279,
    },
    "vision_config": {
        "hidden_size": 768,
        "image_size": 512,
        "max_image_size": {"longest_edge": 512},
        "model_type": "idefics3",
        "num_attention_heads": 12,
        "patch_size": 16,
        "size": {"longest_edge": 2048},
    },
}
SMOLVLM_IMAGES: dict[str, Any] = {
    "do_image_splitting": True,
    "image_processor_type": "Idefics3ImageProcessor",
    "max_image_size": {"longest_edge": 512},
    "processor_class": "Idefics3Processor",
    "resample": 1,
    "size": {"longest_edge": 2048},
}

QWEN2_5_VL_3B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "image_token_id": 151655,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "in_chans": 3,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
    },
    "vision_token_id": 151654,
    "vocab_size": 151936,
}
QWEN2_5_VL_IMAGES: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 14,
    "processor_class": "Qwen2_5_VLProcessor",
    "temporal_patch_size": 2,
}
MISTRAL_SMALL_3_1: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "image_token_index": 10,
    "model_type": "mistral3",
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "spatial_merge_size": 2,
    "text_config": {
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "max_position_embeddings": 131072,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "vocab_size": 131072,
    },
    "vision_config": {
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "image_size": 1540,
        "intermediate_size": 4096,
        "model_type": "pixtral",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "rope_theta": 10000.0,
    },
    "vision_feature_layer": -1,
}
MISTRAL_IMAGES: dict[str, Any] = {
    "do_convert_rgb": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "PixtralImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": {"height": 14, "width": 14},
    "resample": 3,
    "size": {"longest_edge": 1540},
}
MISTRAL_PROCESSOR: dict[str, Any] = {
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
    "image_token": "[IMG]",
    "patch_size": 14,
    "processor_class": "PixtralProcessor",
    "spatial_merge_size": 2,
}

WIDE = {"hidden_size": 96, "intermediate_size": 96}
"""Sizes of text models whose rows can be divided into groups of 32 weights."""


def write(folder: Path, *, untied: bool = False, **files: dict[str, Any]) -> Path:
    """Write JSON files, and the output layer if it is not the embedding."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if untied:
        save_file({"lm_head.weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def load(folder: Path) -> CausalLM:
    config = load_model_config(in_folder(folder))
    model = create_model(config, dtype=torch.float32)
    assert model.load_weights(iter_weights(in_folder(folder), config)) == []
    return model


def planned(folder: Path, quantization: Any = "none") -> WeightPlan:
    intent = EngineConfig(quantization=quantization, dtype="float32")
    machine = MachineFacts(device="cpu", num_cores=2, free_memory_bytes=1 << 34)
    config = load_model_config(in_folder(folder))
    return plan_weights(in_folder(folder), config, intent, machine)


def test_reads_gemma_3_4b_as_published(tmp_path):
    config = read_config_json(write(tmp_path, config=GEMMA3_4B, preprocessor_config=GEMMA3_IMAGES))
    assert (config.vocab_size, config.num_attention_heads, config.head_dim) == (262208, 8, 256)
    assert (config.max_position_embeddings, config.rms_norm_eps) == (131072, 1e-6)
    assert config.rope_scaling == {"rope_type": "linear", "factor": 8.0}
    assert config.layer_windows[:7] == (1024,) * 5 + (None, 1024)
    assert config.eos_token_ids == (1, 106) and config.tie_word_embeddings
    facts, vision = config.pictures, config.vision
    assert (facts.side, facts.rows_per_crop, facts.placeholder_id) == (896, 256, 262144)
    assert (facts.marker, facts.looks_both_ways) == ("<start_of_image>", True)
    assert (vision.grid, vision.joined, vision.num_hidden_layers) == (64, 4, 27)


def test_reads_smolvlm_256m_as_published(tmp_path):
    processor = {"image_seq_len": 64, "processor_class": "Idefics3Processor"}
    files = {"preprocessor_config": SMOLVLM_IMAGES, "processor_config": processor}
    config = read_config_json(write(tmp_path, config=SMOLVLM_256M, **files))
    assert (config.head_dim, config.rope_theta, config.tie_word_embeddings) == (64, 1e5, False)
    assert config.eos_token_ids == (49279,)
    facts, vision = config.pictures, config.vision
    assert (facts.side, facts.rows_per_crop, facts.longest_edge) == (512, 64, 2048)
    assert (vision.grid, vision.joined, vision.intermediate_size) == (32, 4, 3072)
    assert vision.num_hidden_layers == 12


def test_reads_qwen2_5_vl_3b_as_published(tmp_path):
    files = {"config": QWEN2_5_VL_3B, "preprocessor_config": QWEN2_5_VL_IMAGES}
    config = read_config_json(write(tmp_path, **files))
    assert (config.head_dim, config.rope_theta, config.tie_word_embeddings) == (128, 1e6, True)
    assert config.rope_scaling is None and config.eos_token_ids == (151645,)
    assert config.rope_axes == (0,) * 16 + (1,) * 24 + (2,) * 24
    facts, vision = config.pictures, config.vision
    assert (facts.side, facts.pixel_bounds, facts.most_states) == (28, (3136, 12845056), 16384)
    assert (facts.resampling, facts.placeholder_id) == ("bicubic", 151655)
    assert (vision.window, vision.whole_layers, vision.joined) == (4, (7, 15, 23, 31), 2)
    assert (vision.num_hidden_layers, vision.num_attention_heads) == (32, 16)


def test_reads_mistral_small_3_1_as_published(tmp_path):
    files = {"preprocessor_config": MISTRAL_IMAGES, "processor_config": MISTRAL_PROCESSOR}
    write(tmp_path, untied=True, config=MISTRAL_SMALL_3_1, **files)
    config = read_config_json(tmp_path)
    assert (config.head_dim, config.rope_theta, config.tie_word_embeddings) == (128, 1e9, False)
    facts, vision = config.pictures, config.vision
    assert (facts.side, facts.longest_side, facts.most_states) == (28, 1540, 55**2)
    assert (facts.placeholder_id, facts.line_end, facts.after) == (10, "[IMG_BREAK]", "[IMG_END]")
    assert (vision.num_hidden_layers, vision.row_size, vision.projector_bias) == (24, 5120, False)


LLAVA_1_5: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
CLIP_IMAGES: dict[str, Any] = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 336},
}


@pytest.mark.parametrize("ratio", ["anyres_max_9", "pad"])
def test_reads_llava_onevision_as_published(tmp_path, ratio):
    grids = [[384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)]
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "image_grid_pinpoints": grids,
        "image_token_index": 151646,
        "model_type": "llava_onevision",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 896,
            "intermediate_size": 4864,
            "model_type": "qwen2",
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "vocab_size": 152000,
        },
        "vision_aspect_ratio": ratio,
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }
    images = {
        "image_grid_pinpoints": grids,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "size": {"height": 384, "width": 384},
    }
    write(tmp_path, untied=True, config=config, preprocessor_config=images)
    found = read_config_json(tmp_path)
    if ratio == "pad":
        assert found.pictures is None
        return
    facts = found.pictures
    assert (facts.side, facts.rows_per_crop, len(facts.mosaics)) == (384, 27**2, 36)
    assert 9 * 27**2 < facts.most_states < 1.21 * 9 * 27**2 + 6 * 27
    assert found.vision.num_hidden_layers == 26 and found.vision.scale == (2 / 255,) * 3


def test_reads_llava_1_5_as_published(tmp_path):
    write(tmp_path, untied=True, config=LLAVA_1_5, preprocessor_config=CLIP_IMAGES)
    config = read_config_json(tmp_path)
    facts, vision = config.pictures, config.vision
    assert (facts.side, facts.rows_per_crop, facts.shortest_edge) == (336, 576, 336)
    assert (facts.placeholder, facts.placeholder_id) == ("<image>", 32000)
    assert (vision.num_hidden_layers, vision.hidden_act) == (23, "quick_gelu")
    assert vision.has_class_state and not vision.keeps_class_state


INTERNVL3_1B: dict[str, Any] = {
    "architectures": ["InternVLForConditionalGeneration"],
    "downsample_ratio": 0.5,
    "image_seq_length": 256,
    "image_token_id": 151667,
    "model_type": "internvl",
    "projector_hidden_act": "gelu",
    "text_config": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "vocab_size": 151674,
    },
    "vision_config": {
        "attention_bias": True,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "image_size": [448, 448],
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "model_type": "internvl_vision",
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": [14, 14],
        "use_absolute_position_embeddings": True,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
}
INTERNVL_IMAGES: dict[str, Any] = {
    "crop_to_patches": False,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "size": {"height": 448, "width": 448},
}


def test_reads_internvl3_1b_as_published(tmp_path):
    write(tmp_path, untied=True, config=INTERNVL3_1B, preprocessor_config=INTERNVL_IMAGES)
    config = read_config_json(tmp_path)
    facts, vision = config.pictures, config.vision
    assert (facts.side, facts.rows_per_crop, facts.tiles) == (448, 256, (1, 12))
    assert (facts.placeholder_id, facts.before, facts.after) == (151667, "<img>", "</img>")
    assert (vision.joined, vision.num_hidden_layers, vision.attention_bias) == (2, 24, True)
    assert not vision.has_last_norm and not vision.norms_queries


GEMMA4_VISION: dict[str, Any] = {
    "head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "model_type": "gemma4_vision",
    "num_attention_heads": 12,
    "num_hidden_layers": 16,
    "num_key_value_heads": 12,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 10240,
    "rms_norm_eps": 1e-06,
    "use_clipped_linears": True,
}
GEMMA4_IMAGES: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_normalize": False,
    "image_mean": [0.0, 0.0, 0.0],
    "image_processor_type": "Gemma4ImageProcessor",
    "image_std": [1.0, 1.0, 1.0],
    "max_soft_tokens": 280,
    "patch_size": 16,
    "pooling_kernel_size": 3,
    "resample": 3,
}


@pytest.mark.parametrize("sees", [None, "vision"])
def test_reads_gemma_4s_towers(tmp_path, sees):
    config = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "image_token_id": 258880,
        "model_type": "gemma4",
        "text_config": {"model_type": "gemma4_text", "use_bidirectional_attention": sees},
        "vision_config": GEMMA4_VISION,
    }
    write(tmp_path, untied=True, config=config, preprocessor_config=GEMMA4_IMAGES)
    config = read_config_json(tmp_path)
    facts, vision = config.pictures, config.vision
    assert (facts.side, facts.most_squares, facts.placeholder_id) == (48, 280, 258880)
    assert facts.looks_both_ways == (sees is not None)
    assert (vision.head_dim, vision.num_positions, vision.has_bounds) == (64, 10240, True)
    assert vision.scale == (2 / 255,) * 3 and vision.shift == (-1.0,) * 3


QWEN = {"config": QWEN2_5_VL_3B, "preprocessor_config": QWEN2_5_VL_IMAGES}
LLAVA = {"config": LLAVA_1_5, "preprocessor_config": CLIP_IMAGES}
MISTRAL = {
    "config": MISTRAL_SMALL_3_1,
    "preprocessor_config": MISTRAL_IMAGES,
    "processor_config": MISTRAL_PROCESSOR,
}
OTHER_DEFECTS: list[tuple[dict[str, Any], str, dict[str, Any], str]] = [
    (LLAVA, "config", {"vision_config": {"model_type": "vit"}}, "or pixtral"),
    (LLAVA, "config", {"vision_feature_layer": [2, 3]}, "from -24 to 24"),
    (LLAVA, "preprocessor_config", {"crop_size": {"height": 28, "width": 28}}, "28 x 28"),
    (LLAVA, "preprocessor_config", {"crop_size": {"height": 8, "width": 9}}, "one length"),
    (MISTRAL, "processor_config", {"spatial_merge_size": 1}, "14 x 14 pixels"),
    (MISTRAL, "preprocessor_config", {"size": {"height": 8, "width": 9}}, "one length for both"),
    (MISTRAL, "config", {"vision_feature_layer": [2, 3]}, "must be -1"),
    (QWEN, "preprocessor_config", {"image_processor_type": "New"}, "must be Qwen2VLImageProcessor"),
    (QWEN, "preprocessor_config", {"merge_size": 3}, "merge_size is 3; it must be 2"),
    (QWEN, "preprocessor_config", {"min_pixels": 1 << 24}, "16777216 to 12845056 pixels"),
    (QWEN, "preprocessor_config", {"min_pixels": 9, "max_pixels": 9}, "the 28 x 28 pixels of a"),
    *(
        (
            QWEN,
            "config",
            {"rope_scaling": {"mrope_section": sections, "type": "mrope"}},
            "sum is 64",
        )
        for sections in ([16, 24, 25], [64], "all", [16.0, 24, 24])
    ),
]


@pytest.mark.parametrize(("files", "name", "changes", "reason"), OTHER_DEFECTS)
def test_the_text_model_remains_if_pictures_cannot_be_prepared(
    files, name, changes, reason, tmp_path
):
    write(tmp_path, untied=True, **files | {name: files[name] | changes})
    with structlog.testing.capture_logs() as logs:
        config = read_config_json(tmp_path)
    assert config.pictures is None and reason in logs[0]["reason"]


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_of_the_processors_files_say_the_same(kind, tmp_path):
    config = read_config_json(make_wrapper(tmp_path, kind))
    split_processor_files(tmp_path)
    assert read_config_json(tmp_path) == config
    assert config.pictures is not None


@pytest.mark.parametrize("layout", GEMMA3_LAYOUTS)
def test_tensors_may_have_the_names_of_any_release(layout, tmp_path):
    pixels = torch.randint(0, 256, (1, 28, 28, 3), dtype=torch.uint8)
    before = load(make_wrapper(tmp_path, "gemma3")).picture_encoder
    rename_tensors(tmp_path, GEMMA3_LAYOUTS[layout])
    after = load(tmp_path).picture_encoder
    assert torch.equal(encoded(before, pixels), encoded(after, pixels))


DEFECTS = {
    "processor_config.json": (
        (None, "neither processor_config.json nor preprocessor_config.json"),
        ("{", "not valid JSON"),
        ({"image_seq_length": 5, "image_seq_len": 5}, "5"),
    ),
    "preprocessor_config.json": (
        ({"image_processor_type": "NewImageProcessor"}, "'NewImageProcessor'"),
        ({"size": 7, "max_image_size": "large"}, "must be an object"),
        ({"size": {"longest_edge": 924, "height": 924}}, "924"),
        ({"do_resize": False}, "do_resize is False; it must be true"),
    ),
    "config.json": (({"image_token_index": ..., "image_token_id": ...}, "image_token"),),
}
"""For each file, its new text or changed keys, or None where it is missing, and the reason."""


@pytest.mark.parametrize(
    ("name", "defect", "reason"),
    [(name, *defect) for name, defects in DEFECTS.items() for defect in defects],
)
@pytest.mark.parametrize("kind", CROP_KINDS)
def test_without_usable_files_the_text_model_remains(kind, name, defect, reason, tmp_path):
    whole = load(make_wrapper(tmp_path, kind))
    path = tmp_path / name
    if name == "preprocessor_config.json":
        split_processor_files(tmp_path)
    if defect is None:
        path.unlink()
    elif isinstance(defect, str):
        path.write_text(defect)
    else:
        change_json(path, **defect)
    with structlog.testing.capture_logs() as logs:
        text = load(tmp_path)
    [entry] = [one for one in logs if one["event"] == "the model will not accept images"]
    assert reason in entry["reason"] and entry["log_level"] == "warning"
    assert text.config.pictures is None and text.picture_encoder is None
    hidden = torch.randn(2, whole.config.hidden_size)
    assert torch.equal(text.compute_logits(hidden), whole.compute_logits(hidden))
    assert not planned(tmp_path).encoder_bytes(4)


def test_positions_may_be_stretched(tmp_path):
    rope = {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4}
    rope |= {"original_max_position_embeddings": 32768}
    config = read_config_json(write(tmp_path, config=QWEN2_5_VL_3B | {"rope_scaling": rope}))
    assert config.rope_scaling["rope_type"] == "yarn" and config.rope_axes[15:17] == (0, 1)


def test_pan_and_scan_is_not_supported(tmp_path):
    make_wrapper(tmp_path, "gemma3")
    split_processor_files(tmp_path)
    change_json(tmp_path / "preprocessor_config.json", do_pan_and_scan=True)
    assert read_config_json(tmp_path).pictures is None


def test_another_text_model_is_refused(tmp_path):
    make_wrapper(tmp_path, "smolvlm")
    change_json(tmp_path / "config.json", text_config={"model_type": "qwen2"})
    with pytest.raises(UnsupportedArchitecture, match="'qwen2' is not supported"):
        read_config_json(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_plans_count_the_encoder_and_leave_it_plain(kind, tmp_path):
    plain = planned(make_wrapper(tmp_path, kind, text=WIDE))
    num_bytes = (tmp_path / "model.safetensors").stat().st_size
    assert 0.9 * num_bytes < plain.num_bytes(4) < num_bytes
    names = [name for name in plain.shapes if name.startswith("picture_encoder.")]
    assert names and not any(".layers." in name and "picture" in name for name in plain.layers)
    rounded = planned(tmp_path, "int8")
    assert rounded.layers and rounded.encoder_bytes(4) == plain.encoder_bytes(4)
    assert not any(name.startswith("picture_encoder.") for name in rounded.layers)
    assert not any(name.startswith("picture_encoder.") for name in plain.layer_weights())


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_text_model_keeps_its_encoder(kind, tmp_path):
    source, folder = make_wrapper(tmp_path / "plain", kind, text=WIDE), tmp_path / "rounded"
    bits = random.choice((4, 8))
    write_rounded(in_folder(source), folder, lambda _: None, bits=bits, wanted_group=None)
    plan = planned(folder, "auto")
    assert plan.stored == "gptq"
    assert plan.layers and not any("picture_encoder" in name for name in plan.layers)
    config = load_model_config(in_folder(folder))
    model = create_model(config, dtype=torch.float32, linear_method=plan.method_for)
    assert model.load_weights(iter_weights(in_folder(folder), config, plan.packed)) == []
    pixels = torch.randint(0, 256, (2, 48, 48, 3), dtype=torch.uint8)
    pixels = pixels if kind in GRID_KINDS else pixels[:, :28, :28]
    before, after = load(source).picture_encoder, model.picture_encoder
    assert torch.equal(encoded(before, pixels), encoded(after, pixels))


def test_layers_that_guess_tokens_are_left_out(tmp_path):
    path = make_wrapper(tmp_path, "qwen3_5") / "model.safetensors"
    before = planned(tmp_path)
    save_file(load_file(path) | {"mtp.fc.weight": torch.ones(8, 8)}, path)
    assert planned(tmp_path).shapes == before.shapes
    load(tmp_path)
