"""Writes tiny models that take pictures as two GGUF files, as llama.cpp's converter (release
b11434) does: the text model, and the encoder as an mmproj file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

from tests.helpers.models.gguf_converter import Array, Config, Conversion, write_text_model
from tests.helpers.models.gguf_files import write_gguf
from tests.helpers.models.tiny_wrappers import GRID_PIXELS, LONGEST_EDGE

PROJECTORS = {
    "gemma3": "gemma3",
    "smolvlm": "idefics3",
    "qwen2_vl": "qwen2vl_merger",
    "qwen2_5_vl": "qwen2.5vl_merger",
    "qwen3_vl": "qwen3vl_merger",
}
"""The kinds, and the types of their encoders."""


def write_both(folder: Path, kind: str) -> tuple[Path, Path]:
    """Write the model of a folder beside its files; return the text model's path and the
    encoder's."""
    config = json.loads((folder / "config.json").read_text())
    texts: dict[str, Array] = {}
    pictures: dict[str, Array] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        own = re.sub(r"^(model\.)?(language_model\.|text_model\.)?(model\.)?", "", name)
        if own.startswith(("visual.", "vision_", "multi_modal", "connector.")):
            pictures[own] = weight
        else:
            texts[own if own.startswith("lm_head") else f"model.{own}"] = weight
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    ids = vocabulary["model"]["vocab"] | {
        token["content"]: token["id"] for token in vocabulary["added_tokens"]
    }
    text_config = config["text_config"]
    path = write_text_model(
        folder,
        _TEXTS[kind],
        text_config,
        texts,
        tokenizer__ggml__tokens=sorted(ids, key=ids.__getitem__),
        tokenizer__ggml__model=None,
    )
    return path, _write_projector(folder, kind, config, pictures)


def _write_projector(folder: Path, kind: str, config: Config, weights: dict[str, Array]) -> Path:
    vision = config["vision_config"]
    num_layers = vision.get("depth") or vision["num_hidden_layers"]
    sizes = {
        "projection_dim": config["text_config"]["hidden_size"],
        "image_size": vision.get("image_size"),
        "patch_size": vision["patch_size"],
        "embedding_length": vision.get("embed_dim") or vision["hidden_size"],
        "feed_forward_length": vision.get("intermediate_size"),
        "block_count": num_layers,
        "attention.head_count": vision.get("num_heads") or vision.get("num_attention_heads"),
        "attention.layer_norm_epsilon": 1e-6,
    }
    images: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if kind == "gemma3":
        images["projector.scale_factor"] = 2
    elif kind == "smolvlm":
        images |= {"projector.scale_factor": 2, "preproc_image_size": LONGEST_EDGE}
    else:
        images = {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "spatial_merge_size": 2,
            "image_min_pixels": GRID_PIXELS["shortest_edge"],
            "image_max_pixels": GRID_PIXELS["longest_edge"],
        }
    if kind == "qwen2_5_vl":
        images["n_wa_pattern"] = vision["fullatt_block_indexes"][0] + 1
    if kind == "qwen3_vl":
        deep = vision["deepstack_visual_indexes"]
        images["is_deepstack_layers"] = [layer in deep for layer in range(num_layers)]
    metadata = {f"clip.vision.{name}": one for name, one in (sizes | images).items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, num_layers)
    tensors = {}
    for name, weight in weights.items():
        for known, one in _changed(name, weight, kind, vision):
            own = names.get_name(known, try_suffixes=(".weight", ".bias")) or known
            tensors[own] = np.ascontiguousarray(one)
    return write_gguf(
        folder / "mmproj.gguf",
        "clip",
        metadata | {"clip.projector_type": PROJECTORS[kind], "clip.has_vision_encoder": True},
        tensors,
    )


def _changed(name: str, weight: Array, kind: str, vision: Config) -> Iterator[tuple[str, Array]]:
    """`Gemma3VisionModel`, `SmolVLMModel`, `Qwen2VLVisionModel` and `Qwen3VLVisionModel`."""
    if kind == "gemma3":
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
        name = name.replace("_weight", ".weight")
        yield name, weight + 1 if name.endswith("soft_emb_norm.weight") else weight
    elif kind == "smolvlm":
        yield f"model.{name}", weight
    elif name.endswith("patch_embed.proj.weight"):
        yield "v.patch_embd.weight", weight[:, :, 0]
        yield "v.patch_embd.weight.1", weight[:, :, 1]
    elif kind != "qwen3_vl" and ".qkv." in name:
        for part, one in zip("qkv", np.split(weight, 3), strict=True):
            yield name.replace("qkv", part), one
    elif found := re.fullmatch(r"visual\.deepstack_merger_list\.(\d+)\.(?:linear_)?(.+)", name):
        layer = vision["deepstack_visual_indexes"][int(found[1])]
        yield f"v.deepstack.{layer}.{found[2]}", weight
    elif found := re.fullmatch(r"visual\.merger\.(?:norm|linear_fc)(\d?)\.(.+)", name):
        place = {"": "v.post_ln", "1": "mm.0", "2": "mm.2"}[found[1]]
        yield f"{place}.{found[2]}", weight
    else:
        yield name, weight


def _shifted(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`Gemma3Model.modify_tensors`."""
    yield name, weight + 1 if name.endswith("norm.weight") else weight


def _permuted(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`LlamaModel.permute`."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    if key := heads.get(name.split(".")[-2]):
        halves = weight.reshape(config[key], 2, -1, weight.shape[1])
        weight = halves.swapaxes(1, 2).reshape(weight.shape)
    yield name, weight


def _same(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    yield name, weight


def _gemma_keys(config: Config) -> dict[str, Any]:
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": slides,
        "attention.key_length": config["head_dim"],
    }


def _sections(config: Config) -> dict[str, Any]:
    return {"rope.dimension_sections": [*config["rope_parameters"]["mrope_section"], 0]}


_TEXTS = {
    "gemma3": Conversion("gemma3", _gemma_keys, _shifted),
    "smolvlm": Conversion("llama", lambda config: {}, _permuted),
    "qwen2_vl": Conversion("qwen2vl", _sections, _same),
    "qwen2_5_vl": Conversion("qwen2vl", _sections, _same),
    "qwen3_vl": Conversion("qwen3vl", _sections, _same),
}
