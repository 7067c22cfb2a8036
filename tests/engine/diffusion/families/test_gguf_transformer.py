import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
)
from gguf import GGMLQuantizationType

from engine.diffusion.families.gguf_transformer import find_gguf, load_gguf_transformer
from engine.diffusion.families.original_names import rows_of
from engine.diffusion.families.transformer_names import names_in
from engine.errors import (
    CorruptFile,
    MissingWeight,
    ModelLoadError,
    ShapeMismatch,
    UnsupportedArchitecture,
)
from engine.weights.config_gguf import read_gguf_config
from tests.helpers.diffusion.gguf_transformers import (
    original_flux,
    original_flux2,
    original_sd3,
    original_z_image,
    write_gguf,
)
from tests.helpers.diffusion.tiny_flux2 import flux2_transformer
from tests.helpers.diffusion.tiny_language import qwen_image_transformer, z_image_transformer
from tests.helpers.diffusion.tiny_transformers import (
    CHANNELS,
    WIDTH,
    flux_transformer,
    sd3_transformer,
    stirred,
)

CPU = torch.device("cpu")
TYPES = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.BF16)
ROUNDING = 5e-3
"""Relative to the output's size: scales are fp16, and so is their product with the integers."""


def flux_output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn((2, 6, 4 * CHANNELS), generator=generator),
            encoder_hidden_states=torch.randn((2, 5, WIDTH), generator=generator),
            pooled_projections=torch.randn((2, 12), generator=generator),
            timestep=torch.tensor([0.3, 0.9]),
            guidance=torch.tensor([3.5, 1.0]),
            txt_ids=torch.zeros((5, 3)),
            img_ids=torch.zeros((6, 3)),
            return_dict=False,
        )[0]


def sd3_output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn((2, CHANNELS, 8, 4), generator=generator),
            encoder_hidden_states=torch.randn((2, 5, WIDTH), generator=generator),
            pooled_projections=torch.randn((2, 20), generator=generator),
            timestep=torch.tensor([300.0, 900.0]),
            return_dict=False,
        )[0]


def z_image_output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found = model(
            list(torch.randn((2, CHANNELS, 1, 8, 4), generator=generator)),
            torch.tensor([0.3, 0.9]),
            [torch.randn((length, WIDTH), generator=generator) for length in (5, 40)],
            return_dict=False,
        )[0]
    return torch.stack(found)


def qwen_image_output(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn((2, 8, 4 * CHANNELS), generator=generator),
            encoder_hidden_states=torch.randn((2, 5, WIDTH), generator=generator),
            timestep=torch.tensor([0.3, 0.9]),
            img_shapes=[[(1, 4, 2)]] * 2,
            return_dict=False,
        )[0]


