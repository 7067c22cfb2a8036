"""A model folder's config.json and generation_config.json as a `ModelConfig`.

Knows the layouts that transformers 4 and 5 write and the few places where families differ in what
a missing key means.
"""

from pathlib import Path
from typing import Any

from engine.checkpoint_files import read_json, read_optional_json
from engine.errors import ModelLoadError
from engine.models.config import MAX_LAYERS, ModelConfig
from engine.models.registry import family_of
from engine.weights.metadata_keys import MetadataKeys

# What transformers assumes for a missing `architectures`.
_BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
MAX_POSITIONS = 1 << 27
"""Of a model; published ones reach 10 million."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_config_json(folder: Path) -> ModelConfig:
    """
    Raises:
        CorruptFile: a file is not JSON.
        UnsupportedArchitecture: no family here covers it; names the nearest.
        ModelLoadError: a key is missing or nonsense (named), or the weights are quantised.
    """
    keys = MetadataKeys(read_json(folder / "config.json"), "config.json")
    name = "generation_config.json"
    generation = MetadataKeys(read_optional_json(folder / name), name)
    architecture = _architecture(keys)
    # Before other families' missing keys are complained of.
    family_of(architecture)
    _refuse_quantised(keys)
    num_layers = keys.integer("num_hidden_layers", high=MAX_LAYERS)
    num_heads = keys.integer("num_attention_heads")
    rope_theta, rope_scaling = _rope(keys)
    sliding_window, layer_types = _windows(keys, architecture, num_layers)
    return ModelConfig(
        architecture=architecture,
        vocab_size=keys.integer("vocab_size"),
        hidden_size=keys.integer("hidden_size"),
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=_num_kv_heads(keys, num_heads),
        head_dim=_head_dim(keys, architecture, num_heads),
        rms_norm_eps=keys.number("rms_norm_eps"),
        max_position_embeddings=extended_length(
            keys.integer("max_position_embeddings", high=MAX_POSITIONS), rope_scaling
        ),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        attention_bias=keys.flag("attention_bias", False),
        mlp_bias=keys.flag("mlp_bias", False),
        hidden_act=keys.text("hidden_act", "silu"),
        sliding_window=sliding_window,
        layer_types=layer_types,
        bos_token_id=next(iter(keys.ids("bos_token_id")), None),
        eos_token_ids=generation.ids("eos_token_id") or keys.ids("eos_token_id"),
        generation={
            name: generation.number(name, positive=False)
            for name in _SAMPLING
            if generation.values.get(name) is not None
        },
    )


def rope_base(keys: MetadataKeys, key: str, default: float = 10000.0) -> float:
    """
    Raises:
        ModelLoadError: beyond what angles can be computed from; models use 1e4 to 1e10.
    """
    base: float = keys.number(key, default, low=2.0, high=1e15)
    return base


def extended_length(trained: int, rope_scaling: dict[str, Any] | None) -> int:
    """Positions that the model can use. Only YaRN's are more than `max_position_embeddings` says.

    Paper: YaRN, Peng et al. 2023, arXiv:2309.00071.
    """
    if rope_scaling is None or rope_scaling["rope_type"] != "yarn":
        return trained
    original = rope_scaling["original_max_position_embeddings"]
    return max(trained, int(original * rope_scaling["factor"]))


def normalise_rope_scaling(raw: dict[str, Any], trained: int, source: str) -> dict[str, Any] | None:
    """transformers 5's form of a scaling dictionary; None for plain RoPE.

    Old files say `type` for `rope_type`, and YaRN's may lack the length it extends.
    """
    elsewhere = ("type", "rope_theta", "partial_rotary_factor")
    scaling = {name: value for name, value in raw.items() if name not in elsewhere}
    keys = MetadataKeys(raw, source)
    scaling["rope_type"] = keys.text("rope_type", None) or keys.text("type", "default")
    if keys.number("partial_rotary_factor", 1.0) != 1.0:
        raise keys.nonsense("partial_rotary_factor", "1; partial rotary embeddings are unsupported")
    if scaling["rope_type"] == "default":
        return None
    if scaling["rope_type"] in ("linear", "dynamic", "llama3", "yarn"):
        scaling["factor"] = keys.number("factor", low=1e-3, high=1e4)
    if scaling["rope_type"] in ("llama3", "yarn"):
        name = "original_max_position_embeddings"
        scaling[name] = keys.integer(name, trained, high=MAX_POSITIONS)
    _check_bends(keys, scaling["rope_type"])
    return scaling


def _check_bends(keys: MetadataKeys, rope_type: str) -> None:
    """The numbers that say where a scaling sets in; those that are there."""
    if rope_type == "llama3":
        low, high = (keys.number(f"{end}_freq_factor", None) for end in ("low", "high"))
        if low is not None and high is not None and low >= high:
            raise keys.nonsense("high_freq_factor", f"above low_freq_factor, which is {low:g}")
    if rope_type == "yarn":
        for name in ("beta_fast", "beta_slow", "attention_factor"):
            keys.number(name, None)
        for name in ("mscale", "mscale_all_dim"):
            keys.number(name, None, positive=False, low=0.0)


def _architecture(keys: MetadataKeys) -> str:
    names = keys.values.get("architectures")
    if names is None:
        architecture = _BY_MODEL_TYPE.get(keys.text("model_type", ""))
        if architecture is None:
            raise ModelLoadError("config.json has no architectures; is it a language model?")
        return architecture
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise keys.nonsense("architectures", "a list of names")
    return names[0]


def _refuse_quantised(keys: MetadataKeys) -> None:
    quantization = keys.values.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    raise ModelLoadError(
        f"the weights are quantised ({method or 'unknown method'}), which is not supported in "
        f"safetensors yet; use the unquantised model or a GGUF file of it"
    )


def _num_kv_heads(keys: MetadataKeys, num_heads: int) -> int:
    num_kv_heads: int = keys.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise keys.nonsense(
            "num_key_value_heads", f"a divisor of num_attention_heads, which is {num_heads}"
        )
    return num_kv_heads


def _head_dim(keys: MetadataKeys, architecture: str, num_heads: int) -> int:
    default = 128 if architecture.startswith("Qwen3") else None
    head_dim = keys.integer("head_dim", default)
    if head_dim is None:
        hidden_size = keys.integer("hidden_size")
        if hidden_size % num_heads:
            raise keys.nonsense(
                "hidden_size", f"a multiple of num_attention_heads, which is {num_heads}"
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ModelLoadError(f"config.json: head_dim is {head_dim}; rotary embeddings need it even")
    return int(head_dim)


def _rope(keys: MetadataKeys) -> tuple[float, dict[str, Any] | None]:
    """transformers 5 keeps theta and scaling in `rope_parameters`, 4 beside each other."""
    trained = keys.integer("max_position_embeddings")
    parameters = keys.values.get("rope_parameters")
    scaling = keys.values.get("rope_scaling")
    for name, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if value is not None and not isinstance(value, dict):
            raise keys.nonsense(name, "an object")
    merged = (scaling or {}) | (parameters or {})
    merged.setdefault("partial_rotary_factor", keys.values.get("partial_rotary_factor"))
    source = "config.json: rope_parameters"
    default = rope_base(keys, "rope_theta")
    theta = rope_base(MetadataKeys(merged, source), "rope_theta", default)
    return theta, normalise_rope_scaling(merged, trained, source)


def _windows(
    keys: MetadataKeys, architecture: str, num_layers: int
) -> tuple[int | None, tuple[str, ...] | None]:
    """Sliding windows as each family means them.

    Llama has none whatever its file says. Qwen's applies from layer `max_window_layers` on, and
    only with `use_sliding_window`.
    """
    window = keys.integer("sliding_window", None)
    layer_types = keys.values.get("layer_types")
    if architecture.startswith("Llama"):
        return None, None
    if architecture.startswith("Qwen") and not keys.flag("use_sliding_window", False):
        return None, None
    if window is None:
        return None, None
    if layer_types is None and architecture.startswith("Qwen"):
        first = keys.integer("max_window_layers", 28, low=0)
        layer_types = ["full_attention"] * first + ["sliding_attention"] * num_layers
        layer_types = layer_types[:num_layers]
    if layer_types is None:
        return window, None
    known = ("full_attention", "sliding_attention")
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != num_layers
        or any(entry not in known for entry in layer_types)
    ):
        raise keys.nonsense("layer_types", f"{num_layers} entries out of {' and '.join(known)}")
    return window, tuple(layer_types)
