"""The files that drew an image, in bodies of the image routes: copied from an image's metadata."""

from typing import Annotated

from pydantic import ConfigDict, Field

from server.protocol.common import WireModel

Digest = Annotated[str, Field(pattern="^[0-9a-fA-F]{8,64}$")]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_MAX_ADAPTERS = 16


class MadeWith(WireModel):
    """The first digits of SHA-256 digests."""

    model_config = ConfigDict(extra="forbid")

    model: Digest | None = Field(None, description="Digest of the model's files.")
    adapters: dict[_Name, Digest] | None = Field(
        None,
        max_length=_MAX_ADAPTERS,
        description="Digests of the adapters' files, by the adapters' names.",
    )
