"""Which checkpoint to serve, under which name, on which device, and with which own settings."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from engine.contract.settings import EngineConfig
from engine.errors import InvalidParameter
from engine.files.gguf_part_names import model_name

DEFAULT_MODELS = ("smollm2-135m-instruct", "tandem-shapes")
"""What a fresh machine serves: a text model from a wheel and an image model that we ship."""

MAX_NAME_CHARS = 256
MAX_REF_CHARS = 4096

NOT_OF_A_MODEL = {
    "device": "give it beside settings, not in them",
    "max_num_queued": "it follows from max_queued_requests",
    "max_kl": "it is the server's guard; set it for the server",
    "memory_gib": "it is for all models together; set it for the server",
    "kv_store_bytes": "it is for all models together; set it for the server",
    "sleep_file_gib": "it is for all models together; set it for the server",
    "image_share": "it is for all models together; set it for the server",
}
"""The fields of `EngineConfig` that a model's settings cannot have, and what to do instead."""

_FORM = (
    "a model must be REF, NAME=REF or a JSON object with ref and optionally name, device and "
    "settings; REF is a built-in name, a hub id, a folder or a file"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model to serve. `create` and `parse` make it and check it.

    Attributes:
        ref: a built-in name, a hub id, a folder, or a `.gguf` or `.safetensors` file.
        name: the id under which it is served.
        device: as in `EngineConfig`; None is the server's.
        settings: the fields of `EngineConfig` that differ from the server's.
    """

    ref: str
    name: str
    device: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        ref: str,
        *,
        name: str | None = None,
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> "ModelSpec":
        """Make a checked spec. Without a name, a folder or file is served under its base name, and
        a hub id or built-in name as it is.

        Raises:
            InvalidParameter: the name or reference is empty or unusable, or a setting does not
                exist, cannot be a model's own or has a bad value; `param` is its name.
        """
        ref = ref.strip()
        name = (_default_name(ref) if name is None else name).strip()
        if not ref or not name:
            raise InvalidParameter("name and ref must not be empty", param="model")
        if len(name) > MAX_NAME_CHARS or not name.isprintable():
            raise InvalidParameter(
                f"a model's name must have 1 to {MAX_NAME_CHARS} printable characters; choose "
                f"another name",
                param="model",
            )
        if len(ref) > MAX_REF_CHARS:
            raise InvalidParameter(
                f"ref has {len(ref)} characters; it may have {MAX_REF_CHARS}", param="ref"
            )
        checked = _checked(settings or {})
        if device is not None:
            _convert({"device": device})
        return cls(ref=ref, name=name, device=device, settings=checked)

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """Read `REF`, `NAME=REF`, or a JSON object with `ref`, `name`, `device`, `settings`.

        Raises:
            InvalidParameter: as in `create`, or the text is none of these.
        """
        if text.lstrip().startswith("{"):
            return cls.create(**_read_object(text))
        name, separator, ref = text.partition("=")
        if not separator:
            name, ref = _default_name(text), text
        if not name.strip() or not ref.strip():
            raise InvalidParameter(_FORM, param="models")
        return cls.create(ref, name=name)

    @property
    def served_as(self) -> str:
        """The id that requests use. Workers of one model share it."""
        return self.name

    @property
    def rank(self) -> int:
        """The number of its worker among those of one model, counted from 0."""
        return 0

    def config(self, of_server: EngineConfig) -> EngineConfig:
        """The model's configuration: the server's with the model's own settings.

        Raises:
            InvalidParameter: the two do not go together.
        """
        device = {} if self.device is None else {"device": self.device}
        return replace(of_server, **{**self.settings, **device})


def settings_of_models() -> list[str]:
    """The names of the settings that a model can have of its own."""
    return [f.name for f in fields(EngineConfig) if f.name not in NOT_OF_A_MODEL]


def settings_of_clients() -> list[str]:
    """The names of the model settings that clients may set when they load a model, and can see."""
    private = {f.name for f in fields(EngineConfig) if f.metadata["names_files"]}
    return [name for name in settings_of_models() if name not in private]


def _read_object(text: str) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise InvalidParameter(f"the model's JSON object is not valid: {error}") from None
    known = [f.name for f in fields(ModelSpec)]
    for key in given:
        if key not in known:
            raise InvalidParameter(
                f"a model has no key {key}{_meant(key, known)}; its keys are {', '.join(known)}",
                param="models",
            )
    if not isinstance(given.get("ref"), str):
        raise InvalidParameter(_FORM, param="models")
    for key in ("name", "device"):
        if not isinstance(given.get(key), str | None):
            raise InvalidParameter(f"a model's {key} must be a string", param="models")
    if not isinstance(given.get("settings"), dict | None):
        raise InvalidParameter("a model's settings must be an object", param="models")
    return given


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with their types, after a check that each can be a model's own."""
    for key in settings:
        if key in NOT_OF_A_MODEL:
            raise InvalidParameter(
                f"{key} cannot be set for one model: {NOT_OF_A_MODEL[key]}", param=key
            )
        if key not in settings_of_models():
            raise InvalidParameter(
                f"there is no setting {key}{_meant(key, settings_of_models())}", param=key
            )
        if isinstance(settings[key], float) and not math.isfinite(settings[key]):
            raise InvalidParameter(f"{key} must be a finite number", param=key)
    converted = asdict(_convert(dict(settings))) if settings else {}
    return {key: converted[key] for key in settings}


def _convert(values: dict[str, Any]) -> EngineConfig:
    """Check settings and convert them to their types.

    Raises:
        InvalidParameter: a value has another type or is out of bounds.
    """
    try:
        return msgspec.convert(values, EngineConfig)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        key = place.rstrip("`")
        kind = get_type_hints(EngineConfig).get(key)
        if get_origin(kind) is Literal:
            reason = f"it must be one of {', '.join(get_args(kind))}"
        raise InvalidParameter(f"{key}: {reason}", param=key or None) from None


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _default_name(ref: str) -> str:
    if ref.endswith(".gguf"):
        return model_name(ref.replace(":", "/"))
    is_path = ref.startswith(("/", ".", "~")) or ref.count("/") > 1
    return PurePath(ref).name if is_path else ref
