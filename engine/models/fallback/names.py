"""What a model of transformers calls a checkpoint's tensors.

Files keep the names that they were written with. transformers renames them while it loads, by
tables of its own.
"""

from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from engine.models.fallback.architecture import refusal


class TensorNames:
    """Of one architecture.

    Args:
        model: an instance, without memory.
    """

    def __init__(self, architecture: str, model: Any) -> None:
        self._architecture = architecture
        self._prefix: str = model.base_model_prefix
        self._known = dict.fromkeys(model.state_dict(), True)
        transforms = get_model_conversion_mapping(model)
        self._renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        self._converters = [one for one in transforms if isinstance(one, WeightConverter)]

    def of(self, name: str) -> str:
        """
        Raises:
            UnsupportedArchitecture: the tensor is one of several that become one, or the like.
        """
        found, converter = rename_source_key(
            name, self._renamings, self._converters, self._prefix, self._known
        )
        if converter is not None and name not in self._known:
            raise refusal(
                self._architecture,
                f"tensors such as {name[:80]!r} are rearranged while transformers loads them",
            )
        return str(found)
