"""Objects whose `type` decides their fields, as other APIs write messages and their parts.

Pydantic's unions would put their own names into the path of an error, and could not give advice.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from engine.errors import InvalidParameter, UnsupportedFeature
from server.http.errors import explained
from server.protocol.common import WireModel

ModelT = TypeVar("ModelT", bound=WireModel)


def read_variant(
    value: Any,
    variants: Mapping[str, type[ModelT]],
    path: Sequence[int | str],
    *,
    default: str | None = None,
    refused: Mapping[str, str] | None = None,
) -> ModelT:
    """An object as the model of its `type`.

    Args:
        path: its place in the body.
        default: the type of an object without one.
        refused: name prefixes of known types that this server does not support → the message.

    Raises:
        InvalidParameter: the type is unknown; names the field.
        UnsupportedFeature: the type is one of `refused`.
    """
    kind = value.get("type", default) if isinstance(value, dict) else None
    model = variants.get(kind) if isinstance(kind, str) else None
    if model is not None:
        return read_model(model, value, path)
    for start, reason in (refused or {}).items():
        if isinstance(kind, str) and kind.startswith(start):
            raise UnsupportedFeature(reason, param=_param(path))
    param = _param(path)
    if not isinstance(value, dict):
        raise InvalidParameter(f"{param}: must be an object", param=param)
    raise InvalidParameter(f"{param}.type: must be one of: {', '.join(variants)}", param=param)


def read_model(model: type[ModelT], value: Any, path: Sequence[int | str]) -> ModelT:
    """The value as an object of that model.

    Raises:
        InvalidParameter: as in `read_variant`.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param, message = explained(first, (*path, *first["loc"]))
        raise InvalidParameter(message, param=param) from None


def _param(path: Sequence[int | str]) -> str | None:
    return explained({"type": "", "msg": ""}, path)[0]
