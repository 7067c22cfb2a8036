"""Mistral 3, and LLaVA with Pixtral's vision tower, which reads pictures of any size line by line.

Paper: Agrawal et al. 2024, arXiv:2410.07073.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.contract.picture_facts import PictureFacts
from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.activation import activation_named
from engine.models.layers.linear import Shard
from engine.models.layers.norm import RmsNorm
from engine.models.picture_encoder import PictureEncoder
from engine.models.picture_keys import PictureKeys
from engine.models.vision.grid_tower import GridEncoder, GridVisionConfig
from engine.models.vision.siglip import TowerLinear
from engine.models.vision_config import VisionConfig

MISTRAL3 = "Mistral3ForConditionalGeneration"
_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
"""The values of missing keys."""
_MOST_SIDE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PixtralConfig(GridVisionConfig):
    """The shape of Pixtral's tower and of the projector behind it."""

    row_size: int
    """The size of the decoder's hidden states."""
    merger_eps: float | None
    """The epsilon of the norm before patches are merged; None for a projector that does not merge
    any."""
    projector_act: str
    projector_bias: bool

    def create_encoder(self) -> PictureEncoder:
        """See `VisionConfig.create_encoder`."""
        return GridEncoder(self, self.row_size, Projector(self))


class Projector(nn.Module):
    """Normalises and merges the states of each square of patches, then projects them."""

    def __init__(self, config: PixtralConfig) -> None:
        super().__init__()
        hidden, size, bias = config.hidden_size, config.row_size, config.projector_bias
        self._num_patches = config.joined**2
        self.norm = None
        if config.merger_eps is not None:
            self.norm = RmsNorm(hidden, config.merger_eps)
            self.norm.takes_adapters = False
            merging = TowerLinear(hidden * self._num_patches, (Shard("merging_layer", hidden),))
            self.patch_merger = nn.ModuleDict({"merging_layer": merging})
        self.linear_1 = TowerLinear(hidden, (Shard("linear_1", size),), bias=bias)
        self.linear_2 = TowerLinear(size, (Shard("linear_2", size),), bias=bias)
        self._act = activation_named(config.projector_act)

    def slices(self, x: Tensor, num_rows: int) -> Generator[None, None, Tensor]:
        """See `GridProjector.slices`."""
        found = []
        for first in range(0, len(x), num_rows):
            rows = x[first : first + num_rows]
            if self.norm is not None:
                squares = self.norm(rows).view(-1, self._num_patches, rows.shape[1])
                merged = squares.transpose(1, 2).flatten(1)
                rows = self.patch_merger["merging_layer"](merged, NO_CONTEXT)
            inner = self._act(self.linear_1(rows, NO_CONTEXT))
            found.append(self.linear_2(inner, NO_CONTEXT))
            yield
        return torch.cat(found)


def read_pictures(keys: PictureKeys, config: ModelConfig) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures of Mistral 3 become rows.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    joined = keys.config.integer("spatial_merge_size", 2)
    eps = config.rms_norm_eps
    return read_pixtral(keys, config, joined=joined, merger_eps=eps, patch=14, has_bias=False)


def read_pixtral(
    keys: PictureKeys,
    config: ModelConfig,
    *,
    joined: int,
    merger_eps: float | None,
    patch: int,
    has_bias: bool,
) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows.

    Args:
        joined: see `VisionConfig`.
        merger_eps: see `PixtralConfig`.
        patch, has_bias: the size of a patch and whether the projector has biases, where the file
            does not say so.

    Raises:
        ModelLoadError: as `read_pictures`.
    """
    keys.check_processor("PixtralImageProcessor")
    keys = keys.with_clip_colours()
    missing = _VISION | {"patch_size": patch}
    vision = keys.config.inner("vision_config", missing)
    rope = vision.inner("rope_parameters", {"rope_theta": vision.number("rope_theta", 1e4)})
    patch, processor = vision.integer("patch_size"), keys.processor
    side = patch * joined
    stated = processor.integer("patch_size", 16) * processor.integer("spatial_merge_size", 1)
    if stated != side:
        raise ModelLoadError(
            f"{processor.source}: pictures are cut into squares of {stated} x {stated} pixels; the "
            f"encoder needs {side} x {side}"
        )
    size = keys.images.inner("size")
    longest, width = (
        size.integer("longest_edge", size.integer(key, 1024), high=_MOST_SIDE)
        for key in ("height", "width")
    )
    if longest != width:
        raise keys.images.nonsense("size", "one length for both sides")
    layer = keys.config.values.get("vision_feature_layer", -1)
    if layer != -1:
        raise keys.config.nonsense("vision_feature_layer", "-1, the last one")
    placeholder = processor.text("image_token", keys.token("image_token", "[IMG]"))
    facts = PictureFacts(
        side=side,
        rows_per_crop=1,
        marker=placeholder,
        placeholder=placeholder,
        placeholder_id=keys.placeholder_id("image_token_index", 10, config.vocab_size),
        resampling=keys.resampling("bicubic"),
        before="",
        after=processor.text("image_end_token", "[IMG_END]"),
        line_end=processor.text("image_break_token", "[IMG_BREAK]"),
        longest_side=longest,
    )
    return facts, PixtralConfig(
        **keys.tower_fields(vision),
        joined=joined,
        qkv=("q_proj", "k_proj", "v_proj"),
        mlp=("gate_proj", "up_proj", "down_proj"),
        has_rms_norms=True,
        has_patch_norm=True,
        has_bias=False,
        rope_base=rope.number("rope_theta"),
        axes_take_turns=True,
        row_size=config.hidden_size,
        merger_eps=merger_eps,
        projector_act=keys.config.text("projector_hidden_act", "gelu"),
        projector_bias=keys.config.flag("multimodal_projector_bias", has_bias),
    )


PICTURE_READERS = {MISTRAL3: read_pictures}
