"""Trains the editing UNet, which sees the picture to change in four more channels.

    python -m tools.demo_image_model.train_edit --run runs/edit --base runs/base/pipeline

InstructPix2Pix (Brooks et al. 2023, arXiv 2211.09800): the new input channels start at zero, and
the base model's text encoder stays unchanged. Each row loses the instruction, the picture or both,
with a probability of 5 % each, so that guidance can weigh the two. Deterministic by seed and step,
and resumable like the base training. Each save writes the averaged UNet as fp16, `RUN/unet_edit`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

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
from tools.demo_image_model.train import draw_timesteps, noised
from tools.demo_image_model.training_run import TrainingRun, add_arguments, add_sizes

SEED = 7
RATE = 3e-4
REFRESH = 8
EMA_DECAY = 0.9992
DROP = 0.05
"""The share of rows without the instruction, without both, and without the picture, each."""


def build_edit_unet(base: torch.nn.Module) -> Any:
    """The base UNet with `LATENT_CHANNELS` more input channels, whose weights are zero."""
    unet: Any = build_unet(2 * LATENT_CHANNELS)
    weights = base.state_dict()
    narrow = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([narrow, torch.zeros_like(narrow)], dim=1)
    unet.load_state_dict(weights)
    return unet


def drop_conditions(luck: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the rows that lose the instruction and those that lose the picture by uniform `luck`.

    A third of 3 · DROP each: instruction only, both, picture only.
    """
    return luck < 2 * DROP, (luck >= DROP) & (luck < 3 * DROP)


def _load_unet(folder: Path) -> Any:
    load: Any = UNet2DConditionModel.from_pretrained
    return load(folder, torch_dtype=torch.float32)


class EditTrainer:
    """A training run with its data."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._folder: Path = args.run
        self.vae: Any = load_vae(args.base / "vae")
        self._tokenizer = CLIPTokenizer.from_pretrained(args.base / "tokenizer")
        self._text_encoder = CLIPTextModel.from_pretrained(
            args.base / "text_encoder", dtype=torch.float32
        )
        self._text_encoder.requires_grad_(False).eval()
        # Start from an earlier editing UNet, or else from the base.
        if args.init is not None:
            unet = _load_unet(args.init)
        else:
            unet = build_edit_unet(_load_unet(args.base / "unet"))
        self.unet = ready_for_training(unet)
        self.unet.train()
        self.run = TrainingRun(args, self.unet, [(self.unet, RATE)], ema_decay=EMA_DECAY)
        schedule: Any = build_noise_schedule()
        self._alphas: torch.Tensor = schedule.alphas_cumprod
        self._nothing = self._states([""])
        self.pools = LatentPools(
            args.size,
            lambda size, index: draw_training_edit(SEED + size, index),
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
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        with mixed_precision():
            states: torch.Tensor = self._text_encoder(tokens).last_hidden_state
        return states.float()

    def _loss(self, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        edits, both = self.pools.sample(step, generator)
        latents, pictures = both.chunk(2, dim=1)
        states = self._states([edit.instruction for edit in edits])
        no_text, no_picture = drop_conditions(torch.rand(len(edits), generator=generator))
        states = torch.where(no_text[:, None, None], self._nothing, states)
        pictures = torch.where(no_picture[:, None, None, None], 0.0, pictures)
        steps = draw_timesteps(len(edits), len(self._alphas), generator)
        noise = torch.randn(latents.shape, generator=generator)
        inputs, target = noised(latents, noise, self._alphas[steps])
        inputs = torch.cat([inputs, pictures], dim=1).to(memory_format=torch.channels_last)
        with mixed_precision():
            output = self.unet(inputs, steps, states).sample
        items = [edit.source.items + edit.target.items for edit in edits]
        return weighted_mse(output.float(), target, object_weight(items, target.shape[-1]))

    def _save(self, averaged: Any) -> None:
        averaged.to(torch.float16).save_pretrained(self._folder / "unet_edit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, steps=20_000, warm_up=500, decay=3000, pool=32_768)
    parser.add_argument("--base", type=Path, required=True, help="diffusers folder of the base")
    parser.add_argument("--init", type=Path, help="an earlier run's `unet_edit` to start from")
    add_sizes(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    EditTrainer(args).train()


if __name__ == "__main__":
    main()
