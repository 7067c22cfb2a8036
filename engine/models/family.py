"""What a module of a decoder family states of it: its names, its keys, how to build it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.gguf_keys import LAYER_TENSORS, GgufKeys
from engine.models.layers.weight_slots import WeightOptions
from engine.models.metadata_keys import MetadataKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture of `config.json`. A module lists its own as `FAMILIES`."""

    architecture: str
    """As in `architectures` of config.json, e.g. `LlamaForCausalLM`; no other family has it."""
    model_type: str
    """As in `model_type` of config.json, for files that state no architecture."""
    create: Callable[[ModelConfig, WeightOptions], CausalLM]
    """Builds a model without weights from a configuration that one of the readers made."""
    read_json: Callable[[MetadataKeys], ModelConfig]
    """The keys of config.json. What generation needs (stop tokens, sampling) is added by the
    caller, here and below."""
    gguf: str | None = None
    """As in `general.architecture` of a GGUF file; None: there is none, or another family's."""
    read_gguf: Callable[[GgufKeys], ModelConfig] | None = None
    """The keys of a GGUF file whose architecture is `gguf`."""
    gguf_tensors: Mapping[str, str] = field(default_factory=lambda: LAYER_TENSORS)
    """A layer's tensors: GGUF's name → Hugging Face's, both without layer and suffix."""
    gguf_pairs_rows: bool = False
    """llama.cpp's converter puts the rows of q and k that are rotated together side by side."""
