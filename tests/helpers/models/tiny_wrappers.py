"""Makes folders of tiny random models that take pictures, with the processor's files, a tokenizer
and a chat template, as transformers saves them."""

import json
import random
import re
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.smolvlm import processing_smolvlm

from engine.models.picture_encoder import PictureEncoder, run_slices
from tools.tiny_models import randomise_vectors

Kind = Literal[
    "gemma3", "smolvlm", "idefics3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "mistral3",
    "qwen3_vl_moe", "qwen3_5_moe",
    "pixtral", "llava", "llava_next", "llava_siglip", "llava_onevision",
    "gemma4", "gemma4_large", "internvl", "internvl_large",
]  # fmt: skip
CROP_KINDS: tuple[Kind, ...] = ("gemma3", "smolvlm", "idefics3")
"""Models that see pictures in crops of one size."""
QWEN_KINDS: tuple[Kind, ...] = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_vl_moe", "qwen3_5_moe",
)  # fmt: skip
PIXTRAL_KINDS: tuple[Kind, ...] = ("mistral3", "pixtral")
GEMMA4_KINDS: tuple[Kind, ...] = ("gemma4", "gemma4_large")
GRID_KINDS = (*QWEN_KINDS, *PIXTRAL_KINDS, *GEMMA4_KINDS)
"""Models that see pictures of any size."""
LLAVA_KINDS: tuple[Kind, ...] = ("llava", "llava_next", "llava_siglip", "llava_onevision")
MOSAIC_KINDS: tuple[Kind, ...] = ("llava_next", "llava_onevision")
INTERN_KINDS: tuple[Kind, ...] = ("internvl", "internvl_large")
TILE_KINDS = (*LLAVA_KINDS, *INTERN_KINDS)
"""Models that see pictures in crops of one size, and pair their towers with any decoder."""
KINDS = (*CROP_KINDS, *GRID_KINDS, *TILE_KINDS)
VOCAB_SIZE = 384
SIDE = 28
LONGEST_EDGE = 4 * SIDE
"""SmolVLM and Idefics3 cut pictures of this size into 4 x 4 crops."""
ROWS_PER_CROP = 4

