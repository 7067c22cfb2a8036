"""The built-in image model learns a style; diffusers and our engine load what is saved."""

import dataclasses
import random
import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from engine.commands.training.image_learner import WEIGHTS, check_family, load_image_learner
from engine.commands.training.run import run
from engine.contract.adapter_orders import AdapterReport
from engine.contract.draw import LoraUse
from engine.contract.orders import TrainingOrder
from engine.diffusion.families.family import Row
from engine.diffusion.families.registry import load_family
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedFeature
from engine.weights.source import Checkpoint, resolve_source
from tests.helpers.adapters.image_adapters import load, table_of

PLENTY = 1 << 40


@pytest.fixture
def order(tmp_path):
    data = tmp_path / "pictures"
    data.mkdir()
    for number in range(3):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((8 * number + 4, 8, 8 * number + 40, 44), outline="red")
        picture.save(data / f"{number}.png")
        (data / f"{number}.txt").write_text("a red circle")
    return TrainingOrder(
        task="image",
        model="tandem-shapes",
        data=data,
        output=tmp_path / "out",
        rank=4,
        alpha=4.0,
        steps=4,
        batch_size=2,
        learning_rate=1e-3,
        save_every=2,
        sample_every=4,
        sample_prompts=("a red circle",),
        seed=random.randrange(1000),
        cache_dir=tmp_path / "cache",
    )


def built_in(order):
    return resolve_source(order.model, cache_dir=order.cache_dir, on_progress=print)


def trained_unet(order):
    """diffusers' network with the adapter."""
    with warnings.catch_warnings(action="ignore"):
        path = built_in(order).path
        pipeline = StableDiffusionPipeline.from_pretrained(path, local_files_only=True)
        pipeline.load_lora_weights(order.output / "adapter")
    return pipeline.unet


def test_it_is_saved_as_diffusers_loads_it(order):
    run(order, PLENTY, lambda message: None)
    tensors = load_file(order.output / "adapter" / WEIGHTS)
    assert all(name.startswith("unet.") for name in tensors)
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {4}
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    with Image.open(order.output / "samples" / "step-00000004-0.png") as picture:
        assert picture.size == (64, 64)
    config = trained_unet(order).peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (4, 4)


def test_it_is_served_as_diffusers_computes_it(order):
    """Alpha is in the record that diffusers keeps in the file's header."""
    run(dataclasses.replace(order, alpha=10.0), PLENTY, lambda message: None)
    family = load_family(built_in(order), dtype=torch.float32, device=torch.device("cpu"))
    table = table_of(family.adapted)
    report = load(table, "style", order.output / "adapter")
    assert isinstance(report, AdapterReport), report
    assert (report.ranks, report.num_left_out) == ((4,), 0)
    [prompt] = family.encode_prompts([PromptText(text="a red circle")])
    unet = trained_unet(order)
    side = unet.config.sample_size
    latents = torch.randn(1, unet.config.in_channels, side, side)
    row = Row(latents=latents, timestep=torch.tensor(500.0), prompt=prompt)
    adapted = dataclasses.replace(row, adapters=(LoraUse(name=table.key_of("style")),))
    plain, ours = family.denoise("unet", [row, adapted]).split(1)
    with torch.no_grad():
        theirs = unet(latents, 500, prompt.states).sample
    size = max(1.0, theirs.abs().max().item())
    assert (ours - theirs).abs().max() < 1e-4 * size
    assert (ours - plain).abs().max() > 1e-3, "it has learned something"


def test_one_that_is_resumed_is_the_same(order, tmp_path):
    run(order, PLENTY, lambda message: None)
    again = dataclasses.replace(order, output=tmp_path / "again")

    def interrupt(message):
        if message.get("step") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(again, PLENTY, interrupt)
    run(dataclasses.replace(again, resume=True), PLENTY, lambda message: None)
    found = [load_file(path / "adapter" / WEIGHTS) for path in (order.output, again.output)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_the_loss_is_that_of_the_denoiser_that_predicts_nothing(order):
    """A network whose output is zero leaves the noise itself: its mean square is one."""
    learner = load_image_learner(built_in(order), dataclasses.replace(order, batch_size=16))
    out = learner._unet.conv_out
    torch.nn.init.zeros_(out.weight)
    torch.nn.init.zeros_(out.bias)
    losses = [learner.loss(torch.Generator().manual_seed(i)).item() for i in range(4)]
    wanted = {"epsilon": 1.0}.get(learner._noising.config.prediction_type)
    assert wanted is None or sum(losses) / 4 == pytest.approx(wanted, rel=0.1)


def test_other_families_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(UnsupportedFeature, match="FluxPipeline"):
        check_family(Checkpoint("diffusers", tmp_path, "flux"))
    with pytest.raises(UnsupportedFeature, match="diffusers folder"):
        check_family(Checkpoint("single_file", tmp_path, "flux"))
