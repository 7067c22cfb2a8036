"""Which decoder families there are, by the names that their modules state."""

import difflib
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.family import Family
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.models.layers.weight_slots import WeightOptions
from engine.quantization.method import LinearMethod

MODULES = ("gemma3", "llama", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe")
"""Of `engine.models`, each with its `FAMILIES`; imported when the first model is looked for."""


def create_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    parallel: TensorParallel = SINGLE,
    linear_method: Callable[[str], LinearMethod[Any] | None] | None = None,
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
    return family.create(config, options).eval()


@functools.cache
def families() -> dict[str, Family]:
    """All of them, by architecture."""
    modules = (importlib.import_module(f"engine.models.{name}") for name in MODULES)
    found: list[Family] = [family for module in modules for family in module.FAMILIES]
    return _by_name((family.architecture, family) for family in found)


def family_of(architecture: str) -> Family:
    """The one that implements an architecture of config.json; that of a decoder alone, such as
    `Qwen3Model`, counts as the one with its output layer. What only transformers implements comes
    from `engine.models.fallback`.

    Raises:
        UnsupportedArchitecture: none does.
    """
    whole = f"{architecture.removesuffix('Model')}ForCausalLM"
    family = families().get(architecture) or families().get(whole) or _fallback(architecture)
    if family is None:
        nearest = difflib.get_close_matches(architecture, families(), n=3, cutoff=0.4)
        supported = ", ".join(nearest or families())
        raise UnsupportedArchitecture(
            f"architecture {architecture!r} is not supported; "
            f"{'the nearest supported ones are' if nearest else 'supported are'} {supported}"
        )
    return family


def _fallback(architecture: str) -> Family | None:
    """By transformers' code; imported here, since models of our own families do without it."""
    module = importlib.import_module("engine.models.fallback.family")
    found: Family | None = module.fallback_family(architecture)
    return found


def family_of_model_type(model_type: str) -> Family | None:
    """By config.json's `model_type`, if it is known."""
    return _by_name((family.model_type, family) for family in families().values()).get(model_type)


def family_of_gguf(architecture: str) -> Family | None:
    """By a GGUF file's `general.architecture`, if it is known."""
    return _by_gguf().get(architecture)


def gguf_architectures() -> list[str]:
    """What GGUF files may state."""
    return list(_by_gguf())


def _by_gguf() -> dict[str, Family]:
    known = families().values()
    return _by_name((family.gguf, family) for family in known if family.gguf is not None)


def _by_name(named: Iterable[tuple[str, Family]]) -> dict[str, Family]:
    found: dict[str, Family] = {}
    for name, family in named:
        if found.setdefault(name, family) is not family:
            raise ValueError(f"two families are called {name!r}")
    return found


def _check_sizes(config: ModelConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise ModelLoadError(f"{heads} attention heads cannot share {kv_heads} key/value heads")
    if config.head_dim % 2:
        raise ModelLoadError(f"head_dim {config.head_dim} is odd; rotary embedding needs pairs")
    if len(config.layer_windows) != config.num_hidden_layers:
        raise ModelLoadError(
            f"windows are given for {len(config.windows)} layers; num_hidden_layers is "
            f"{config.num_hidden_layers}"
        )
