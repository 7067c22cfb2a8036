"""The OpenAPI document, with what only a running server knows: served ids and their limits.

So the document says which models may be named, how many tokens they take, which token ids and
which schedulers exist, rather than just a string and an integer.
"""

import copy
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI

from engine.client import EngineClient
from engine.config import Policy
from engine.image_types import ImageModelInfo
from engine.kinds import IMAGE, TEXT
from engine.types import ModelInfo
from server.http.catalog import served_names

_TOKEN_COUNTS = ("max_tokens", "max_completion_tokens", "n_predict", "min_tokens")


def install(app: FastAPI, engine: EngineClient, policy: Policy) -> None:
    """Make `/openapi.json` and `/docs` show the served models' facts."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = copy.deepcopy(describe())
        _drop_unused_422(document)
        for name, schema in document["components"]["schemas"].items():
            if "model" not in schema.get("properties", {}) or "additionalProperties" not in schema:
                continue
            if name.startswith("Image"):
                _name_models(schema, served_names(engine, IMAGE))
                _fill_in_images(schema["properties"], engine.infos(IMAGE))
            else:
                _name_models(schema, served_names(engine, TEXT))
                _fill_in(schema["properties"], engine.infos(TEXT), policy)
        served = [status.model for status in engine.statuses()]
        for path in ("/v1/models/{model_id}", "/ready/{model_id}"):
            for parameter in document["paths"][path]["get"]["parameters"]:
                parameter["schema"]["enum"] = served
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_unused_422(document: dict[str, Any]) -> None:
    """FastAPI documents its own answer to a bad body; here that is a 400."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _name_models(schema: dict[str, Any], served: Sequence[str]) -> None:
    """Required where there is a choice; where there is none it may be left out or empty."""
    if not served:
        return
    model = schema["properties"]["model"]
    named = _variant(model, "string")
    if len(served) == 1:
        named["enum"] = [*served, ""]
        return
    del model["anyOf"]
    model.pop("default", None)
    model |= named | {"enum": list(served)}
    schema["required"] = ["model", *schema.get("required", [])]


def _fill_in(properties: dict[str, Any], infos: Sequence[ModelInfo], policy: Policy) -> None:
    if "priority" in properties and policy != "priority":
        _variant(properties["priority"], "integer")["enum"] = [0]
    if not infos:
        return
    for name in _TOKEN_COUNTS:
        if name in properties:
            count = _variant(properties[name], "integer")
            count["maximum"] = max(info.max_model_len for info in infos) - 1
    last_token = max(info.vocab_size for info in infos) - 1
    for name in ("prompt", "tokens", "stop_token_ids"):
        for items in _integer_items(properties.get(name, {})):
            items["maximum"] = last_token


def _fill_in_images(properties: dict[str, Any], infos: Sequence[ImageModelInfo]) -> None:
    names = {name: None for info in infos for name in info.schedulers}
    if names:
        _variant(properties["scheduler"], "string")["enum"] = [*names, ""]


def _variant(schema: dict[str, Any], type: str) -> dict[str, Any]:
    """The member of a nullable field's `anyOf` that is not null."""
    variants: list[dict[str, Any]] = schema["anyOf"]
    return next(variant for variant in variants if variant.get("type") == type)


def _integer_items(schema: Any) -> list[dict[str, Any]]:
    """Every array's item schema that is an integer, however deep."""
    if isinstance(schema, list):
        return [found for member in schema for found in _integer_items(member)]
    if not isinstance(schema, dict):
        return []
    if schema.get("type") == "integer":
        return [schema]
    nested = [schema.get("items"), schema.get("anyOf")]
    return [found for member in nested for found in _integer_items(member)]
