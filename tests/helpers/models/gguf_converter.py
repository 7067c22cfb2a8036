"""Writes tiny models as GGUF files as llama.cpp's `convert_hf_to_gguf.py` (release b11434) does."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.helpers.models.gguf_files import write_gguf

Array = NDArray[np.float32]
Config = dict[str, Any]
MAX_LAYERS = 8
STACKED = re.compile(r"(.+\.(?:experts|altup_\w*projections))\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What the converter does with a family."""

    arch: str
    keys: Callable[[Config], dict[str, Any]]
    """Returns the architecture's keys that not all families have, without its name."""
    change: Callable[[str, Array, Config], Iterator[tuple[str, Array]]]
    """Yields the tensors, by names that `gguf` knows or GGUF's own, for one of the checkpoint."""
    sizes: dict[str, Any] = field(default_factory=dict)
    """Fields of the tiny model, for what the format or the converter cannot express."""


def convert(folder: Path, family: str, **options: Any) -> Path:
    """Write the model of a folder beside its files and return the path. The options are those of
    `write_text_model`."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    return write_text_model(folder, CONVERSIONS[family], config, weights, **options)


def write_text_model(
    folder: Path,
    conversion: Conversion,
    config: Config,
    weights: Mapping[str, Array],
    *,
    quant: Any = None,
    fuses_experts: bool = False,
    extra: Mapping[str, Array] | None = None,
    **keys: Any,
) -> Path:
    """Write a text model with the configuration and weights into a folder, as `convert` does.

    Args:
        quant: the type of all matrices whose rows are whole blocks; fp32 by default. Matrices with
            one row become vectors then, as llama-quantize writes them.
        fuses_experts: whether the converter has the option `--fuse-gate-up-exps`.
        extra: further tensors by GGUF's names.
        keys: more metadata, with `__` for dots; what is None is left out.
    """
    arch, num_layers = conversion.arch, config.get("num_hidden_layers", MAX_LAYERS)
    kinds = {name: one for one, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[arch], num_layers)
    metadata = {f"{arch}.{key}": one for key, one in _keys(config).items()} | {
        "tokenizer.ggml.tokens": [f"token {i}" for i in range(config["vocab_size"])]
    }
    metadata |= {f"{arch}.{key}": one for key, one in conversion.keys(config).items()}
    metadata |= {name.replace("__", "."): one for name, one in keys.items()}
    tensors: dict[str, Array] = {}
    if arch == "gemma4":
        # A quarter of the wider heads is rotated.
        size = metadata[f"{arch}.attention.key_length"] // 2
        tensors["rope_freqs.weight"] = np.where(np.arange(size) < size // 4, 1.0, 1e30)
        tensors["rope_freqs.weight"] = tensors["rope_freqs.weight"].astype(np.float32)
    for name, weight in _stacked(weights).items():
        for known, changed in conversion.change(name, weight, config):
            own = names.get_name(known, try_suffixes=(".weight", ".bias")) or known
            tensors[own] = np.ascontiguousarray(changed)
    if fuses_experts:
        _fuse(tensors)
    types = _quantise(tensors, quant) if quant is not None else {}
    return write_gguf(folder / "model.gguf", arch, metadata, {**tensors, **(extra or {})}, types)


def _fuse(tensors: dict[str, Array]) -> None:
    for name in [name for name in tensors if name.endswith("ffn_gate_exps.weight")]:
        both = tensors.pop(name), tensors.pop(name.replace("gate", "up"))
        tensors[name.replace("gate", "gate_up")] = np.concatenate(both, 1)


def _quantise(tensors: dict[str, Any], quant: Any) -> dict[str, Any]:
    """Quantise matrices, and return their types."""
    types, block = {}, gguf.GGML_QUANT_SIZES[quant][0]
    for name, weight in tensors.items():
        if weight.ndim == 2 and len(weight) == 1:
            tensors[name] = weight[0]
        elif weight.ndim > 1 and not weight.shape[-1] % block and name.endswith(".weight"):
            tensors[name] = gguf.quants.quantize(weight, quant)
            types[name] = quant
    return types


def _keys(config: Config) -> dict[str, Any]:
    """The keys that most families have. What is None is left out."""
    rope: Config = config.get("rope_parameters") or {}
    names = {
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.value_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    }
    found: dict[str, Any] = {own: config.get(name) for own, name in names.items()}
    return found | {
        "rope.freq_base": rope.get("full_attention", rope).get("rope_theta"),
        "expert_count": config.get("num_experts") or config.get("num_local_experts"),
    }


def _stacked(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Put the weights of a layer's experts into one tensor."""
    whole: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    for name, weight in weights.items():
        if match := STACKED.fullmatch(name):
            experts, number, part = match.groups()
            stacks.setdefault(f"{experts}.{part}", {})[int(number)] = weight
        else:
            whole[name] = weight
    return whole | {
        name: np.stack([stack[number] for number in sorted(stack)])
        for name, stack in stacks.items()
    }


