"""InternVL: decoders of any family with a vision tower that reads a picture in tiles of a grid and
once as a whole.

Paper: Zhu et al. 2025, arXiv:2504.10479.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from engine.contract.picture_facts import PictureFacts
from engine.errors import ModelLoadError
from engine.models.config import ModelConfig
from engine.models.forward_context import NO_CONTEXT
from engine.models.layers.activation import activation_named
from engine.models.layers.linear import Shard
from engine.models.layers.norm import LayerNorm
from engine.models.layers.weight_slots import WeightOptions, WeightSlot
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_encoder import PictureEncoder
from engine.models.picture_keys import PictureKeys
from engine.models.vision.siglip import (
    PatchEmbeddings,
    TowerEncoder,
    TowerLinear,
    VisionTower,
    own_positions,
    squares,
)
from engine.models.vision_config import VisionConfig
from engine.quantization.method import TensorSpec

ARCHITECTURE = "InternVLForConditionalGeneration"
_VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "hidden_act": "gelu",
}
"""The values of missing keys."""
_PLACEHOLDER_ID = 151_667
_MOST_TILES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class InternVLConfig(VisionConfig):
    """The shape of InternVL's tower and of the projector behind it."""

    row_size: int
    """The size of the decoder's hidden states."""
    projector_act: str

    def create_encoder(self) -> PictureEncoder:
        """See `VisionConfig.create_encoder`."""
        return TowerEncoder(VisionTower(self, own_positions, InternPatches), Projector(self))


class InternPatches(PatchEmbeddings):
    """`PatchEmbeddings` with the names and shapes of InternVL's checkpoints."""

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        super().create_weights(path, options)
        config = self._config
        size, patch = config.hidden_size, config.patch_size
        forms = {
            "patch_embeddings.projection.weight": (
                "patch_embedding.weight",
                (size, 3, patch, patch),
            ),
            "patch_embeddings.projection.bias": ("patch_embedding.bias", (size,)),
            "cls_token": ("class_embedding", (1, 1, size)),
            "position_embeddings": (
                "position_embedding.weight",
                (1, config.trained_grid**2 + 1, size),
            ),
        }

        def take(own: str, tensor: Tensor) -> None:
            copy = tensor.to(options.device, options.dtype, copy=True)
            self._loaded[own] = copy.squeeze(0).squeeze(0) if copy.shape[0] == 1 else copy

        return {
            f"{path}.{name}": WeightSlot(TensorSpec(shape=shape), partial(take, own))
            for name, (own, shape) in forms.items()
        }


class Projector(nn.Module):
    """Normalises the states of each square of patches together and projects them."""

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__()
        inner, size = config.hidden_size * config.joined**2, config.row_size
        self.layer_norm = LayerNorm(inner, 1e-5)
        self.linear_1 = TowerLinear(inner, (Shard("linear_1", size),), bias=True)
        self.linear_2 = TowerLinear(size, (Shard("linear_2", size),), bias=True)
        self._act = activation_named(config.projector_act)
        self._joined = config.joined

    def forward(self, states: Tensor) -> Tensor:
        """Map [1 + patches, C] to [rows, hidden size of the decoder]."""
        joined = self.layer_norm(squares(states[1:], self._joined).flatten(1))
        return self.linear_2(self._act(self.linear_1(joined, NO_CONTEXT)), NO_CONTEXT)

    __call__ = forward


def read_pictures(keys: PictureKeys, config: ModelConfig) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    keys.check_processor("GotOcr2ImageProcessor")
    stated = keys.config.inner("vision_config", _VISION)
    sizes = {name: _side(stated, name) for name in ("image_size", "patch_size")}
    plain = MetadataKeys({**stated.values, **sizes}, stated.source)
    size = keys.images.inner("size", {"height": 384, "width": 384})
    side, width = size.integer("height"), size.integer("width")
    ratio = keys.config.number("downsample_ratio", 0.5, high=1.0)
    keys = replace(
        keys.with_clip_colours(),
        config=MetadataKeys({**keys.config.values, "vision_config": plain.values}, "config.json"),
    )
    vision = keys.vision(_VISION, side=side, joined=round(1 / ratio))
    rows = keys.processor.integer("image_seq_length", 256)
    if not (side == width == vision.image_size and rows == vision.rows_per_crop):
        raise ModelLoadError(
            f"pictures of {width} x {side} pixels and {rows} rows do not fit the encoder, which "
            f"reads {vision.image_size} x {vision.image_size} and makes {vision.rows_per_crop} rows"
        )
    for name, value in (
        ("vision_feature_layer", -1),
        ("vision_feature_select_strategy", "default"),
    ):
        if keys.config.values.get(name, value) != value:
            raise keys.config.nonsense(name, str(value))
    if not plain.flag("use_absolute_position_embeddings", True):
        raise plain.nonsense("use_absolute_position_embeddings", "true")
    placeholder = keys.token("context_image_token", "<IMG_CONTEXT>")
    facts = PictureFacts(
        side=side,
        rows_per_crop=rows,
        marker=placeholder,
        placeholder=placeholder,
        placeholder_id=keys.placeholder_id("image_token_id", _PLACEHOLDER_ID, config.vocab_size),
        resampling=keys.resampling("bicubic"),
        before=keys.token("start_image_token", "<img>"),
        after=keys.token("end_image_token", "</img>"),
        tiles=_tiles(keys.images),
    )
    shared = {one.name: getattr(vision, one.name) for one in fields(VisionConfig)}
    return facts, InternVLConfig(
        **shared
        | {
            "has_class_state": True,
            "has_last_norm": not plain.flag("use_mean_pooling", True),
            "has_rms_norms": plain.text("norm_type", "layer_norm") == "rms_norm",
            "norms_queries": plain.flag("use_qk_norm", False),
            "scales_parts": True,
            "attention_bias": plain.flag("attention_bias", False),
        },
        row_size=config.hidden_size,
        projector_act=keys.config.text("projector_hidden_act", "gelu"),
    )


def _side(keys: MetadataKeys, name: str) -> int:
    """A length that a file may state for the height and the width."""
    stated = keys.values[name]
    if isinstance(stated, list) and len(stated) == 2 and stated[0] == stated[1]:
        stated = stated[0]
    found: int = MetadataKeys({name: stated}, keys.source).integer(name)
    return found


def _tiles(images: MetadataKeys) -> tuple[int, int]:
    """`PictureFacts.tiles`; transformers' processor cuts pictures whatever the file says."""
    most = images.integer("max_patches", 12, high=_MOST_TILES)
    return images.integer("min_patches", 1, high=most), most


PICTURE_READERS = {ARCHITECTURE: read_pictures}