def renamed(state: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The tensors under diffusers' names, split for this model."""
    names, num_rows = names_in(state, type(model), model.config), rows_of(model.state_dict())
    found = (names.to_diffusers(name, tensor, num_rows) for name, tensor in state.items())
    return {name: tensor for each in found for name, tensor in each.items()}


def load(model: Any, path: Path) -> Any:
    return load_gguf_transformer(type(model), path, dtype=torch.float32, device=CPU)


@pytest.fixture
def flux(tmp_path: Path) -> tuple[Any, Path]:
    torch.manual_seed(5)
    model = stirred(flux_transformer(guidance_embeds=True))
    model.save_config(tmp_path)
    return model, tmp_path / "flux.gguf"


@pytest.fixture
def sd3(tmp_path: Path) -> tuple[Any, Path]:
    torch.manual_seed(6)
    model = stirred(sd3_transformer())
    model.save_config(tmp_path)
    return model, tmp_path / "sd3.gguf"


@pytest.mark.parametrize("type_", TYPES)
def test_flux_equals_its_expanded_weights(flux: Any, type_: GGMLQuantizationType) -> None:
    model, path = flux
    read_back = write_gguf(path, original_flux(model.state_dict()), type_)
    loaded = load(model, path)
    twin = flux_transformer(guidance_embeds=True)
    twin.load_state_dict(renamed(read_back, twin))
    expected, unquantised = flux_output(twin), flux_output(model)
    assert (flux_output(loaded) - expected).abs().max() < ROUNDING * expected.abs().max()
    assert (flux_output(loaded) - unquantised).abs().max() > 1e-6, "weights are quantised"
    packed = loaded.transformer_blocks[0].ff.net[2].weight
    assert packed.dtype == torch.uint8, "and stay so"


@pytest.mark.parametrize("type_", TYPES)
def test_sd3_equals_its_expanded_weights(sd3: Any, type_: GGMLQuantizationType) -> None:
    model, path = sd3
    original = original_sd3(model.state_dict())
    # ggml drops leading ones.
    position = "model.diffusion_model.pos_embed"
    read_back = write_gguf(path, {**original, position: original[position][0]}, type_)
    loaded = load(model, path)
    by_diffusers = write_gguf(path.with_name("plain.bin"), model.state_dict(), type_)
    twin = sd3_transformer()
    twin.load_state_dict({**by_diffusers, "pos_embed.pos_embed": read_back[position][None]})
    expected = sd3_output(twin)
    assert (sd3_output(loaded) - expected).abs().max() < ROUNDING * expected.abs().max()
    assert (sd3_output(loaded) - sd3_output(model)).abs().max() > 1e-6


@pytest.mark.parametrize("type_", TYPES)
def test_z_image_equals_its_expanded_weights(tmp_path: Path, type_: GGMLQuantizationType) -> None:
    torch.manual_seed(7)
    model = stirred(z_image_transformer())
    model.save_config(tmp_path)
    path, other = tmp_path / "z.gguf", tmp_path / "plain.bin"
    write_gguf(path, original_z_image(model.state_dict()), type_)
    twin = z_image_transformer()
    by_diffusers = write_gguf(other, model.state_dict(), type_)
    pads = {name: model.state_dict()[name] for name in ("x_pad_token", "cap_pad_token")}
    twin.load_state_dict(by_diffusers | pads)
    loaded, expected = load(model, path), z_image_output(twin)
    assert (z_image_output(loaded) - expected).abs().max() < ROUNDING * expected.abs().max()
    assert (z_image_output(loaded) - z_image_output(model)).abs().max() > 1e-6
    assert loaded.layers[0].attention.to_v.weight.dtype == torch.uint8, "weights stay packed"


@pytest.mark.parametrize("type_", TYPES)
def test_qwen_image_equals_its_expanded_weights(
    tmp_path: Path, type_: GGMLQuantizationType
) -> None:
    torch.manual_seed(8)
    model, twin = stirred(qwen_image_transformer()), qwen_image_transformer()
    model.save_config(tmp_path)
    path = tmp_path / "qwen.gguf"
    twin.load_state_dict(write_gguf(path, model.state_dict(), type_))
    loaded, expected = load(model, path), qwen_image_output(twin)
    assert (qwen_image_output(loaded) - expected).abs().max() < ROUNDING * expected.abs().max()
    assert (qwen_image_output(loaded) - qwen_image_output(model)).abs().max() > 1e-6
    packed = loaded.transformer_blocks[0].img_mlp.net[2].weight
    assert packed.dtype == torch.uint8, "weights stay packed"


def test_names_of_diffusers_are_read_too(flux: Any, sd3: Any) -> None:
    for (model, path), output in ((flux, flux_output), (sd3, sd3_output)):
        write_gguf(path, model.state_dict(), GGMLQuantizationType.Q8_0)
        model.save_config(path.parent)
        found, plain = output(load(model, path)), output(model)
        assert (found - plain).abs().max() < 0.05 * plain.abs().max()


def test_names_equal_diffusers_converter() -> None:
    """It takes FLUX's real width only; a column is enough to follow every row."""
    wide = 3072
    model = flux_transformer(guidance_embeds=True)
    shapes = {}
    for name, tensor in model.state_dict().items():
        rows = (
            len(tensor) * wide // WIDTH
            if "blocks" in name and len(tensor) >= WIDTH
            else len(tensor)
        )
        shapes[name] = (rows, 1) if tensor.ndim == 2 else (rows,)
    state = original_flux({name: torch.randn(shape) for name, shape in shapes.items()})
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(state))
    num_rows = {name.removesuffix(".weight"): shape[0] for name, shape in shapes.items()}
    names = names_in(state, type(model), model.config)
    ours: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        ours |= names.to_diffusers(name, tensor, num_rows)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("type_", TYPES)
