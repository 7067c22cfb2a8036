"""The makers' recommendations for models whose GGUF files have none, as most do not."""

import re
from collections.abc import Mapping
from typing import Any

_NAME_KEYS = ("general.basename", "general.finetune", "general.version")
_KNOWN: tuple[tuple[str, Mapping[str, float]], ...] = (
    # The model page says 0.2, at which the smallest model repeats itself more: docs/sampling.md.
    (r"smollm2 .*", {"temperature": 0.3, "top_p": 0.9}),
    (r"(meta-)?llama-3(\.\d)? .*instruct.*", {"temperature": 0.6, "top_p": 0.9}),
    (r"qwen3 (?!.*2507).*", {"temperature": 0.6, "top_p": 0.95, "top_k": 20}),
    (r"gemma-3 it .*", {"top_p": 0.95, "top_k": 64}),
)
"""Recommendations by a pattern for the basename, finetune and version in a file's metadata, joined
by spaces."""


def known_sampling(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The recommendation for a GGUF file's metadata; empty for unknown models and for those that
    are not for chats."""
    if not metadata.get("tokenizer.chat_template"):
        return {}
    name = " ".join(str(metadata.get(key, "")) for key in _NAME_KEYS).lower()
    return next((dict(known) for form, known in _KNOWN if re.fullmatch(form, name)), {})
