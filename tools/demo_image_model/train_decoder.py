"""Teach the autoencoder's decoder to draw clean outlines of what the UNet makes.

    python -m tools.demo_image_model.train_decoder --model runs/base/pipeline \\
        --vae runs/vae/vae --run runs/decoder

The UNet's latents miss those of a clean picture by a little, and the decoder, which has only seen
encoded pictures, draws that as bumps. So latents are noised, denoised by the UNet in the sampler's
last steps, and decoded; the target is the picture that they came from. A part of them is left as
encoded, of objects that lie anywhere, so that other pictures are decoded as before. The encoder
stays as it is, and so latents mean the same to every UNet. Resumable; each save writes the averaged
autoencoder as fp16, `RUN/vae`.
"""

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from tools.demo_image_model.captions import caption
from tools.demo_image_model.checkpoint import Ema, load_state, save_state
from tools.demo_image_model.evaluate import STEPS
from tools.demo_image_model.latent_pool import LatentPools
from tools.demo_image_model.model import build_noise_schedule, load_vae, mixed_precision
from tools.demo_image_model.render import render
from tools.demo_image_model.scenes import Scene, draw_scene, scene_rng, snapped
from tools.demo_image_model.train import rate_factor
from tools.demo_image_model.train_vae import reconstruction_loss

SEED = 11
RATE = 6e-4
BATCH, REFRESH = 16, 4
EMA_DECAY = 0.995
SAVE_EVERY = 100
LAST_STEPS = 10
"""Of the sampler's: denoising starts in one of these."""
CLEAN_EVERY = 4
"""One scene in so many is left as encoded, and lies anywhere."""


class DecoderTrainer:
    """One run: its autoencoder, data and place in the course of training."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run: Path = args.run
        load: Any = UNet2DConditionModel.from_pretrained
        self.unet = load(args.model, subfolder="unet", torch_dtype=torch.float32)
        self.text_encoder = CLIPTextModel.from_pretrained(
            args.model, subfolder="text_encoder", dtype=torch.float32
        )
        self.tokenizer = CLIPTokenizer.from_pretrained(args.model / "tokenizer")
        self.vae: Any = load_vae(args.vae)
        self.trained = torch.nn.ModuleList([self.vae.decoder, self.vae.post_quant_conv])
        self.trained.requires_grad_(True)
        self.ema = Ema(self.trained, EMA_DECAY)
        self.optimiser = torch.optim.AdamW(self.trained.parameters(), lr=RATE, weight_decay=0.0)
        self.step = 0
        self._resume()
        self.noise = torch.Generator().manual_seed(SEED + self.step)
        self.pools = LatentPools(
            args.size,
            self._draw,
            self._encode,
            pool_size=args.pool,
            batch=BATCH,
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

    def _draw(self, size: int, index: int) -> Scene:
        scene = draw_scene(scene_rng(SEED + size, index))
        return scene if index % CLEAN_EVERY == 0 else snapped(scene)

    @torch.no_grad()
    def _encode(self, size: int, scenes: Sequence[Scene]) -> torch.Tensor:
        """Unscaled latents, denoised where the scene is `snapped`."""
        images = render(scenes, size).to(memory_format=torch.channels_last)
        latents = self.vae.encode(images).latent_dist.mode()
        is_clean = torch.tensor([scene != snapped(scene) for scene in scenes])
        scale = self.vae.config.scaling_factor
        denoised = self._denoised(latents * scale, scenes) / scale
        return torch.where(is_clean[:, None, None, None], latents, denoised)

    def _denoised(self, latents: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
        words = scene_rng(SEED, int(torch.randint(2**31, (1,), generator=self.noise)))
        texts = [caption(scene, words) for scene in scenes]
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        states = self.text_encoder(tokens).last_hidden_state
        schedule: Any = build_noise_schedule()
        schedule.set_timesteps(STEPS)
        last = int(torch.randint(1, LAST_STEPS + 1, (1,), generator=self.noise))
        steps = schedule.timesteps[-last:]
        noise = torch.randn(latents.shape, generator=self.noise)
        latents = schedule.add_noise(latents, noise, steps[:1].repeat(len(latents)))
        for step in steps:
            with mixed_precision():
                output = self.unet(latents, step, states).sample
            latents = schedule.step(output.float(), step, latents).prev_sample
        return latents

    def train(self) -> None:
        """Up to `--steps`."""
        args = self.args
        started_s, first, running = time.monotonic(), self.step, 0.0
        while self.step < args.steps:
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * args.rate * rate_factor(self.step, args)
            generator = torch.Generator().manual_seed(SEED * 1_000_003 + self.step)
            scenes, latents = self.pools.sample(self.step, generator)
            size = latents.shape[-1] * 8
            with mixed_precision():
                output = self.vae.decode(latents.to(memory_format=torch.channels_last)).sample
            loss = reconstruction_loss(output.float(), render(scenes, size))
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
    parser.add_argument("--model", type=Path, required=True, help="diffusers folder of the base")
    parser.add_argument("--vae", type=Path, required=True, help="autoencoder to start from")
    parser.add_argument("--size", type=int, nargs="+", default=[128, 64], help="pixels of pictures")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--warm-up", type=int, default=50, help="first steps, with a rising rate")
    parser.add_argument("--decay", type=int, default=3000, help="last steps, with a falling rate")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rate")
    parser.add_argument("--pool", type=int, default=384, help="denoised scenes kept in memory")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    DecoderTrainer(args).train()


if __name__ == "__main__":
    main()
