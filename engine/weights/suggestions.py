"""Suggests what the operator may have meant by a model reference that does not exist.

The text is for the operator's own terminal and log: it names paths, which clients must not see.
"""

import contextlib
import difflib
import os
from collections.abc import Iterable
from pathlib import Path

_MODEL_FILES = (".gguf", ".safetensors")
_MOST = 3
_CUTOFF = 0.6
"""The least similarity of names, difflib's default: a letter or two may differ in a short name."""


def hint(ref: str, built_in: Iterable[str], *, may_be_hub_id: bool) -> str:
    """One line that says where the model was looked for, and names similar ones that exist."""
    places = [os.path.abspath(os.path.expanduser(ref))]
    known = list(built_in)
    if may_be_hub_id:
        cache = _hub_cache()
        places.append(f"the hub's cache {cache}")
        known += _cached_ids(cache)
    folder, name = os.path.split(ref.rstrip("/"))
    neighbours = [os.path.join(folder, near) for near in _nearest(name, _neighbours(folder))]
    nearest = [*_nearest(ref, known), *neighbours][:_MOST]
    question = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
    return f"looked for {' and in '.join(places)}{question}"


def _nearest(ref: str, known: Iterable[str]) -> list[str]:
    """The names most similar to `ref`, whatever the case of letters, without `ref` itself."""
    by_lower = {name.lower(): name for name in known if name != ref}
    found = difflib.get_close_matches(ref.lower(), by_lower, n=_MOST, cutoff=_CUTOFF)
    return [by_lower[name] for name in found]


def _neighbours(folder: str) -> list[str]:
    """The names of model files and folders in the folder where the model was looked for."""
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        for entry in os.scandir(os.path.expanduser(folder) or "."):
            is_model = entry.name.endswith(_MODEL_FILES) or entry.is_dir()
            if is_model and not entry.name.startswith("."):
                names.append(entry.name)
    return names


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _cached_ids(cache: Path) -> list[str]:
    """The hub ids of cache folders such as `models--org--name`."""
    with contextlib.suppress(OSError):
        return [
            path.name.removeprefix("models--").replace("--", "/")
            for path in cache.iterdir()
            if path.name.startswith("models--")
        ]
    return []
