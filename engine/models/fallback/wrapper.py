"""Finds the decoder inside transformers' models for pictures and text, whose text can be served."""

from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from engine.errors import UnsupportedArchitecture
from engine.models import json_keys
from engine.models.fallback.architecture import parse, strangers_file
from engine.models.metadata_keys import MetadataKeys
from engine.models.registry import alternatives

_DECODERS = {
    "qwen3_omni_moe_text": "Qwen3MoeForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
}
"""Decoders that have no class of their own, and the class that computes the same for texts: the
axes of their positions are equal there."""
_HEADLESS = {
    "cosmos3_edge_text": "Cosmos3EdgeTextModel",
    "deepseek_ocr2_text": "DeepseekOcr2TextModel",
    "ernie4_5_vl_moe_text": "Ernie4_5_VLMoeTextModel",
    "emu3_text_model": "Emu3ForCausalLM",
    "glm4v_text": "Glm4vTextModel",
    "glm4v_moe_text": "Glm4vMoeTextModel",
    "glm5_next_text": "Glm5NextTextModel",
    "glm_ocr_text": "GlmOcrTextModel",
    "granite4_vision_text": "Granite4VisionTextModel",
    "granite_docling_text": "GraniteDoclingTextModel",
    "hunyuan_vl_text": "HunYuanVLTextModel",
    "hy_v4_vl_text": "HYV4VLTextModel",
    "mistral_large4_text": "MistralLarge4TextModel",
    "molmo2_text": "Molmo2TextModel",
    "mllama_text_model": "MllamaForCausalLM",
    "muse_glimmer_text": "MuseGlimmerTextModel",
    "muse_spark_text": "MuseSparkTextModel",
    "paddleocr_vl_text": "PaddleOCRTextModel",
    "qwen2_5_omni_text": "Qwen2ForCausalLM",
    "step3p5": "Step3p7TextModel",
    "unlimited_ocr_text": "UnlimitedOcrTextModel",
}
"""Decoders whose class has no output layer; the models around them have a plain matrix."""
_CHANGED = {"aya_vision": {"logit_scale": 1.0}, "cohere2_vision": {"logit_scale": 1.0}}
"""Values of text models that are different in the models around them, which do not scale logits."""
_PAIR = "its text model is an encoder-decoder"
_OTHERS = {
    "blip": _PAIR,
    "blt": "it consists of several models that read bytes in patches",
    "cpmant": "it puts tokens of its own before each text",
    "deepseek_v4": "it keeps compressed keys in a form of its own",
    "diffusion_gemma": "it draws blocks of tokens and does not continue texts",
    "evolla": "it answers about proteins and does not continue texts",
    "florence2": _PAIR,
    "gemma4_assistant": "it drafts for another model and does not continue texts alone",
    "gemma4_unified_assistant": "it drafts for another model and does not continue texts alone",
    "idefics": "it reads no text without a picture",
    "kosmos-2": "it counts positions in a way of its own",
    "kosmos-2.5": "it counts positions in a way of its own",
    "musicgen_decoder": "it writes music and does not continue texts",
    "musicgen_melody_decoder": "it writes music and does not continue texts",
    "paligemma": "its prompts are read in both directions",
    "pi0": "it controls robots and does not continue texts",
    "pix2struct": _PAIR,
    "pp_formulanet": _PAIR,
    "prophetnet": _PAIR,
    "recurrent_gemma": "it keeps its states in a form of its own",
    "reformer": "its attention sorts tokens into buckets, which later tokens change",
    "rwkv": "it keeps its states in a form of its own",
    "t5gemma2": _PAIR,
    "udop": _PAIR,
    "vision-encoder-decoder": _PAIR,
    "xlm": "it is an encoder, which reads texts in both directions",
    "xlnet": "it reads texts in both directions",
    "xlstm": "it keeps its states in a form of its own",
    "xmod": "it is an encoder, which reads texts in both directions",
}
"""Types of models whose text cannot be served, and why."""


def inner_decoder(keys: MetadataKeys) -> MetadataKeys | None:
    """Return the keys of the decoder inside a model, `architectures` included, as a folder of its
    own would have them. None: this is not a model for pictures and text.

    Missing keys get transformers' values, as published files leave many out.

    Raises:
        UnsupportedArchitecture: the decoder cannot be served alone; the message says why.
        ModelLoadError: transformers refuses the file.
    """
    keys = _thinker(keys) or keys
    kind, names = keys.values.get("model_type"), keys.values.get("architectures")
    if not isinstance(kind, str) or not isinstance(names, list):
        return None
    maps = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    known = next((one[kind] for one in maps if one.get(kind) in names), None)
    if known is None:
        return None
    if kind in _OTHERS:
        raise _refusal(known, _OTHERS[kind])
    text, values = _text_config(known, keys)
    if text is None:
        return None
    named = _DECODERS | _HEADLESS
    inner = named.get(text.model_type) or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(text.model_type)
    if inner is None:
        raise _refusal(known, f"its text model, of type {text.model_type!r}, is not supported")
    rope = values.get("rope_parameters")
    if text.model_type in _DECODERS and isinstance(rope, dict):
        values["rope_parameters"] = json_keys.without_axes(rope)
    return MetadataKeys({**values, "architectures": [inner]}, f"{keys.source}: text_config")


def _thinker(keys: MetadataKeys) -> MetadataKeys | None:
    """Return the keys of the part of an Omni model that reads and writes texts, if it has one."""
    values = keys.values.get("thinker_config")
    if not isinstance(values, dict):
        return None
    architecture = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(str(values.get("model_type")))
    named = {**values, "architectures": [architecture]}
    return MetadataKeys(named, f"{keys.source}: thinker_config")


def _text_config(architecture: str, keys: MetadataKeys) -> tuple[Any, dict[str, Any]]:
    """The configuration of the text model, None if it is not a part, and all its values."""
    with strangers_file(architecture):
        config = parse(CONFIG_MAPPING[keys.values["model_type"]], keys.values)
        text = config.get_text_config(decoder=True)
        if text is config:
            return None, {}
        tied = any(getattr(one, "tie_word_embeddings", False) for one in (config, text))
        changed = _CHANGED.get(config.model_type, {})
        return text, {**text.to_dict(), "tie_word_embeddings": tied, **changed}


def _refusal(architecture: str, reason: str) -> UnsupportedArchitecture:
    has_pictures = architecture in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
    pictures = ", not even for text alone" if has_pictures else ""
    return UnsupportedArchitecture(
        f"architecture {architecture!r} is not supported{pictures}: {reason}; "
        f"{alternatives(architecture)}"
    )
