"""The editing UNet's start, its dropout, and a short run that stops and goes on."""

import argparse
from pathlib import Path

import pytest
import torch

from tools.demo_image_model.model import (
    build_unet,
)
from tools.demo_image_model.train_edit import DROP, EditTrainer, build_edit_unet, drop_conditions

pytestmark = pytest.mark.filterwarnings("ignore")  # of third parties, when models load


def test_starts_as_the_base_model():
    torch.manual_seed(0)
    base = build_unet().eval()
    unet = build_edit_unet(base).eval()
    noisy, picture = torch.randn(2, 2, 4, 8, 8).unbind()
    states, steps = torch.randn(2, 32, 128), torch.tensor([10, 900])
    with torch.no_grad():
        expected = base(noisy, steps, states).sample
        output = unet(torch.cat([noisy, picture], dim=1), steps, states).sample
    assert torch.allclose(output, expected, atol=1e-5)
    assert unet.conv_in.weight.requires_grad and not unet.conv_in.weight[:, 4:].any()


def test_drops_five_per_cent_each_way():
    no_text, no_picture = drop_conditions(torch.linspace(0, 1, 100_001))
    shares = [
        (no_text & ~no_picture).float().mean(),
        (no_text & no_picture).float().mean(),
        (~no_text & no_picture).float().mean(),
    ]
    assert [float(s) for s in shares] == pytest.approx([DROP] * 3, abs=1e-4)


def trainer(base: Path, run: Path, steps: int) -> EditTrainer:
    return EditTrainer(
        argparse.Namespace(
            base=base, run=run, init=None, size=[64], steps=steps, warm_up=500, decay=1, rate=1.0,
            batch=4, pool=18,
        )
    )  # fmt: skip


@pytest.mark.slow
def test_goes_on_where_it_stopped(base, tmp_path):
    whole = trainer(base, tmp_path / "whole", 4)
    whole.train()
    trainer(base, tmp_path / "parts", 2).train()
    second = trainer(base, tmp_path / "parts", 4)
    assert second.run.step == 2
    second.train()
    assert second.unet.conv_in.weight[:, 4:].any()
    for (name, a), b in zip(whole.unet.named_parameters(), second.unet.parameters(), strict=True):
        # The rate is the same in both: warm-up ends later than either run.
        assert torch.equal(a, b), name
    assert (tmp_path / "parts/unet_edit/config.json").exists()


@pytest.mark.slow
def test_encodes_target_scaled_and_source_plain(base, tmp_path):
    editor = trainer(base, tmp_path, 0)
    edits, rows = editor.pools.sample(0, torch.Generator().manual_seed(0))
    scale = editor.vae.config.scaling_factor
    for edit, row in zip(edits, rows, strict=True):
        same = editor._encode(64, [type(edit)("", edit.target, edit.target, "")])[0]
        assert torch.allclose(same[:4], same[4:] * scale, atol=1e-5)
        assert torch.allclose(row[:4], same[:4], atol=2e-2)
