"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and the mixtures of the last two: decoders whose
positions have axes in pictures, with towers for pictures of any size.

Papers: Wang et al. 2024, arXiv:2409.12191; Bai et al. 2025, arXiv:2502.13923.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from engine.contract.picture_facts import PictureFacts
from engine.errors import ModelLoadError
from engine.models import json_keys, qwen2, qwen3, qwen3_5, qwen3_moe, qwen3_next
from engine.models.causal_lm import CausalLM
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.family import Family
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_keys import PictureKeys
from engine.models.projector_keys import LAYERS, ProjectorKeys
from engine.models.vision.grid_tower import GridEncoder, GridVisionConfig
from engine.models.vision_config import VisionConfig
from engine.quantization.plan import PICTURE_ENCODER

_PIXELS = (56 * 56, 28 * 28 * 1280)
"""The fewest and the most pixels of a picture, if the files name none."""
_MOST_PIXELS = 1 << 26
_TEXT: Mapping[str, Any] = {
    "vocab_size": 152_064,
    "hidden_size": 8192,
    "intermediate_size": 29_568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32_768,
    "max_window_layers": 80,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}
"""The values of missing keys, as in the next tables."""
_QWEN3_TEXT: Mapping[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 128_000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5e5,
}
_QWEN3_MIXTURE: Mapping[str, Any] = {
    **_QWEN3_TEXT,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_local_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "norm_topk_prob": True,
}
_QWEN3_5_TEXT: Mapping[str, Any] = {
    "vocab_size": 248_320,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_QWEN3_5_MIXTURE: Mapping[str, Any] = {
    **_QWEN3_5_TEXT,
    "hidden_size": 2048,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
}
_VISION = {"depth": 32, "num_heads": 16, "patch_size": 14}
_QWEN3_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Release:
    """What distinguishes the models of a release."""

    decoder: Family
    """The text model's family."""
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    """The values of missing keys."""
    sections: tuple[int, ...]
    """The number of rotary frequencies that turn by time, height and width."""
    is_interleaved: bool = False
    """Whether these frequencies take turns, instead of standing in three sections."""
    placeholder_id: int = 151_655
    projector: str | None = None
    """The type of encoder in an mmproj file; None if such files are not read."""
    pixels: tuple[int, int]
    """The fewest and the most pixels of a picture in the published files of the processor, which
    an mmproj file lacks."""
    tower: Callable[[MetadataKeys, int], dict[str, Any]]
    """Reads the fields of `GridVisionConfig` from the tower's keys and the width of a prompt
    row's square."""


def _qwen2_tower(keys: MetadataKeys, side: int) -> dict[str, Any]:
    size = keys.integer("embed_dim", 1280)
    inner = size * keys.integer("mlp_ratio", 4)
    return {"hidden_size": size, "intermediate_size": inner, "mlp": ("fc1", "fc2")}


def _qwen2_5_tower(keys: MetadataKeys, side: int) -> dict[str, Any]:
    if keys.text("hidden_act") != "silu":
        raise keys.nonsense("hidden_act", "silu")
    return {
        "mlp": ("gate_proj", "up_proj", "down_proj"),
        "has_rms_norms": True,
        "window": max(1, keys.integer("window_size", 112) // side),
        "whole_layers": _layers(keys, "fullatt_block_indexes"),
    }


def _qwen3_tower(keys: MetadataKeys, side: int) -> dict[str, Any]:
    positions = keys.integer("num_position_embeddings", 2304)
    return {
        "mlp": ("linear_fc1", "linear_fc2"),
        "has_patch_bias": True,
        "image_size": int(positions**0.5) * keys.integer("patch_size"),
        "deep_layers": _layers(keys, "deepstack_visual_indexes"),
    }


def _layers(keys: MetadataKeys, key: str) -> tuple[int, ...]:
    found = keys.values.get(key)
    if not isinstance(found, list) or not all(type(one) is int for one in found):
        raise keys.nonsense(key, "a list of layers' numbers")
    return tuple(found)


_RELEASES = {
    ("Qwen2VLForConditionalGeneration", "qwen2_vl"): _Release(
        decoder=qwen2.FAMILIES[0],
        text=_TEXT,
        vision=_VISION | {"hidden_size": 3584, "hidden_act": "quick_gelu"},
        sections=(16, 24, 24),
        projector="qwen2vl_merger",
        pixels=(56 * 56, 28 * 28 * 16_384),
        tower=_qwen2_tower,
    ),
    ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl"): _Release(
        decoder=qwen2.FAMILIES[0],
        text=_TEXT,
        vision=_VISION
        | {
            "hidden_size": 3584,
            "intermediate_size": 3420,
            "hidden_act": "silu",
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        sections=(16, 24, 24),
        projector="qwen2.5vl_merger",
        pixels=(56 * 56, 28 * 28 * 16_384),
        tower=_qwen2_5_tower,
    ),
    ("Qwen3VLForConditionalGeneration", "qwen3_vl"): _Release(
        decoder=qwen3.FAMILIES[0],
        text=_QWEN3_TEXT,
        vision=_QWEN3_VISION | {"deepstack_visual_indexes": [8, 16, 24]},
        sections=(24, 20, 20),
        is_interleaved=True,
        projector="qwen3vl_merger",
        pixels=(1 << 16, 1 << 24),
        tower=_qwen3_tower,
    ),
    ("Qwen3_5ForConditionalGeneration", "qwen3_5"): _Release(
        decoder=qwen3_5.FAMILIES[0],
        text=_QWEN3_5_TEXT,
        vision=_QWEN3_VISION | {"deepstack_visual_indexes": []},
        sections=(11, 11, 10),
        is_interleaved=True,
        placeholder_id=248_056,
        projector="qwen3vl_merger",
        pixels=(1 << 16, 1 << 24),
        tower=_qwen3_tower,
    ),
}
_RELEASES |= {
    ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe"): replace(
        _RELEASES["Qwen3VLForConditionalGeneration", "qwen3_vl"],
        decoder=qwen3_moe.FAMILIES[0],
        text=_QWEN3_MIXTURE,
        projector=None,
    ),
    ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe"): replace(
        _RELEASES["Qwen3_5ForConditionalGeneration", "qwen3_5"],
        decoder=qwen3_next.FAMILIES[1],
        text=_QWEN3_5_MIXTURE,
        projector=None,
    ),
}


