"""The states of crops against transformers. Logits of prompts are compared through the engine."""

import random
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from engine.contract.picture_facts import Crop
from engine.models import vision_config
from engine.models.causal_lm import CausalLM
from engine.models.picture_encoder import run_slices
from engine.models.registry import create_model
from engine.models.vision import (
    gemma4_pictures,
    grid_tower,
    siglip,
    smolvlm_pictures,
)
from engine.models.vision_config import VisionConfig
from engine.pictures.crops import cut_crops
from engine.weights.loader import iter_weights, load_model_config
from tests.helpers.adapters.peft_adapters import load, write_adapter
from tests.helpers.models.checkpoints import in_folder
from tests.helpers.models.tiny_wrappers import (
    CROP_KINDS,
    GRID_KINDS,
    TILE_KINDS,
    encoded,
    make_wrapper,
)

VISIONS: dict[str, dict[str, Any]] = {
    "gemma3": {"image_size": 42, "hidden_size": 32, "num_attention_heads": 4},
    "smolvlm": {"image_size": 29, "num_hidden_layers": 3},
    "idefics3": {"image_size": 56, "patch_size": 14, "hidden_act": "gelu"},
}
"""Other sizes than the usual ones; patches do not fill SmolVLM's crops."""
TOLERANCE = 1e-4


class Pair:
    """Our model and transformers' with the same weights."""

    def __init__(self, folder: Any, dtype: torch.dtype = torch.float32) -> None:
        checkpoint = in_folder(folder)
        self.config = load_model_config(checkpoint)
        self.facts = self.config.pictures
        self.ours: CausalLM = create_model(self.config, dtype=dtype)
        assert self.ours.load_weights(iter_weights(checkpoint, self.config)) == []
        self.theirs = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        ).eval()

    def encode(self, pixels: Tensor) -> Tensor:
        return encoded(self.ours.picture_encoder, pixels)

    @torch.no_grad()
    def their_states(self, pixels: Tensor) -> Tensor:
        values = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.facts.before_cell is not None:
            values = values[None]
        found = self.theirs.get_image_features(values.to(self.theirs.dtype)).pooler_output
        return torch.cat(list(found)).view(len(pixels), self.facts.rows_per_crop, -1)


def random_crops(side: int, num_crops: int = 3) -> Tensor:
    return torch.randint(0, 256, (num_crops, side, side, 3), dtype=torch.uint8)


@pytest.fixture(
    scope="module",
    params=[(kind, other) for kind in CROP_KINDS for other in (False, True)],
    ids=str,
)
def pair(request, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("pair")
    kind, other = request.param
    vision = VISIONS[kind] if other else {}
    rows = {"mm_tokens_per_image": 9} if other and kind == "gemma3" else {}
    return Pair(make_wrapper(tmp_path, kind, vision=vision, **rows))


def test_states_of_crops_are_transformers(pair):
    pixels = random_crops(pair.facts.side)
    found, expected = pair.encode(pixels), pair.their_states(pixels)
    assert found.shape == (3, pair.facts.rows_per_crop, pair.config.hidden_size)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_a_crop_is_encoded_in_as_many_slices_as_planned(pair, monkeypatch, num_rows):
    pixels = random_crops(pair.facts.side, 1)
    expected = pair.encode(pixels)[0]
    for module in (siglip, vision_config):
        monkeypatch.setattr(module, "ROWS_OF_SLICE", num_rows)
    num_slices = pair.config.vision.num_slices(pair.facts.largest(1))
    encoding = pair.ours.picture_encoder.begin(pixels[0])
    assert run_slices(encoding, num_slices - 1) is None
    found = run_slices(encoding, 1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", CROP_KINDS)
def test_adapters_change_the_text_model_alone(kind, tmp_path):
    pair = Pair(make_wrapper(tmp_path, kind))
    pixels = random_crops(pair.facts.side)
    before = pair.encode(pixels)
    write_adapter(pair.theirs, tmp_path / "adapter", target_modules=("q_proj", "fc1", "proj"))
    adapters = load(pair.ours, {"adapter": tmp_path / "adapter"})
    assert adapters.names == ("adapter",)
    assert torch.equal(pair.encode(pixels), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CROP_KINDS)
def test_states_of_a_crop_have_the_same_bits_in_any_company(kind, dtype, tmp_path):
    pair = Pair(make_wrapper(tmp_path, kind), dtype)
    pixels = random_crops(pair.facts.side, 5)
    together = pair.encode(pixels)
    assert together.dtype == dtype
    for at, crop in enumerate(pixels):
        assert torch.equal(pair.encode(crop[None])[0], together[at])
    assert torch.equal(pair.encode(pixels.flip(0)).flip(0), together)
    error = (together - pair.their_states(pixels)).abs().max()
    assert error < (0.1 if dtype is torch.bfloat16 else TOLERANCE) * together.abs().max()


@pytest.mark.parametrize("grid", [1, 2, 26, 27, 32, 70])
def test_positions_of_crops_of_any_size_are_transformers(grid):
    patch, trained = 3, random.choice((27, 32, grid))
    theirs = transformers.SmolVLMVisionConfig(
        hidden_size=4, image_size=trained * patch, patch_size=patch
    )
    module = transformers.models.smolvlm.modeling_smolvlm.SmolVLMVisionEmbeddings(theirs)
    with torch.no_grad():
        table = torch.arange(trained**2, dtype=torch.float32)[:, None].expand(-1, 4)
        module.position_embedding.weight.copy_(table)
        module.patch_embedding.weight.zero_()
        module.patch_embedding.bias.zero_()
        pixels = torch.zeros(1, 3, grid * patch, grid * patch)
        found = module(pixels, torch.ones(1, grid, grid, dtype=torch.bool))
    config = VisionConfig(
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=trained * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        side=grid * patch,
        joined=1,
        scale=(1.0, 1.0, 1.0),
        shift=(0.0, 0.0, 0.0),
    )
    assert smolvlm_pictures.position_ids(config).tolist() == found[0, :, 0].long().tolist()


GRID_VISIONS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 3},
    "qwen2_5_vl": {"window_size": 28, "fullatt_block_indexes": [0, 2], "num_heads": 2},
    "qwen3_vl": {"num_position_embeddings": 25, "deepstack_visual_indexes": [1]},
    "qwen3_vl_moe": {"deepstack_visual_indexes": [1, 2]},
    "qwen3_5_moe": {"num_heads": 2},
    "qwen3_5": {"hidden_act": "gelu", "spatial_merge_size": 2, "hidden_size": 48},
    "mistral3": {"hidden_act": "silu", "num_attention_heads": 2},
    "gemma4": {"num_hidden_layers": 1},
    "gemma4_large": {"rope_parameters": {"rope_type": "axial", "rope_theta": 30.0}},
    "pixtral": {"hidden_act": "silu", "rope_parameters": {"rope_theta": 100.0}},
}


