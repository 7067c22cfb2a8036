"""Train the editing UNet: it sees the picture to change in four more channels.

    python -m tools.demo_image_model.train_edit --run runs/edit --base runs/base/pipeline

InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800): the new input channels start at zero, the
text encoder is the base model's and stays as it is, and for each row alone the instruction, the
picture or both are dropped, 5 % each, so that guidance can weigh the two. Deterministic by seed and
step and resumable like the base training. Each save writes the averaged UNet as fp16,
`RUN/unet_edit`.
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

from tools.demo_image_model.checkpoint import Ema, load_state, save_state
from tools.demo_image_model.edits import Edit, draw_training_edit
from tools.demo_image_model.latent_pool import LatentPools
from tools.demo_image_model.model import (
    LATENT_CHANNELS,
    build_noise_schedule,
    build_unet,
    load_vae,
    mixed_precision,
    ready_for_training,
)
from tools.demo_image_model.object_weight import object_weight, weighted_mse
from tools.demo_image_model.render import render
from tools.demo_image_model.train import draw_timesteps, noised, rate_factor

SEED = 7
RATE = 3e-4
REFRESH = 8
EMA_DECAY = 0.9992
SAVE_EVERY = 200
DROP = 0.05
"""Share of rows without the instruction, without either, and without the picture."""


def build_edit_unet(base: torch.nn.Module) -> Any:
    """The base UNet with `LATENT_CHANNELS` more input channels, whose weights are zero."""
    unet: Any = build_unet(2 * LATENT_CHANNELS)
    weights = base.state_dict()
    narrow = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([narrow, torch.zeros_like(narrow)], dim=1)
    unet.load_state_dict(weights)
    return unet


def drop_conditions(luck: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows lose the instruction and which the picture, from uniform `luck`, `[N]` each.

    In thirds of 3 · DROP: instruction only, both, picture only.
    """
    return luck < 2 * DROP, (luck >= DROP) & (luck < 3 * DROP)


def _load_unet(folder: Path) -> Any:
    load: Any = UNet2DConditionModel.from_pretrained
    return load(folder, torch_dtype=torch.float32)


class EditTrainer:
    """One run: its UNet, data and place in the course of training."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.run: Path = args.run
        self.vae: Any = load_vae(args.base / "vae")
        self.tokenizer = CLIPTokenizer.from_pretrained(args.base / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(
            args.base / "text_encoder", dtype=torch.float32
        )
        self.text_encoder.requires_grad_(False).eval()
        # From an earlier editing UNet, or else from the base.
        if args.init is not None:
            unet = _load_unet(args.init)
        else:
            unet = build_edit_unet(_load_unet(args.base / "unet"))
        self.unet = ready_for_training(unet)
        self.unet.train()
        self.ema = Ema(self.unet, EMA_DECAY)
        self.optimiser = torch.optim.AdamW(
            self.unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01, foreach=True
        )
        self.step = 0
        self._resume()
        schedule: Any = build_noise_schedule()
        self.alphas: torch.Tensor = schedule.alphas_cumprod
        self.nothing = self._states([""])
        self.pools = LatentPools(
            args.size,
            lambda size, index: draw_training_edit(SEED + size, index),
            self._encode,
            pool_size=args.pool,
            batch=args.batch,
            refresh=REFRESH,
            step=self.step,
        )

    def _resume(self) -> None:
        state = load_state(self.run / "state.pt")
        if state is not None:
            self.unet.load_state_dict(state["unet"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.ema.shadow, self.ema.num_updates = state["ema"], state["num_updates"]
            self.step = state["step"]

    @torch.no_grad()
    def _encode(self, size: int, edits: Sequence[Edit]) -> torch.Tensor:
        """`[N, 8, h, w]`: the target's scaled latents, then the source's unscaled ones."""
        scenes = [edit.target for edit in edits] + [edit.source for edit in edits]
        images = render(scenes, size).to(memory_format=torch.channels_last)
        with mixed_precision():
            latents = self.vae.encode(images).latent_dist.mode()
        target, source = latents.float().chunk(2)
        return torch.cat([target * self.vae.config.scaling_factor, source], dim=1)

    @torch.no_grad()
    def _states(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        with mixed_precision():
            states: torch.Tensor = self.text_encoder(tokens).last_hidden_state
        return states.float()

    def train(self) -> None:
        """Up to `--steps`, or until `--seconds` are over."""
        args = self.args
        started_s, first, running = time.monotonic(), self.step, 0.0
        while self.step < args.steps:
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * args.rate * rate_factor(self.step, args)
            loss = self._loss()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.ema.update(self.unet)
            self.pools.refresh(self.step)
            self.step += 1
            running += (loss.item() - running) / min(self.step - first, 200)
            passed_s = time.monotonic() - started_s
            out_of_time = args.seconds is not None and passed_s > args.seconds
            if self.step % 200 == 0 or out_of_time:
                speed = (self.step - first) * args.batch / passed_s
                print(f"step {self.step} loss {running:.4f} {speed:.0f} samples/s", flush=True)
            if self.step % SAVE_EVERY == 0 or self.step == args.steps or out_of_time:
                self._save()
            if out_of_time:
                break

    def _loss(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + self.step)
        edits, both = self.pools.sample(self.step, generator)
        latents, pictures = both.chunk(2, dim=1)
        states = self._states([edit.instruction for edit in edits])
        no_text, no_picture = drop_conditions(torch.rand(len(edits), generator=generator))
        states = torch.where(no_text[:, None, None], self.nothing, states)
        pictures = torch.where(no_picture[:, None, None, None], 0.0, pictures)
        steps = draw_timesteps(len(edits), len(self.alphas), generator)
        noise = torch.randn(latents.shape, generator=generator)
        inputs, target = noised(latents, noise, self.alphas[steps])
        inputs = torch.cat([inputs, pictures], dim=1).to(memory_format=torch.channels_last)
        with mixed_precision():
            output = self.unet(inputs, steps, states).sample
        items = [edit.source.items + edit.target.items for edit in edits]
        return weighted_mse(output.float(), target, object_weight(items, target.shape[-1]))

    def _save(self) -> None:
        save_state(
            self.run / "state.pt",
            {
                "unet": self.unet.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "ema": self.ema.shadow,
                "num_updates": self.ema.num_updates,
                "step": self.step,
            },
        )
        averaged: Any = copy.deepcopy(self.unet)
        self.ema.copy_to(averaged)
        averaged.to(torch.float16).save_pretrained(self.run / "unet_edit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder for state and result")
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder of the base")
    parser.add_argument("--init", type=Path, help="an earlier run's `unet_edit` to start from")
    parser.add_argument("--size", type=int, nargs="+", default=[64], help="pixels of pictures")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--warm-up", type=int, default=500, help="first steps, with a rising rate")
    parser.add_argument("--decay", type=int, default=3_000, help="last steps, with a falling rate")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rate")
    parser.add_argument("--batch", type=int, default=64, help="of 64 pixels; fewer larger ones")
    parser.add_argument("--pool", type=int, default=32_768, help="encoded pairs kept in memory")
    parser.add_argument("--seconds", type=float, help="save and stop after so long")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    EditTrainer(args).train()


if __name__ == "__main__":
    main()
