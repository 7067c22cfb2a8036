"""Requests made up from the OpenAPI document: never a 5xx, and enough of them get through."""

import collections

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.helpers.models.tiny_encoders import make_encoder

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
NUM_EXAMPLES = 6
MORE_EXAMPLES = 60
"""Of an operation that few of the first were accepted for: one strategy's draws resemble each
other."""
ENOUGH_ACCEPTED = 0.1
"""Far below every operation's share (chats 45 %, messages 60 %, embeddings 40 %), which varies by
8 % from one strategy to the next, and far above that of a body which no client can send."""
TOO_LONG = ("maximum context length", "prompt is too long", "exceed context limit")
"""Texts of errors that only the short context of this test causes, so they do not count."""
NOT_GUESSED = (
    *("images", "/sdapi/", "_id}", "/tokenizer_info", "/get_model_info"),
    *("/api/pull", "/api/show"),
    *("/models/load", "/models/unload", "lora_adapter", "/props", "/slots", "/infill"),
    *("/sleep", "/wake_up", "/is_sleeping", "/models/pin"),
    *("/server_info", "/reset_prefix_cache", "/flush_cache", "_profile"),
)
"""Of pictures, ids and names; tests/server/images/test_fuzz.py has real ones. What loads models is
off, and the model fills no gaps."""

ENDLESS = "GET /models/sse"
"""It follows the models for as long as the client listens."""


def operations(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return [one for one in found if one.label != ENDLESS]


def accepted(statuses):
    return sum(n for status, n in statuses.items() if status < 300) / max(1, statuses.total())


def probed(operation, url, num_examples=NUM_EXAMPLES):
    """How often each status answered requests made up for one operation."""
    statuses = collections.Counter()

    @settings(
        max_examples=num_examples,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def probe(case):
        response = case.call(base_url=url, timeout=180)
        statuses[response.status_code] += not any(text in response.text for text in TOO_LONG)
        assert response.status_code < 500, response.text

    probe()
    return statuses


def test_generated_requests_never_break_the_server(start_server, tiny_llama, tmp_path):
    # A short context: a chat without max_tokens goes on to its end. Pictures of a few steps.
    models = (f"tiny={tiny_llama()}", "tandem-shapes", f"embedder={make_encoder(tmp_path)}")
    server = start_server(
        *(option for model in models for option in ("--model", model)),
        *("--max-model-len", "128", "--max-image-megapixel-steps", "1"),
    )
    outcomes = [(op, probed(op, server.url)) for op in operations(server)]
    few = [
        op
        for op, statuses in outcomes
        if not any(part in op.label for part in NOT_GUESSED)
        and accepted(statuses) < ENOUGH_ACCEPTED
    ]
    again = {op.label: probed(op, server.url, MORE_EXAMPLES) for op in few}
    low = {label: one for label, one in again.items() if accepted(one) < ENOUGH_ACCEPTED}
    assert httpx.get(f"{server.url}/ready", timeout=60).status_code == 200
    server.wait_until_nobody_is_in()
    assert not low, f"too few generated requests were accepted: {low}"
