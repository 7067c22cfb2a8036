import random

import pytest

from engine.weights.diffusers_layout import FULL_FIRST, HALF_FIRST, choose_weights, has_pickles

SHARDED = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
OLD_SHARDED = [f"diffusion_pytorch_model-0000{i}-of-00002.fp16.safetensors" for i in (1, 2)]
NEW_SHARDED = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(
    ("names", "half_first", "full_first"),
    [
        ([], ("", []), ("", [])),
        (["config.json", "model.bin", "flax_model.msgpack"], ("", []), ("", [])),
        (["model.safetensors"], ("", ["model.safetensors"]), ("", ["model.safetensors"])),
        (
            ["model.safetensors", "model.fp16.safetensors"],
            ("fp16", ["model.fp16.safetensors"]),
            ("", ["model.safetensors"]),
        ),
        (["model.non_ema.safetensors"], ("", []), ("", [])),
        (SHARDED, ("", SHARDED), ("", SHARDED)),
        (OLD_SHARDED, ("fp16", OLD_SHARDED), ("fp16", OLD_SHARDED)),
        (NEW_SHARDED, ("fp16", NEW_SHARDED), ("fp16", NEW_SHARDED)),
        (
            [*NEW_SHARDED, "diffusion_pytorch_model.safetensors"],
            ("fp16", NEW_SHARDED),
            ("", ["diffusion_pytorch_model.safetensors"]),
        ),
        # A shard is missing.
        (SHARDED[:1], ("", []), ("", [])),
        (
            [*SHARDED[1:], "model.bf16.safetensors"],
            ("bf16", ["model.bf16.safetensors"]),
            ("bf16", ["model.bf16.safetensors"]),
        ),
    ],
)
def test_one_set_is_chosen(names, half_first, full_first):
    names = random.sample(names, len(names))
    assert choose_weights(names, HALF_FIRST) == half_first
    assert choose_weights(names, FULL_FIRST) == full_first


def test_pickles():
    assert has_pickles(["config.json", "diffusion_pytorch_model.bin"])
    assert not has_pickles(["config.json", "model.safetensors"])
