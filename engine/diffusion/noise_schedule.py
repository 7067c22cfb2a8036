"""Noise schedules: the well-known samplers on diffusers' schedulers, with one object per image.

The word *scheduler* has two meanings: what a client picks by name here (`euler`, `ddim` ...), and
what decides who runs next (`engine.diffusion.scheduler`). In code the first is a noise schedule.
"""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from engine.errors import InvalidParameter


@dataclass(frozen=True, slots=True)
class Named:
    """A schedule's name: diffusers' class, and the options that differ from the model's config."""

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


_ZERO_SNR = "rescale_betas_zero_snr"
_SPACING_PREFIX = "use_"
"""The prefix of options that choose other sigmas than those of the timesteps."""

_KARRAS = {"use_karras_sigmas": True}
_EXPONENTIAL = {"use_exponential_sigmas": True}
_ODE = {"algorithm_type": "dpmsolver++"}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

DIFFUSION_SCHEDULES: Mapping[str, Named] = {
    "ddim": Named("DDIMScheduler"),
    "ddpm": Named("DDPMScheduler"),
    "pndm": Named("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": Named("LMSDiscreteScheduler"),
    "euler": Named("EulerDiscreteScheduler"),
    "euler_karras": Named("EulerDiscreteScheduler", _KARRAS),
    "euler_ancestral": Named("EulerAncestralDiscreteScheduler"),
    "heun": Named("HeunDiscreteScheduler"),
    "dpmpp_2m": Named("DPMSolverMultistepScheduler", _ODE),
    "dpmpp_2m_karras": Named("DPMSolverMultistepScheduler", _ODE | _KARRAS),
    "dpmpp_2m_exponential": Named("DPMSolverMultistepScheduler", _ODE | _EXPONENTIAL),
    "dpmpp_2m_sde": Named("DPMSolverMultistepScheduler", _SDE),
    "dpmpp_2m_sde_karras": Named("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "dpmpp_2s": Named("DPMSolverSinglestepScheduler", _ODE),
    "deis": Named("DEISMultistepScheduler"),
    "unipc": Named("UniPCMultistepScheduler"),
    "lcm": Named("LCMScheduler"),
    "tcd": Named("TCDScheduler"),
}
"""The schedules for models that predict noise, v or the picture."""

FLOW_SCHEDULES: Mapping[str, Named] = {
    "euler": Named("FlowMatchEulerDiscreteScheduler"),
    "heun": Named("FlowMatchHeunDiscreteScheduler"),
}
"""The schedules for rectified-flow models."""

_NO_SAMPLE_PREDICTION = frozenset(("EulerAncestralDiscreteScheduler", "PNDMScheduler"))
"""Diffusers' classes that cannot step with a predicted picture."""

_SPACES_ONE_MORE = frozenset(
    (
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
    )
)
"""Classes that space one timestep more than there are steps, unless they space down from the
last."""

_VARIANCE_EXPLODING = frozenset(
    (
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
    )
)
"""Classes whose latents are x0 + sigma·noise; the others keep unit variance."""


class NoiseSchedule:
    """One image's schedule from noise to picture.

    Index `i` counts entries of `timesteps`; second-order samplers have about two per step. Latents
    at index i are `signal·x0 + sigma·noise` (see `scales`).

    Attributes:
        timesteps: `[num_timesteps]`.
        init_noise_sigma: the factor for unit noise to start at index 0.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._kind = type(scheduler).__name__
        self._is_flow = self._kind.startswith("FlowMatch")
        self._prediction = (
            "flow" if self._is_flow else scheduler.config.get("prediction_type", "epsilon")
        )
        self._step_options = _options(scheduler)
        self.timesteps: torch.Tensor = scheduler.timesteps
        self.init_noise_sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
        self._set_begin(0)

    @property
    def num_timesteps(self) -> int:
        return len(self.timesteps)

    def start_of(self, strength: float, num_steps: int) -> int:
        """The index of the first timestep that is run at a strength, counted as in diffusers; also
        tells the schedule."""
        run = min(num_steps * strength, num_steps)
        # Flow pipelines round the number of skipped steps down, the others the number of run steps.
        skipped = int(num_steps - run) if self._is_flow else num_steps - int(run)
        begin = min(skipped * int(getattr(self._scheduler, "order", 1)), self.num_timesteps)
        self._set_begin(begin)
        return begin

    def scale(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The latents as the denoiser needs them at this timestep."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return latents
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[index])
        return scaled

    def step(
        self,
        prediction: torch.Tensor,
        index: int,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """The latents at the next timestep. Fresh noise, if needed, comes from `generator`."""
        options = {"generator": generator} if "generator" in self._step_options else {}
        timestep = self.timesteps[index]
        advanced: torch.Tensor = self._scheduler.step(
            prediction, timestep, latents, return_dict=False, **options
        )[0]
        return advanced

    def scales(self, index: int) -> tuple[float, float]:
        """The pair (signal, sigma): latents at this timestep are `signal·x0 + sigma·noise`."""
        if index >= self.num_timesteps:
            return 1.0, 0.0
        scheduler = self._scheduler
        if self._is_flow:
            sigma = float(scheduler.sigmas[index])
            return 1.0 - sigma, sigma
        if self._kind in _VARIANCE_EXPLODING:
            return 1.0, float(scheduler.sigmas[index])
        if hasattr(scheduler, "sigmas"):
            sigma = float(scheduler.sigmas[index])
            signal = 1.0 / math.sqrt(1.0 + sigma * sigma)
            return signal, sigma * signal
        alpha = float(scheduler.alphas_cumprod[int(self.timesteps[index])])
        return math.sqrt(alpha), math.sqrt(1.0 - alpha)

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """`x0` with as much of `noise` as latents have at this timestep."""
        signal, sigma = self.scales(index)
        return signal * x0 + sigma * noise

    def to_x0(self, prediction: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The finished picture that a prediction implies."""
        signal, sigma = self.scales(index)
        if self._prediction == "sample":
            return prediction
        if self._prediction == "flow":
            return latents - sigma * prediction
        if self._prediction == "epsilon":
            # Only the last timestep of schedules that end in pure noise has no signal to divide by.
            return (latents - sigma * prediction) / max(signal, 1e-6)
        if self._kind in _VARIANCE_EXPLODING:
            total = sigma * sigma + 1.0
            return latents / total - prediction * (sigma / math.sqrt(total))
        return signal * latents - sigma * prediction

    def from_x0(self, x0: torch.Tensor, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The prediction that implies this finished picture: the inverse of `to_x0`."""
        signal, sigma = self.scales(index)
        if self._prediction == "sample":
            return x0
        if self._prediction == "flow":
            return (latents - x0) / sigma
        if self._prediction == "epsilon":
            return (latents - signal * x0) / sigma
        if self._kind in _VARIANCE_EXPLODING:
            total = sigma * sigma + 1.0
            return (latents / total - x0) * (math.sqrt(total) / sigma)
        return (signal * latents - x0) / sigma

    def _set_begin(self, index: int) -> None:
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(index)


class NoiseSchedules:
    """Makes schedules for one model from its own scheduler config.

    A model that was trained to start from pure noise (zero terminal SNR, Lin et al. 2023, arXiv
    2305.08891) gets the samplers that can start there (`starts_from_pure_noise`); a model that
    predicts the picture gets those that can step with it.

    Args:
        config: the model's `scheduler/scheduler_config.json`, with `_class_name`.
        named: the table of names for this kind of model.
    """

    def __init__(self, config: Mapping[str, Any], named: Mapping[str, Named]) -> None:
        self._config = dict(config)
        self._prototypes: dict[str, Any] = {}
        self.default = self._default_name(named)
        self._named = {
            name: entry
            for name, entry in named.items()
            if name == self.default or _suits(entry, config)
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The names on offer, the model's own first."""
        return (self.default, *(n for n in self._named if n != self.default))

    def create(
        self,
        name: str | None,
        num_steps: int,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> NoiseSchedule:
        """A new schedule with its timesteps set.

        Args:
            name: one of `names`; None is the model's own.
            sigmas: the sigmas before shifting, for flow schedules that take them.
            mu: the resolution-dependent shift of flow schedules.

        Raises:
            InvalidParameter: there is no such name, or the model has fewer timesteps than steps are
                wanted.
        """
        # A copy takes a fifth of the time of a new one, as betas and alphas exist already.
        scheduler = copy.deepcopy(self._prototype(name or self.default))
        _check_steps(scheduler, name or self.default, num_steps)
        options: dict[str, Any] = {}
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        if sigmas is not None and "sigmas" in accepted:
            options["sigmas"] = list(sigmas)
        if mu is not None and "mu" in accepted:
            options["mu"] = mu
        if "sigmas" not in options:
            options["num_inference_steps"] = num_steps
        scheduler.set_timesteps(**options)
        return NoiseSchedule(scheduler)

    def _prototype(self, name: str) -> Any:
        if name not in self._prototypes:
            self._prototypes[name] = self._build(name)
        return self._prototypes[name]

    def _build(self, name: str) -> Any:
        entry = self._named.get(name)
        if entry is None and name == self.default:
            return getattr(diffusers, self._config["_class_name"]).from_config(self._config)
        if entry is None:
            raise InvalidParameter(
                f"scheduler {name!r} is not offered by this model; use one of "
                f"{', '.join(self.names)}",
                param="scheduler",
            )
        config = {k: v for k, v in self._config.items() if not k.startswith(_SPACING_PREFIX)}
        if name == self.default:
            config = self._config
        return getattr(diffusers, entry.class_name).from_config(config, **entry.overrides)

    def _default_name(self, named: Mapping[str, Named]) -> str:
        """The name with the model's own class and, as far as they are set, its own options."""
        same_class = [
            name for name, entry in named.items() if entry.class_name == self._config["_class_name"]
        ]
        fits = [
            name
            for name in same_class
            if all(self._option(k) == v for k, v in named[name].overrides.items())
        ]
        if not fits:
            # An algorithm without a name here stays the model's own; we may choose other options.
            has_algorithm = self._option("algorithm_type") is not None
            return same_class[0] if same_class and not has_algorithm else "default"
        return max(fits, key=lambda name: len(named[name].overrides))

    def _option(self, name: str) -> Any:
        """An option of the model's own scheduler, as set or by its class's default."""
        parameters = inspect.signature(getattr(diffusers, self._config["_class_name"])).parameters
        default = parameters[name].default if name in parameters else None
        return self._config.get(name, default)


def most_steps(scheduler: Any) -> int | None:
    """The most steps for which a scheduler's timesteps are distinct and among those that the model
    was trained on; None if there is no limit, as for flow, whose timesteps are points on a line.

    Distilled samplers choose from a few fixed timesteps.
    """
    config = scheduler.config
    if type(scheduler).__name__.startswith("FlowMatch"):
        return None
    most = int(config.num_train_timesteps)
    spacing = config.get("timestep_spacing")
    if spacing == "leading":
        most -= int(config.get("steps_offset", 0))
    if spacing in ("leading", "linspace") and type(scheduler).__name__ in _SPACES_ONE_MORE:
        most -= 1
    return min(most, int(config.get("original_inference_steps", most)))


def _check_steps(scheduler: Any, name: str, num_steps: int) -> None:
    most = most_steps(scheduler)
    if most is not None and num_steps > most:
        raise InvalidParameter(
            f"num_inference_steps is {num_steps}, and {name} takes at most {most} with this model; "
            "use fewer, or another scheduler",
            param="num_inference_steps",
        )


def _suits(entry: Named, config: Mapping[str, Any]) -> bool:
    predicts_sample = config.get("prediction_type") == "sample"
    if predicts_sample and entry.class_name in _NO_SAMPLE_PREDICTION:
        return False
    return not config.get(_ZERO_SNR) or starts_from_pure_noise(entry)


def starts_from_pure_noise(entry: Named) -> bool:
    """Whether a sampler can start where a model with zero terminal SNR does.

    A sampler without the option starts from less noise than the model expects. One that spaces
    sigmas from the largest, such as Karras', replaces infinity there by a finite value, and spends
    most of its steps where there is only noise.
    """
    options = inspect.signature(getattr(diffusers, entry.class_name).__init__).parameters
    respaces = any(name.startswith(_SPACING_PREFIX) for name in entry.overrides)
    return _ZERO_SNR in options and not respaces


def _options(scheduler: Any) -> frozenset[str]:
    return frozenset(inspect.signature(scheduler.step).parameters)