class GridPair(Pair):
    """The same for pictures of any size."""

    def random_pixels(self) -> Tensor:
        """A picture whose size need not be changed."""
        # transformers' Mistral 3 fails where a picture has a single prompt row.
        lines, columns = random.randint(1, 8), random.randint(2, 8)
        side = self.facts.side
        return torch.randint(0, 256, (lines * side, columns * side, 3), dtype=torch.uint8)

    def encode(self, pixels: Tensor) -> Tensor:
        assert self.ours.picture_encoder is not None
        found = run_slices(self.ours.picture_encoder.begin(pixels))
        assert found is not None
        return found

    @torch.no_grad()
    def their_states(self, pixels: Tensor) -> Tensor:
        name, size = "Qwen2VL", {}
        particular = {}
        if self.facts.longest_side is not None:
            name, size = "Pixtral", {"image_sizes": torch.tensor([pixels.shape[:2]])}
        elif self.facts.most_squares is not None:
            name, particular = "Gemma4", {"pooling_kernel_size": self.config.vision.joined}
        process = getattr(transformers, f"{name}ImageProcessorPil")(
            patch_size=4, do_resize=False, **particular
        )
        inputs = process([Image.fromarray(pixels.numpy())], return_tensors="pt")
        values = inputs["pixel_values"].to(self.theirs.dtype)
        places = ("image_grid_thw", "image_position_ids")
        given = {key: inputs[key] for key in places if key in inputs} | size
        found = self.theirs.get_image_features(pixel_values=values, **given)
        parts = [found.pooler_output, *getattr(found, "deepstack_features", ())]
        return torch.cat([torch.cat(list(part)) for part in parts], -1)


