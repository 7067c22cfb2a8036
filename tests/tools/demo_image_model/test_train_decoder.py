"""A short run of the decoder that stops and goes on, and leaves the encoder alone."""

import argparse
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from tools.demo_image_model.drawn import Drawn
from tools.demo_image_model.scenes import draw_scene, scene_rng, snapped
from tools.demo_image_model.train_decoder import DecoderTrainer

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def trainer(base: Path, run: Path, steps: int) -> DecoderTrainer:
    for size in (64, 128):
        scenes = [snapped(draw_scene(scene_rng(1, index))) for index in range(5)]
        Drawn(torch.randn(5, 4, size // 8, size // 8).half(), scenes).save(run / f"{size}.pt")
    return DecoderTrainer(
        argparse.Namespace(
            vae=base / "vae", drawn=[run / "64.pt", run / "128.pt"], run=run, steps=steps,
            warm_up=1, decay=1, rate=1.0, pool=12,
        )
    )  # fmt: skip


def test_only_the_decoder_learns_and_a_run_goes_on(base, tmp_path):
    trainer(base, tmp_path, 2).train()
    second = trainer(base, tmp_path, 3)
    assert second.run.step == 2
    second.train()
    before, after = (
        AutoencoderKL.from_pretrained(folder).state_dict()
        for folder in (base / "vae", tmp_path / "vae")
    )
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
