"""Noise schedules: the field's named samplers over diffusers' schedulers, one object per image.

The word *scheduler* means two things: what a client picks by name here (`euler`, `ddim` ...), and
who runs next (`engine.diffusion.scheduler`). In code the first is a noise schedule.
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
    """A name that clients use: diffusers' class, and what differs from the model's own config."""

    class_name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


_ZERO_SNR = "rescale_betas_zero_snr"
_SPACING_PREFIX = "use_"
"""Of the options that choose other sigmas than those of the timesteps."""

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
"""For models that predict noise, v or the picture."""

FLOW_SCHEDULES: Mapping[str, Named] = {
    "euler": Named("FlowMatchEulerDiscreteScheduler"),
    "heun": Named("FlowMatchHeunDiscreteScheduler"),
}
"""For rectified-flow models."""

_NO_SAMPLE_PREDICTION = frozenset(("EulerAncestralDiscreteScheduler", "PNDMScheduler"))
"""Classes of diffusers that refuse to step by a predicted picture."""

_SPACES_ONE_MORE = frozenset(
    (
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
    )
)
"""They space one timestep more than there are steps, unless from the last one down."""

_VARIANCE_EXPLODING = frozenset(
    (
        "LMSDiscreteScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
    )
)
"""Their latents are x0 + sigma·noise; the others keep unit variance."""


class NoiseSchedule:
    """One image's way from noise to picture.

    Index `i` counts entries of `timesteps`; second-order samplers have about two per step. Latents
    at index i are `signal·x0 + sigma·noise`, see `scales`.

    Attributes:
        timesteps: `[num_timesteps]`.
        init_noise_sigma: what unit noise is multiplied with to start at index 0.
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
        """Index of the first timestep that a strength runs, as diffusers counts; tells the schedule
        so."""
        run = min(num_steps * strength, num_steps)
        # Flow pipelines round the steps left out down, the others the steps run.
        skipped = int(num_steps - run) if self._is_flow else num_steps - int(run)
        begin = min(skipped * int(getattr(self._scheduler, "order", 1)), self.num_timesteps)
        self._set_begin(begin)
        return begin

    def scale(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """The latents as the denoiser wants them at this timestep."""
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
        """The latents at the next timestep. Fresh noise, if any, comes from `generator`."""
        options = {"generator": generator} if "generator" in self._step_options else {}
        timestep = self.timesteps[index]
        advanced: torch.Tensor = self._scheduler.step(
            prediction, timestep, latents, return_dict=False, **options
        )[0]
        return advanced

    def scales(self, index: int) -> tuple[float, float]:
        """(signal, sigma): latents at this timestep are `signal·x0 + sigma·noise`."""
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
            # Schedules that end in pure noise have no signal to divide by: the last timestep alone.
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
    """Makes schedules for one model, from its own scheduler config.

    A model that was trained to start from pure noise (zero terminal SNR, Lin et al. 2023, arXiv
    2305.08891) is offered the samplers that can start there, see `starts_from_pure_noise`; one that
    predicts the picture those that step by it.

    Args:
        config: of the model's `scheduler/scheduler_config.json`, with `_class_name`.
        named: the table of names for its kind of model.
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
        """Offered names, the model's own first."""
        return (self.default, *(n for n in self._named if n != self.default))

    def create(
        self,
        name: str | None,
        num_steps: int,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> NoiseSchedule:
        """A fresh schedule with its timesteps set.

        Args:
            name: one of `names`; None is the model's own.
            sigmas: of flow schedules that take them, before shifting.
            mu: resolution-dependent shift of flow schedules.

        Raises:
            InvalidParameter: no such name, or more steps than the model's timesteps give it.
        """
        # A copy costs a fifth of building one: betas and alphas are already there.
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
        """The name whose class, and whose overrides as far as set, are the model's own."""
        same_class = [
            name for name, entry in named.items() if entry.class_name == self._config["_class_name"]
        ]
        fits = [
            name
            for name in same_class
            if all(self._option(k) == v for k, v in named[name].overrides.items())
        ]
        if not fits:
            # An algorithm without a name stays the model's own; other options are ours to choose.
            has_algorithm = self._option("algorithm_type") is not None
            return same_class[0] if same_class and not has_algorithm else "default"
        return max(fits, key=lambda name: len(named[name].overrides))

    def _option(self, name: str) -> Any:
        """Of the model's own scheduler, as set or by its class's default."""
        parameters = inspect.signature(getattr(diffusers, self._config["_class_name"])).parameters
        default = parameters[name].default if name in parameters else None
        return self._config.get(name, default)


def most_steps(scheduler: Any) -> int | None:
    """Steps up to which a scheduler's timesteps are distinct and within those that the model was
    trained on; None where there is no such limit, as flow's are points of a line.

    Distilled samplers choose theirs from a fixed few.
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
    """Whether a sampler can start where a model of zero terminal SNR does.

    One that does not know the option starts from less noise than the model expects. One that
    spaces its sigmas from the largest, as Karras' do, finds a stand-in for infinity there, and
    spends most of its steps where there is nothing but noise.
    """
    options = inspect.signature(getattr(diffusers, entry.class_name).__init__).parameters
    respaces = any(name.startswith(_SPACING_PREFIX) for name in entry.overrides)
    return _ZERO_SNR in options and not respaces


def _options(scheduler: Any) -> frozenset[str]:
    return frozenset(inspect.signature(scheduler.step).parameters)
