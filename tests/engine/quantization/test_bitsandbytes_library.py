"""bitsandbytes in processes like a worker: its formats do without it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import FluxPipeline

from tests.helpers.diffusion.tiny_transformers import flux_parts

LOAD = """
import json, logging, sys
from pathlib import Path
import torch
from engine.diffusion import loading
from engine.diffusion.families.family import Row
from engine.diffusion.prompt.text import PromptText
from engine.diffusion.families.registry import load_family
from engine.contract.draw import ImageTask
from engine.weights.source import Checkpoint

logging.basicConfig(level=logging.WARNING)
folder, *quantizations = sys.argv[1:]
has_run = {}
for quantization in quantizations:
    family = load_family(Checkpoint("diffusers", Path(folder), "m"), dtype=torch.float32,
                         device=torch.device("cpu"), quantization=quantization)
    prompt = family.encode_prompts([PromptText(text="a star")])[0]
    row = Row(latents=torch.zeros(1, family.facts.latent_channels, 8, 8),
              timestep=torch.tensor(600.0), prompt=prompt)
    family.denoise(family.denoiser_key(ImageTask.TEXT_TO_IMAGE), [row])
    has_run[quantization] = "bitsandbytes.functional" in sys.modules
print(json.dumps(has_run))
"""


@pytest.mark.slow
def test_weights_do_without(tmp_path: Path) -> None:
    """A process that draws a step with each kind of weights runs none of it and logs nothing."""
    FluxPipeline(**vars(flux_parts(11))).save_pretrained(tmp_path)
    quantizations = ("none", "bnb-int8", "bnb-nf4")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), *quantizations],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(quantizations, False)
    assert done.stderr == ""


LAZY = """
import inspect, sys
from engine.quantization.bitsandbytes_library import defer_bitsandbytes
defer_bitsandbytes()
import bitsandbytes
inspect.getmodule(inspect.currentframe(), "nowhere")
assert "bitsandbytes.functional" not in sys.modules
assert bitsandbytes.nn.Linear4bit.__name__ == "Linear4bit"
assert sys.modules["bitsandbytes"] is bitsandbytes
"""


@pytest.mark.slow
def test_it_runs_when_it_is_used():
    subprocess.run([sys.executable, "-c", LAZY], check=True, timeout=300)
