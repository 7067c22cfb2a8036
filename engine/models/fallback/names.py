"""The names that a model of transformers has for a checkpoint's tensors.

Files keep the names that they were written with. transformers renames them while it loads, by
tables of its own.
"""

import re
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    rename_source_key,
)

from engine.models.fallback.architecture import refusal
from engine.models.fallback.layers import FallbackExperts

_EXPERTS_PART = re.compile(r"(.*\.experts)(\.\d+\.)(gate_proj|up_proj|down_proj|w1|w2|w3)(\..+)")
_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""Names of tensors of experts as in Mixtral, with their usual names."""


class TensorNames:
    """The tensor names of one architecture.

    Args:
        model: an instance without memory.

    Attributes:
        experts: paths of the experts that our layers compute; their tensors come one by one, and
            transformers would merge them.
    """

    def __init__(self, architecture: str, model: Any) -> None:
        self._architecture = architecture
        self._prefix: str = model.base_model_prefix
        self._known = dict.fromkeys(model.state_dict(), True)
        transforms = get_model_conversion_mapping(model)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self._converters = [one for one in transforms if isinstance(one, WeightConverter)]
        self.experts = frozenset(
            path
            for path, module in model.named_modules()
            if self._converters and FallbackExperts.activation_of(module) is not None
        )

    def of(self, name: str) -> str:
        """Return the model's name for a tensor of a checkpoint.

        Raises:
            UnsupportedArchitecture: transformers would merge or change the tensor.
        """
        part = _EXPERTS_PART.fullmatch(apply_renamings(name, self._renamings))
        if part is not None and part[1] in self.experts:
            return f"{part[1]}{part[2]}{_PARTS.get(part[3], part[3])}{part[4]}"
        found, converter = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._known
        )
        if converter is not None and name not in self._known:
            raise refusal(
                self._architecture,
                f"transformers rearranges tensors such as {name[:80]!r} when it loads them",
            )
        return str(found)