def test_flux2_equals_its_expanded_weights(tmp_path: Path, type_: GGMLQuantizationType) -> None:
    model = stirred(flux2_transformer())
    model.save_config(tmp_path)
    path = tmp_path / "flux2.gguf"
    read_back = write_gguf(path, original_flux2(model.state_dict()), type_)
    theirs = convert_flux2_transformer_checkpoint_to_diffusers(dict(read_back))
    ours = renamed(read_back, model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    twin = flux2_transformer()
    twin.load_state_dict(ours)
    inputs = {
        "hidden_states": torch.randn((2, 6, CHANNELS)),
        "encoder_hidden_states": torch.randn((2, 5, 3 * WIDTH)),
        "timestep": torch.tensor([0.3, 0.9]),
        "guidance": torch.tensor([3.5, 1.0]),
        "txt_ids": torch.zeros((5, 4)),
        "img_ids": torch.zeros((6, 4)),
    }
    with torch.no_grad():
        found, expected, plain = (
            each(**inputs, return_dict=False)[0] for each in (load(model, path), twin, model)
        )
    assert (found - expected).abs().max() < ROUNDING * expected.abs().max()
    assert (found - plain).abs().max() > 1e-6, "weights are quantised"


def refused(model, path, state, error, words, type_=TYPES[0]):
    write_gguf(path, state, type_)
    with pytest.raises(error, match=words):
        load(model, path)


def test_a_missing_tensor_is_named(flux: Any, sd3: Any) -> None:
    first, second = "ff.net.0.proj.weight", "joint_blocks.1.x_block.mlp.fc1.weight"
    for (model, path), names, tensor, words in (
        (flux, original_flux, "double_blocks.0.img_mlp.0.weight", f"transformer_blocks.0.{first}"),
        (sd3, original_sd3, f"model.diffusion_model.{second}", f"transformer_blocks.1.{first}"),
    ):
        state = names(model.state_dict())
        del state[tensor]
        model.save_config(path.parent)
        refused(model, path, state, MissingWeight, re.escape(words))


def test_another_architecture_is_refused(flux: Any) -> None:
    refused(*flux, {"token_embd.weight": torch.zeros(4, 32)}, MissingWeight, "another model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"guidance_embeds": False}, "guidance_embedder"), ({"joint_attention_dim": 96}, "context_e")],
)
def test_a_tensor_too_many_and_another_size_are_refused(flux, changes, words):
    model, path = flux
    flux_transformer(**{"guidance_embeds": True} | changes).save_config(path.parent)
    refused(model, path, original_flux(model.state_dict()), ShapeMismatch, words)


def test_damage_is_reported(flux: Any) -> None:
    model, path = flux
    state = original_flux(model.state_dict())
    write_gguf(path, state, GGMLQuantizationType.Q4_0)
    whole = path.read_bytes()
    for content, words in ((whole[: len(whole) // 2], "truncated"), (b"not a model", "GGUF")):
        path.write_bytes(content)
        with pytest.raises(CorruptFile, match=words):
            load(model, path)
    state["img_in.bias"] = torch.full_like(state["img_in.bias"], float("nan"))
    refused(model, path, state, CorruptFile, r"img_in\.bias", GGMLQuantizationType.Q4_0)


def test_a_config_is_needed(flux: Any) -> None:
    model, path = flux
    write_gguf(path, original_flux(model.state_dict()), GGMLQuantizationType.Q8_0)
    (path.parent / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        load(model, path)


@pytest.mark.parametrize("arch", ["flux", "sd3", "qwen_image", "lumina2"])
def test_a_transformer_alone_is_refused_with_the_way_to_serve_it(arch: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"img_in.bias": torch.zeros(4)}, GGMLQuantizationType.Q8_0, arch=arch)
    with pytest.raises(UnsupportedArchitecture, match="into the folder 'transformer'"):
        read_gguf_config(path)


def test_one_file_is_found(tmp_path: Path) -> None:
    assert find_gguf(tmp_path) is None
    (tmp_path / "a.gguf").touch()
    assert find_gguf(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"a\.gguf, b\.gguf"):
        find_gguf(tmp_path)
