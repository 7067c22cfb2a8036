"""Creates the groups of a request, each by the class that its way names."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from engine.contract.generate import GenerateRequest
from engine.contract.groups import GroupParams
from engine.contract.kinds import imported
from engine.llm.request import ActiveRequest, Group

_CLASSES: Mapping[type, Any] = {way: imported(way.runs) for way in get_args(GroupParams)}


def create_groups(owner: ActiveRequest) -> list[Group]:
    """Create the groups of a request's sequences; none if these run independently."""
    params, sequences = owner.request.sampling.group, owner.sequences
    if params is None:
        return []
    create, width = _CLASSES[type(params)], params.width
    starts = range(0, len(sequences), width)
    return [create(owner, sequences[start : start + width], params) for start in starts]


def check_beside(
    request: GenerateRequest, others: Iterable[GenerateRequest], max_model_len: int
) -> None:
    """Refuse a request whose group does not fit beside the other unfinished requests.

    Raises:
        InvalidParameter, QueueFull: the error names the limit.
    """
    if (params := request.sampling.group) is not None:
        _CLASSES[type(params)].check_beside(request, others, max_model_len)
