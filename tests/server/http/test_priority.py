"""`priority` means one thing for every kind of model: here, what is refused and what is said."""

import pytest

from engine.contract.settings import EngineConfig
from engine.errors import UnsupportedFeature
from server.http.priority import acting_priority, describe_priority

BY_ARRIVAL = EngineConfig()
BY_PRIORITY = EngineConfig(scheduling_policy="priority")


@pytest.mark.parametrize("asked", [1, -1, 2**31 - 1])
def test_a_priority_needs_its_policy(asked: int) -> None:
    assert acting_priority(asked, BY_PRIORITY) == asked
    with pytest.raises(UnsupportedFeature, match="--scheduling-policy priority") as caught:
        acting_priority(asked, BY_ARRIVAL)
    assert caught.value.param == "priority"


@pytest.mark.parametrize("config", [BY_ARRIVAL, BY_PRIORITY])
@pytest.mark.parametrize("asked", [None, 0])
def test_none_is_asked_for(asked: int | None, config: EngineConfig) -> None:
    assert acting_priority(asked, config) == 0


@pytest.mark.parametrize(
    ("configs", "allowed"),
    [
        ([BY_ARRIVAL], [0]),
        ([], [0]),
        ([BY_PRIORITY], None),
        ([BY_ARRIVAL, BY_PRIORITY], None),
    ],
)
def test_the_document_says_whether_any_model_heeds_it(
    configs: list[EngineConfig], allowed: list[int] | None
) -> None:
    fields = {"priority": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}
    describe_priority(fields, configs)
    assert fields["priority"]["anyOf"][0].get("enum") == allowed
    others = {"n": {"type": "integer"}}
    describe_priority(others, configs)
    assert others == {"n": {"type": "integer"}}
