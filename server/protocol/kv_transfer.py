"""vLLM's `kv_transfer_params`: which server computes a prompt, and which one continues it."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from engine.contract.generate import KvLoan
from engine.errors import InvalidParameter
from server.protocol.common import MAX_TOKEN_COUNT, WireModel

_MAX_BLOCKS = 1 << 16
_BlockId = Annotated[int, Field(ge=0, le=MAX_TOKEN_COUNT)]
_Blocks = Annotated[list[_BlockId], Field(max_length=_MAX_BLOCKS, fail_fast=True)]


class KvTransferParams(WireModel):
    """In a request, and in the answer of the server that computed the prompt. What that one answers
    goes unchanged to the server that continues."""

    do_remote_decode: bool | None = Field(
        None,
        description="Keep the prompt's KV blocks for another server, and tell in the answer where "
        "they are. Best with max_tokens 1.",
    )
    do_remote_prefill: bool | None = Field(
        None, description="Fetch the prompt's KV blocks from the server that computed them."
    )
    remote_host: str | None = Field(None, max_length=256, description="That server's address.")
    remote_port: int | None = Field(None, ge=1, le=65535, description="The port of its blocks.")
    remote_engine_id: str | None = Field(
        None, max_length=256, description="The process that computed the prompt."
    )
    remote_request_id: str | None = Field(
        None, max_length=256, description="Names and signs what that process keeps."
    )
    remote_block_ids: (
        Annotated[list[_BlockId | _Blocks], Field(max_length=_MAX_BLOCKS, fail_fast=True)] | None
    ) = Field(
        None,
        description="The numbers of the blocks there, for each group of layers. Only for people: "
        "blocks are found by what is in them.",
    )
    remote_num_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKEN_COUNT, description="The prompt tokens in these blocks."
    )
    tp_size: int | None = Field(
        None, ge=1, le=MAX_TOKEN_COUNT, description="The processes that computed them; 1."
    )

    def loan(self) -> KvLoan | None:
        """What is to be fetched. None without an address, as from servers that share a folder.

        Raises:
            InvalidParameter: a field is missing.
        """
        if not self.do_remote_prefill or self.remote_host is None:
            return None
        names = ("remote_port", "remote_engine_id", "remote_request_id")
        for name in names:
            if getattr(self, name) is None:
                raise InvalidParameter(
                    f"{name} is missing; send kv_transfer_params as the other server answered them",
                    param=f"kv_transfer_params.{name}",
                )
        port, engine_id, ticket = (getattr(self, name) for name in names)
        return KvLoan(host=self.remote_host, port=port, engine_id=engine_id, ticket=ticket)


class KvTransferFields(BaseModel):
    """The field of requests."""

    kv_transfer_params: KvTransferParams | None = Field(
        None,
        description="vLLM's field, by which one server computes a prompt and another one "
        "continues it. Needs --kv-transfer. Without stream; for one prompt.",
    )


def answered_params(loan: KvLoan | None) -> dict[str, Any] | None:
    """The `kv_transfer_params` of an answer."""
    if loan is None:
        return None
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": loan.block_ids,
        "remote_engine_id": loan.engine_id,
        "remote_request_id": loan.ticket,
        "remote_host": loan.host,
        "remote_port": loan.port,
        "remote_num_tokens": loan.num_tokens,
        "tp_size": 1,
    }
