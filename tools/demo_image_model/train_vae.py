"""Trains the autoencoder: 8 × 8 pixels become one cell of a 4-channel latent.

    python -m tools.demo_image_model.train_vae --run runs/vae --steps 8000

Half of the pictures are 64-pixel crops of scenes drawn at 128 pixels, so that the decoder knows
edges at both sizes. The loss is L1 of pixels and of their gradients, objects weighted up against
the plain background, and a very small KL term. Each save measures `scaling_factor`, the inverse
standard deviation of the latents.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from tools.demo_image_model.model import mixed_precision
from tools.demo_image_model.render import render
from tools.demo_image_model.scenes import draw_scene, scene_rng
from tools.demo_image_model.training_run import TrainingRun

SEED = 1
BATCH = 16
LEARNING_RATE = 1.5e-3
WARM_UP = 200
KL_WEIGHT = 1e-6
OBJECT_WEIGHT = 6.0
"""Weight of a pixel in or next to an object, relative to one of the background."""
SAVE_EVERY = 500


def build_vae() -> AutoencoderKL:
    """An autoencoder of 0.7 M parameters without attention, so that all sizes decode alike."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


def draw_batch(step: int) -> torch.Tensor:
    """The pictures of training step `step`, `[BATCH, 3, 64, 64]`."""
    scenes = [draw_scene(scene_rng(SEED, step * BATCH + i)) for i in range(BATCH)]
    half = BATCH // 2
    large = render(scenes[half:], 128)
    corner = scene_rng(SEED + 1, step).integers(0, 65, size=2)
    crops = large[:, :, corner[0] : corner[0] + 64, corner[1] : corner[1] + 64]
    return torch.cat([render(scenes[:half], 64), crops])


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Weighted L1 and L2 of pixels, and L1 of their differences to the right and below."""
    weight = object_weight(target)
    error = output - target
    loss = (weight * (error.abs() + 2 * error.pow(2))).mean()
    loss = loss + (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    return loss + (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()


def object_weight(target: torch.Tensor) -> torch.Tensor:
    """`OBJECT_WEIGHT` in objects and three pixels around them, else 1; `[N, 1, H, W]`."""
    # The background is the picture's median colour: objects never cover half of it.
    background = target.flatten(2).median(dim=2).values[:, :, None, None]
    differs = ((target - background).abs().amax(dim=1, keepdim=True) > 0.05).float()
    return 1 + (OBJECT_WEIGHT - 1) * F.max_pool2d(differs, 7, stride=1, padding=3)


def rate_factor(step: int, args: argparse.Namespace) -> float:
    """The factor of the learning rate: a linear warm-up, then a cosine to a twentieth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    progress = min(1.0, (step - WARM_UP) / max(1, args.steps - WARM_UP))
    return 0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL) -> float:
    """The inverse standard deviation of the latents' means."""
    scenes = [draw_scene(scene_rng(SEED + 2, i)) for i in range(512)]
    latents = [
        vae.encode(render(scenes[i : i + 64], 64)).latent_dist.mode() for i in range(0, 512, 64)
    ]
    return float(1 / torch.cat(latents).std())


def train(args: argparse.Namespace) -> None:
    """Train up to `--steps`, continuing where the run stopped; each save writes `RUN/vae`."""
    torch.manual_seed(SEED)
    vae: Any = build_vae().to(memory_format=torch.channels_last)
    run = TrainingRun(
        args,
        vae,
        [(vae, LEARNING_RATE)],
        ema_decay=0.998,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        save_every=SAVE_EVERY,
        factor_at=rate_factor,
    )

    def loss_at(step: int) -> torch.Tensor:
        images = draw_batch(step).to(memory_format=torch.channels_last)
        noise = torch.Generator().manual_seed(step)
        with mixed_precision():
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample(generator=noise)).sample
        loss = reconstruction_loss(output.float(), images)
        kl: torch.Tensor = posterior.kl().float().mean()
        return loss + KL_WEIGHT * kl

    def save(averaged: Any) -> None:
        averaged.register_to_config(scaling_factor=measure_scaling_factor(averaged))
        averaged.to(torch.float16).save_pretrained(args.run / "vae")

    run.train(loss_at, save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder for state and result")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(rate=1.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
