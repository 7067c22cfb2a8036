"""SmolVLM and Idefics3: a Llama with a vision tower that reads a picture in crops of a grid and
once as a whole.

Papers: Marafioti et al. 2025, arXiv:2504.05299; Laurençon et al. 2024, arXiv:2408.12637.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from engine.contract.picture_facts import PictureFacts
from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.models import llama
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.family import Family
from engine.models.forward_context import NO_CONTEXT
from engine.models.gguf_keys import LAYER_TENSORS, unpaired_rows
from engine.models.layers.linear import Shard
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_keys import PictureKeys
from engine.models.projector_keys import SIGLIP_TENSORS, ProjectorKeys
from engine.models.vision.siglip import TowerEncoder, TowerLinear, VisionTower, squares
from engine.models.vision_config import VisionConfig
from engine.quantization.plan import PICTURE_ENCODER

SMOLVLM, IDEFICS3 = "SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"
_TEXT = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
}
"""The values of missing keys, of which published files have many."""
_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}
_SIDE, _LONGEST_EDGE = 364, 4 * 364
_MAX_CELLS = 32
"""The most crops side by side; published models have four or five."""
_ROWS_PER_CROP = 169
_PLACEHOLDER_ID = 128_257


class Connector(nn.Module):
    """Projects the states of each square of patches together."""

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        inner = config.hidden_size * config.joined**2
        projection = TowerLinear(inner, (Shard("proj", hidden_size),))
        self.modality_projection = nn.ModuleDict({"proj": projection})
        self._joined = config.joined

    def forward(self, states: Tensor) -> Tensor:
        """Map [patches, C] to [rows, hidden size of the decoder]."""
        joined = squares(states, self._joined).flatten(1)
        found: Tensor = self.modality_projection["proj"](joined, NO_CONTEXT)
        return found

    __call__ = forward


def position_ids(config: VisionConfig) -> Tensor:
    """The rows of the table of positions for a crop of any size, [L]: each patch takes the position
    that lies at the same fraction of the trained size, computed in fp32 as transformers does."""
    trained = config.trained_grid
    borders = torch.arange(1 / trained, 1.0, 1 / trained)
    fractions = torch.arange(config.grid, dtype=torch.float32) * (1.0 / torch.tensor(config.grid))
    places = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), borders, right=True)
    return (places[:, None] * trained + places).flatten()


def create(config: ModelConfig, options: WeightOptions) -> CausalLM:
    """Build the decoder, with an encoder if the checkpoint says how to use it."""
    model, vision = llama.create(config, options), config.vision
    if vision is not None:
        tower = VisionTower(vision, position_ids)
        model.picture_encoder = TowerEncoder(tower, Connector(vision, config.hidden_size))
    return model


def read_json(architecture: str, keys: MetadataKeys) -> ModelConfig:
    """Read the text model's keys of config.json.

    Raises:
        UnsupportedArchitecture: the text model is not a Llama.
    """
    text = keys.inner("text_config", _TEXT)
    if text.text("model_type") != "llama":
        raise UnsupportedArchitecture(
            f"{architecture} with a text model of type {text.text('model_type')!r} is not "
            f"supported; the type must be 'llama'"
        )
    tied = {"tie_word_embeddings": keys.flag("tie_word_embeddings", False)}
    config = llama.read_llama(MetadataKeys({**text.values, **tied}, text.source))
    return replace(config, architecture=architecture, is_wrapped=True)


def read_pictures(keys: PictureKeys, config: ModelConfig) -> tuple[PictureFacts, VisionConfig]:
    """Read how pictures become rows.

    Raises:
        ModelLoadError: the checkpoint does not say so, or in a way that is not supported.
    """
    keys.check_processor("SmolVLMImageProcessor", "Idefics3ImageProcessor")
    side = keys.edge("max_image_size", _SIDE)
    vision = keys.vision(_VISION, side=side, joined=keys.config.integer("scale_factor", 2))
    rows = keys.processor.integer("image_seq_len", _ROWS_PER_CROP)
    if rows != vision.rows_per_crop:
        raise ModelLoadError(
            f"{keys.processor.source}: image_seq_len is {rows}; the encoder makes "
            f"{vision.rows_per_crop} rows"
        )
    around = keys.token("fake_image_token", "<fake_token_around_image>")
    placeholder = keys.token("image_token", "<image>")
    facts = PictureFacts(
        side=side,
        rows_per_crop=rows,
        marker=placeholder,
        placeholder=placeholder,
        placeholder_id=keys.placeholder_id("image_token_id", _PLACEHOLDER_ID, config.vocab_size),
        resampling=keys.resampling("lanczos"),
        before=around + keys.token("global_image_token", "<global-img>"),
        after=around,
        longest_edge=keys.edge("size", _LONGEST_EDGE, most=_MAX_CELLS * side),
        before_cell=around if keys.images.flag("do_image_splitting", True) else None,
    )
    return facts, vision


def read_projector(keys: ProjectorKeys, config: ModelConfig) -> tuple[PictureKeys, ModelConfig]:
    """Read the keys of an mmproj file."""
    side, joined = keys.size("image_size"), keys.size("projector.scale_factor")
    found = keys.picture_keys(
        {"vision_config": keys.vision(), "scale_factor": joined},
        placeholder="<image>",
        id_key="image_token_id",
        images={
            "max_image_size": {"longest_edge": side},
            "size": {"longest_edge": keys.size("preproc_image_size", side)},
        },
        processor={"image_seq_len": (side // keys.size("patch_size") // joined) ** 2},
    )
    return found, config


FAMILIES = tuple(
    Family(
        architecture=architecture,
        model_type=model_type,
        create=create,
        read_json=partial(read_json, architecture),
        read_pictures=read_pictures,
        projector=("idefics3", llama.FAMILIES[0].architecture) if model_type == "smolvlm" else None,
        read_projector=read_projector,
        gguf_tensors=LAYER_TENSORS
        | SIGLIP_TENSORS
        | {"mm.model.fc": f"{PICTURE_ENCODER}projector.modality_projection.proj"},
        gguf_original=unpaired_rows,
    )
    for architecture, model_type in ((SMOLVLM, "smolvlm"), (IDEFICS3, "idefics3"))
)
