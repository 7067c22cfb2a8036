"""Architecture name → decoder family, imported when it is first asked for."""

import difflib
import importlib
from collections.abc import Callable

import torch

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.layers.linear_method import LinearMethod
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.models.layers.weight_slots import WeightOptions

FAMILIES = {
    "LlamaForCausalLM": "engine.models.llama:LlamaForCausalLM",
    "MistralForCausalLM": "engine.models.llama:LlamaForCausalLM",
    "Qwen2ForCausalLM": "engine.models.qwen2:Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "engine.models.qwen3:Qwen3ForCausalLM",
}


def create_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    parallel: TensorParallel = SINGLE,
    linear_method: Callable[[str], LinearMethod | None] | None = None,
    deterministic: bool = False,
) -> CausalLM:
    """Build a model without weights.

    Args:
        config: the checkpoint's.
        dtype: of weights and activations.
        device: where they live.
        parallel: which share of the heads and the MLP this process has.
        linear_method: checkpoint name of a linear layer → how its weights are kept; None: plain.
        deterministic: a row's result has the same bits whatever shares the step. Weights on a CPU
            have that anyway, as long as the native operations are there.

    Raises:
        UnsupportedArchitecture: no family here covers it; the message names the nearest ones.
        ModelLoadError: sizes that contradict each other.
    """
    family = family_of(config.architecture)
    _check_sizes(config)
    options = WeightOptions(
        dtype=dtype,
        device=torch.device(device),
        parallel=parallel,
        linear_method=linear_method,
        deterministic=deterministic,
    )
    return family(config, options).eval()


def family_of(architecture: str) -> type[CausalLM]:
    """The class that implements an architecture.

    Raises:
        UnsupportedArchitecture: none does.
    """
    target = FAMILIES.get(architecture)
    if target is None:
        nearest = difflib.get_close_matches(architecture, FAMILIES, n=3, cutoff=0.4)
        supported = ", ".join(nearest or FAMILIES)
        raise UnsupportedArchitecture(
            f"architecture {architecture!r} is not supported; "
            f"{'the nearest supported ones are' if nearest else 'supported are'} {supported}"
        )
    module, _, name = target.partition(":")
    family: type[CausalLM] = getattr(importlib.import_module(module), name)
    return family


def _check_sizes(config: ModelConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ModelLoadError(f"{heads} attention heads cannot share {kv_heads} key/value heads")
    if config.head_dim % 2:
        raise ModelLoadError(f"head_dim {config.head_dim} is odd; rotary embedding needs pairs")
    types = config.layer_types
    if types is not None and len(types) != config.num_hidden_layers:
        raise ModelLoadError(
            f"layer_types names {len(types)} layers; num_hidden_layers is "
            f"{config.num_hidden_layers}"
        )
