"""The `tandem_image_*` metrics: fed by step reports and by requests."""

from prometheus_client import CollectorRegistry

from engine.contract.draw import ImageStats
from tests.helpers.server.fake_engine import Failure
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import ImageServer


def value(server: ImageServer, name: str, **labels: str) -> float | None:
    registry: CollectorRegistry = server.state.metrics.registry
    return registry.get_sample_value(f"tandem_image_{name}", {"model_name": "painter"} | labels)


def stats(**changes: float) -> ImageStats:
    return ImageStats(**changes)  # type: ignore[arg-type]


def test_step_reports_are_totals() -> None:
    server = ImageServer()
    first = {"num_steps": 3, "num_rows": 12, "num_image_steps": 6, "megapixel_steps": 0.5}
    server.engine.publish("painter", stats(**first, step_rows=4, step_time_s=0.02))
    second = {"num_steps": 5, "num_rows": 30, "num_image_steps": 9, "megapixel_steps": 0.75}
    server.engine.publish(
        "painter", stats(**second, step_rows=9, num_cancelled_steps=7, prompt_cache_hits=2)
    )
    assert value(server, "steps_total") == 5
    assert value(server, "rows_total") == 30
    assert value(server, "image_steps_total") == 9
    assert value(server, "megapixel_steps_total") == 0.75
    assert value(server, "cancelled_steps_total") == 7
    assert value(server, "prompt_cache_hits_total") == 2
    assert value(server, "step_rows_count") == 2
    assert value(server, "step_rows_sum") == 13


def test_a_new_worker_counts_from_zero() -> None:
    server = ImageServer()
    server.engine.publish("painter", stats(num_steps=10, num_rows=10))
    server.engine.publish("painter", stats(num_steps=2, num_rows=3))
    assert value(server, "steps_total") == 12
    assert value(server, "rows_total") == 13


def test_a_report_without_a_step_is_no_step() -> None:
    server = ImageServer()
    for _ in range(3):
        server.engine.publish("painter", stats(num_steps=1, step_rows=2))
    assert value(server, "step_rows_count") == 1


def test_the_queue_is_read_at_scrape_time() -> None:
    server = ImageServer()
    server.engine.publish("painter", stats(num_running=3, num_waiting=5))
    assert value(server, "num_running") == 3
    assert value(server, "num_waiting") == 5


async def test_requests_are_measured(server: ImageServer) -> None:
    await server.generate(n=2, num_inference_steps=10)
    await server.generate(stream=True, partial_images=2)
    assert value(server, "images_total", outcome="completed") == 3
    assert value(server, "images_total", outcome="cancelled") == 0
    assert value(server, "previews_total") == 2
    assert value(server, "request_latency_seconds_count") == 2
    for phase, num in (("queue", 3), ("encode", 3), ("denoise", 3), ("decode", 3), ("file", 5)):
        assert value(server, "phase_seconds_count", phase=phase) == num, phase
    denoise_s = value(server, "phase_seconds_sum", phase="denoise")
    assert denoise_s is not None and abs(denoise_s - (2 * 1.0 + 0.4)) < 1e-9


async def test_text_metrics_know_nothing_of_image_models(server: ImageServer) -> None:
    await server.generate()
    text = (await server.client.get("/metrics")).text
    assert "tandem_kv_cache_usage_ratio{" not in text
    assert 'tandem_model_ready{model_name="painter"} 1.0' in text


async def test_an_image_that_the_engine_refused_has_not_failed(server: ImageServer) -> None:
    server.engine.failure = Failure(code="invalid_value", message="too long", param="prompt")
    assert error_of(await server.generate(n=2))["param"] == "prompt"
    assert value(server, "images_total", outcome="failed") == 0
    server.engine.failure = Failure(code="over_capacity", message="out of memory")
    await server.generate(n=2)
    assert value(server, "images_total", outcome="failed") == 2
