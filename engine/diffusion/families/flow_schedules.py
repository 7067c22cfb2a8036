"""Noise schedules of rectified-flow models, shifted towards noise for large pictures.

A large picture needs more noise than a small one to be destroyed as thoroughly. The config has
either one shift for all sizes, or a shift that depends on the number of image tokens (`mu`).

Paper: Esser et al. 2024, arXiv:2403.03206, section 5.3.2.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from engine.diffusion.noise_schedule import FLOW_SCHEDULES, NoiseSchedule, NoiseSchedules


class FlowSchedules:
    """Makes the schedules of one model.

    Args:
        config: the model's own scheduler config, with `_class_name`.
        max_shift: mu at `max_image_seq_len` tokens if the config does not give it.
        mu_of: mu for a number of tokens and of steps, in models that do not take it from the
            config.
        spans_unit_interval: whether to start from sigmas 1 ... 1/steps, like FLUX's pipelines,
            instead of the ends of the training range.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        max_shift: float,
        spans_unit_interval: bool,
        mu_of: Callable[[int, int], float] | None = None,
    ) -> None:
        self._config = dict(config)
        self._mu_of = mu_of
        self._max_shift = max_shift
        self._spans_unit_interval = spans_unit_interval and not config.get("use_flow_sigmas")
        self._is_dynamic = bool(config.get("use_dynamic_shifting"))
        self._schedules = NoiseSchedules(config, FLOW_SCHEDULES)

    @property
    def names(self) -> tuple[str, ...]:
        """The names on offer, the model's own first."""
        return self._schedules.names

    def create(self, name: str | None, num_steps: int, num_tokens: int) -> NoiseSchedule:
        """A new schedule for a picture of `num_tokens` image tokens.

        Raises:
            InvalidParameter: there is no such name.
        """
        sigmas = None
        if self._spans_unit_interval:
            # This is how numpy's linspace, which diffusers uses, computes `start + i * step`.
            step = (1.0 / num_steps - 1.0) / max(num_steps - 1, 1)
            sigmas = [1.0 + i * step for i in range(num_steps)]
        if not self._is_dynamic:
            return self._schedules.create(name, num_steps, sigmas=sigmas)
        mu = self._mu(num_tokens) if self._mu_of is None else self._mu_of(num_tokens, num_steps)
        if name not in (None, self._schedules.default):
            return self._with_fixed_shift(mu).create(name, num_steps)
        return self._schedules.create(name, num_steps, sigmas=sigmas, mu=mu)

    def _mu(self, num_tokens: int) -> float:
        """The value of mu on the line through (base tokens, base shift) and (max tokens, max
        shift)."""
        config = self._config
        base_tokens = config.get("base_image_seq_len", 256)
        base_shift = config.get("base_shift", 0.5)
        rise = config.get("max_shift", self._max_shift) - base_shift
        slope = rise / (config.get("max_image_seq_len", 4096) - base_tokens)
        return float(num_tokens * slope + (base_shift - slope * base_tokens))

    def _with_fixed_shift(self, mu: float) -> NoiseSchedules:
        """Schedules for samplers without mu, with the constant shift that equals it at this
        size."""
        linear = self._config.get("time_shift_type") == "linear"
        shift = mu if linear else math.exp(mu)
        return NoiseSchedules({**self._config, "shift": shift}, FLOW_SCHEDULES)
