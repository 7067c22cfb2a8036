"""What makers recommend for models whose GGUF files do not say it, as most do not."""

import re
from collections.abc import Mapping
from typing import Any

_NAME_KEYS = ("general.basename", "general.finetune", "general.version")
_KNOWN: tuple[tuple[str, Mapping[str, float]], ...] = (
    # Its page says 0.2, at which the smallest of them repeats itself more: docs/sampling.md.
    (r"smollm2 .*", {"temperature": 0.3, "top_p": 0.9}),
    (r"(meta-)?llama-3(\.\d)? .*instruct.*", {"temperature": 0.6, "top_p": 0.9}),
    (r"qwen3 (?!.*2507).*", {"temperature": 0.6, "top_p": 0.95, "top_k": 20}),
    (r"gemma-3 it .*", {"top_p": 0.95, "top_k": 64}),
)
"""By basename, finetune and version of a file's metadata, joined by spaces."""


def known_sampling(metadata: Mapping[str, Any]) -> dict[str, float]:
    """By a GGUF file's metadata; empty for unknown models, and for those that hold no chats."""
    if not metadata.get("tokenizer.chat_template"):
        return {}
    name = " ".join(str(metadata.get(key, "")) for key in _NAME_KEYS).lower()
    return next((dict(known) for form, known in _KNOWN if re.fullmatch(form, name)), {})
