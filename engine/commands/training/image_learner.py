"""Trains a Stable Diffusion model on pictures: diffusers' pipeline with PEFT's LoRA in its UNet.

The loss is that of the denoiser's own training (Ho et al. 2020, arXiv:2006.11239, eq. 14): the mean
squared error of its prediction at a random noise level.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from engine.commands.training.adapter import peft_config, restore_adapter, trainable
from engine.commands.training.image_data import find_pictures, read_picture
from engine.contract.orders import TrainingOrder
from engine.errors import UnsupportedFeature
from engine.weights.source import Checkpoint

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of attention, as in diffusers' own scripts."""
PIPELINE = "StableDiffusionPipeline"
SAMPLE_STEPS, SAMPLE_GUIDANCE = 20, 3.0
WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Moments:
    """The autoencoder's distribution for a picture: mean and deviation, [1, 4, size/8, size/8]
    each."""

    mean: Tensor
    std: Tensor


class ImageLearner:
    """The learner of image models (`engine.commands.training.loop.Learner`).

    Args:
        pipeline: diffusers' `StableDiffusionPipeline` with an adapter in its UNet.
        pictures, captions: encoded pictures, and [N, ...] prompt states, the last for no caption.
    """

    def __init__(
        self,
        pipeline: Any,
        pictures: Sequence[Moments],
        captions: Tensor,
        order: TrainingOrder,
    ) -> None:
        from diffusers import DDPMScheduler

        self._pipeline = pipeline
        self._unet = pipeline.unet
        self._pictures = pictures
        self._captions = captions
        self._order = order
        self._noising = DDPMScheduler.from_config(pipeline.scheduler.config)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return trainable(self._unet)

    def loss(self, draws: torch.Generator) -> Tensor:
        """The mean squared error of a batch."""
        size = self._order.batch_size
        picked = torch.randint(len(self._pictures), (size,), generator=draws).tolist()
        latents = torch.cat([self._latents(self._pictures[i], draws) for i in picked])
        noise = torch.randn(latents.shape, generator=draws)
        levels = int(self._noising.config.num_train_timesteps)
        timesteps = torch.randint(levels, (size,), generator=draws)
        plain = torch.rand(size, generator=draws) < self._order.caption_dropout
        rows = torch.where(plain, len(self._captions) - 1, torch.tensor(picked))
        noisy = self._noising.add_noise(latents, noise, timesteps)
        self._unet.train()
        dtype = self._captions.dtype
        found = self._unet(noisy.to(dtype), timesteps, self._captions[rows]).sample
        return mse_loss(found.float(), self._wanted(latents, noise, timesteps))

    def save(self, folder: Path) -> None:
        """Write the adapter for diffusers' `load_lora_weights`, with its record of rank and
        alpha."""
        from peft import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        self._pipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(self._unet),
            unet_lora_adapter_metadata=self._unet.peft_config["default"].to_dict(),
        )

    def restore(self, folder: Path) -> None:
        restore_adapter(self._unet, folder / WEIGHTS, prefix="unet.")

    def sample(self, folder: Path, step: int) -> None:
        """Draw a picture for each prompt, always from the same noise."""
        folder.mkdir(parents=True, exist_ok=True)
        self._unet.eval()
        for number, prompt in enumerate(self._order.sample_prompts):
            (picture,) = self._pipeline(
                prompt,
                width=self._order.size,
                height=self._order.size,
                num_inference_steps=SAMPLE_STEPS,
                guidance_scale=SAMPLE_GUIDANCE,
                generator=torch.Generator().manual_seed(self._order.seed + number),
            ).images
            picture.save(folder / f"step-{step:08d}-{number}.png")

    def _latents(self, picture: Moments, draws: torch.Generator) -> Tensor:
        noise = torch.randn(picture.mean.shape, generator=draws)
        scale: float = self._pipeline.vae.config.scaling_factor
        return (picture.mean + picture.std * noise) * scale

    def _wanted(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        match self._noising.config.prediction_type:
            case "epsilon":
                return noise
            case "v_prediction":
                velocity: Tensor = self._noising.get_velocity(latents, noise, timesteps)
                return velocity
            case _:
                return latents


def load_image_learner(checkpoint: Checkpoint, order: TrainingOrder) -> ImageLearner:
    """Load an image model for training. All pictures are encoded once and stay in memory as
    latents.

    Raises:
        InvalidParameter: the data is wrong. UnsupportedFeature: the model cannot be trained here.
    """
    check_family(checkpoint)
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would warn of other keys in our model_index.json
    found = find_pictures(order.data)
    dtype = getattr(torch, order.precision)
    with warnings.catch_warnings():
        # diffusers would prefer the first Stable Diffusion's noise schedules.
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = StableDiffusionPipeline.from_pretrained(
            checkpoint.path, dtype=dtype, local_files_only=True
        )
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.requires_grad_(False)
    with torch.no_grad():
        pictures = [_moments(pipeline.vae, read_picture(one.path, order.size)) for one in found]
        texts = [*(one.caption for one in found), ""]
        captions = torch.cat([_states(pipeline, text) for text in texts])
    torch.manual_seed(order.seed)
    pipeline.unet.add_adapter(peft_config(order, TARGETS))
    for parameter in trainable(pipeline.unet):
        parameter.data = parameter.data.float()
    return ImageLearner(pipeline, pictures, captions, order)


def _moments(vae: Any, picture: Any) -> Moments:
    pixels = torch.from_numpy(picture)[None].to(vae.dtype)
    found = vae.encode(pixels).latent_dist
    return Moments(found.mean.float(), found.std.float())


def _states(pipeline: Any, text: str) -> Tensor:
    """The prompt's states [1, 77, C]."""
    states: Tensor
    states, _ = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
    return states


def check_family(checkpoint: Checkpoint) -> None:
    """Check that an image model can be trained here.

    Raises:
        UnsupportedFeature: it cannot.
    """
    if checkpoint.layout != "diffusers":
        raise UnsupportedFeature(
            "image models are trained only from a diffusers folder; give one with model_index.json"
        )
    index = json.loads((checkpoint.path / "model_index.json").read_text(encoding="utf-8"))
    if index.get("_class_name") != PIPELINE:
        raise UnsupportedFeature(
            f"the model is a {index.get('_class_name')}; only {PIPELINE} is trained "
            f"(SD 1.x and 2.x); use diffusers' scripts for others, and serve the result here"
        )
