"""A random model of the built-in one's shape, as a diffusers folder."""

import warnings
from pathlib import Path

import pytest
import torch

from tools.demo_image_model.model import build_text_encoder, build_unet, save_folder
from tools.demo_image_model.tokenizer import write_tokenizer
from tools.demo_image_model.train_edit import build_edit_unet
from tools.demo_image_model.train_vae import build_vae


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with `unet_edit` beside the other parts."""
    folder = tmp_path_factory.mktemp("base")
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        tokenizer = write_tokenizer(folder / "tokenizer")
        unet = build_unet()
        edit_unet = build_edit_unet(unet)
        save_folder(folder, text_encoder=build_text_encoder(tokenizer), unet=unet, vae=build_vae())
        edit_unet.to(torch.float16).save_pretrained(folder / "unet_edit")
    return folder
