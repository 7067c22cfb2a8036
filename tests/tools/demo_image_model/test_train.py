"""A short base run that stops and goes on, and one that keeps the text encoder."""

import argparse
from pathlib import Path

import pytest
import torch

from tools.demo_image_model.train import Trainer

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def trainer(base: Path, run: Path, steps: int, *, freeze_text: bool = False) -> Trainer:
    return Trainer(
        argparse.Namespace(
            run=run, vae=base / "vae", init=base if freeze_text else None, freeze_text=freeze_text,
            size=[64, 128, 128], steps=steps, warm_up=500, decay=1, rate=1.0, batch=4,
            pool=18, single_share=0.3, shift=2.0,
        )
    )  # fmt: skip


def test_goes_on_where_it_stopped(base, tmp_path):
    whole = trainer(base, tmp_path / "whole", 4)
    whole.train()
    trainer(base, tmp_path / "parts", 2).train()
    second = trainer(base, tmp_path / "parts", 4)
    assert second.run.step == 2
    second.train()
    pairs = zip(whole.model.named_parameters(), second.model.parameters(), strict=True)
    for (name, a), b in pairs:
        assert torch.equal(a, b), name


def test_a_frozen_text_encoder_stays_while_the_unet_learns(base, tmp_path):
    run = trainer(base, tmp_path, 3, freeze_text=True)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    run.train()
    after = dict(run.model.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("unet.") for name in changed)
