"""Requests as OpenTelemetry traces and metrics, sent to a collector. Imported only if the operator
asks for it.

The names are those of OpenTelemetry's conventions for generative AI, version 0.1.0
(github.com/open-telemetry/semantic-conventions-genai). The spans of a request are made from its
`RequestTrace` when it has ended. Only its root begins with it, so that its parent and id are known.
"""

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from engine.contract.operations import DRAW, EMBED, GENERATE
from engine.contract.phase import Phase
from engine.version import __version__
from server.http.request_trace import RequestTrace

PROVIDER = "tandem"
MAX_SPANS = 512
"""The most spans of a request; further phases are left out."""

_TIMEOUT_S = 5
_DURATION_BUCKETS_S = [0.01 * 2**i for i in range(14)]
_FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_TOKEN_BUCKETS_S = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),)


class Spans:
    """Sends spans and metrics through these providers. Event loop only; their threads send."""

    def __init__(self, spans: TracerProvider, metrics: MeterProvider) -> None:
        self._tracer = spans.get_tracer(PROVIDER, __version__)
        self._parents = TraceContextTextMapPropagator()
        meter = metrics.get_meter(PROVIDER, __version__)

        def histogram(name: str, text: str, buckets: Any) -> Any:
            return meter.create_histogram(
                f"gen_ai.server.{name}",
                unit="s",
                description=text,
                explicit_bucket_boundaries_advisory=list(buckets),
            )

        self._duration = histogram("request.duration", "Time of a request.", _DURATION_BUCKETS_S)
        self._first_token = histogram(
            "time_to_first_token", "Time to the first token.", _FIRST_TOKEN_BUCKETS_S
        )
        self._per_token = histogram(
            "time_per_output_token", "Time per token after the first.", _TOKEN_BUCKETS_S
        )

    def begin(self, trace: RequestTrace, scope: Scope) -> None:
        """Begin the root span of a request, below the client's span if it names one."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        trace.span = self._tracer.start_span(
            scope["method"],
            context=self._parents.extract(headers),
            kind=otel.SpanKind.SERVER,
            start_time=_ns(trace.start_s),
        )
        if trace.span.is_recording():
            trace.trace_id = otel.format_trace_id(trace.span.get_span_context().trace_id)

    def end(self, trace: RequestTrace, line: Mapping[str, Any]) -> None:
        """End the request's spans.

        Args:
            line: the request's line of the access log.
        """
        span, end_s = trace.span, trace.start_s + line["duration_s"]
        shared = _shared(trace, line)
        if shared:
            span.update_name(f"{shared['gen_ai.operation.name']} {shared['gen_ai.request.model']}")
        else:
            span.update_name(f"{line['method']} {line['route']}")
        if span.is_recording():
            span.set_attributes(shared | _attributes(trace, line))
            if line["status"] >= 500:
                span.set_status(otel.StatusCode.ERROR)
            self._add(trace.phases, span, MAX_SPANS)
        span.end(_ns(end_s))
        if shared:
            self._measure(trace, line["duration_s"], shared)

    def _add(self, phases: Any, parent: Any, room: int) -> int:
        """Add phases below a span. Returns how many spans there is still room for."""
        context = otel.set_span_in_context(parent)
        for phase in phases:
            if room == 0:
                break
            span = self._tracer.start_span(
                phase.name, context, attributes=_of_phase(phase), start_time=_ns(phase.start_s)
            )
            room = self._add(phase.parts, span, room - 1)
            span.end(_ns(phase.end_s))
        return room

    def _measure(self, trace: RequestTrace, duration_s: float, shared: dict[str, Any]) -> None:
        context = otel.set_span_in_context(trace.span)  # exemplars point to it
        self._duration.record(duration_s, shared, context)
        if trace.first_token_s is None or "error.type" in shared:
            return
        self._first_token.record(trace.first_token_s, shared, context)
        after_first_s = (trace.decode_s or 0.0) / max(1, trace.used.output_tokens - 1)
        if trace.used.output_tokens > 1:
            self._per_token.record(after_first_s, shared, context)


def create_spans(endpoint: str) -> Spans:
    """Spans and metrics that go to a collector, as OTLP over HTTP."""
    resource = Resource.create({"service.name": PROVIDER, "service.version": __version__})
    spans = TracerProvider(resource=resource)  # samples as OTEL_TRACES_SAMPLER says
    to_traces = OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=_TIMEOUT_S)
    spans.add_span_processor(BatchSpanProcessor(to_traces))
    to_metrics = OTLPMetricExporter(f"{endpoint}/v1/metrics", timeout=_TIMEOUT_S)
    reader = PeriodicExportingMetricReader(to_metrics)
    return Spans(spans, MeterProvider([reader], resource=resource))


def _shared(trace: RequestTrace, line: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that spans and metrics have; none if no model took part."""
    user = trace.first_user
    if user is None:
        return {}
    is_error = line["status"] >= 400
    return {
        "gen_ai.operation.name": _operation(user.operation, line["route"]),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": user.model,
        "gen_ai.response.model": user.model,
        **({"error.type": str(line["status"])} if is_error else {}),
    }


def _operation(operation: str, route: str) -> str:
    if operation == GENERATE.name:
        is_plain = route.endswith("completions") and "chat" not in route
        return "text_completion" if is_plain else "chat"
    return {DRAW.name: "generate_content", EMBED.name: "embeddings"}.get(operation, operation)


def _attributes(trace: RequestTrace, line: Mapping[str, Any]) -> dict[str, Any]:
    used, sampling = trace.used, trace.sampling
    streams = bool(line.get("stream"))
    found = {
        "http.request.method": line["method"],
        "http.route": line["route"],
        "http.response.status_code": line["status"],
        "gen_ai.response.id": trace.id,
        "gen_ai.request.stream": streams or None,
        "gen_ai.response.finish_reasons": trace.finish_reasons or None,
        "gen_ai.response.time_to_first_chunk": trace.first_token_s if streams else None,
        "gen_ai.usage.input_tokens": used.input_tokens or None,
        "gen_ai.usage.output_tokens": used.output_tokens or None,
        "gen_ai.usage.cache_read.input_tokens": used.cached_tokens or None,
        "tandem.queue_s": trace.queue_s,
    }
    if trace.first_user is not None and trace.first_user.operation in (GENERATE.name, DRAW.name):
        found["gen_ai.output.type"] = "image" if trace.first_user.operation == DRAW.name else "text"
    if sampling is not None:
        found |= {
            "gen_ai.request.choice.count": sampling.n if sampling.n > 1 else None,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
        }
    return {name: value for name, value in found.items() if value is not None}


def _of_phase(phase: Phase) -> dict[str, Any]:
    return {"tandem.num_tokens": phase.num_tokens} if phase.num_tokens else {}


def _ns(time_s: float) -> int:
    return int(time_s * 1e9)
