"""Gemma 3 with its vision tower, whose states are averaged to a few rows per picture.

Paper: Gemma Team 2025, arXiv:2503.19786, section 2.1.
"""

from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

from torch import Tensor, nn

from engine.contract.picture_facts import PictureFacts
from engine.errors import ModelLoadError
from engine.models import gemma3
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.family import Family
from engine.models.layers.norm import RmsNorm
from engine.models.layers.weight_slots import WeightOptions, WeightOwner, WeightSlot
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_keys import PictureKeys
from engine.models.projector_keys import SIGLIP_TENSORS, ProjectorKeys
from engine.models.vision.siglip import TowerEncoder, VisionTower, own_positions, squares
from engine.models.vision_config import VisionConfig
from engine.quantization.method import TensorSpec
from engine.quantization.plan import PICTURE_ENCODER

ARCHITECTURE = "Gemma3ForConditionalGeneration"
_TEXT = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
}
"""The values of missing keys, of which published files have many."""
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_ROWS_PER_CROP = 256
_PLACEHOLDER_ID = 262_144


class Projector(nn.Module, WeightOwner):
    """Averages the states of squares of patches, normalises and projects them."""

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        self.mm_soft_emb_norm = RmsNorm(config.hidden_size, config.layer_norm_eps, offset=1.0)
        self.mm_soft_emb_norm.takes_adapters = False
        self._shape = (config.hidden_size, hidden_size)
        self._joined = config.joined
        self._method: Any
        self._state: Any

    def forward(self, states: Tensor) -> Tensor:
        """Map [patches, C] to [rows, hidden size of the decoder]."""
        pooled = squares(states, self._joined).mean((1, 2))
        return self._method.apply(self._state, self.mm_soft_emb_norm(pooled))  # type: ignore[no-any-return]

    __call__ = forward

    def create_weights(self, path: str, options: WeightOptions) -> dict[str, WeightSlot]:
        self._method = options.plain_method()
        spec = TensorSpec(shape=self._shape)
        return {
            f"{path}.mm_input_projection_weight": WeightSlot(spec, partial(self._take, options))
        }

    def _take(self, options: WeightOptions, tensor: Tensor) -> None:
        weight = tensor.to(options.device, options.dtype).T.contiguous()
        self._state = self._method.arrange(weight)


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build the decoder, with an encoder if the checkpoint says how to use it."""
    model, vision = gemma3.create(config, options), config.vision
    if vision is not None:
        tower = VisionTower(vision, own_positions)
        model.picture_encoder = TowerEncoder(tower, Projector(vision, config.hidden_size))
    return model


def read_json(keys: MetadataKeys) -> ModelConfig:
    """Read the text model's keys of config.json."""
    text = keys.inner("text_config", _TEXT)
    tied = {"tie_word_embeddings": keys.flag("tie_word_embeddings", True)}
    config = gemma3.read_json(MetadataKeys({**text.values, **tied}, text.source))
    return replace(config, architecture=ARCHITECTURE, is_wrapped=True)


def read_pictures(keys: PictureKeys, config: ModelConfig) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    keys.check_processor("Gemma3ImageProcessor")
    if keys.images.flag("do_pan_and_scan", False):
        raise keys.images.nonsense("do_pan_and_scan", "false, as pan and scan is not supported")
    size = keys.images.inner("size", {"height": 224, "width": 224})
    side, width = size.integer("height"), size.integer("width")
    rows = keys.config.integer("mm_tokens_per_image", _ROWS_PER_CROP)
    across = isqrt(rows)
    patch = keys.config.inner("vision_config", _VISION).integer("patch_size")
    vision = keys.vision(_VISION, side=side, joined=max(1, side // patch // across))
    stated = keys.processor.integer("image_seq_length", _ROWS_PER_CROP)
    if not (side == width == vision.image_size and rows == stated == vision.rows_per_crop):
        raise ModelLoadError(
            f"pictures of {width} x {side} pixels and {stated} rows do not fit the encoder, which "
            f"reads {vision.image_size} x {vision.image_size} and makes {rows} rows"
        )
    begin = keys.token("boi_token", "<start_of_image>")
    end = keys.token("eoi_token", "<end_of_image>")
    facts = PictureFacts(
        side=side,
        rows_per_crop=rows,
        marker=begin,
        placeholder=keys.token("image_token", "<image_soft_token>"),
        placeholder_id=keys.placeholder_id("image_token_index", _PLACEHOLDER_ID, config.vocab_size),
        looks_both_ways=True,
        resampling=keys.resampling("bilinear"),
        before=f"\n\n{begin}",
        after=f"{end}\n\n",
    )
    return facts, vision


def read_projector(keys: ProjectorKeys, config: ModelConfig) -> tuple[PictureKeys, ModelConfig]:
    """Read the keys of an mmproj file. Many vocabularies lack the placeholder; any token without a
    meaning will do."""
    side, patch = keys.size("image_size"), keys.size("patch_size")
    rows = (side // patch // keys.size("projector.scale_factor", 4)) ** 2
    found = keys.picture_keys(
        {"vision_config": keys.vision(), "mm_tokens_per_image": rows},
        placeholder=keys.first_token("<image_soft_token>", "<unused0>"),
        id_key="image_token_index",
        images={"size": {"height": side, "width": side}},
        processor={"image_seq_length": rows},
    )
    return found, config


def gguf_original(config: ModelConfig, name: str, stored: Tensor) -> Tensor:
    """Undo what llama.cpp's converter did to a tensor: it adds the 1 that the norm lacks."""
    return stored.float() - 1.0 if name.endswith("mm_soft_emb_norm.weight") else stored


FAMILIES = (
    Family(
        architecture=ARCHITECTURE,
        model_type="gemma3",
        create=create,
        read_json=read_json,
        read_pictures=read_pictures,
        projector=("gemma3", gemma3.ARCHITECTURE),
        read_projector=read_projector,
        gguf_tensors={
            **gemma3.FAMILIES[0].gguf_tensors,
            **SIGLIP_TENSORS,
            "mm.soft_emb_norm": f"{PICTURE_ENCODER}projector.mm_soft_emb_norm",
            "mm.input_projection.weight": f"{PICTURE_ENCODER}projector.mm_input_projection_weight",
        },
        gguf_original=gguf_original,
    ),
)
