"""Which samplers a model is offered, and that each draws what diffusers' pipeline draws with it."""

import json
import random
from typing import Any

import diffusers
import pytest
import torch

from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.stable_diffusion import StableDiffusionFamily
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES, NoiseSchedules
from engine.errors import InvalidParameter
from engine.pictures.arrays import array_of
from tests.helpers.diffusion.engine_runs import run, take_step
from tests.helpers.diffusion.tiny_pipelines import CPU, Parts, tiny_parts
from tests.helpers.diffusion.toy_family import request
from tests.helpers.named_models import named_model
from tools.demo_image_model.classify import read
from tools.demo_image_model.questions import judge, single

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

ORACLE: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_exponential": ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
"""What diffusers' documentation makes of the names, on top of the model's own configuration."""

ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "set_alpha_to_one": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "epsilon": {},
    "v_prediction": {"prediction_type": "v_prediction"},
    "zero_snr": ZERO_SNR,
}
OFFERED_AT_ZERO_SNR = (
    "ddim", "ddpm", "euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd",
)  # fmt: skip
CASES = [
    (kind, name)
    for kind in CONFIGS
    for name in (OFFERED_AT_ZERO_SNR if kind == "zero_snr" else DIFFUSION_SCHEDULES)
]
TOLERANCE = 2e-4
"""fp32 over a few steps; sums are taken in another order with channels last."""
SETTINGS = {"width": 16, "height": 16, "num_inference_steps": 5, "guidance_scale": 3.0}

_PARTS: dict[str, Parts] = {}


def parts_of(kind: str) -> Parts:
    if kind not in _PARTS:
        torch.set_num_threads(1)
        parts = tiny_parts(7)
        config = {**parts.scheduler.config, **CONFIGS[kind]}
        # What it lists would be taken for not given.
        config.pop("_use_default_values")
        parts.scheduler = diffusers.DDIMScheduler.from_config(config)
        _PARTS[kind] = parts
    return _PARTS[kind]


def own_config(**changes: Any) -> dict[str, Any]:
    config = {"_class_name": "DDIMScheduler", **parts_of("zero_snr").scheduler.config}
    return {**config, **changes}


def test_every_name_has_an_oracle() -> None:
    assert set(ORACLE) == set(DIFFUSION_SCHEDULES)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_step_is_that_of_diffusers_pipeline(kind: str, name: str) -> None:
    """The same seed, the model's own configuration: equal latents after each step."""
    parts, seed = parts_of(kind), random.randrange(1 << 31)
    family = parts.family()
    asked = request(prompt="a door", scheduler=name, seed=seed, **SETTINGS)
    (drawing,) = DrawingFactory(family).create(asked)
    ours = []
    while not drawing.finished:
        take_step(drawing.stage)
        ours.append(drawing.stage.latents)
    theirs = oracle_steps(parts, name, seed)
    assert len(ours) == len(theirs)
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        scale = max(1.0, other.abs().max().item())
        worst = (mine - other).abs().max().item()
        assert worst < TOLERANCE * scale, (seed, step, worst, scale)


def oracle_steps(parts: Parts, name: str, seed: int) -> list[torch.Tensor]:
    """Latents after each step of the pipeline."""
    class_name, overrides = ORACLE[name]
    pipeline = parts.pipeline(diffusers.StableDiffusionPipeline)
    scheduler = getattr(diffusers, class_name)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **overrides)
    steps: list[torch.Tensor] = []

    def keep(_: Any, __: int, ___: Any, state: dict[str, Any]) -> dict[str, Any]:
        steps.append(state["latents"].clone())
        return state

    pipeline(
        prompt="a door",
        **SETTINGS,
        # Pipelines pass 0 to every scheduler; TCD's own default is 0.3.
        eta=0.3 if name == "tcd" else 0.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        callback_on_step_end=keep,
    )
    return steps


def test_without_zero_terminal_snr_everything_is_offered() -> None:
    config = own_config(rescale_betas_zero_snr=False)
    assert set(NoiseSchedules(config, DIFFUSION_SCHEDULES).names) == set(DIFFUSION_SCHEDULES)


