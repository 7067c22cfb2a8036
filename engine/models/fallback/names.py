"""The names that a model of transformers has for a checkpoint's tensors.

Files keep the names that they were written with. transformers renames and rearranges tensors while
it loads them, by tables of its own.
"""

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
)
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

from engine.models.fallback.architecture import refusal
from engine.models.fallback.layers import FallbackExperts

_EXPERTS_PART = re.compile(r"(.*\.experts)(\.\d+\.)(gate_proj|up_proj|down_proj|w1|w2|w3)(\..+)")
_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""Names of tensors of experts as in Mixtral, with their usual names."""

_DIVIDED = ("text_moe.experts", "vision_moe.experts")
"""Ends of paths of experts that checkpoints count together with others."""
_REARRANGED = "rearranged:"
_PLAIN = (torch.float32, torch.float16, torch.bfloat16)


class TensorNames:
    """The tensor names of one architecture.

    Args:
        model: an instance without memory.

    Attributes:
        experts: paths of the experts that our layers compute; their tensors come one by one, and
            transformers would merge them.
    """

    def __init__(self, architecture: str, model: Any) -> None:
        # Conversions give tensors the dtype of the model's weights.
        self._architecture, self._model = architecture, model.float()
        self._prefix: str = model.base_model_prefix
        self._known = dict.fromkeys(model.state_dict(), True)
        transforms = get_model_conversion_mapping(model)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        kind, _, is_text = model.config.model_type.rpartition("_text")
        if kind and not is_text:  # listed with the model around it
            transforms += get_checkpoint_conversion_mapping(kind) or []
        self._converters = [one for one in transforms if isinstance(one, WeightConverter)]
        self._shared: dict[str, list[str]] = {}
        """The further names of weights that layers share, which a checkpoint may have once."""
        for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
            if model.get_submodule(name.rpartition(".")[0]) is not model.get_output_embeddings():
                self._shared.setdefault(source, []).append(name)
        merged = [name for one in self._converters for name in one.target_patterns]
        merges_experts = any("experts" in name for name in merged)
        self.experts = frozenset(
            path
            for path, module in model.named_modules()
            if merges_experts
            and not path.endswith(_DIVIDED)
            and FallbackExperts.activation_of(module) is not None
        )

    def of(self, name: str) -> str:
        """Return the model's name for a tensor of a checkpoint. A tensor that has to be rearranged
        keeps its name behind a mark, until `rearranged` gets it."""
        part = _EXPERTS_PART.fullmatch(apply_renamings(name, self._renamings))
        if part is not None and part[1] in self.experts:
            return f"{part[1]}{part[2]}{_PARTS.get(part[3], part[3])}{part[4]}"
        found, converter = self._renamed(name)
        if name in self._known and found not in self._known:
            return name
        if converter is not None and name not in self._known:
            return _REARRANGED + name
        return found

    def rearranged(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's tensors, some of which transformers merges or splits while it loads.

        Raises:
            UnsupportedArchitecture: such a tensor is packed.
        """
        held: dict[str, Tensor] = {}
        for name, tensor in weights:
            if not name.startswith(_REARRANGED):
                for own in (name, *self._shared.get(name, ())):
                    yield own, tensor
            elif tensor.dtype not in _PLAIN:
                raise refusal(
                    self._architecture,
                    f"transformers rearranges {name.removeprefix(_REARRANGED)[:80]!r} when it "
                    f"loads it, which is not supported for packed weights; take a checkpoint in "
                    f"bfloat16",
                )
            else:
                held[name.removeprefix(_REARRANGED)] = tensor
        by_pattern = {one: each for each in self._converters for one in each.source_patterns}
        converters: dict[str, WeightConverter] = {}
        for name in sorted(held, key=dot_natural_key):
            target, pattern = self._renamed(name)
            converter = converters.setdefault(target, deepcopy(by_pattern[pattern]))
            converter.add_tensor(target, name, pattern, held[name])
        for target, converter in converters.items():
            # Some ask the model for the shapes of its weights.
            found = converter.convert(target, model=self._model, config=self._model.config)
            for name, value in found.items():
                yield name, value[0] if isinstance(value, list) else value

    def _renamed(self, name: str) -> tuple[str, Any]:
        """The name of the tensor, or of the first that it becomes part of, and the pattern that
        transformers rearranges it by, if any."""
        found, pattern = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._known
        )
        return str(found), pattern
