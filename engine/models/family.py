"""The facts that a decoder family's module states: names, configuration keys, how to build the
model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from engine.contract.picture_facts import PictureFacts
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys
from engine.models.picture_keys import PictureKeys
from engine.models.projector_keys import ProjectorKeys
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
    gguf_others: tuple[str, ...] = ()
    """Further architectures of GGUF files, which are read in the same way."""
    read_gguf: Callable[[GgufKeys], ModelConfig] | None = None
    """Reads the keys of a GGUF file whose architecture is `gguf`."""
    projector: tuple[str, str] | None = None
    """The type of encoder in an mmproj file, and the architecture of the text model beside it; None
    if there are no such files for the family."""
    read_projector: (
        Callable[[ProjectorKeys, ModelConfig], tuple[PictureKeys, ModelConfig]] | None
    ) = None
    """Reads the keys of an mmproj file, given the text model's configuration, and returns the keys
    for `read_pictures` and the configuration with what pictures need."""
    gguf_tensors: Mapping[str, str] = field(default_factory=lambda: LAYER_TENSORS)
    """GGUF's names to Hugging Face's: a layer's without the layer, and others that differ from
    those of most families. Names without suffix hold for `.weight` and `.bias`; one that ends
    in a dot is that of a tensor without suffix."""
    gguf_original: Callable[[ModelConfig, str, Tensor], Tensor] | None = None
    """Undoes what llama.cpp's converter did to a tensor, given by Hugging Face's name. Rows of
    packed weights are [bytes]; it may only change their order."""
