"""Trains the autoencoder: 8 × 8 pixels become one cell of a 4-channel latent.

    python -m tools.demo_image_model.train_vae --run runs/vae --steps 8000

Half of the pictures are 64-pixel crops of scenes drawn at 128 pixels, so that the decoder knows
edges at both sizes. The loss is L1 of pixels and of their gradients, objects weighted up against
the plain background, and a very small KL term. At the end the latents' standard deviation becomes
`scaling_factor`.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from tools.demo_image_model.checkpoint import Ema, load_state, save_state
from tools.demo_image_model.model import mixed_precision
from tools.demo_image_model.render import render
from tools.demo_image_model.scenes import draw_scene, scene_rng

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


def learning_rate(step: int, steps: int) -> float:
    """The learning rate: a linear warm-up, then a cosine to a twentieth."""
    if step < WARM_UP:
        return LEARNING_RATE * (step + 1) / WARM_UP
    progress = torch.tensor((step - WARM_UP) / max(1, steps - WARM_UP)).clamp(0, 1)
    return LEARNING_RATE * float(0.05 + 0.95 * (1 + torch.cos(torch.pi * progress)) / 2)


@torch.no_grad()
def measure_scaling_factor(vae: AutoencoderKL) -> float:
    """The inverse standard deviation of the latents' means."""
    scenes = [draw_scene(scene_rng(SEED + 2, i)) for i in range(512)]
    latents = [
        vae.encode(render(scenes[i : i + 64], 64)).latent_dist.mode() for i in range(0, 512, 64)
    ]
    return float(1 / torch.cat(latents).std())


def train(run: Path, steps: int) -> None:
    """Train up to `steps`, continuing where `run` stopped; write `run/vae` at the end."""
    torch.manual_seed(SEED)
    vae = build_vae().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    ema = Ema(vae, 0.998)
    first = 0
    state = load_state(run / "state.pt")
    if state is not None:
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        ema.shadow, ema.num_updates, first = state["ema"], state["step"], state["step"]
    started_s, running = time.monotonic(), 0.0
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        images = draw_batch(step).to(memory_format=torch.channels_last)
        noise = torch.Generator().manual_seed(step)
        with mixed_precision():
            posterior = vae.encode(images).latent_dist
            latents = posterior.sample(generator=noise)
            output = vae.decode(latents).sample
        loss = reconstruction_loss(output.float(), images)
        (loss + KL_WEIGHT * posterior.kl().float().mean()).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        ema.update(vae)
        running += (F.l1_loss(output.detach().float(), images).item() - running) / min(
            step + 1, 100
        )
        if (step + 1) % 100 == 0:
            speed = (step + 1 - first) * BATCH / (time.monotonic() - started_s)
            print(f"step {step + 1} L1 {running:.4f} {speed:.0f} pictures/s", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save_state(
                run / "state.pt",
                {
                    "vae": vae.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "ema": ema.shadow,
                    "step": step + 1,
                },
            )
    ema.copy_to(vae)
    vae.register_to_config(scaling_factor=measure_scaling_factor(vae))
    vae.to(torch.float16).save_pretrained(run / "vae")
    print(f"scaling factor {vae.config.scaling_factor:.4f}; saved {run / 'vae'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder for state and result")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.run, args.steps)


if __name__ == "__main__":
    main()