def _layer(name: str) -> str:
    """GGUF's name of a tensor's layer, if it is in one."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return f"blk.{found[1]}" if found else ""


def _state_space(name: str, weight: Array) -> tuple[str, Array]:
    """What happens to the tensors of layers with a state."""
    if name.endswith(".A_log"):
        return name, -np.exp(weight)
    if name.endswith(".conv1d.weight"):
        return name, weight.squeeze(1)
    return name.replace(".dt_bias", ".dt_proj.bias"), weight


def _gate_up_apart(name: str, weight: Array) -> Iterator[tuple[str, Array]]:
    """Divide experts that the checkpoint stacks."""
    if name.endswith(".experts.gate_up_proj"):
        for part, half in zip(("gate", "up"), np.split(weight, 2, 1), strict=True):
            yield name.replace("gate_up_proj", f"{part}_proj.weight"), half
    else:
        yield name + ".weight" * name.endswith(".experts.down_proj"), weight


def _delta_keys(config: Config) -> dict[str, Any]:
    num_v_heads = config["linear_num_value_heads"]
    return {
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": num_v_heads,
        "ssm.inner_size": config["linear_value_head_dim"] * num_v_heads,
        "full_attention_interval": 4,
        "rope.dimension_count": config["head_dim"] // 4,
    }


def _delta(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`Qwen3NextModel.modify_tensors`."""
    k_heads, v_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    k_dim, v_dim = config["linear_key_head_dim"], config["linear_value_head_dim"]
    if name.endswith("norm.weight") and not name.endswith(".linear_attn.norm.weight"):
        weight = weight + 1
    if name.endswith(".in_proj_qkvz.weight"):
        values = v_heads // k_heads * v_dim
        parts = np.split(
            weight.reshape(k_heads, -1, weight.shape[1]),
            np.cumsum([k_dim, k_dim, values]),
            1,
        )
        q, k, v, z = (part.reshape(-1, weight.shape[1]) for part in parts)
        layer = name.split(".")[2]
        yield f"blk.{layer}.attn_qkv.weight", np.concatenate((q, k, v))
        yield f"blk.{layer}.attn_gate.weight", z
        return
    yield from _gate_up_apart(*_state_space(name, weight))


