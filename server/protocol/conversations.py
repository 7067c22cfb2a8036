"""Bodies of `/v1/conversations`, and its answers."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PlainValidator

from server.protocol.common import WireModel
from server.protocol.response_items import Item, read_items
from server.protocol.responses import Metadata

Items = Annotated[
    list[Item],
    PlainValidator(
        partial(read_items, field="items"),
        json_schema_input_type=Annotated[list[Item], Field(min_length=1, max_length=64)],
    ),
]


class NewConversation(WireModel):
    """A conversation to begin."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "items": [{"type": "message", "role": "user", "content": "My name is Ada."}],
                "metadata": {"topic": "names"},
            }
        }
    )

    items: Items | None = Field(None, description="What was said before: items as in a response.")
    metadata: Metadata | None = Field(None, description="Returned with the conversation.")


class ConversationChange(WireModel):
    """New metadata of a conversation."""

    model_config = ConfigDict(json_schema_extra={"example": {"metadata": {"topic": "names"}}})

    metadata: Metadata | None = Field(description="Replaces what it had.")


class NewItems(WireModel):
    """Items to add to a conversation."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"items": [{"role": "user", "content": "I like foxes."}]}}
    )

    items: Items


@dataclass(slots=True, kw_only=True)
class ConversationCard:
    """A conversation, without its items."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


@dataclass(slots=True, kw_only=True)
class DeletedConversation:
    """The answer to `DELETE /v1/conversations/{id}`."""

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True
