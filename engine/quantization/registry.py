"""Finds formats by their names and by checkpoints."""

import importlib
from collections.abc import Mapping
from typing import Any

from engine.errors import ModelLoadError
from engine.quantization.format import Headers, LoadFormat, StoredFormat
from engine.quantization.formats import FORMATS


def stated_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantization that a component's config.json states; empty if none.

    Raises:
        ModelLoadError: it is not an object.
    """
    stated = config.get("quantization_config")
    if stated is not None and not isinstance(stated, dict):
        raise ModelLoadError("config.json: quantization_config must be an object")
    return stated or {}


def detect(config: Mapping[str, Any], headers: Headers) -> tuple[str, StoredFormat] | None:
    """Return the format of a checkpoint's linear layers with its name; None if it is unknown.

    Args:
        config: the quantization that the checkpoint states; empty if none.
        headers: headers of linear layers' tensors.

    Raises:
        ModelLoadError: the checkpoint uses an unsupported variant of a known format.
    """
    for name in stored_formats():
        found = stored_format(name, config, headers)
        if found is not None:
            return name, found
    return None


def stored_formats() -> list[str]:
    """Return the names of the formats that checkpoints have."""
    return [name for name, facts in FORMATS.items() if facts.stored_as == name]


def stored_format(name: str, config: Mapping[str, Any], headers: Headers) -> StoredFormat | None:
    """Return the format that `detect` finds under this name, or another way to keep the same
    weights."""
    found: StoredFormat | None = _class_of(name).detect(config, headers)
    return found


def side_files() -> list[str]:
    """Return the names of files beside config.json that may state a quantization."""
    return [file for name in stored_formats() if (file := _class_of(name).side_file) is not None]


def load_format(name: str) -> LoadFormat:
    """Return a format that is made from plain weights."""
    made: LoadFormat = _class_of(name)()
    return made


def _class_of(name: str) -> Any:
    module, _, attribute = FORMATS[name].target.partition(":")
    return getattr(importlib.import_module(module), attribute)
