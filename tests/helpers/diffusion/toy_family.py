"""A family small enough to run a whole engine in milliseconds: one convolution denoises.

Its prediction depends on the latents, the timestep, the prompt and the image beside the latents, so
that rows mixed up show at once.
"""

import zlib
from dataclasses import fields

import torch

from engine.contract.draw import (
    PARAMS,
    DenoisingFacts,
    GuidanceKind,
    ImageRequest,
    ImageTask,
    UpscalingFacts,
)
from engine.contract.pixels import Pixels
from engine.diffusion.families.family import FamilyFacts, Row
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES, NoiseSchedules
from engine.diffusion.prompt.states import PromptStates
from engine.lora.images.layers import AdaptedLayers

CHANNELS, FACTOR = 4, 4
SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


class ToyFamily:
    def __init__(self, *, guidance=GuidanceKind.CLASSIFIER_FREE):
        generator = torch.Generator().manual_seed(5)
        self.device = torch.device("cpu")
        self.adapted = AdaptedLayers({}, device=self.device)
        self.schedules = NoiseSchedules(SCHEDULE, DIFFUSION_SCHEDULES)
        self.facts = FamilyFacts(
            architecture="toy",
            tasks=tuple(ImageTask),
            denoising=DenoisingFacts(
                guidance=guidance,
                schedulers=self.schedules.names,
                default_steps=4,
                default_guidance_scale=3.0,
            ),
            latent_channels=CHANNELS,
            vae_factor=FACTOR,
            size_multiple=FACTOR,
            default_width=32,
            default_height=32,
            min_side=FACTOR,
            max_pixels=1 << 20,
            upscaling=UpscalingFacts(scale=FACTOR, default_noise_level=1, max_noise_level=3),
        )
        self.weight = 0.3 * torch.randn(CHANNELS, 2 * CHANNELS, 3, 3, generator=generator)
        self.calls = []
        """(key, number of rows, latent shape) of every denoiser call."""
        self.encoded = []

    def encode_prompts(self, prompts):
        self.encoded += prompts
        return [self._states(prompt) for prompt in prompts]

    def _states(self, prompt):
        seed = zlib.crc32(repr(prompt).encode())
        states = torch.randn(1, 7, CHANNELS, generator=torch.Generator().manual_seed(seed))
        return PromptStates(key=prompt, states=states, num_tokens=len(prompt.text.split()))

    def encode_image(self, image, generator):
        pooled = torch.nn.functional.avg_pool2d(image, FACTOR)
        return torch.cat([pooled, pooled.mean(1, keepdim=True)], dim=1)

    def image_condition(self, task, image, mask, generator, *, noise_level=0):
        if task is ImageTask.UPSCALE:
            noise = torch.randn(image.shape, generator=generator)
            return torch.cat([image + noise_level * noise, image[:, :1]], dim=1)
        return self.encode_image(image, generator) if task is ImageTask.EDIT else None

    def denoiser_key(self, task):
        return "edit" if task is ImageTask.EDIT else "base"

    def new_noise_schedule(self, name, num_steps, width, height):
        return self.schedules.create(name, num_steps)

    def denoise(self, key, rows: list[Row]):
        latents = torch.cat([row.latents for row in rows])
        self.calls.append((key, len(rows), tuple(latents.shape[1:])))
        image = torch.cat(
            [
                torch.zeros_like(row.latents) if row.image_latents is None else row.image_latents
                for row in rows
            ]
        )
        times = torch.stack([row.timestep.float() for row in rows])[:, None, None, None] / 1000
        prompts = torch.cat([row.prompt.states.mean(1) for row in rows])[:, :, None, None]
        inputs = torch.cat([latents + prompts, image + times], dim=1)
        return torch.tanh(torch.nn.functional.conv2d(inputs, self.weight, padding=1))

    def decode(self, latents):
        pixels = torch.nn.functional.interpolate(latents[:, :3], scale_factor=FACTOR)
        return torch.tanh(pixels)

    preview = decode


def params(task=ImageTask.TEXT_TO_IMAGE, **changes):
    """Return a task's parameters; changes of fields that the task does not have are left out."""
    defaults = {"width": 32, "height": 32, "num_inference_steps": 4, "seed": 0}
    given = {**defaults, "guidance_scale": 3.0, **changes}
    own = {each.name for each in fields(PARAMS[task])}
    return PARAMS[task](**{name: value for name, value in given.items() if name in own})


def picture(width=32, height=32, seed=0):
    levels = torch.randint(
        0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed)
    )
    data = levels.to(torch.uint8).numpy().tobytes()
    return Pixels(width=width, height=height, channels=3, data=data)


def mask(width=32, height=32, box=(8, 8, 24, 24)):
    levels = torch.zeros(height, width, dtype=torch.uint8)
    levels[box[1] : box[3], box[0] : box[2]] = 255
    return Pixels(width=width, height=height, channels=1, data=levels.numpy().tobytes())


def request(request_id="r", prompt="a red circle", image=None, mask=None, **changes):
    return ImageRequest(
        request_id=request_id,
        model="toy",
        prompt=prompt,
        params=params(**changes),
        images=[] if image is None else [image],
        mask=mask,
    )