GEMMA3_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST]"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}[IMG]"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}[/INST]"
    "{% else %}{{ message['content'][0]['text'] }}{{ eos_token }}{% endif %}{% endfor %}"
)

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIDE,
    "patch_size": 7,
}
_GEMMA3_TOKENS = {
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
_SMOLVLM_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<|im_end|>",
    "fake_image_token": "<fake_token_around_image>",
    "image_token": "<image>",
    "global_image_token": "<global-img>",
}
_QWEN_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
_QWEN_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_heads": 3,
    "patch_size": 4,
    "initializer_range": 0.2,
}
_QWEN_PARTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_vl": (
        "Qwen2VL",
        {"hidden_size": 96, "mrope_section": [2, 3, 3]},
        {"embed_dim": 24, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"hidden_size": 96, "mrope_section": [2, 3, 3]},
        {"window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {"hidden_size": 48, "head_dim": 16, "mrope_section": [4, 2, 2]},
        {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]},
    ),
    "qwen3_5": (
        "Qwen3_5",
        {
            "hidden_size": 48,
            "head_dim": 32,
            "mrope_section": [2, 1, 1],
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 24,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        {"num_position_embeddings": 36},
    ),
}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_QWEN_PARTS |= {
    f"{dense}_moe": (
        f"{_QWEN_PARTS[dense][0]}Moe",
        _QWEN_PARTS[dense][1] | more,
        _QWEN_PARTS[dense][2],
    )
    for dense, more in {
        "qwen3_vl": _EXPERTS,
        "qwen3_5": _EXPERTS | {"shared_expert_intermediate_size": 64},
    }.items()
}
"""For each kind, its name in transformers, and what its two parts have besides."""
GRID_PIXELS = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 60}
"""The fewest and the most pixels of a picture of `QWEN_KINDS`: 4 to 60 prompt rows."""
MOSAICS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
"""The heights and widths of the mosaics of LLaVA-NeXT and LLaVA-OneVision."""
_LLAVA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "image_token": "<image>",
    "video_token": "<video>",
}
_LLAVA_TEMPLATE = SMOLVLM_TEMPLATE.replace("<|im_start|>", "<s>").replace(
    "<end_of_utterance>", "</s>"
)
_GEMMA4_TOKENS = {
    "bos_token": "<bos>",
    "eos_token": "<turn|>",
    "pad_token": "<pad>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "audio_token": "<|audio|>",
}
_GEMMA4_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|image|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
_GEMMA4_TEXT: dict[str, dict[str, Any]] = {
    "gemma4": {"hidden_size_per_layer_input": 6, "num_kv_shared_layers": 1},
    "gemma4_large": {
        "hidden_size_per_layer_input": 0,
        "use_bidirectional_attention": "vision",
        "sliding_window": 24,
    },
}
_GEMMA4_VISION: dict[str, dict[str, Any]] = {
    "gemma4": {"use_clipped_linears": True, "pooling_kernel_size": 2},
    "gemma4_large": {"standardize": True, "pooling_kernel_size": 3, "hidden_size": 48},
}
_INTERN_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<pad>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_INTERN_TEMPLATE = SMOLVLM_TEMPLATE.replace("<end_of_utterance>", "<|im_end|>").replace(
    "<image>", "<IMG_CONTEXT>\n"
)
_MISTRAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}
_MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.2,
}
_PIXTRAL_VISION: dict[str, Any] = {
    "model_type": "pixtral",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 4,
    "initializer_range": 0.2,
}
_TURNS = ("<start_of_turn>", "<end_of_turn>")
_GRID = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_FORMS: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "gemma3": (_GEMMA3_TOKENS, _TURNS, GEMMA3_TEMPLATE),
    "smolvlm": (_SMOLVLM_TOKENS, _GRID, SMOLVLM_TEMPLATE),
    "idefics3": (_SMOLVLM_TOKENS, _GRID, SMOLVLM_TEMPLATE),
    **dict.fromkeys(GEMMA4_KINDS, (_GEMMA4_TOKENS, ("<|video|>",), _GEMMA4_TEMPLATE)),
    **dict.fromkeys(INTERN_KINDS, (_INTERN_TOKENS, (), _INTERN_TEMPLATE)),
    **dict.fromkeys(LLAVA_KINDS, (_LLAVA_TOKENS, (), _LLAVA_TEMPLATE)),
    "mistral3": (_MISTRAL_TOKENS, ("[INST]", "[/INST]"), MISTRAL_TEMPLATE),
    "pixtral": (_MISTRAL_TOKENS, ("[INST]", "[/INST]"), MISTRAL_TEMPLATE),
}
"""The named tokens, further tokens and chat template of each kind but `QWEN_KINDS`."""


def make_wrapper(
    folder: Path,
    kind: Kind,
    *,
    seed: int | None = None,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    longest_edge: int = LONGEST_EDGE,
    **overrides: Any,
) -> Path:
    """Make a model with its processor's files. Token ids are bytes up to 255.

    Args:
        seed: by default drawn from `random`.
        text, vision: changes of the two configurations.
        longest_edge: of the pictures that SmolVLM and Idefics3 cut into crops.
        overrides: changes of the wrapper's own configuration.
    """
    tokenizer = write_tokenizer(folder, kind)
    model = _create(kind, tokenizer, text or {}, vision or {}, overrides, seed)
    model.save_pretrained(folder)
    if kind in GRID_KINDS:
        _grid_processor(kind, tokenizer).save_pretrained(folder)
        return folder
    if kind in INTERN_KINDS:
        _intern_processor(tokenizer).save_pretrained(folder)
        return folder
    if kind in LLAVA_KINDS:
        _llava_processor(kind, tokenizer, model.config).save_pretrained(folder)
        return folder
    side = model.config.vision_config.image_size
    _processor(kind, tokenizer, side, _rows_per_crop(kind, model), longest_edge).save_pretrained(
        folder
    )
    return folder


@torch.inference_mode()
def encoded(encoder: PictureEncoder | None, pixels: torch.Tensor) -> torch.Tensor:
    """The states of crops: [N, S, S, 3] → [N, L, C]."""
    assert encoder is not None
    found = [run_slices(encoder.begin(crop)) for crop in pixels]
    return torch.stack([states for states in found if states is not None])


