"""Trains the text encoder and the UNet together on scenes and their captions.

    python -m tools.demo_image_model.train --run runs/base --vae runs/vae/vae --steps 60000

Deterministic by seed and step, and resumable: a run continues from its last save or, with `--init`,
from the fp16 weights of an earlier run (the optimiser then starts anew). The learning rate is
constant after the warm-up and falls over the last `--decay` steps. Several sizes take turns, one
per step. Each save also writes the averaged weights as a diffusers folder, `RUN/pipeline`.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from tools.demo_image_model.captions import caption
from tools.demo_image_model.latent_pool import LatentPools
from tools.demo_image_model.model import (
    build_noise_schedule,
    build_text_encoder,
    build_unet,
    load_vae,
    mixed_precision,
    ready_for_training,
    save_folder,
)
from tools.demo_image_model.object_weight import object_weight, weighted_mse
from tools.demo_image_model.render import render
from tools.demo_image_model.scenes import Scene, draw_scene, scene_rng, snapped
from tools.demo_image_model.tokenizer import write_tokenizer
from tools.demo_image_model.training_run import TrainingRun, add_arguments, add_sizes

SEED = 3
UNET_RATE, TEXT_RATE = 6e-4, 2e-4
REFRESH = 8
EMA_DECAY = 0.9992


class Model(torch.nn.Module):
    """Both trained parts, so that one optimiser, one average and one save serve them."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet


def noised(
    latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The noised latents and the v that the model should predict (Salimans & Ho 2022).

    Args:
        latents, noise: `[N, C, H, W]`.
        alphas: cumulative alpha of each row's timestep, `[N]`.
    """
    signal, sigma = alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
    return signal * latents + sigma * noise, signal * noise - sigma * latents


def draw_timesteps(
    count: int, num_timesteps: int, generator: torch.Generator, *, shift: float = 1.0
) -> torch.Tensor:
    """Draw timesteps, `[count]` int64, one from each of `count` parts of the schedule.

    The parts reduce variance. They are equal at `shift` 1; above it there are `shift` times as
    many draws at the noisy end and `shift` times fewer at the other (Esser et al. 2024).
    """
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    spread = shift * spread / (1 + (shift - 1) * spread)
    return (spread * num_timesteps).long().clamp(max=num_timesteps - 1)


class Trainer:
    """A training run with its data."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._shift: float = args.shift
        self._folder: Path = args.run
        self._tokenizer = write_tokenizer(args.run / "tokenizer")
        self.vae: Any = load_vae(args.vae)
        torch.manual_seed(SEED)
        self.model = model = Model(build_text_encoder(self._tokenizer), build_unet())
        if args.init is not None:
            load_weights(model, args.init)
        ready_for_training(model.unet)
        model.train()
        rates: list[tuple[torch.nn.Module, float]] = [(model.unet, UNET_RATE)]
        if args.freeze_text:
            model.text_encoder.requires_grad_(False)
        else:
            rates.append((model.text_encoder, TEXT_RATE))
        self.run = TrainingRun(args, model, rates, ema_decay=EMA_DECAY)
        self._alphas: torch.Tensor = build_noise_schedule().alphas_cumprod
        self.pools = LatentPools(
            args.size,
            lambda size, index: snapped(
                draw_scene(scene_rng(SEED + size, index), single_share=args.single_share)
            ),
            self._encode,
            pool_size=args.pool,
            batch=args.batch,
            refresh=REFRESH,
            step=self.run.step,
        )

    def train(self) -> None:
        """Train up to `--steps`."""
        self.run.train(self._loss, self._save)

    @torch.no_grad()
    def _encode(self, size: int, scenes: Sequence[Scene]) -> torch.Tensor:
        images = render(scenes, size).to(memory_format=torch.channels_last)
        with mixed_precision():
            latents: torch.Tensor = self.vae.encode(images).latent_dist.mode()
        scale: float = self.vae.config.scaling_factor
        return latents.float() * scale

    def _loss(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        scenes, latents = self.pools.sample(step, generator)
        words = scene_rng(SEED + 1, step)
        tokens = self._tokenizer(
            [caption(scene, words) for scene in scenes],
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        steps = draw_timesteps(len(scenes), len(self._alphas), generator, shift=self._shift)
        noise = torch.randn(latents.shape, generator=generator)
        inputs, target = noised(latents, noise, self._alphas[steps])
        with mixed_precision():
            states = self.model.text_encoder(tokens).last_hidden_state
            inputs = inputs.to(memory_format=torch.channels_last)
            output = self.model.unet(inputs, steps, states).sample
        # Not at the noisy end: an object may lie anywhere there, and weighting the cells where it
        # does lie would make the model draw it everywhere.
        above = object_weight([scene.items for scene in scenes], target.shape[-1])
        above = above * self._alphas[steps][:, None, None, None]
        return weighted_mse(output.float(), target, above)

    def _save(self, averaged: Model) -> None:
        save_folder(
            self._folder / "pipeline",
            text_encoder=averaged.text_encoder,
            unet=averaged.unet,
            vae=copy.deepcopy(self.vae),
        )


def load_weights(model: Model, folder: Path) -> None:
    """Load both parts from a saved diffusers folder."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    model.unet.load_state_dict(unet.state_dict())
    model.text_encoder.load_state_dict(text.state_dict())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=60_000, warm_up=500, decay=6000, pool=32_768)
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--init", type=Path, help="diffusers folder to start from")
    parser.add_argument(
        "--freeze-text",
        action="store_true",
        help="keep the text encoder as it is, so that other UNets can share it",
    )
    add_sizes(parser)
    parser.add_argument(
        "--single-share",
        type=float,
        default=0.3,
        help="share of scenes with one object; two are harder to learn",
    )
    parser.add_argument(
        "--shift",
        type=float,
        default=2.0,
        help="factor on the draws of the noisiest timesteps, which settle where and how many "
        "objects there are; below 1, the quietest are drawn more often, which settle outlines",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    Trainer(args).train()


if __name__ == "__main__":
    main()
