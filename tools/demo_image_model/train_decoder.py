"""Teach the autoencoder's decoder to draw clean outlines of what the UNets make.

    python -m tools.demo_image_model.train_decoder --vae runs/vae/vae --run runs/decoder \\
        --drawn runs/drawn/128.pt runs/drawn/64.pt

The UNets' latents miss those of a clean picture by a little, and a decoder that has only seen
encoded pictures draws that as bumps and smudges. So it is trained on latents that were drawn
(`drawn.py`), and its target is the clean picture that each was meant to be. A quarter of each batch
are encoded scenes with objects anywhere, so that other pictures are decoded as before. The encoder
stays as it is, so latents mean the same to every UNet. Resumable; each save writes the averaged
autoencoder as fp16, `RUN/vae`.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tools.demo_image_model.checkpoint import Ema, load_state, save_state
from tools.demo_image_model.drawn import load_drawn
from tools.demo_image_model.latent_pool import LatentPools, batch_at
from tools.demo_image_model.model import load_vae, mixed_precision
from tools.demo_image_model.render import render
from tools.demo_image_model.scenes import Scene, draw_scene, scene_rng
from tools.demo_image_model.train import rate_factor
from tools.demo_image_model.train_vae import reconstruction_loss

SEED = 11
RATE = 6e-4
DRAWN_BATCH, ENCODED_BATCH, REFRESH = 12, 4, 2
"""Drawn and encoded rows of a batch, and encoded rows replaced after it; these numbers are
for 64 pixels, larger pictures have fewer."""
EMA_DECAY = 0.995
SAVE_EVERY = 100


class DecoderTrainer:
    """One run: its autoencoder, data and place in the course of training."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run: Path = args.run
        self.vae: Any = load_vae(args.vae)
        self.trained = torch.nn.ModuleList([self.vae.decoder, self.vae.post_quant_conv])
        self.trained.requires_grad_(True)
        self.ema = Ema(self.trained, EMA_DECAY)
        self.optimiser = torch.optim.AdamW(self.trained.parameters(), lr=RATE, weight_decay=0.0)
        self.step = 0
        self._resume()
        self.drawn = load_drawn(args.drawn)
        self.sizes = list(self.drawn)
        self.pools = LatentPools(
            self.sizes,
            lambda size, index: draw_scene(scene_rng(SEED + size, index)),
            self._encode,
            pool_size=args.pool,
            batch=ENCODED_BATCH,
            refresh=REFRESH,
            step=self.step,
        )

    def _resume(self) -> None:
        state = load_state(self.run / "state.pt")
        if state is not None:
            self.trained.load_state_dict(state["trained"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.ema.shadow, self.ema.num_updates = state["ema"], state["num_updates"]
            self.step = state["step"]

    @torch.no_grad()
    def _encode(self, size: int, scenes: Sequence[Scene]) -> torch.Tensor:
        images = render(scenes, size).to(memory_format=torch.channels_last)
        latents: torch.Tensor = self.vae.encode(images).latent_dist.mode()
        return latents

    def _batch(self) -> tuple[list[Scene], torch.Tensor]:
        """Scenes and unscaled latents of this step, drawn and encoded."""
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + self.step)
        encoded, latents = self.pools.sample(self.step, generator)
        size = latents.shape[-1] * 8
        drawn = self.drawn[size].sample(batch_at(DRAWN_BATCH, size), generator)
        return encoded + drawn.scenes, torch.cat([latents, drawn.latents.float()])

    def train(self) -> None:
        """Up to `--steps`."""
        args = self.args
        started_s, first, running = time.monotonic(), self.step, 0.0
        while self.step < args.steps:
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * args.rate * rate_factor(self.step, args)
            scenes, latents = self._batch()
            with mixed_precision():
                output = self.vae.decode(latents.to(memory_format=torch.channels_last)).sample
            loss = reconstruction_loss(output.float(), render(scenes, output.shape[-1]))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.ema.update(self.trained)
            self.pools.refresh(self.step)
            self.step += 1
            running += (loss.item() - running) / min(self.step - first, 100)
            if self.step % SAVE_EVERY == 0 or self.step == args.steps:
                speed = (self.step - first) / (time.monotonic() - started_s)
                print(f"step {self.step} loss {running:.4f} {speed:.2f} steps/s", flush=True)
                self._save()

    def _save(self) -> None:
        save_state(
            self.run / "state.pt",
            {
                "trained": self.trained.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "ema": self.ema.shadow,
                "num_updates": self.ema.num_updates,
                "step": self.step,
            },
        )
        averaged = copy.deepcopy(self.vae)
        self.ema.copy_to(torch.nn.ModuleList([averaged.decoder, averaged.post_quant_conv]))
        averaged.to(torch.float16).save_pretrained(self.run / "vae")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder for state and result")
    parser.add_argument("--vae", type=Path, required=True, help="autoencoder to start from")
    parser.add_argument("--drawn", type=Path, nargs="+", required=True, help="files of `drawn.py`")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--warm-up", type=int, default=50, help="first steps, with a rising rate")
    parser.add_argument("--decay", type=int, default=3000, help="last steps, with a falling rate")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rate")
    parser.add_argument("--pool", type=int, default=384, help="encoded scenes kept in memory")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    DecoderTrainer(args).train()


if __name__ == "__main__":
    main()
