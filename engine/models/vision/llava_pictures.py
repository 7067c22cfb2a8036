"""LLaVA, LLaVA-NeXT and LLaVA-OneVision: decoders of any family with a CLIP, SigLIP or Pixtral
tower.

LLaVA reads one square crop of a picture. The others read a small copy of the whole picture and a
mosaic of larger tiles, whose states OneVision averages if there are many.
Papers: Liu et al. 2023, arXiv:2310.03744; Li et al. 2024, arXiv:2408.03326.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.contract.picture_facts import PictureFacts
from engine.contract.picture_sizes import Size
from engine.contract.prompt_states import ReducedShape
from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.activation import activation_named
from engine.models.layers.linear import Shard
from engine.models.layers.norm import LearnedVector
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_encoder import Encoding, PictureEncoder
from engine.models.picture_keys import PictureKeys
from engine.models.vision.pixtral_pictures import read_pixtral
from engine.models.vision.siglip import TowerLinear, VisionTower, own_positions
from engine.models.vision_config import VisionConfig

LLAVA, LLAVA_NEXT = "LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration"
LLAVA_ONEVISION = "LlavaOnevisionForConditionalGeneration"
_CLIP: Mapping[str, Any] = {
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""The values of missing keys, as in the next tables."""
_SIGLIP: Mapping[str, Any] = {
    "intermediate_size": 3072,
    "hidden_size": 768,
    "patch_size": 16,
    "image_size": 224,
    "num_attention_heads": 12,
}
_MOSAICS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONEVISION: Mapping[str, Any] = {
    "image_token_index": 151_646,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [
        [384 * down, 384 * across] for down in range(1, 7) for across in range(1, 7)
    ],
}
_ONEVISION_TOWER: Mapping[str, Any] = {
    "model_type": "siglip_vision_model",
    "intermediate_size": 4304,
    "hidden_size": 1152,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}
