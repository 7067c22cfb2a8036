"""The class that runs each way of `engine.contract.groups`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from engine.contract.generate import GenerateRequest
from engine.contract.groups import BeamParams, ContrastParams, GuidanceParams
from engine.llm.groups.beams import Beams
from engine.llm.groups.contrastive_search import Candidates, check_compared
from engine.llm.groups.guided_pair import GuidedPair
from engine.llm.request import ActiveRequest, Group, Sequence

_CLASSES: Mapping[type, Callable[[ActiveRequest, list[Sequence], Any], Group]] = {
    BeamParams: Beams,
    ContrastParams: Candidates,
    GuidanceParams: GuidedPair,
}
_CHECKS: Mapping[type, Callable[[GenerateRequest, Iterable[GenerateRequest], int], None]] = {
    ContrastParams: check_compared,
}


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
    if check := _CHECKS.get(type(request.sampling.group)):
        check(request, others, max_model_len)