def write_tokenizer(folder: Path, kind: Kind) -> Any:
    """Write a tokenizer of bytes, in which neighbouring newlines are one token, and a chat
    template. Return transformers' tokenizer."""
    named, more, template = _FORMS.get(kind, (_QWEN_TOKENS, (), QWEN_TEMPLATE))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("ĊĊ", "Ċ")]
    words = [*alphabet, "ĊĊ", "ĊĊĊ"]
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (*named.values(), *more)]
    )
    usual = {"bos_token", "eos_token", "pad_token"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        extra_special_tokens={name: one for name, one in named.items() if name not in usual},
        **{name: one for name, one in named.items() if name in usual},
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def _create(
    kind: Kind,
    tokenizer: Any,
    text: dict[str, Any],
    vision: dict[str, Any],
    overrides: dict[str, Any],
    seed: int | None,
) -> Any:
    names = {
        "gemma3": "Gemma3",
        "smolvlm": "SmolVLM",
        "idefics3": "Idefics3",
        "mistral3": "Mistral3",
        "pixtral": "Llava",
        "llava": "Llava",
        "llava_next": "LlavaNext",
        "llava_siglip": "Llava",
        "llava_onevision": "LlavaOnevision",
        "gemma4": "Gemma4",
        "gemma4_large": "Gemma4",
        "internvl": "InternVL",
        "internvl_large": "InternVL",
    }
    name = names[kind] if kind in names else _QWEN_PARTS[kind][0]
    create = getattr(transformers, f"{name}ForConditionalGeneration")
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image_token_id = getattr(tokenizer, "image_token_id", None)
    own: dict[str, Any] = {"image_token_id": image_token_id, "scale_factor": 2}
    text = _TEXT | ends | {"model_type": "llama"} | text
    if kind == "gemma3":
        own = {
            "mm_tokens_per_image": ROWS_PER_CROP,
            "image_token_index": tokenizer.image_token_id,
            "boi_token_index": tokenizer.boi_token_id,
            "eoi_token_index": tokenizer.eoi_token_id,
        }
        windows: dict[str, Any] = {"sliding_window": 16, "sliding_window_pattern": 4}
        text = windows | text | {"model_type": "gemma3_text"}
        vision = {"model_type": "siglip_vision_model", "vision_use_head": False} | vision
    if kind in LLAVA_KINDS:
        own = {"image_token_index": tokenizer.image_token_id}
        vision = _VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 3} | vision
        if kind == "llava_next":
            own["image_grid_pinpoints"] = MOSAICS
            text |= {"model_type": "mistral", "sliding_window": None}
        if kind == "llava_siglip":
            own |= {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
            text |= {"model_type": "qwen2"}
            vision |= {"model_type": "siglip_vision_model"}
        if kind == "llava_onevision":
            own |= {"video_token_index": tokenizer.video_token_id}
            own |= {"image_grid_pinpoints": MOSAICS, "vision_aspect_ratio": "anyres_max_2"}
            text |= {"model_type": "qwen2"}
            vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
    elif kind in INTERN_KINDS:
        own = {"image_token_id": tokenizer.context_image_token_id}
        text |= {"model_type": "qwen2"}
        vision = _VISION | {"model_type": "internvl_vision", "layer_scale_init_value": 0.5} | vision
        if kind == "internvl_large":
            text |= {"model_type": "qwen3"}
            vision |= {"use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False}
        else:
            vision |= {"attention_bias": True}
    elif kind in GEMMA4_KINDS:
        own = {
            "image_token_id": tokenizer.image_token_id,
            "boi_token_id": tokenizer.boi_token_id,
            "eoi_token_id": tokenizer.eoi_token_id,
            "audio_config": None,
        }
        windows = {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "global_head_dim": 16,
            "vocab_size_per_layer_input": VOCAB_SIZE,
        }
        text = windows | text | {"model_type": "gemma4_text"} | _GEMMA4_TEXT[kind]
        vision = _PIXTRAL_VISION | {"head_dim": 8, "num_key_value_heads": 3} | vision
        vision |= {"model_type": "gemma4_vision", "position_embedding_size": 300}
        vision |= _GEMMA4_VISION[kind]
    elif kind in PIXTRAL_KINDS:
        own = {"image_token_index": tokenizer.image_token_id, "vision_feature_layer": -1}
        text |= {"model_type": "mistral", "sliding_window": None}
        vision = _PIXTRAL_VISION | vision
        if kind == "pixtral":
            own["vision_feature_select_strategy"] = "full"
        else:
            text |= {"model_type": "ministral3", "rope_parameters": _MINISTRAL_ROPE}
    elif kind in QWEN_KINDS:
        own = {
            "image_token_id": tokenizer.image_token_id,
            "video_token_id": tokenizer.video_token_id,
            "vision_start_token_id": tokenizer.vision_start_token_id,
            "vision_end_token_id": tokenizer.vision_end_token_id,
        }
        text, vision = _qwen_parts(kind, text, vision)
    else:
        vision = _VISION | vision
    with torch.random.fork_rng():
        torch.manual_seed(random.randrange(1 << 31) if seed is None else seed)
        config = create.config_class(
            text_config=text, vision_config=vision, **(own | ends | overrides)
        )
        model = create(config).eval()
        randomise_vectors(model)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if parameter.ndim > 1 and ("projection" in path or "position_embedding" in path):
                    parameter.normal_(0.0, 0.3)
            for path, buffer in model.named_buffers():
                if path.endswith(("_min", "_max")):
                    buffer.copy_(buffer.sign() * (0.5 + torch.rand(())))
                elif "std_" in path:
                    buffer.normal_(0.5, 0.2)
    return model


def _qwen_parts(
    kind: str, text: dict[str, Any], vision: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of the parts of one of `QWEN_KINDS`."""
    _, of_text, of_vision = _QWEN_PARTS[kind]
    usual = {name: one for name, one in _TEXT.items() if name != "head_dim"} | of_text
    text = usual | {name: one for name, one in text.items() if one != _TEXT.get(name)}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": text.pop("mrope_section"),
    }
    size = "hidden_size" if kind == "qwen2_vl" else "out_hidden_size"
    own = _QWEN_VISION | of_vision | vision | {size: text["hidden_size"]}
    return text | {"model_type": f"{kind}_text"}, own | {"model_type": f"{kind}_vision"}


def _grid_processor(kind: Kind, tokenizer: Any) -> Any:
    if kind in GEMMA4_KINDS:
        own = {"pooling_kernel_size": _GEMMA4_VISION[kind]["pooling_kernel_size"]}
        sizes = {"patch_size": 4, "max_soft_tokens": 70}
        return transformers.Gemma4Processor(
            transformers.Gemma4AudioFeatureExtractor(),
            transformers.Gemma4ImageProcessor(**sizes, **own),
            tokenizer,
            transformers.Gemma4VideoProcessor(**sizes, **own),
            chat_template=tokenizer.chat_template,
        )
    if kind in PIXTRAL_KINDS:
        joined = 2 if kind == "mistral3" else 1
        pictures = transformers.PixtralImageProcessor(
            size={"longest_edge": 64}, patch_size={"height": 4, "width": 4}
        )
        return transformers.PixtralProcessor(
            pictures,
            tokenizer,
            patch_size=4,
            spatial_merge_size=joined,
            chat_template=tokenizer.chat_template,
        )
    name = _QWEN_PARTS[kind][0].replace("3_5", "3VL").removesuffix("Moe")
    grids: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "size": GRID_PIXELS}
    create = getattr(transformers, f"{name}Processor")
    films = "Qwen3VLVideoProcessor" if "qwen3" in kind else "Qwen2VLVideoProcessor"
    return create(
        transformers.Qwen2VLImageProcessor(**grids),
        tokenizer,
        getattr(transformers, films)(**grids),
        chat_template=tokenizer.chat_template,
    )


def _intern_processor(tokenizer: Any) -> Any:
    square = {"height": SIDE, "width": SIDE}
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=square, max_patches=6),
        tokenizer,
        transformers.InternVLVideoProcessor(size=square),
        image_seq_length=ROWS_PER_CROP,
        chat_template=tokenizer.chat_template,
    )


def _llava_processor(kind: Kind, tokenizer: Any, config: Any) -> Any:
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    if kind == "llava_onevision":
        sizes = {"size": square, "image_grid_pinpoints": MOSAICS}
        return transformers.LlavaOnevisionProcessor(
            transformers.LlavaOnevisionImageProcessor(**sizes),
            tokenizer,
            transformers.LlavaOnevisionVideoProcessor(size=square),
            num_image_tokens=(side // config.vision_config.patch_size) ** 2,
            vision_feature_select_strategy="full",
            vision_aspect_ratio=config.vision_aspect_ratio,
            chat_template=tokenizer.chat_template,
        )
    name = "LlavaNext" if kind == "llava_next" else "Llava"
    if kind == "llava_siglip":
        pictures = transformers.SiglipImageProcessor(size=square)
    elif kind == "llava":
        pictures = transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square)
    else:
        pictures = transformers.LlavaNextImageProcessor(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=MOSAICS
        )
    return getattr(transformers, f"{name}Processor")(
        pictures,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(kind != "llava_siglip"),
        chat_template=tokenizer.chat_template,
    )


def _rows_per_crop(kind: Kind, model: Any) -> int:
    if kind == "gemma3":
        return int(model.config.mm_tokens_per_image)
    return int(model.model.image_seq_len)


def _processor(kind: Kind, tokenizer: Any, side: int, rows: int, longest_edge: int) -> Any:
    if kind == "gemma3":
        pictures = transformers.Gemma3ImageProcessor(size={"height": side, "width": side})
        return transformers.Gemma3Processor(
            pictures, tokenizer, image_seq_length=rows, chat_template=tokenizer.chat_template
        )
    sizes = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": side}}
    if kind == "idefics3":
        return transformers.Idefics3Processor(
            transformers.Idefics3ImageProcessor(**sizes),
            tokenizer,
            image_seq_len=rows,
            chat_template=tokenizer.chat_template,
        )
    _leave_out_num2words()
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**sizes),
        tokenizer,
        transformers.SmolVLMVideoProcessor(**sizes),
        image_seq_len=rows,
        chat_template=tokenizer.chat_template,
    )


def load_processor(folder: Path) -> Any:
    """Load transformers' processor."""
    _leave_out_num2words()
    return transformers.AutoProcessor.from_pretrained(folder)


def _leave_out_num2words() -> None:
    """Let SmolVLM's processor do without a package that it uses for videos alone."""
    processing_smolvlm.num2words = processing_smolvlm.num2words or str


GEMMA3_LAYOUTS = {
    "transformers 4.50": {
        r"vision_tower\.": "vision_tower.vision_model.",
    },
    "names of the model in memory": {
        r"language_model\.model\.": "model.language_model.",
        r"language_model\.lm_head": "lm_head",
        r"vision_tower\.": "model.vision_tower.",
        r"multi_modal_projector\.": "model.multi_modal_projector.",
    },
    "transformers 4.57 in memory": {
        r"language_model\.model\.": "model.language_model.",
        r"language_model\.lm_head": "lm_head",
        r"vision_tower\.": "model.vision_tower.vision_model.",
        r"multi_modal_projector\.": "model.multi_modal_projector.",
    },
}
"""Beginnings of tensors' names as transformers 5 saves them, and those of other releases."""


def rename_tensors(folder: Path, layout: dict[str, str]) -> None:
    """Rename tensors, so that a folder has one of `GEMMA3_LAYOUTS`."""
    path = folder / "model.safetensors"

    def renamed(name: str) -> str:
        for old, new in layout.items():
            if re.match(old, name):
                return re.sub(f"^{old}", new, name)
        return name

    save_file({renamed(name): tensor for name, tensor in load_file(path).items()}, path)


def split_processor_files(folder: Path) -> None:
    """Divide the processor's file into two, as transformers 4 saved them."""
    path = folder / "processor_config.json"
    stated = json.loads(path.read_text())
    pictures = stated.pop("image_processor") | {"processor_class": stated["processor_class"]}
    stated.pop("video_processor", None)
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    path.write_text(json.dumps(stated))