_MOST_CROPS = re.compile(r"anyres_max_(\d{1,3})")
_PLACEHOLDER_ID = 32_000
_MOST_TILES = 64
_UNREAD = re.compile(r"picture_encoder\.tower\.(post_layernorm|head|embeddings\.position_ids)\b")
_LAYER = re.compile(r"picture_encoder\.tower\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlavaConfig(VisionConfig):
    """The shape of a tower of which not all layers are needed, and of the projector behind it."""

    row_size: int
    """The size of the decoder's hidden states."""
    keeps_class_state: bool
    """Whether the state that belongs to no patch becomes a row, too."""
    has_mosaics: bool
    projector_act: str
    projector_bias: bool

    def reads(self, name: str) -> bool:
        """See `VisionConfig.reads`."""
        layer = _LAYER.match(name)
        if layer is not None:
            return int(layer[1]) < self.num_hidden_layers
        return _UNREAD.match(name) is None

    def create_encoder(self) -> PictureEncoder:
        """See `VisionConfig.create_encoder`."""
        return LlavaEncoder(self)


class Projector(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        size, bias = config.row_size, config.projector_bias
        self.linear_1 = TowerLinear(config.hidden_size, (Shard("linear_1", size),), bias=bias)
        self.linear_2 = TowerLinear(size, (Shard("linear_2", size),), bias=bias)
        self._act = activation_named(config.projector_act)

    def forward(self, states: Tensor) -> Tensor:
        """Map [L, C] to [L, hidden size of the decoder]."""
        return self.linear_2(self._act(self.linear_1(states, NO_CONTEXT)), NO_CONTEXT)

    __call__ = forward


class LlavaEncoder(nn.Module):
    """A `PictureEncoder` for square crops, and for mosaics of them."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self._config = config
        self.tower = VisionTower(config, own_positions)
        self.projector = Projector(config)
        self.image_newline = LearnedVector(config.row_size) if config.has_mosaics else None

    def begin(self, pixels: Tensor, shape: tuple[int, int] | None = None) -> Encoding:
        """See `PictureEncoder.begin`."""
        config = self._config
        side, grid = config.side, config.grid
        drops_first = config.has_class_state and not config.keeps_class_state
        down, across = (length // side for length in pixels.shape[:2])
        tiles = pixels.view(down, side, across, side, 3).transpose(1, 2).flatten(0, 1)
        found = []
        for tile in tiles:
            states = yield from self.tower.begin(tile)
            found.append(self.projector(states[drops_first:]))
        if shape is None or self.image_newline is None:
            return found[0]
        lines, columns = kept_lines, kept_columns = shape[0], shape[1] - 1
        if isinstance(shape, ReducedShape):
            kept_lines, kept_columns = shape.kept
        whole = torch.stack(found).view(down, across, grid, grid, -1).transpose(1, 2)
        whole = whole.reshape(down * grid, across * grid, -1)
        top, left = (whole.shape[0] - kept_lines) // 2, (whole.shape[1] - kept_columns) // 2
        kept = whole[top : top + kept_lines, left : left + kept_columns]
        if isinstance(shape, ReducedShape):
            maps = kept.permute(2, 0, 1)[None]
            maps = nn.functional.interpolate(maps, (lines, columns), mode="bilinear")
            kept = maps[0].permute(1, 2, 0)
        ends = self.image_newline.weight.expand(lines, 1, -1)
        return torch.cat((kept, ends), 1).flatten(0, 1)


def read_pictures(
    keys: PictureKeys, config: ModelConfig, *, has_mosaics: bool
) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    tower = keys.config.inner("vision_config")
    kind = tower.text("model_type", "clip_vision_model")
    if kind == "pixtral" and not has_mosaics:
        return read_pixtral(keys, config, joined=1, merger_eps=None, patch=16, has_bias=True)
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise tower.nonsense("model_type", "clip_vision_model, siglip_vision_model or pixtral")
    is_clip = kind == "clip_vision_model"
    keys.check_processor(
        "LlavaNextImageProcessor" if has_mosaics else "CLIPImageProcessor",
        "LlavaOnevisionImageProcessor" if has_mosaics else "SiglipImageProcessor",
    )
    keys = keys.with_clip_colours() if is_clip or has_mosaics else keys
    side, shortest_edge = _sizes(keys.images, cuts=is_clip and not has_mosaics)
    vision = keys.vision(_CLIP if is_clip else _SIGLIP, side=side, joined=1)
    if vision.image_size != side:
        raise ModelLoadError(
            f"pictures of {side} x {side} pixels do not fit the encoder, which reads "
            f"{vision.image_size} x {vision.image_size}"
        )
    keeps_class_state = keys.config.text("vision_feature_select_strategy", "default") != "default"
    if (has_mosaics and is_clip and keeps_class_state) or not (is_clip or keeps_class_state):
        wanted = "default" if is_clip else "full, as its tower has no state besides its patches"
        raise keys.config.nonsense("vision_feature_select_strategy", wanted)
    shared = {one.name: getattr(vision, one.name) for one in fields(VisionConfig)}
    vision = LlavaConfig(
        **shared
        | {
            "num_hidden_layers": _num_layers(keys.config, vision.num_hidden_layers),
            "has_class_state": is_clip,
            "has_first_norm": is_clip,
            "has_last_norm": False,
        },
        row_size=config.hidden_size,
        keeps_class_state=keeps_class_state,
        has_mosaics=has_mosaics,
        projector_act=keys.config.text("projector_hidden_act", "gelu"),
        projector_bias=keys.config.flag("multimodal_projector_bias", True),
    )
    placeholder = keys.processor.text("image_token", keys.token("image_token", "<image>"))
    facts = PictureFacts(
        side=side,
        rows_per_crop=vision.rows_per_crop + (is_clip and keeps_class_state),
        marker=placeholder,
        placeholder=placeholder,
        placeholder_id=keys.placeholder_id("image_token_index", _PLACEHOLDER_ID, config.vocab_size),
        resampling=keys.resampling("bicubic"),
        before="",
        after="",
        shortest_edge=shortest_edge,
        mosaics=_mosaics(keys, side) if has_mosaics else (),
    )
    return facts, vision


def read_onevision(keys: PictureKeys, config: ModelConfig) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows in LLaVA-OneVision, as if each was the only one of its prompt.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    stated = {**_ONEVISION, **keys.config.values}
    tower = stated.get("vision_config")
    stated["vision_config"] = {**_ONEVISION_TOWER, **(tower if isinstance(tower, dict) else {})}
    mosaics = {"image_grid_pinpoints": stated["image_grid_pinpoints"]}
    keys = replace(
        keys,
        config=MetadataKeys(stated, keys.config.source),
        images=MetadataKeys({**mosaics, **keys.images.values}, keys.images.source),
    )
    found = _MOST_CROPS.fullmatch(keys.config.text("vision_aspect_ratio"))
    if found is None or int(found[1]) == 0:
        raise keys.config.nonsense("vision_aspect_ratio", "anyres_max_ and a number of tiles")
    facts, vision = read_pictures(keys, config, has_mosaics=True)
    return replace(facts, most_mosaic_crops=int(found[1])), vision


def _sizes(images: MetadataKeys, *, cuts: bool) -> tuple[int, int | None]:
    """The side of crops, and the length of the shorter side of the picture out of whose middle they
    are cut; None if they show the whole picture.

    Args:
        cuts: whether they are cut unless the file says otherwise.
    """
    size, crop = images.inner("size"), images.inner("crop_size")
    shortest = size.integer("shortest_edge", size.integer("height", 224))
    if size.integer("width", shortest) != shortest:
        raise images.nonsense("size", "one length for both sides")
    if not images.flag("do_center_crop", cuts):
        crop = MetadataKeys({}, crop.source)
    side, width = (crop.integer(key, shortest) for key in ("height", "width"))
    cuts = cuts and "shortest_edge" in size.values
    if side != width or side > shortest or (side < shortest and not cuts):
        raise images.nonsense("crop_size", f"one length for both sides, at most {shortest}")
    return side, shortest if cuts else None


def _num_layers(keys: MetadataKeys, most: int) -> int:
    """The number of layers up to the one whose states are read."""
    layer = keys.values.get("vision_feature_layer", -2)
    if type(layer) is not int or not -most <= layer <= most:
        raise keys.nonsense("vision_feature_layer", f"a number from -{most} to {most}")
    return layer if layer >= 0 else most + 1 + layer


def _mosaics(keys: PictureKeys, side: int) -> tuple[Size, ...]:
    """The sizes of mosaics, each width before height."""
    stated = keys.images.values.get("image_grid_pinpoints", _MOSAICS)
    if stated != keys.config.values.get("image_grid_pinpoints", _MOSAICS):
        raise keys.images.nonsense("image_grid_pinpoints", f"the same as in {keys.config.source}")
    try:
        found = tuple((width, height) for height, width in stated)
        is_whole = all(
            width % side == height % side == 0 < width * height <= _MOST_TILES * side**2
            for width, height in found
        )
    except (TypeError, ValueError):
        is_whole = False
    if not is_whole or not found:
        raise keys.images.nonsense(
            "image_grid_pinpoints",
            f"a list of heights and widths of at most {_MOST_TILES} tiles "
            f"of {side} x {side} pixels",
        )
    return found


PICTURE_READERS = {
    LLAVA: partial(read_pictures, has_mosaics=False),
    LLAVA_NEXT: partial(read_pictures, has_mosaics=True),
    LLAVA_ONEVISION: read_onevision,
}