def _tiled_delta(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`_LinearAttentionVReorderBase.modify_tensors`."""
    k_heads, v_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    k_dim, v_dim = config["linear_key_head_dim"], config["linear_value_head_dim"]

    def tiled(rows: Array, size: int) -> Array:
        heads = rows.reshape(k_heads, v_heads // k_heads, size, *rows.shape[1:])
        return heads.swapaxes(0, 1).reshape(rows.shape)

    part = name.partition(".linear_attn.")[2]
    if part in ("in_proj_qkv.weight", "conv1d.weight"):
        first = 2 * k_heads * k_dim
        weight = np.concatenate((weight[:first], tiled(weight[first:], v_dim)))
    elif part == "in_proj_z.weight":
        weight = tiled(weight, v_dim)
    elif part in ("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias"):
        weight = tiled(weight, 1)
    elif part == "out_proj.weight":
        weight = tiled(weight.T, v_dim).T
    yield from _delta(name, weight, config)


def _stacked_experts(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`GptOssModel.modify_tensors`; stacked experts are transposed, and gate and up alternate."""
    if name.endswith(".sinks"):
        yield f"{name}.weight", weight
        return
    found = re.fullmatch(r"(.+\.experts)\.(gate_up|down)_proj(_bias)?", name)
    if found is None:
        yield name, weight
        return
    experts, layer, is_bias = found.groups()
    kind, weight = ("bias", weight) if is_bias else ("weight", weight.swapaxes(1, 2))
    if layer == "down":
        yield f"{experts}.down_proj.{kind}", weight
    else:
        yield f"{experts}.gate_proj.{kind}", weight[:, ::2]
        yield f"{experts}.up_proj.{kind}", weight[:, 1::2]


def _scaling_keys(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    return {
        "attention.sliding_window": config["sliding_window"],
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.yarn_beta_fast": rope["beta_fast"],
        "rope.scaling.yarn_beta_slow": rope["beta_slow"],
        "expert_feed_forward_length": config["intermediate_size"],
    }


def _as_it_is(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """Rename a tensor, and divide experts that the checkpoint stacks."""
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    yield from _gate_up_apart(name, weight)


def _glm_keys(config: Config) -> dict[str, Any]:
    return {
        "expert_count": config["n_routed_experts"],
        "expert_shared_count": config["n_shared_experts"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_weights_norm": config["norm_topk_prob"],
        "rope.dimension_count": config["head_dim"] // 2,
    }


def _gemma_keys(config: Config) -> dict[str, Any]:
    ropes = config["rope_parameters"]
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config["layer_types"]
        ],
        "attention.shared_kv_layers": config["num_kv_shared_layers"],
        "embedding_length_per_layer_input": config["hidden_size_per_layer_input"],
        "rope.freq_base_swa": ropes["sliding_attention"]["rope_theta"],
        "final_logit_softcapping": config["final_logit_softcapping"],
    }


def _gemma3n_keys(config: Config) -> dict[str, Any]:
    sparsities = config["activation_sparsity_pattern"]
    return _gemma_keys(config) | {
        "altup.active_idx": config["altup_active_idx"],
        "altup.num_inputs": config["altup_num_inputs"],
        "feed_forward_length": config["intermediate_size"][0],
        "activation_sparsity_scale": [
            NormalDist().inv_cdf(one) if one else -math.inf for one in sparsities
        ],
    }


def _gemma3n(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`Gemma3NModel.modify_tensors`."""
    yield name + ".weight" * name.endswith("_scale"), weight


def _gemma4_keys(config: Config) -> dict[str, Any]:
    inner, num_shared = config["intermediate_size"], config["num_kv_shared_layers"]
    first = config["num_hidden_layers"] - num_shared
    full = next(iter(config["per_layer_config"].values()))
    return _gemma_keys(config) | {
        "attention.key_length": full["head_dim"],
        "attention.value_length": full["head_dim"],
        "attention.key_length_swa": config["head_dim"],
        "attention.value_length_swa": config["head_dim"],
        "feed_forward_length": [inner] * first + [2 * inner] * num_shared,
    }


def _gemma4(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`Gemma4Model.modify_tensors`."""
    layer = _layer(name)
    own = {
        "router.scale": f"{layer}.ffn_gate_inp.scale",
        "router.per_expert_scale": f"{layer}.ffn_down_exps.scale",
        "layer_scalar": f"{layer}.layer_output_scale.weight",
        "experts.gate_up_proj": f"{layer}.ffn_gate_up_exps.weight",
        "experts.down_proj": f"{layer}.ffn_down_exps.weight",
    }
    yield next((one for end, one in own.items() if name.endswith(f".{end}")), name), weight


def _state_keys(config: Config) -> dict[str, Any]:
    """The keys of layers with a state, as `mamba_…` or without that in config.json."""
    own = {name.removeprefix("mamba_"): one for name, one in config.items()}
    hidden, num_heads = config["hidden_size"], own.get("n_heads") or own.get("num_heads")
    inner = own.get("d_ssm") or own.get("expand", 2) * hidden
    if config["model_type"] == "nemotron_h":
        inner = num_heads * config["mamba_head_dim"]
    if config["model_type"] in ("mamba", "falcon_mamba"):
        inner = config["intermediate_size"]
    return {
        "ssm.conv_kernel": own.get("d_conv") or own["conv_kernel"],
        "ssm.state_size": own.get("d_state") or own.get("ssm_state_size") or own["state_size"],
        "ssm.group_count": own.get("n_groups"),
        "ssm.time_step_rank": num_heads or own.get("dt_rank") or own["time_step_rank"],
        "ssm.inner_size": inner,
        "attention.layer_norm_rms_epsilon": config.get("layer_norm_epsilon")
        or config["rms_norm_eps"],
    }


def _heads_of_layers(config: Config, kinds: list[str]) -> list[int]:
    return [config["num_key_value_heads"] if "full" in kind else 0 for kind in kinds]


def _scan(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`Mamba2Model.modify_tensors`, and that of Mamba 1."""
    name, weight = _state_space(name, weight)
    if config["model_type"] not in ("mamba", "falcon_mamba", "jamba"):
        if name.endswith((".A_log", ".D")):
            weight = weight[:, None]
        if name.endswith((".mixer.norm.weight", ".mamba.norm.weight")):
            weight = weight.reshape(_state_keys(config)["ssm.group_count"], -1)
    yield from _as_it_is(name, weight, config)


def _granite_keys(config: Config) -> dict[str, Any]:
    return _state_keys(config) | {
        "attention.head_count_kv": _heads_of_layers(config, config["layer_types"]),
        "attention.scale": config["attention_multiplier"],
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "logit_scale": config["logits_scaling"],
        "expert_shared_feed_forward_length": config["shared_intermediate_size"],
        "rope.scaling.finetuned": False,
    }


def _granite(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`GraniteMoeModel.modify_tensors`."""
    layer = _layer(name)
    axis = {".shared_mlp.input_linear.weight": 0, ".block_sparse_moe.input_linear.weight": 1}
    for end, at in axis.items():
        if name.endswith(end):
            kind = "exps" if at else "shexp"
            for part, half in zip(("gate", "up"), np.split(weight, 2, at), strict=True):
                yield f"{layer}.ffn_{part}_{kind}.weight", half
            return
    yield from _scan(name, weight, config)


def _falcon_h1(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`FalconH1Model.modify_tensors`: factors become a part of weights."""
    before = config["attention_in_multiplier"]
    gate, down = config["mlp_multipliers"]
    factors = {
        "down_proj": down,
        "gate_proj": gate,
        "k_proj": config["key_multiplier"] * before,
        "q_proj": before,
        "v_proj": before,
        "o_proj": config["attention_out_multiplier"],
        "out_proj": config["ssm_out_multiplier"],
        "lm_head": config["lm_head_multiplier"],
        "embed_tokens": config["embedding_multiplier"],
    }
    part = name.split(".")[-2]
    if part == "in_proj":
        inner, groups = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
        sizes = [inner, inner, groups, groups, config["mamba_n_heads"]]
        rows = np.repeat(np.array(config["ssm_multipliers"], np.float32), sizes)
        weight = weight * rows[:, None] * np.float32(config["ssm_in_multiplier"])
    yield from _scan(name, weight * np.float32(factors.get(part, 1.0)), config)


def _nemotron_keys(config: Config) -> dict[str, Any]:
    kinds = config["layers_block_type"]
    inner = config["moe_intermediate_size"]
    return _state_keys(config) | {
        "block_count": len(kinds),
        "attention.head_count_kv": _heads_of_layers(config, kinds),
        "attention.layer_norm_rms_epsilon": None,
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        "feed_forward_length": [inner if kind == "moe" else 0 for kind in kinds],
        "expert_count": config["n_routed_experts"],
        "expert_shared_feed_forward_length": config["moe_shared_expert_intermediate_size"],
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_weights_scale": config["routed_scaling_factor"],
        "expert_group_count": config["n_group"],
        "moe_latent_size": config["moe_latent_size"],
    }


def _nemotron(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`NemotronHModel.modify_tensors`."""
    name = re.sub(r"backbone(.+)\.mixer\.experts\.", r"model\1.mlp.experts.", name)
    yield from _scan(name, weight, config)


def _jamba_keys(config: Config) -> dict[str, Any]:
    first, period = config["attn_layer_offset"], config["attn_layer_period"]
    layers = range(config["num_hidden_layers"])
    kinds = ["full" if layer % period == first else "state" for layer in layers]
    return _state_keys(config) | {"attention.head_count_kv": _heads_of_layers(config, kinds)}


def _jamba(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`JambaModel.modify_tensors`."""
    name = re.sub(r"feed_forward\.(experts\.\w+)$", r"mlp.\1", name)
    for known, one in _scan(name, weight, config):
        yield known.replace(".feed_forward.experts.", ".mlp.experts."), one


def _llama4_keys(config: Config) -> dict[str, Any]:
    return {
        "feed_forward_length": config["intermediate_size_mlp"],
        "expert_feed_forward_length": config["intermediate_size"],
        "interleave_moe_layer_step": config["interleave_moe_layer_step"],
    }


def _llama4(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`Llama4Model.modify_tensors`."""
    if re.search(r"\.experts\.\w+$", name):
        weight = weight.swapaxes(1, 2)
    yield from _gate_up_apart(name, weight)


def _mimo_keys(config: Config) -> dict[str, Any]:
    slides = [int(kind == "sliding_attention") for kind in config["layer_types"]]
    ropes = config["rope_parameters"]
    share = ropes["full_attention"]["partial_rotary_factor"]
    return {
        "attention.head_count_kv": [config["num_key_value_heads"] * (1 + one) for one in slides],
        "attention.sliding_window": config["sliding_window"] - 1,
        "attention.sliding_window_pattern": slides,
        "attention.value_length": config["v_head_dim"],
        "attention.value_scale": config["attention_value_scale"],
        "rope.dimension_count": int(config["head_dim"] * share),
        "rope.freq_base_swa": ropes["sliding_attention"]["rope_theta"],
        "expert_count": config["n_routed_experts"],
    }


def _mimo(name: str, weight: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """`MimoV2Model.modify_tensors`."""
    yield from _as_it_is(name + ".weight" * name.endswith("_sink_bias"), weight, config)


EPS = {"rms_norm_eps": 2.0**-17}
"""An epsilon that fp32 holds."""
CONVERSIONS = {
    "qwen3_5": Conversion("qwen35", _delta_keys, _tiled_delta, EPS),
    "qwen3_5_moe": Conversion("qwen35moe", _delta_keys, _tiled_delta, EPS),
    "qwen3_next": Conversion("qwen3next", _delta_keys, _delta, EPS | {"mlp_only_layers": []}),
    "gpt_oss": Conversion("gpt-oss", _scaling_keys, _stacked_experts, EPS),
    "qwen2_moe": Conversion("qwen2moe", lambda config: {}, _as_it_is, EPS),
    "glm4_moe": Conversion("glm4moe", _glm_keys, _as_it_is, EPS),
    "granite_hybrid": Conversion("granitehybrid", _granite_keys, _granite, EPS),
    "falcon_h1": Conversion(
        "falcon-h1",
        _state_keys,
        _falcon_h1,
        EPS
        | {
            "head_dim": 16,
            "ssm_multipliers": [0.5, 1.2, 0.7, 0.9, 1.1],
            "attention_in_multiplier": 0.8,
            "attention_out_multiplier": 1.3,
            "lm_head_multiplier": 0.5,
            "embedding_multiplier": 2.0,
        },
    ),
    "mamba": Conversion("mamba", _state_keys, _scan),
    "falcon_mamba": Conversion(
        "mamba", lambda config: _state_keys(config) | {"ssm.dt_b_c_rms": True}, _scan
    ),
    "mamba2": Conversion("mamba2", _state_keys, _scan),
    "nemotron_h": Conversion(
        "nemotron_h_moe",
        _nemotron_keys,
        _nemotron,
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "moe_latent_size": 48,
        },
    ),
    "jamba": Conversion("jamba", _jamba_keys, _jamba, EPS),
    "llama4": Conversion(
        "llama4", _llama4_keys, _llama4, EPS | {"attention_chunk_size": 8192, "floor_scale": 8192}
    ),
    "mimo_v2_flash": Conversion("mimo2", _mimo_keys, _mimo, EPS),
    "gemma3n": Conversion("gemma3n", _gemma3n_keys, _gemma3n, EPS),
    "gemma4": Conversion("gemma4", _gemma4_keys, _gemma4, EPS | {"use_double_wide_mlp": True}),
}
"""The families, by the names of their fixtures."""