@pytest.fixture(
    scope="module",
    params=[(kind, other) for kind in GRID_KINDS for other in (False, True)],
    ids=str,
)
def grid_pair(request, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("pair")
    kind, other = request.param
    return GridPair(make_wrapper(tmp_path, kind, vision=GRID_VISIONS[kind] if other else {}))


def test_states_of_pictures_of_any_size_are_transformers(grid_pair):
    for _ in range(3):
        pixels = grid_pair.random_pixels()
        found, expected = grid_pair.encode(pixels), grid_pair.their_states(pixels)
        num_rows = pixels.numel() // 3 // grid_pair.facts.side**2
        assert found.shape == (num_rows, grid_pair.config.state_size)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("num_patches", [4, 8, 20])
def test_a_picture_of_any_size_is_encoded_in_as_many_slices_as_planned(
    grid_pair, monkeypatch, num_patches
):
    pixels = grid_pair.random_pixels()
    expected = grid_pair.encode(pixels)
    for module in (gemma4_pictures, grid_tower, vision_config):
        monkeypatch.setattr(module, "ROWS_OF_SLICE", num_patches)
    height, width, _ = pixels.shape
    part = grid_pair.facts.black(Crop((), (0, 0, width, height)))
    num_slices = grid_pair.config.vision.num_slices(part)
    encoding = grid_pair.ours.picture_encoder.begin(pixels)
    assert run_slices(encoding, num_slices - 1) is None
    found = run_slices(encoding, 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_adapters_leave_pictures_of_any_size_unchanged(kind, tmp_path):
    pair = GridPair(make_wrapper(tmp_path, kind))
    pixels = pair.random_pixels()
    before = pair.encode(pixels)
    names = ("q_proj", "qkv", "gate_proj", "fc1", "linear_fc1")
    if "gemma4" in kind:  # PEFT can only change the layers within those of its tower
        names = ("language_model.layers.0.self_attn.q_proj", "linear")
    write_adapter(pair.theirs, tmp_path / "adapter", target_modules=names)
    assert load(pair.ours, {"adapter": tmp_path / "adapter"}).names == ("adapter",)
    assert torch.equal(pair.encode(pixels), before)


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_pictures_of_any_size_in_16_bits(kind, tmp_path):
    pair = GridPair(make_wrapper(tmp_path, kind), torch.bfloat16)
    pixels = pair.random_pixels()
    found, expected = pair.encode(pixels), pair.their_states(pixels)
    assert found.dtype == torch.bfloat16
    # Single numbers may be a tenth of the largest one apart, and more.
    error = (found - expected).float().norm() / expected.float().norm()
    assert error < 0.15, error


LLAVAS: dict[str, dict[str, Any]] = {
    "llava": {"vision_feature_layer": 1, "vision_feature_select_strategy": "full"},
    "llava_next": {"vision_feature_layer": 3, "multimodal_projector_bias": False},
    "llava_siglip": {"vision_feature_layer": -2, "projector_hidden_act": "relu"},
    "llava_onevision": {"vision_aspect_ratio": "anyres_max_1", "vision_feature_layer": -2},
    "internvl": {"projector_hidden_act": "relu"},
    "internvl_large": {"vision": {"num_attention_heads": 2, "hidden_act": "gelu_pytorch_tanh"}},
}


class TilePair(Pair):
    """The same for `TILE_KINDS`, whose pictures are compared as a whole."""

    def encode(self, pixels: Tensor) -> Tensor:
        height, width, _ = pixels.shape
        crops = [piece for piece in self.facts.pieces(width, height) if isinstance(piece, Crop)]
        found = []
        for crop, cut in zip(
            crops, cut_crops(pixels.numpy(), crops, self.facts.resampling), strict=True
        ):
            part = self.facts.black(crop)
            assert self.facts.fits(part) and part.num_states <= self.facts.most_states
            encoding = self.ours.picture_encoder.begin(torch.tensor(np.array(cut)), part.shape)
            assert run_slices(encoding, self.config.vision.num_slices(part) - 1) is None
            found.append(run_slices(encoding, 1))
            assert len(found[-1]) == part.num_states
        return torch.cat(found)

    @torch.no_grad()
    def their_states(self, pixels: Tensor) -> Tensor:
        config = self.theirs.config
        side = self.facts.side
        square, name = {"height": side, "width": side}, "LlavaNext"
        sizes = {"size": {"shortest_edge": side}, "crop_size": square}
        if not self.facts.mosaics:
            name = "CLIP" if self.facts.shortest_edge else "Siglip"
        if name == "Siglip":
            sizes = {"size": square}
        if self.facts.tiles:
            name, sizes = "GotOcr2", {"size": square, "crop_to_patches": True, "max_patches": 6}
        if self.facts.most_mosaic_crops:
            name, sizes = "LlavaOnevision", {"size": square}
        if self.facts.mosaics:
            sizes["image_grid_pinpoints"] = config.image_grid_pinpoints
        process = getattr(transformers, f"{name}ImageProcessorPil")(**sizes)
        inputs = process([Image.fromarray(pixels.numpy())], return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(self.theirs.dtype)
        inputs.pop("num_patches", None)
        return torch.cat(list(self.theirs.get_image_features(**inputs).pooler_output))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TILE_KINDS)
@pytest.mark.parametrize("other", [False, True])
def test_states_of_all_crops_of_a_picture_are_transformers(
    kind, other, dtype, tmp_path, monkeypatch
):
    pair = TilePair(make_wrapper(tmp_path, kind, **(LLAVAS[kind] if other else {})), dtype)
    for _ in range(3):
        size = random.randint(1, 150), random.randint(1, 150)
        pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
        found, expected = pair.encode(pixels), pair.their_states(pixels)
        assert found.shape == expected.shape
        error = (found - expected).abs().max()
        assert error < (0.1 if dtype is torch.bfloat16 else TOLERANCE) * expected.abs().max()
    num_rows = random.randint(1, 9)
    for module in (siglip, vision_config):
        monkeypatch.setattr(module, "ROWS_OF_SLICE", num_rows)
    torch.testing.assert_close(pair.encode(pixels), found, atol=1e-2, rtol=1e-2)
