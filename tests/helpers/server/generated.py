"""Sends a server requests that schemathesis generates from its OpenAPI document."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis
import schemathesis
from fastapi import FastAPI
from schemathesis import GenerationMode

_CONFORMANCE = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def send_generated(
    app: FastAPI,
    path: str,
    method: str = "POST",
    *,
    mode: GenerationMode = GenerationMode.POSITIVE,
    num_examples: int = 40,
    change: Callable[[Any], None] = lambda case: None,
    is_documented: bool = True,
) -> tuple[Counter[int], list[Any]]:
    """Send generated requests, none of which may be answered with a 5xx.

    Args:
        change: changes each case before it is sent.
        is_documented: whether each answer must have a documented status, type and schema.

    Returns:
        How often each status came, and the bodies that were answered with 200.
    """
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    statuses: Counter[int] = Counter()
    accepted: list[Any] = []
    checks = [
        schemathesis.checks.not_a_server_error,
        *(schemathesis.checks.CHECKS.get_by_names(_CONFORMANCE) if is_documented else ()),
    ]

    @hypothesis.settings(
        max_examples=num_examples,
        database=None,
        deadline=None,
        # A found failure is clear without hours of shrinking it.
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=schema[path][method].as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        change(case)
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        accepted.extend([case.body] if response.status_code == 200 else [])
        case.validate_response(response, checks=checks)

    run()
    return statuses, accepted
