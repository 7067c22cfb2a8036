"""From names and checkpoints to formats."""

import importlib
from collections.abc import Mapping
from typing import Any

from engine.errors import ModelLoadError
from engine.quantization.format import Headers, LoadFormat, StoredFormat
from engine.quantization.table import FORMATS


def stated_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a component's config.json says of its quantization; empty if nothing.

    Raises:
        ModelLoadError: it is no object.
    """
    stated = config.get("quantization_config")
    if stated is not None and not isinstance(stated, dict):
        raise ModelLoadError("config.json: quantization_config must be an object")
    return stated or {}


def detect(config: Mapping[str, Any], headers: Headers) -> tuple[str, StoredFormat] | None:
    """The format that a checkpoint's linear layers have, with its name; None: none of ours.

    Args:
        config: what the checkpoint says of its quantization; empty if nothing.
        headers: of linear layers' tensors.

    Raises:
        ModelLoadError: one of ours in a way that is not supported.
    """
    for name in stored_formats():
        found = stored_format(name, config, headers)
        if found is not None:
            return name, found
    return None


def stored_formats() -> list[str]:
    """Names of the formats that checkpoints have."""
    return [name for name, facts in FORMATS.items() if facts.stored_as == name]


def stored_format(name: str, config: Mapping[str, Any], headers: Headers) -> StoredFormat | None:
    """A format as `detect` knows it, or another way to keep the same weights."""
    found: StoredFormat | None = _class_of(name).detect(config, headers)
    return found


def side_files() -> list[str]:
    """Names of files beside config.json that may hold what it lacks."""
    return [file for name in stored_formats() if (file := _class_of(name).side_file) is not None]


def load_format(name: str) -> LoadFormat:
    """One that is made of plain weights."""
    made: LoadFormat = _class_of(name)()
    return made


def _class_of(name: str) -> Any:
    module, _, attribute = FORMATS[name].target.partition(":")
    return getattr(importlib.import_module(module), attribute)
