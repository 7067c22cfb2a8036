"""Finds the files that hold the weights of a component in a diffusers folder or repository.

Repositories often hold the same weights several times: in full and half precision, as pickles, and
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
    """Choose one complete set of safetensors among a component's files.

    Returns:
        The set's variant and its files, with shards in order and without the shards' index; ("",
        []) if there is none.
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
    """Whether there are weights in a format that is not read."""
    return any(name.endswith(_PICKLES) for name in names)


def _shards(base: str, variant: str, present: set[str]) -> list[str]:
    """The shards of a variant, in either spelling: `model.fp16-00001-of-00002` or
    `model-00001-of-00002.fp16`."""
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
