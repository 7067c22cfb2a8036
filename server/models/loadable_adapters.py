"""Finds the LoRA adapters that clients may load: those that the operator has named, and no
others."""

import os
from pathlib import Path

from engine.contract.adapter_settings import check_adapter, split_adapter
from engine.contract.model_spec import ModelSpec
from engine.errors import InvalidParameter, UnknownAdapter
from server.models.loadable import entries_of
from server.settings import ANY_MODEL, Settings

_CONFIGURATION = "adapter_config.json"
_WEIGHTS = ".safetensors"
_DIFFUSERS = "pytorch_lora_weights.safetensors"
_MAX_NAMED = 8
"""The most adapters that a message lists."""


class LoadableAdapters:
    """The adapters of the settings, by name: those served from the start, `loadable_loras`, and
    those in `loras_dir`. If a name is used twice, the first in this order counts."""

    def __init__(self, settings: Settings) -> None:
        self._named: dict[str, str] = {}
        for text in settings.models:
            self._named |= ModelSpec.parse(text).config(settings.engine).adapters
        listed = [text for text in settings.loadable_loras if text != ANY_MODEL]
        self._named = {**dict(map(split_adapter, listed)), **self._named}
        self._folder = settings.loras_dir
        self._is_any_allowed = ANY_MODEL in settings.loadable_loras

    def find(self, name: str, place: str | None = None) -> str:
        """The folder or file to load as `name`: that of the entry of this name, or of the one that
        `place` names or whose folder it is. Reads `loras_dir`: call it in a thread.

        A client's text is only compared with the list and never becomes a path, unless the operator
        allows any adapter.

        Raises:
            UnknownAdapter: it is not in the list.
            InvalidParameter: the name cannot be used in requests.
        """
        check_adapter(name, "any", param="lora_name")
        wanted = name if place is None else place
        folders = {**self._found(), **self._named}
        if wanted in folders:
            return folders[wanted]
        for folder in folders.values():
            if os.path.normpath(folder) == os.path.normpath(wanted):
                return folder
        if self._is_any_allowed and place is not None:
            check_adapter(name, place, param="lora_path")
            return place
        names = ", ".join(sorted(folders)[:_MAX_NAMED])
        raise UnknownAdapter(
            f"adapter {wanted[:80]!r} is not one of the adapters that may be "
            f"loaded{f' ({names})' if names else ''}; put it into loras_dir, or name it in "
            "loadable_loras",
            param="lora_name" if place is None else "lora_path",
        )

    def _found(self) -> dict[str, str]:
        """The adapters in the folder."""
        if self._folder is None:
            return {}
        found: dict[str, str] = {}
        for entry in filter(_is_adapter, entries_of(self._folder, "loras_dir cannot be read")):
            name = entry.name.removesuffix(_WEIGHTS)
            try:
                check_adapter(name, str(entry.absolute()))
            except InvalidParameter:  # a name that cannot be used in requests
                continue
            found.setdefault(name, str(entry.absolute()))
        return found


def _is_adapter(entry: Path) -> bool:
    """Whether an entry is a folder of PEFT's or diffusers', or a file of an image adapter."""
    try:
        if entry.suffix == _WEIGHTS:
            return entry.is_file()
        return (entry / _CONFIGURATION).is_file() or (entry / _DIFFUSERS).is_file()
    except OSError:
        return False
