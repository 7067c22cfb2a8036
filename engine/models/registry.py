"""The decoder families, by the names that their modules state."""

import difflib
import functools
import importlib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.family import Family, ReadPictures
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.models.layers.weight_slots import WeightOptions
from engine.quantization.method import LinearMethod

MODULES = (
    "bamba", "deepseek", "falcon_h1", "gemma3", "gemma3n", "gemma4", "glm4_moe", "gpt_oss",
    "granite_hybrid", "hunyuan", "jamba", "kimi_linear", "lfm2", "llama", "llama4", "mamba",
    "mimo_v2_flash", "mixtral", "nemotron_h", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_5",
    "qwen3_moe", "qwen3_next", "zamba2",
    "vision.gemma3_pictures", "vision.qwen_pictures", "vision.smolvlm_pictures",
)  # fmt: skip
"""The modules of `engine.models` with `FAMILIES`, imported when the first model is looked up."""
PICTURE_MODULES = (
    "vision.gemma4_pictures", "vision.internvl_pictures", "vision.llava_pictures",
    "vision.pixtral_pictures",
)  # fmt: skip
"""The modules with `PICTURE_READERS`."""

T = TypeVar("T")
_ENDING = re.compile(r"(for(causal|conditional|sequence)|lmhead|model).*")


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
        config: the checkpoint's configuration.
        dtype: dtype of weights and activations.
        device: the device of weights and activations.
        parallel: this process's share of the heads and the MLP.
        linear_method: the method of a linear layer's weights by its name in the checkpoint; None
            for plain.
        deterministic: whether a row's result has the same bits whatever shares the step. Weights on
            a CPU have that anyway, as long as the native operations are available.

    Raises:
        UnsupportedArchitecture: no family has this architecture; the message names the nearest
            ones.
        ModelLoadError: sizes contradict each other.
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
    model = family.create(config, options)
    if config.vision is not None and model.picture_encoder is None:
        model.picture_encoder = config.vision.create_encoder()
    return model.eval()


@functools.cache
def picture_readers() -> dict[str, ReadPictures]:
    """Return how models that pair an encoder for pictures with a decoder of any family read their
    pictures, by architecture."""
    modules = (importlib.import_module(f"engine.models.{name}") for name in PICTURE_MODULES)
    return _by_name(item for module in modules for item in module.PICTURE_READERS.items())


@functools.cache
def families() -> dict[str, Family]:
    """Return all families by architecture."""
    modules = (importlib.import_module(f"engine.models.{name}") for name in MODULES)
    found: list[Family] = [family for module in modules for family in module.FAMILIES]
    return _by_name((family.architecture, family) for family in found)


def family_of(architecture: str) -> Family:
    """Return the family that implements an architecture of config.json. A decoder alone, such as
    `Qwen3Model`, counts as the architecture with its output layer. `engine.models.fallback`
    supplies architectures that only transformers implements.

    Raises:
        UnsupportedArchitecture: no family does.
    """
    whole = f"{architecture.removesuffix('Model')}ForCausalLM"
    family = families().get(architecture) or families().get(whole) or _fallback(architecture)
    if family is None:
        raise UnsupportedArchitecture(
            f"architecture {architecture!r} is not supported; {alternatives(architecture)}"
        )
    return family


def alternatives(architecture: str) -> str:
    """Name the families whose names are most like that of an architecture, for error messages."""
    stems = {_stem(name): name for name in families()}
    found = difflib.get_close_matches(_stem(architecture), stems, n=3, cutoff=0.65)
    if not found:
        return "docs/models.md lists the supported ones"
    nearest = ", ".join(stems[stem] for stem in found)
    return f"the nearest supported ones are {nearest}, and docs/models.md lists more"


def _stem(architecture: str) -> str:
    """The part of a name that says which family it is."""
    return _ENDING.sub("", architecture.lower())


def _fallback(architecture: str) -> Family | None:
    """Return a family that runs transformers' code, imported here because our own families do not
    need it."""
    module = importlib.import_module("engine.models.fallback.family")
    found: Family | None = module.fallback_family(architecture)
    return found


def family_of_model_type(model_type: str) -> Family | None:
    """Return the family of a `model_type` in config.json, or None if it is unknown."""
    return _by_name((family.model_type, family) for family in families().values()).get(model_type)


def family_of_gguf(architecture: str) -> Family | None:
    """Return the family of a GGUF file's `general.architecture`, or None if it is unknown."""
    return _by_gguf().get(architecture)


def family_of_projector(projector: str, text: str) -> Family | None:
    """Return the family whose mmproj files have this type of encoder, beside a text model of that
    architecture."""
    return next((one for one in families().values() if one.projector == (projector, text)), None)


def gguf_architectures() -> list[str]:
    """List the architectures that GGUF files may state."""
    return list(_by_gguf())


def _by_gguf() -> dict[str, Family]:
    known = families().values()
    return _by_name(
        (name, family) for family in known for name in (family.gguf, *family.gguf_others) if name
    )


def _by_name(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, family in named:
        if found.setdefault(name, family) is not family:
            raise ValueError(f"two families are called {name!r}")
    return found


def _check_sizes(config: ModelConfig) -> None:
    heads = config.num_attention_heads
    for kv_heads, head_dim, _ in config.layer_kv_shapes:
        if heads % kv_heads:
            raise ModelLoadError(
                f"{heads} attention heads cannot share {kv_heads} key/value heads; the first "
                f"number must be a multiple of the second"
            )
        if head_dim % 2:
            raise ModelLoadError(f"head_dim is {head_dim}; it must be even for rotary embeddings")
    if len(config.layer_windows) != config.num_hidden_layers:
        raise ModelLoadError(
            f"windows are given for {len(config.windows)} layers; num_hidden_layers is "
            f"{config.num_hidden_layers}"
        )
