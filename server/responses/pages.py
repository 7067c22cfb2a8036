"""Pages of long lists of items."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Query

from engine.errors import InvalidParameter
from server.protocol.responses import ItemList

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], Query()]
After = Annotated[str | None, Query(max_length=256)]


def page_of(
    items: Mapping[str, Any], limit: int, order: str = "asc", after: str | None = None
) -> ItemList:
    """A page of items, which are given by their ids, oldest first.

    Raises:
        InvalidParameter: `after` is none of them.
    """
    ids = list(items)
    if order == "desc":
        ids.reverse()
    if after is not None:
        if after not in items:
            raise InvalidParameter(
                "after is not an item of this list; use an id from an earlier page", param="after"
            )
        ids = ids[ids.index(after) + 1 :]
    page = ids[:limit]
    return ItemList(
        data=[items[name] for name in page],
        first_id=page[0] if page else None,
        last_id=page[-1] if page else None,
        has_more=len(ids) > len(page),
    )
