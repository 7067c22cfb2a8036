"""Teaches the autoencoder's decoder to draw clean outlines from the UNets' latents.

    python -m tools.demo_image_model.train_decoder --vae runs/vae/vae --run runs/decoder \\
        --drawn runs/drawn/128.pt runs/drawn/64.pt

The UNets' latents differ slightly from those of a clean picture, and a decoder that has only seen
encoded pictures draws the difference as bumps and smudges. So it is trained on latents that were
drawn (`drawn.py`), and its target is the clean picture that each one means. A quarter of each batch
are encoded scenes with objects anywhere, so that other pictures are decoded as before. The encoder
stays as it is, so latents mean the same to every UNet. Resumable; each save writes the averaged
autoencoder as fp16, `RUN/vae`.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tools.demo_image_model.drawn import load_drawn
from tools.demo_image_model.latent_pool import LatentPools, batch_at
from tools.demo_image_model.model import load_vae, mixed_precision
from tools.demo_image_model.render import render
from tools.demo_image_model.scenes import Scene, draw_scene, scene_rng
from tools.demo_image_model.train_vae import reconstruction_loss
from tools.demo_image_model.training_run import TrainingRun, add_arguments

SEED = 11
RATE = 6e-4
DRAWN_BATCH, ENCODED_BATCH, REFRESH = 12, 4, 2
"""Drawn and encoded rows of a batch, and encoded rows replaced after it, for 64 pixels; larger
pictures have fewer."""
EMA_DECAY = 0.995
SAVE_EVERY = 100


class DecoderTrainer:
    """A training run of the decoder and the convolution before it, with its data."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._folder: Path = args.run
        self.vae: Any = load_vae(args.vae)
        trained = torch.nn.ModuleList([self.vae.decoder, self.vae.post_quant_conv])
        trained.requires_grad_(True)
        self.run = TrainingRun(
            args,
            trained,
            [(trained, RATE)],
            ema_decay=EMA_DECAY,
            weight_decay=0.0,
            save_every=SAVE_EVERY,
        )
        self._drawn = load_drawn(args.drawn)
        self.pools = LatentPools(
            list(self._drawn),
            lambda size, index: draw_scene(scene_rng(SEED + size, index)),
            self._encode,
            pool_size=args.pool,
            batch=ENCODED_BATCH,
            refresh=REFRESH,
            step=self.run.step,
        )

    def train(self) -> None:
        """Train up to `--steps`."""
        self.run.train(self._loss, self._save)

    @torch.no_grad()
    def _encode(self, size: int, scenes: Sequence[Scene]) -> torch.Tensor:
        images = render(scenes, size).to(memory_format=torch.channels_last)
        latents: torch.Tensor = self.vae.encode(images).latent_dist.mode()
        return latents

    def _batch(self, step: int) -> tuple[list[Scene], torch.Tensor]:
        """A batch of scenes and unscaled latents, encoded and drawn."""
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        encoded, latents = self.pools.sample(step, generator)
        size = latents.shape[-1] * 8
        drawn = self._drawn[size].sample(batch_at(DRAWN_BATCH, size), generator)
        return encoded + drawn.scenes, torch.cat([latents, drawn.latents.float()])

    def _loss(self, step: int) -> torch.Tensor:
        scenes, latents = self._batch(step)
        with mixed_precision():
            output = self.vae.decode(latents.to(memory_format=torch.channels_last)).sample
        return reconstruction_loss(output.float(), render(scenes, output.shape[-1]))

    def _save(self, averaged: torch.nn.ModuleList) -> None:
        vae = copy.deepcopy(self.vae)
        vae.decoder, vae.post_quant_conv = averaged
        vae.to(torch.float16).save_pretrained(self._folder / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=4000, warm_up=50, decay=3000, pool=384)
    parser.add_argument("--vae", type=Path, required=True, help="autoencoder to start from")
    parser.add_argument("--drawn", type=Path, nargs="+", required=True, help="files of `drawn.py`")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    DecoderTrainer(args).train()


if __name__ == "__main__":
    main()
