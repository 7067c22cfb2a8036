"""Which files of a diffusers folder, or repository, hold the weights of a component.

Repositories often keep the same weights several times: in full and in half precision, as pickles,
for other frameworks. Everything here works on file names alone.
"""

import re
from collections.abc import Iterable, Sequence

HALF_FIRST = ("fp16", "bf16", "")
"""Variants in the order of preference; "" is the plain one."""
FULL_FIRST = ("", "fp16", "bf16")

UNUSED = frozenset(("safety_checker", "feature_extractor", "image_encoder"))
"""Components of a pipeline that are not served."""

_BASES = ("diffusion_pytorch_model", "model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def choose_weights(names: Iterable[str], variants: Sequence[str]) -> tuple[str, list[str]]:
    """One complete set of safetensors among a component's files.

    Returns:
        Its variant and its files, shards in order, the shards' index not among them; ("", []) if
        there is none.
    """
    present = set(names)
    for variant in variants:
        for base in _BASES:
            whole = f"{base}.{variant}.safetensors" if variant else f"{base}.safetensors"
            if whole in present:
                return variant, [whole]
            shards = _shards(base, variant, present)
            if shards:
                return variant, shards
    return "", []


def has_pickles(names: Iterable[str]) -> bool:
    """Whether weights are there in a form that is not read."""
    return any(name.endswith(_PICKLES) for name in names)


def _shards(base: str, variant: str, present: set[str]) -> list[str]:
    """Two spellings are in use: `model.fp16-00001-of-00002` and `model-00001-of-00002.fp16`."""
    number = r"-\d{5}-of-(\d{5})"
    suffix = re.escape(f".{variant}") if variant else ""
    for pattern in (
        rf"{base}{suffix}{number}\.safetensors",
        rf"{base}{number}{suffix}\.safetensors",
    ):
        matches = [match for name in present if (match := re.fullmatch(pattern, name))]
        if matches and len(matches) == int(matches[0][1]):
            return sorted(match[0] for match in matches)
    return []
