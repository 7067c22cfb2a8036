"""The OpenAPI document, with facts that only a running server knows: served ids and their limits.

The document says which models may be named, how many tokens they take, which token ids and
which schedulers exist, rather than just a string and an integer.
"""

import asyncio
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from engine.contract.operations import AnyOperation
from engine.worker.client import EngineClient
from server.catalog import config_of, served_names
from server.http.priority import describe_priority
from server.http.schemas import variant
from server.http.served_operation import ServedOperation
from server.served import SERVED

PATH = "/openapi.json"

_SERVED = {
    body.__name__: [one for one in SERVED.values() if body in one.bodies]
    for served in SERVED.values()
    for body in served.bodies
}


def install(
    app: FastAPI, engine: EngineClient, more: Mapping[type[BaseModel], AnyOperation]
) -> None:
    """Make `/openapi.json` and `/docs` show the served models' facts.

    Args:
        more: further bodies, each with the operation that it asks for.
    """
    served = _SERVED | {body.__name__: [SERVED[one]] for body, one in more.items()}

    def make() -> dict[str, Any]:
        document = copy.deepcopy(app.openapi())
        _drop_unused_422(document)
        _show_forms_first(document)
        return document

    async def show(request: Request) -> Response:
        document = await asyncio.to_thread(make)  # a third of a second the first time
        _tell_facts(document, engine, served)
        root_path = request.scope.get("root_path", "").rstrip("/")
        if root_path:
            document["servers"] = [{"url": root_path}]
        return Response(msgspec.json.encode(document), media_type="application/json")

    app.add_route(PATH, show, include_in_schema=False)


def _tell_facts(
    document: dict[str, Any],
    engine: EngineClient,
    served: Mapping[str, Sequence[ServedOperation[Any, Any]]],
) -> None:
    for name, schema in document["components"]["schemas"].items():
        fitting = served.get(name, ())
        if fitting:
            names = [name for one in fitting for name in served_names(engine, one.operation)]
            configs = [config_of(engine, name) for name in names]
            infos = [info for one in fitting for info in engine.infos(one.operation)]
            _name_models(schema, names, [n for i in infos for n in i.names if n != i.model])
            for one in fitting:
                one.fill_in(schema["properties"], engine.infos(one.operation))
            describe_priority(schema["properties"], configs)
    ids = [status.model for status in engine.statuses()]
    for path in ("/v1/models/{model_id}", "/ready/{model_id}"):
        for parameter in document["paths"][path]["get"]["parameters"]:
            parameter["schema"]["enum"] = ids


def _drop_unused_422(document: dict[str, Any]) -> None:
    """Remove the 422 that FastAPI documents for a bad body: this server answers 400."""
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _show_forms_first(document: dict[str, Any]) -> None:
    """Put a form before JSON where a route takes either, so that the page can choose a file."""
    for path in document["paths"].values():
        for operation in path.values():
            content = operation.get("requestBody", {}).get("content", {})
            if "multipart/form-data" in content:
                content["application/json"] = content.pop("application/json")


def _name_models(schema: dict[str, Any], served: Sequence[str], adapters: Sequence[str]) -> None:
    """Name the served models in a body's schema. With several, `model` is required; otherwise it
    may be left out or empty."""
    if not served:
        return
    model = schema["properties"]["model"]
    named = variant(model, "string")
    if len(served) == 1:
        named["enum"] = [*served, *adapters, ""]
        return
    del model["anyOf"]
    model.pop("default", None)
    model |= named | {"enum": [*served, *adapters]}
    schema["required"] = ["model", *schema.get("required", [])]
    if "example" in schema:
        schema["example"] = {"model": served[0], **schema["example"]}
