"""The facts that a decoder family's module states: names, configuration keys, how to build the
model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.contract.picture_facts import PictureFacts
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_keys import PictureKeys
from engine.models.vision_config import VisionConfig

ReadPictures = Callable[[PictureKeys, ModelConfig], tuple[PictureFacts, VisionConfig]]
"""A function that reads how a model with this configuration sees pictures. It raises ModelLoadError
if the files cannot be used for pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture of `config.json`. Each module lists its families as `FAMILIES`."""

    architecture: str
    """The entry of `architectures` in config.json, e.g. `LlamaForCausalLM`; no other family has
    it."""
    model_type: str
    """The `model_type` in config.json, for files that state no architecture."""
    create: Callable[[ModelConfig, WeightOptions], CausalLM]
    """Builds a model without weights from a configuration that one of the readers made."""
    read_json: Callable[[MetadataKeys], ModelConfig]
    """Reads the keys of config.json. The caller adds the keys for generation (stop tokens,
    sampling), here and below."""
    read_pictures: ReadPictures | None = None
    """None if no model of the family sees pictures."""
    gguf: str | None = None
    """The `general.architecture` of a GGUF file; None if there is none or it belongs to another
    family."""
    read_gguf: Callable[[GgufKeys], ModelConfig] | None = None
    """Reads the keys of a GGUF file whose architecture is `gguf`."""
    gguf_tensors: Mapping[str, str] = field(default_factory=lambda: LAYER_TENSORS)
    """A layer's tensors: GGUF's name to Hugging Face's, both without layer and suffix."""
    gguf_pairs_rows: bool = False
    """Whether llama.cpp's converter puts rows of q and k that are rotated together side by side."""
