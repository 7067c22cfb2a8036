"""Rotary angles with Hugging Face's scaling schemes.

`inv_freq` functions take `ModelConfig` and return ([D/2] fp32, factor of cosine and sine); they are
rows of one table by `rope_type`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models.config import ModelConfig

Frequencies = tuple[Tensor, float]


class RotaryEmbedding(nn.Module):
    """Cosines and sines of each row's position, once per step for all layers."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        super().__init__()
        self._config = config
        scheme = rope_type(config)
        self._dynamic = scheme == "dynamic"
        inv_freq, self._factor = _SCHEMES[scheme](config)
        self._inv_freq = inv_freq.to(device)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[T] int64 → cos and sin, each [T, 1, D] fp32, sin's first half negated."""
        at = positions.to(torch.float32)[:, None, None]
        inv_freq = self._inv_freq_at(at) if self._dynamic else self._inv_freq
        angles = at * inv_freq
        cos, sin = angles.cos(), angles.sin()
        if self._factor != 1.0:
            cos, sin = cos * self._factor, sin * self._factor
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    __call__ = forward

    def _inv_freq_at(self, at: Tensor) -> Tensor:
        """Dynamic NTK: a position past the trained length stretches the base as if the text ended
        there. That is what transformers does while it decodes; unlike its prefill it does not
        depend on how a prompt is cut into chunks, so cached keys stay valid."""
        config, dim = self._config, self._config.head_dim
        trained = config.max_position_embeddings
        factor = _scaling(config, "factor")
        stretch = factor * (at + 1).clamp(min=trained) / trained - (factor - 1)
        base = config.rope_theta * stretch ** (dim / (dim - 2))
        return 1.0 / base ** _exponents(dim).to(at.device)


def rope_type(config: ModelConfig) -> str:
    """The scaling scheme's name.

    Raises:
        UnsupportedArchitecture: unknown here.
    """
    scaling = config.rope_scaling or {}
    name = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if name not in _SCHEMES:
        raise UnsupportedArchitecture(
            f"rope_type {name!r} of {config.architecture} is not supported; supported are "
            f"{', '.join(_SCHEMES)}"
        )
    return name


def _exponents(dim: int) -> Tensor:
    return torch.arange(0, dim, 2, dtype=torch.float32) / dim


def _default(config: ModelConfig) -> Frequencies:
    """Su et al. 2021, arXiv:2104.09864, equation 15."""
    return 1.0 / config.rope_theta ** _exponents(config.head_dim), 1.0


def _linear(config: ModelConfig) -> Frequencies:
    """Position interpolation, Chen et al. 2023, arXiv:2306.15595."""
    inv_freq, factor = _default(config)
    return inv_freq / _scaling(config, "factor"), factor


def _llama3(config: ModelConfig) -> Frequencies:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    inv_freq, _ = _default(config)
    factor = _scaling(config, "factor")
    low, high = _scaling(config, "low_freq_factor"), _scaling(config, "high_freq_factor")
    trained = _scaling(config, "original_max_position_embeddings")
    wavelength = 2 * math.pi / inv_freq
    blend = ((trained / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * inv_freq / factor + blend * inv_freq, 1.0


def _yarn(config: ModelConfig) -> Frequencies:
    """YaRN, Peng et al. 2023, arXiv:2309.00071, section 3.2, with the temperature of 3.4."""
    scaling, dim = config.rope_scaling or {}, config.head_dim
    trained = _scaling(config, "original_max_position_embeddings")
    factor = scaling.get("factor") or config.max_position_embeddings / trained

    def dimension_of(rotations: float) -> float:
        """The dimension that turns this often within the trained length."""
        turns = trained / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(config.rope_theta))

    first = dimension_of(scaling.get("beta_fast") or 32)
    last = dimension_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = max(last - first, 0.001)
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    inv_freq, _ = _default(config)
    return inv_freq / factor * stretched + inv_freq * (1 - stretched), _yarn_factor(scaling, factor)


def _yarn_factor(scaling: dict[str, Any], factor: float) -> float:
    """The attention temperature, folded into cosine and sine."""
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    all_dims = scaling.get("mscale_all_dim")
    if scaling.get("mscale") and all_dims:
        return magnitude(scaling["mscale"]) / magnitude(all_dims)
    return magnitude(1.0)


def _scaling(config: ModelConfig, key: str) -> float:
    value = (config.rope_scaling or {}).get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelLoadError(f"rope_scaling of {config.architecture} needs a number {key!r}")
    return float(value)


_SCHEMES: dict[str, Callable[[ModelConfig], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
}