def test_at_zero_terminal_snr_only_what_can_start_from_pure_noise_is_offered() -> None:
    schedules = NoiseSchedules(own_config(), DIFFUSION_SCHEDULES)
    assert schedules.names == OFFERED_AT_ZERO_SNR
    for name in set(DIFFUSION_SCHEDULES) - set(OFFERED_AT_ZERO_SNR):
        with pytest.raises(InvalidParameter, match=r"not offered .* use one of ddim, ddpm") as e:
            schedules.create(name, 5)
        assert e.value.param == "scheduler"


@pytest.mark.parametrize(
    ("config", "default"),
    [
        ({"_class_name": "PNDMScheduler"}, "pndm"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "dpmpp_2m_karras",
        ),
    ],
)
def test_a_models_own_sampler_is_always_offered(config: dict[str, Any], default: str) -> None:
    schedules = NoiseSchedules(own_config(**config), DIFFUSION_SCHEDULES)
    assert schedules.names == (default, *OFFERED_AT_ZERO_SNR)
    own = schedules.create(None, 5)._scheduler
    assert type(own).__name__ == config["_class_name"]
    assert own.config.get("use_karras_sigmas", False) == config.get("use_karras_sigmas", False)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++", "dpmsolver"])
def test_names_mean_the_same_whatever_the_models_own_algorithm(algorithm: str) -> None:
    own = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm, final_sigmas_type="sigma_min", use_karras_sigmas=True
    )
    config = {**own.config, "_class_name": type(own).__name__}
    schedules = NoiseSchedules(config, DIFFUSION_SCHEDULES)
    names = {"dpmsolver++": "dpmpp_2m_karras", "sde-dpmsolver++": "dpmpp_2m_sde_karras"}
    assert schedules.default == names.get(algorithm, "default")
    assert schedules.create(None, 5)._scheduler.config.algorithm_type == algorithm
    for name in (name for name in DIFFUSION_SCHEDULES if name.startswith("dpmpp")):
        chosen = schedules.create(name, 5)._scheduler.config
        meant = "sde-dpmsolver++" if "sde" in name else "dpmsolver++"
        assert (name, chosen.algorithm_type) == (name, meant)
        assert chosen.get("use_karras_sigmas", False) == name.endswith("karras")


@pytest.mark.slow
def test_the_built_in_model_draws_what_is_asked_for_with_samplers_it_is_offered(make_engine):
    """Eight prompts each, in 20 steps. What cannot start from pure noise fails at half of them."""
    options = LoadOptions(dtype=torch.float32, device=CPU)
    family = StableDiffusionFamily.load(named_model("tandem-shapes"), options)
    names = family.facts.denoising.schedulers
    assert names == OFFERED_AT_ZERO_SNR
    names = random.sample(names, 4)  # each of their steps is that of diffusers' pipeline
    questions = [single(index) for index in range(8)]
    engine = make_engine(family, max_num_rows=64, max_num_images=100, max_num_queued=100)
    size = {"width": 64, "height": 64, "num_inference_steps": 20, "guidance_scale": 3.0}
    for name in names:
        for index, question in enumerate(questions):
            chosen = {"scheduler": name, "seed": question.seed}
            engine.add(request(f"{name} {index}", question.prompt, **size, **chosen))
    pictures = {}
    for event in run(engine):
        if event.image is not None:
            pictures[event.request_id] = array_of(event.image)
    right = {
        name: sum(
            judge(question, read(pictures[f"{name} {index}"]))["objects"]
            for index, question in enumerate(questions)
        )
        for name in names
    }
    assert min(right.values()) > len(questions) / 2, right
    assert sum(right.values()) >= 0.9 * len(names) * len(questions), right


def test_the_built_in_models_configuration_is_the_one_tested_here() -> None:
    path = named_model("tandem-shapes").path / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    assert {key: config[key] for key in ZERO_SNR} == ZERO_SNR
