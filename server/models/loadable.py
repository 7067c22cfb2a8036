"""Finds the models that clients may load: those that the operator has named, and no others."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import structlog

from engine.contract.model_spec import ModelSpec
from engine.errors import InvalidParameter, UnknownModel
from engine.files.gguf_part_names import first_part, model_name
from server.settings import ANY_MODEL, Settings

_FILES = (".gguf", ".safetensors", ".pth", ".param")
_CONFIGURATIONS = ("config.json", "model_index.json")
_MOST_ENTRIES = 4096
"""The most entries of the folder that are read."""

log = structlog.get_logger(__name__)


class LoadableModels:
    """The models of the settings, by name: those served from the start, `loadable_models`, and
    those in `models_dir`. If a name is used twice, the first in this order counts."""

    def __init__(self, settings: Settings) -> None:
        listed = [text for text in settings.loadable_models if text != ANY_MODEL]
        self._named: dict[str, ModelSpec] = {}
        for spec in map(ModelSpec.parse, (*settings.models, *listed)):
            self._named.setdefault(spec.name, spec)
        self._folder = settings.models_dir
        self._is_any_allowed = ANY_MODEL in settings.loadable_models

    def specs(self) -> list[ModelSpec]:
        """All models that have a name. Reads the folder: call it in a thread."""
        found = {} if self._folder is None else _models_in(self._folder)
        return list({**self._named, **found, **self._named}.values())

    def find(self, model: str, ref: str | None = None) -> ModelSpec:
        """The model to load as `model`: the entry of that name, or the one that `ref` names or
        refers to. Reads the folder: call it in a thread.

        A client's text is only compared with the list and never becomes a path, unless the operator
        allows any model.

        Raises:
            UnknownModel: it is not in the list.
            InvalidParameter: any model may be loaded, but the text cannot be the name of one.
        """
        wanted = model if ref is None else ref
        specs = self.specs()
        for spec in specs:
            if spec.name == wanted:
                return spec
        for spec in specs:
            if spec.ref == wanted:
                return spec
        if self._is_any_allowed:
            return ModelSpec.create(wanted, name=None if ref is None else model)
        raise UnknownModel(
            f"model {wanted[:80]!r} is not one of the models that may be loaded; GET /models "
            "lists those",
            param="model" if ref is None else "ref",
        )


def entries_of(folder: Path, warning: str) -> list[Path]:
    """The entries of a folder without hidden ones; none, and a warning, if it cannot be read."""
    try:
        entries = sorted(islice(folder.iterdir(), _MOST_ENTRIES))
    except OSError as error:
        log.warning(warning, reason=error.strerror)
        return []
    return [entry for entry in entries if not entry.name.startswith(".")]


def _models_in(folder: Path) -> dict[str, ModelSpec]:
    found: dict[str, ModelSpec] = {}
    for entry in filter(_is_model, entries_of(folder, "models_dir cannot be read")):
        # A file beside a folder of the same name keeps its ending.
        names = [entry.name] if entry.is_dir() else [model_name(entry.name), entry.name]
        for spec in _specs(entry, names):
            if spec.name not in found:
                found[spec.name] = spec
                break
    return found


def _specs(entry: Path, names: list[str]) -> Iterator[ModelSpec]:
    for name in names:
        try:
            yield ModelSpec.create(str(entry.absolute()), name=name)
        except InvalidParameter:  # a name that cannot be used in requests
            continue


def _is_model(entry: Path) -> bool:
    try:
        if not entry.is_dir():
            return entry.suffix in _FILES and first_part(entry.name) == entry.name
        return any((entry / name).is_file() for name in _CONFIGURATIONS) or any(
            entry.glob("*.gguf")
        )
    except OSError:
        return False
