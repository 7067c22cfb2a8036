"""Every operation that models offer is served, and every request body belongs to one."""

from dataclasses import fields
from typing import get_args

from engine.contract.operations import OPERATIONS
from engine.contract.status import Phase
from server.dialects.table import DIALECTS
from server.protocol.models import ModelCard
from server.served import SERVED, AnyCard
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import ImageServer


def test_all_operations_are_served_in_their_order() -> None:
    assert list(SERVED) == list(OPERATIONS.values())
    assert all(served.operation is operation for operation, served in SERVED.items())


def test_all_cards_but_those_of_text_models_name_an_architecture() -> None:
    """`tandem chat` finds the model to talk to by it."""
    others = [card for card in get_args(AnyCard) if card is not ModelCard]
    assert len(others) == len(SERVED) - 1
    named = {card: {field.name for field in fields(card)} for card in (ModelCard, *others)}
    assert [card for card, names in named.items() if "architecture" not in names] == [ModelCard]


async def test_every_body_that_names_a_model_belongs_to_an_operation() -> None:
    server = ImageServer()
    schemas = (await server.client.get("/openapi.json")).json()["components"]["schemas"]
    bodies = {
        name
        for name, schema in schemas.items()
        if "model" in schema.get("properties", {}) and schema.get("additionalProperties")
    }
    ours = {body.__name__ for served in SERVED.values() for body in served.bodies}
    dialects = {body.__name__ for dialect in DIALECTS for body in dialect.bodies}
    assert bodies == ours | dialects
    assert not ours & dialects


async def test_a_model_of_any_kind_that_loads_is_not_ready() -> None:
    server = ImageServer()
    server.engine.set_status("painter", Phase.LOADING)
    error = error_of(await server.client.get("/v1/models/painter"), 503)
    assert error["code"] == "model_not_ready"