def create(release: _Release, config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build the decoder, with an encoder if the checkpoint says how to use it."""
    model: CausalLM = release.decoder.create(config, options)
    if isinstance(config.vision, GridVisionConfig):
        model.picture_encoder = GridEncoder(config.vision, config.hidden_size)
    return model


def read_json(architecture: str, release: _Release, keys: MetadataKeys) -> ModelConfig:
    """Read the text model's keys of config.json, which older files have beside the tower's."""
    stated = keys.inner("text_config", release.text)
    if keys.values.get("text_config") is None:
        stated = MetadataKeys({**release.text, **keys.values}, keys.source)
    rope = json_keys.rope_parameters(stated)
    kind = rope.get("rope_type") or rope.get("type")
    rope["rope_type"] = "default" if kind == "mrope" else kind
    of_text = stated.flag("tie_word_embeddings", False)
    tied = keys.flag("tie_word_embeddings", of_text)  # files of a mixture may contradict themselves
    changes = {
        "rope_parameters": json_keys.without_axes(rope),
        "rope_scaling": None,
        "tie_word_embeddings": tied,
    }
    text = MetadataKeys({**stated.values, **changes}, stated.source)
    config: ModelConfig = release.decoder.read_json(text)
    half = (config.rotary_dim or config.head_dim) // 2
    axes = _axes(rope.get("mrope_section", release.sections), half, release.is_interleaved)
    return replace(config, architecture=architecture, is_wrapped=True, rope_axes=axes)


def _axes(sections: object, half: int, is_interleaved: bool) -> tuple[int, ...]:
    """Return `ModelConfig.rope_axes` for `half` frequencies; empty if the sections do not fit."""
    if not isinstance(sections, list | tuple) or not all(type(one) is int for one in sections):
        return ()
    if len(sections) != 3 or sum(sections) != half:
        return ()
    if not is_interleaved:
        return tuple(axis for axis, count in enumerate(sections) for _ in range(count))
    axes = [0] * half
    for axis in (1, 2):
        for place in range(axis, min(3 * sections[axis], half), 3):
            axes[place] = axis
    return tuple(axes)


def read_pictures(
    release: _Release, keys: PictureKeys, config: ModelConfig
) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    keys.check_processor("Qwen2VLImageProcessor")
    if not config.rope_axes:
        half = (config.rotary_dim or config.head_dim) // 2
        raise ModelLoadError(
            f"{keys.config.source}: mrope_section must be three numbers whose sum is {half}, half "
            f"of the numbers of a head that are rotated"
        )
    keys = keys.with_clip_colours()
    images = keys.images
    vision = keys.config.inner("vision_config", release.vision)
    patch, joined = vision.integer("patch_size"), vision.integer("spatial_merge_size", 2)
    frames = vision.integer("temporal_patch_size", 2)
    shapes = {"patch_size": (14, patch), "merge_size": (2, joined)}
    for name, (usual, needed) in {**shapes, "temporal_patch_size": (2, frames)}.items():
        if images.integer(name, usual) != needed:
            raise images.nonsense(name, f"{needed}, as in {vision.source}")
    side = patch * joined
    size = images.inner("size")
    fewest, most = (
        images.integer(f"{end}_pixels", size.integer(f"{edge}_edge", usual), high=_MOST_PIXELS)
        for end, edge, usual in zip(("min", "max"), ("shortest", "longest"), _PIXELS, strict=True)
    )
    if not fewest <= most or most < side**2:
        raise ModelLoadError(
            f"{images.source}: pictures have {fewest} to {most} pixels; the second number must not "
            f"be smaller than the first, or than the {side} x {side} pixels of a prompt row"
        )
    placeholder = keys.token("image_token", "<|image_pad|>")
    facts = PictureFacts(
        side=side,
        rows_per_crop=1,
        marker=placeholder,
        placeholder=placeholder,
        placeholder_id=keys.placeholder_id(
            "image_token_id", release.placeholder_id, config.vocab_size
        ),
        resampling=keys.resampling("bicubic"),
        before="",
        after="",
        pixel_bounds=(fewest, most),
        has_axes=True,
    )
    own = release.tower(vision, side)
    named = {
        "num_hidden_layers": vision.integer("depth"),
        "num_attention_heads": vision.integer("num_heads"),
    }
    tower = MetadataKeys({"layer_norm_eps": 1e-6, **vision.values, **named, **own}, vision.source)
    fields = {**keys.tower_fields(tower), **own, **keys.form}
    return facts, GridVisionConfig(**fields, joined=joined, frames=frames)


def read_projector(
    release: _Release, keys: ProjectorKeys, config: ModelConfig
) -> tuple[PictureKeys, ModelConfig]:
    """Read the keys of an mmproj file. It has queries, keys and values apart in older models, and
    the weights of patches apart for each frame."""
    text, num_layers = keys.text_keys, keys.size("block_count")
    sections = text.values.get(text.own("rope.dimension_sections"))
    sections = sections[:3] if isinstance(sections, list) else release.sections
    half = (config.rotary_dim or config.head_dim) // 2
    axes = _axes(sections, half, release.is_interleaved)
    deep = keys.flags("clip.vision.is_deepstack_layers")
    period = keys.size("n_wa_pattern", num_layers)
    inner = keys.shapes.get("v.blk.0.ffn_up.weight", (None,))[0]
    tower = keys.vision(
        depth=num_layers,
        num_heads=keys.size("attention.head_count"),
        embed_dim=keys.size("embedding_length"),
        intermediate_size=inner,
        mlp_ratio=None if inner is None else max(1, inner // keys.size("embedding_length")),
        spatial_merge_size=keys.size("spatial_merge_size", 2),
        num_position_embeddings=keys.shapes.get("v.position_embd.weight", (None,))[0],
        fullatt_block_indexes=list(range(period - 1, num_layers, period)),
        deepstack_visual_indexes=[layer for layer, is_deep in enumerate(deep) if is_deep],
        layer_norm_eps=None,
    )
    form: dict[str, Any] = {"frame_weights": ("weight", "weight.1")}
    if "v.blk.0.attn_q.weight" in keys.shapes:
        form["qkv"] = ("q", "k", "v")
    fewest, most = release.pixels
    found = keys.picture_keys(
        {"vision_config": tower},
        placeholder="<|image_pad|>",
        id_key="image_token_id",
        images={
            "patch_size": keys.size("patch_size"),
            "merge_size": keys.size("spatial_merge_size", 2),
            "min_pixels": keys.size("image_min_pixels", fewest),
            "max_pixels": keys.size("image_max_pixels", most),
        },
        form=form,
    )
    return found, replace(config, rope_axes=axes)


_NAMES = {
    "attn_qkv": "attn.qkv",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_out": "attn.proj",
    "ln1": "norm1",
    "ln2": "norm2",
}


def _tensors(release: _Release) -> dict[str, str]:
    """Return GGUF's names of tensors."""
    own = release.tower
    up, down = ("fc1", "fc2") if own is _qwen2_tower else ("linear_fc1", "linear_fc2")
    mlp = {"ffn_up": f"mlp.{up}", "ffn_down": f"mlp.{down}"}
    if own is _qwen2_5_tower:
        mlp = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    return {
        **release.decoder.gguf_tensors,
        **{f"v.{own}": name for own, name in (_NAMES | mlp).items()},
        LAYERS: f"{PICTURE_ENCODER}blocks",
        "v.patch_embd": f"{PICTURE_ENCODER}patch_embed.proj",
        "v.patch_embd.weight.1.": f"{PICTURE_ENCODER}patch_embed.proj.weight.1",
        "v.position_embd": f"{PICTURE_ENCODER}pos_embed",
        "v.post_ln": f"{PICTURE_ENCODER}projector.norm",
        "mm.0": f"{PICTURE_ENCODER}projector.linear_fc1",
        "mm.2": f"{PICTURE_ENCODER}projector.linear_fc2",
    } | {
        f"v.deepstack.{layer}.{part}": f"{PICTURE_ENCODER}deepstack_merger_list.{layer}.{name}"
        for part, name in (("norm", "norm"), ("fc1", "linear_fc1"), ("fc2", "linear_fc2"))
        for layer in range(MAX_LAYERS if own is _qwen3_tower else 0)
    }


FAMILIES = tuple(
    Family(
        architecture=architecture,
        model_type=model_type,
        create=partial(create, release),
        read_json=partial(read_json, architecture, release),
        read_pictures=partial(read_pictures, release),
        projector=(release.projector, release.decoder.architecture) if release.projector else None,
        read_projector=partial(read_projector, release),
        gguf_tensors=_tensors(release),
        gguf_original=release.decoder.gguf_original,
    )
    for (architecture, model_type), release in _RELEASES.items()
)
