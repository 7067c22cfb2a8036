"""Traces and metrics for OpenTelemetry, by attribute; and nothing of it when it is off."""

import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install -e '.[otel]'")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.middleware import spans
from tests.helpers.server.fake_server import answer_of, error_of
from tests.helpers.server.image_server import ImageServer
from tests.helpers.server.text_server import MODEL, TextServer

ENDPOINT = {"otlp_endpoint": "http://127.0.0.1:4318"}
OPENMETRICS = {"accept": "application/openmetrics-text"}


class Collected:
    """What was sent."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()

    def create(self, endpoint: str) -> spans.Spans:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        return spans.Spans(provider, MeterProvider([self.reader], shutdown_on_exit=False))

    def root(self) -> Any:
        """The newest root."""
        return [s for s in self.exporter.get_finished_spans() if s.kind.name == "SERVER"][-1]

    def below(self, span: Any) -> list[Any]:
        found = self.exporter.get_finished_spans()
        ours = [s for s in found if s.parent and s.parent.span_id == span.context.span_id]
        return sorted(ours, key=lambda one: one.start_time)

    def tree(self, span: Any) -> Any:
        return {one.name: self.tree(one) for one in self.below(span)}

    def metrics(self) -> dict[str, Any]:
        [resource] = self.reader.get_metrics_data().resource_metrics
        [scope] = resource.scope_metrics
        return {one.name: list(one.data.data_points) for one in scope.metrics}


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collected]:
    collected = Collected()
    monkeypatch.setattr(spans, "create_spans", collected.create)
    yield collected


async def test_a_text_is_a_tree_below_the_clients_span(
    tokenizer_folder: Path, collected: Collected
) -> None:
    server = TextServer(tokenizer_folder, **ENDPOINT)
    trace_id, parent_id = (
        f"{random.getrandbits(128) | 1:032x}",
        f"{random.getrandbits(64) | 1:016x}",
    )
    body = {"prompt": "the fox", "max_tokens": 6, "n": 2, "temperature": 0.5, "seed": 7}
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    answer = answer_of(await server.client.post("/v1/completions", json=body, headers=headers))
    root = collected.root()
    assert root.name == f"text_completion {MODEL}"
    assert f"{root.context.trace_id:032x}" == trace_id
    assert f"{root.parent.span_id:016x}" == parent_id
    expected = {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "tandem",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.output.type": "text",
    }
    assert expected.items() <= root.attributes.items()
    assert collected.tree(root) == {f"generate {MODEL}": {"queue": {}, "prefill": {}, "decode": {}}}
    [whole] = collected.below(root)
    parts = collected.below(whole)
    assert whole.start_time == parts[0].start_time >= root.start_time
    for one, following in pairwise(parts):
        assert abs(one.end_time - following.start_time) < 1000
    metrics = collected.metrics()
    labels = {"gen_ai.request.model": MODEL, "gen_ai.operation.name": "text_completion"}
    for name in ("request.duration", "time_to_first_token", "time_per_output_token"):
        [point] = metrics[f"gen_ai.server.{name}"]
        assert point.count == 1
        assert labels.items() <= dict(point.attributes).items()
    page = (await server.client.get("/metrics", headers=OPENMETRICS)).text
    for name in ("time_to_first_token", "e2e_request_latency"):
        lines = [line for line in page.splitlines() if line.startswith(f"tandem_{name}_seconds_b")]
        assert any(f'# {{trace_id="{trace_id}"}}' in line for line in lines)


async def test_a_chat_that_streams_and_one_that_fails(
    tokenizer_folder: Path, collected: Collected
) -> None:
    server = TextServer(tokenizer_folder, **ENDPOINT)
    hi = [{"role": "user", "content": "hi"}]
    await server.post("/v1/chat/completions", messages=hi, stream=True, max_tokens=3)
    attributes = collected.root().attributes
    assert collected.root().name == f"chat {MODEL}"
    assert attributes["gen_ai.request.stream"] is True
    assert 0 <= attributes["gen_ai.response.time_to_first_chunk"] < 60
    error_of(await server.post("/v1/chat/completions", messages=hi, model="none"), 404)
    failed = collected.root()
    assert failed.name == "POST /v1/chat/completions"
    assert failed.attributes["http.response.status_code"] == 404
    assert failed.parent is None
    assert not collected.below(failed)


async def test_an_image_has_its_steps(collected: Collected) -> None:
    server = ImageServer(**ENDPOINT)
    answer_of(await server.generate(num_inference_steps=3))
    root = collected.root()
    assert root.name.startswith("generate_content ")
    assert root.attributes["gen_ai.output.type"] == "image"
    [(drawn, parts), _] = collected.tree(root).items()
    assert drawn.startswith("draw ")
    assert {"step 1": {}, "step 2": {}, "step 3": {}}.items() >= parts["denoise"].items() != {}
    assert {"queue", "denoise", "decode"} <= parts.keys()


async def test_a_client_that_does_not_sample_gets_no_spans(
    tokenizer_folder: Path, collected: Collected
) -> None:
    server = TextServer(tokenizer_folder, **ENDPOINT)
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
    await server.client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert collected.exporter.get_finished_spans() == ()
    assert "trace_id" not in (await server.client.get("/metrics", headers=OPENMETRICS)).text


def test_nothing_of_it_is_imported_when_it_is_off() -> None:
    code = (
        "import sys; from server.app import create_app; from server.settings import Settings;"
        "from tests.helpers.server.fake_engine import FakeEngine;"
        "create_app(Settings(), FakeEngine());"
        "ours = ('opentelemetry.sdk', 'opentelemetry.exporter', 'server.middleware.spans');"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
