"""Which files drew an image, within bodies of the image routes: copied from an image's metadata."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.common import WireModel

Digest = Annotated[str, Field(pattern="^[0-9a-fA-F]{8,64}$")]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_MAX_ADAPTERS = 16


class MadeWith(WireModel):
    """The first digits of SHA-256 digests."""

    model: Digest | None = Field(None, description="Of the model's files.")
    adapters: dict[_Name, Digest] | None = Field(
        None, max_length=_MAX_ADAPTERS, description="Of the files of adapters, by their names."
    )

    @model_validator(mode="after")
    def _check_known(self) -> Self:
        if self.model_extra:
            raise InvalidParameter("made_with has model and adapters only", param="made_with")
        return self
