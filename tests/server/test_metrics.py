"""Names, arithmetic, worker restarts, and what the hot path costs."""

import itertools
import random
import time
from dataclasses import replace

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engine.contract.draw import ImageStats
from engine.contract.generate import DraftCounts, EngineStats, TokenEvent
from engine.contract.request import FinishReason
from engine.contract.status import Phase
from engine.runtime.memory import MemoryArbiter
from engine.worker.client import ReplicaState
from server.images.served import SERVED_IMAGES
from server.metrics import ServerMetrics
from server.text.served import SERVED_TEXT
from tests.helpers.clock import Clock
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_texts import model_info


@pytest.fixture
def engine():
    return FakeEngine("m")


@pytest.fixture
def clock():
    return Clock(0.0)


@pytest.fixture
def metrics(engine, clock):
    return ServerMetrics(engine, clock=clock)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, {"model_name": "m", **labels})


def event(**changes):
    return TokenEvent(request_id="r", **changes)


def step(num_steps, **changes):
    return EngineStats(num_steps=num_steps, **changes)


def test_the_names_that_operators_know(metrics):
    text = generate_latest(metrics.registry).decode()
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names >= {
        "tandem_num_requests_running",
        "tandem_num_requests_waiting",
        "tandem_kv_cache_usage_ratio",
        "tandem_kv_cache_waste_ratio",
        "tandem_kv_bytes_committed",
        "tandem_prefix_cache_queries",
        "tandem_prefix_cache_hits",
        "tandem_num_preemptions",
        "tandem_spec_decode_num_drafts",
        "tandem_spec_decode_num_draft_tokens",
        "tandem_spec_decode_num_accepted_tokens",
        "tandem_prompt_tokens",
        "tandem_generation_tokens",
        "tandem_request_success",
        "tandem_time_to_first_token_seconds",
        "tandem_inter_token_latency_seconds",
        "tandem_e2e_request_latency_seconds",
        "tandem_request_queue_time_seconds",
        "tandem_iteration_tokens",
        "tandem_step_time_seconds",
        "tandem_step_token_budget",
        "tandem_step_predicted_seconds",
        "tandem_step_measured_seconds",
        "tandem_step_prediction_ratio",
        "tandem_engine_restarts",
    }
    for counter in ("prompt_tokens", "generation_tokens", "prefix_cache_hits", "num_preemptions"):
        assert f'tandem_{counter}_total{{model_name="m"}} 0.0' in text


def test_token_counters_are_the_sum_of_the_usages(metrics):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    usages = [(rng.randrange(1000), rng.randrange(1000)) for _ in range(50)]
    for num_prompt, num_generation in usages:
        meter = metrics.of(SERVED_TEXT).meter("m")
        meter.close(num_prompt_tokens=num_prompt, num_generation_tokens=num_generation)
        meter.close(num_prompt_tokens=7, num_generation_tokens=7)  # only the first call counts
    assert value(metrics, "tandem_prompt_tokens_total") == sum(p for p, _ in usages), seed
    assert value(metrics, "tandem_generation_tokens_total") == sum(g for _, g in usages), seed


def test_an_adapters_requests_count_for_it_and_for_its_model(metrics, engine):
    engine.served["m"] = model_info("m", adapters=("poet", "judge"))
    text = metrics.of(SERVED_TEXT)
    for adapter in ("poet", "poet", "judge", None):
        text.meter("m", adapter).close(num_prompt_tokens=3, num_generation_tokens=5)
    assert value(metrics, "tandem_prompt_tokens_total") == 12
    assert value(metrics, "tandem_lora_requests_total", lora_name="poet") == 2
    assert value(metrics, "tandem_lora_prompt_tokens_total", lora_name="poet") == 6
    assert value(metrics, "tandem_lora_generation_tokens_total", lora_name="judge") == 5

    late = text.meter("m", "poet")
    engine.served["m"] = model_info("m", adapters=("judge",))
    text.forget("m", "poet")
    late.close(num_prompt_tokens=3, num_generation_tokens=5)
    for unknown in ("poet", "stranger"):
        text.meter("m", unknown).close(num_prompt_tokens=3, num_generation_tokens=5)
    shown = generate_latest(metrics.registry).decode()
    assert "poet" not in shown and "stranger" not in shown
    assert value(metrics, "tandem_lora_requests_total", lora_name="judge") == 1
    assert value(metrics, "tandem_prompt_tokens_total") == 21

    metrics.forget("m")
    assert "judge" not in generate_latest(metrics.registry).decode()
    text.meter("m", "judge").close(num_prompt_tokens=3, num_generation_tokens=5)
    assert value(metrics, "tandem_lora_requests_total", lora_name="judge") == 1


def test_latencies_of_two_interleaved_completions(metrics, clock):
    meter = metrics.of(SERVED_TEXT).meter("m")
    clock.now_s = 0.5
    meter.on_event(event(index=0, token_ids=[1], queue_time_s=0.2))
    clock.now_s = 0.6
    meter.on_event(event(index=1, token_ids=[1]))
    clock.now_s = 0.8
    meter.on_event(event(index=0, token_ids=[1, 2]))
    meter.on_event(event(index=1, finish_reason=FinishReason.STOP))
    meter.complete(FinishReason.STOP)
    meter.complete(FinishReason.LENGTH)
    clock.now_s = 1.0
    meter.close(num_prompt_tokens=3, num_generation_tokens=4)
    assert value(metrics, "tandem_time_to_first_token_seconds_sum") == 0.5
    assert value(metrics, "tandem_time_to_first_token_seconds_count") == 1
    assert value(metrics, "tandem_inter_token_latency_seconds_count") == 1
    assert value(metrics, "tandem_inter_token_latency_seconds_sum") == pytest.approx(0.3)
    assert value(metrics, "tandem_request_queue_time_seconds_sum") == 0.2
    assert value(metrics, "tandem_e2e_request_latency_seconds_sum") == 1.0
    assert value(metrics, "tandem_request_success_total", finished_reason="stop") == 1
    assert value(metrics, "tandem_request_success_total", finished_reason="length") == 1
    assert value(metrics, "tandem_request_success_total", finished_reason="abort") == 0


def test_worker_totals_become_increments_and_survive_a_restart(metrics, engine):
    def report(num_steps, queries, hits, preemptions):
        totals = {
            "prefix_cache_queries": queries,
            "prefix_cache_hits": hits,
            "num_preemptions": preemptions,
        }
        engine.publish("m", step(num_steps, **totals))

    report(1, 10, 0, 0)
    report(2, 30, 20, 1)
    report(2, 30, 20, 1)  # an idle report
    report(1, 40, 5, 0)  # a new worker
    report(5, 41, 6, 2)
    assert value(metrics, "tandem_prefix_cache_queries_total") == 30 + 41
    assert value(metrics, "tandem_prefix_cache_hits_total") == 20 + 6
    assert value(metrics, "tandem_num_preemptions_total") == 1 + 2


def test_each_worker_of_a_model_counts_from_zero(metrics, engine):
    for num_preemptions, worker in ((5, "m"), (3, "m#2"), (7, "m"), (1, "m#2"), (2, "m#2")):
        report = step(num_preemptions, num_preemptions=num_preemptions)
        engine.steps.tell("m", report, worker)
    assert value(metrics, "tandem_num_preemptions_total") == 7 + 3 + 2


def test_workers_of_a_model_are_shown_one_by_one(metrics, engine):
    stats = step(1, kv_blocks_total=8, kv_blocks_used=2)
    engine.replicas = lambda model: [
        ReplicaState(name="m", is_ready=True, num_requests=4, stats=stats),
        ReplicaState(name="m#2", is_ready=False, num_requests=0, stats=None),
    ]
    assert value(metrics, "tandem_replica_ready", replica="m") == 1
    assert value(metrics, "tandem_replica_ready", replica="m#2") == 0
    assert value(metrics, "tandem_replica_num_requests", replica="m") == 4
    assert value(metrics, "tandem_replica_kv_cache_usage_ratio", replica="m") == 0.25
    assert value(metrics, "tandem_replica_kv_cache_usage_ratio", replica="m#2") is None


def test_drafts_are_counted(metrics, engine):
    drafts = {
        "lookup": DraftCounts(num_drafts=3, num_draft_tokens=17, num_accepted_tokens=11),
        "model": DraftCounts(num_drafts=5, num_draft_tokens=20, num_accepted_tokens=19),
    }
    engine.publish("m", step(1, drafts=drafts))
    engine.publish("m", step(2, drafts=drafts))
    name = "tandem_spec_decode_num"
    for drafter, numbers in {
        "forced": (0, 0, 0),
        "lookup": (3, 17, 11),
        "model": (5, 20, 19),
    }.items():
        totals = ("drafts", "draft_tokens", "accepted_tokens")
        found = [value(metrics, f"{name}_{of}_total", drafter=drafter) for of in totals]
        assert found == list(numbers)


def test_a_new_worker_is_seen_by_any_total_that_fell(metrics, engine):
    engine.publish("m", step(1, prefix_cache_queries=50))
    engine.publish("m", step(1, prefix_cache_queries=8))
    assert value(metrics, "tandem_prefix_cache_queries_total") == 58


def test_steps_are_observed_once(metrics, engine):
    times = {
        "schedule_time_s": 0.001,
        "prepare_time_s": 0.002,
        "forward_time_s": 0.02,
        "sample_time_s": 0.003,
        "publish_time_s": 0.0004,
    }
    report = step(1, step_tokens=17, **times)
    engine.publish("m", report)
    engine.publish("m", report)  # repeated while idle
    assert value(metrics, "tandem_iteration_tokens_sum") == 17
    parts = ("schedule", "prepare", "forward", "sample", "publish")
    for part, seconds in zip(parts, times.values(), strict=True):
        assert value(metrics, "tandem_step_time_seconds_count", part=part) == 1
        assert value(metrics, "tandem_step_time_seconds_sum", part=part) == seconds


def test_predictions_are_compared_with_what_steps_took(metrics, engine):
    engine.publish("m", step(1, step_token_budget=512))  # no target, no prediction
    assert value(metrics, "tandem_step_token_budget") == 512
    assert value(metrics, "tandem_step_prediction_ratio_count") == 0
    report = step(2, step_token_budget=48, step_predicted_s=0.04, step_measured_s=0.05)
    engine.publish("m", report)
    engine.publish("m", report)  # repeated while idle
    assert value(metrics, "tandem_step_token_budget") == 48
    assert value(metrics, "tandem_step_predicted_seconds") == 0.04
    assert value(metrics, "tandem_step_measured_seconds") == 0.05
    assert value(metrics, "tandem_step_prediction_ratio_count") == 1
    assert value(metrics, "tandem_step_prediction_ratio_sum") == 1.25


def bounds(metrics, name):
    """Upper bounds of a histogram's buckets, without the infinite one."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    family = next(family for family in families if family.name == name)
    found = {float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")}
    return sorted(found)[:-1]


@pytest.mark.parametrize(
    ("name", "low_s", "high_s"),
    [
        ("tandem_inter_token_latency_seconds", 0.01, 0.1),
        ("tandem_request_queue_time_seconds", 0.001, 0.01),
    ],
)
def test_buckets_are_narrow_where_requests_live(metrics, name, low_s, high_s):
    inside = [bound for bound in bounds(metrics, name) if low_s <= bound <= high_s]
    assert len(inside) >= 10
    assert (inside[0], inside[-1]) == (low_s, high_s)
    assert all(b / a <= 1.5 for a, b in itertools.pairwise(inside)), inside


@pytest.mark.parametrize(
    "name",
    [
        "tandem_time_to_first_token_seconds",
        "tandem_inter_token_latency_seconds",
        "tandem_e2e_request_latency_seconds",
        "tandem_request_queue_time_seconds",
        "tandem_image_request_latency_seconds",
        "tandem_image_phase_seconds",
    ],
)
def test_latencies_are_told_apart_up_to_ten_minutes(name):
    metrics = ServerMetrics(FakeEngine(image_info("painter"), model_info("m")))
    metrics.of(SERVED_IMAGES).meter("painter")
    assert bounds(metrics, name)[-1] == 600


def test_gauges_read_the_newest_report(metrics, engine):
    report = EngineStats(
        num_running=3,
        num_waiting=2,
        kv_blocks_total=100,
        kv_blocks_used=25,
        kv_slots_unused=20,
        kv_block_size=16,
        kv_bytes_committed=1 << 20,
    )
    engine.publish("m", report)
    assert value(metrics, "tandem_num_requests_running") == 3
    assert value(metrics, "tandem_num_requests_waiting") == 2
    assert value(metrics, "tandem_kv_cache_usage_ratio") == 0.25
    assert value(metrics, "tandem_kv_cache_waste_ratio") == 20 / (25 * 16)
    assert value(metrics, "tandem_kv_bytes_committed") == 1 << 20
    engine.publish("m", replace(report, kv_blocks_used=0, kv_slots_unused=0))
    assert value(metrics, "tandem_kv_cache_waste_ratio") == 0


def test_memory_that_models_hold_on_each_device(monkeypatch):
    engine = FakeEngine(model_info("m"))
    metrics = ServerMetrics(engine)
    arbiter = MemoryArbiter()
    arbiter.ensure_budget("cpu", 1000)
    arbiter.ensure_budget("cuda:0", 500)
    arbiter.reserve("m", 0, "cpu", "weights", 600)
    arbiter.reserve("m", 1, "cpu", "KV cache", 100)
    arbiter.reserve("n", 0, "cpu", "weights", 50)
    monkeypatch.setattr(engine, "memory", arbiter.devices)
    get = metrics.registry.get_sample_value
    for model, device, num_bytes in (("m", "cpu", 700), ("n", "cpu", 50), ("m", "cuda:0", None)):
        labels = {"model_name": model, "device": device}
        assert get("tandem_memory_held_bytes", labels) == num_bytes
    for device, num_bytes in (("cpu", 1000), ("cuda:0", 500)):
        assert get("tandem_memory_budget_bytes", {"device": device}) == num_bytes


def test_threads_of_text_and_image_workers():
    engine = FakeEngine(image_info("painter"), model_info("m"))
    metrics = ServerMetrics(engine)
    assert value(metrics, "tandem_num_threads") == 0
    engine.publish("m", step(1, num_threads=2))
    engine.publish("painter", ImageStats(num_steps=1, num_threads=5))
    assert value(metrics, "tandem_num_threads") == 2
    assert value(metrics, "tandem_num_threads", model_name="painter") == 5
    engine.set_status("painter", Phase.RESTARTING)
    assert value(metrics, "tandem_num_threads", model_name="painter") == 0


def test_a_dead_worker_reads_as_idle_and_restarts_are_counted(metrics, engine):
    engine.publish("m", EngineStats(num_running=3, num_steps=1))
    engine.set_status("m", Phase.RESTARTING, restarts=2)
    assert value(metrics, "tandem_num_requests_running") == 0
    assert value(metrics, "tandem_model_ready") == 0
    assert value(metrics, "tandem_engine_restarts_total") == 2
    engine.revive()
    assert value(metrics, "tandem_model_ready") == 1
    assert value(metrics, "tandem_num_requests_running") == 3


def test_a_model_that_leaves_is_not_ready_and_says_what_it_still_does(metrics, engine):
    engine.publish("m", EngineStats(num_running=3, num_steps=1))
    engine.set_status("m", Phase.DRAINING)
    assert value(metrics, "tandem_model_ready") == 0
    assert value(metrics, "tandem_num_requests_running") == 3


def test_apps_do_not_share_a_registry(engine):
    first, second = ServerMetrics(engine), ServerMetrics(FakeEngine("m"))
    first.of(SERVED_TEXT).meter("m").close(num_prompt_tokens=1, num_generation_tokens=1)
    assert value(second, "tandem_prompt_tokens_total") == 0


def test_http_requests(metrics):
    metrics.count_http("GET", "/v1/models/{model_id}", 200)
    labels = {"method": "GET", "route": "/v1/models/{model_id}", "status": "200"}
    assert metrics.registry.get_sample_value("tandem_http_requests_total", labels) == 1


def test_the_hot_path_is_cheap(metrics):
    """A step's report and 64 streams' events must stay far below a step's few milliseconds."""
    meters = [metrics.of(SERVED_TEXT).meter("m") for _ in range(64)]
    events = [event(token_ids=[1])] * 64
    report = step(0, step_tokens=64)
    best_s = float("inf")
    for i in range(20):
        start_s = time.thread_time()
        metrics.of(SERVED_TEXT).on_step("m", replace(report, num_steps=i + 1))
        for meter, one in zip(meters, events, strict=True):
            meter.on_event(one)
        best_s = min(best_s, time.thread_time() - start_s)
    assert best_s < 0.002, f"{best_s * 1e6:.0f} µs"


def test_a_measured_quality_is_shown_where_there_is_one():
    infos = replace(model_info("m"), quality_kl=0.125), model_info("other")
    metrics = ServerMetrics(FakeEngine(*infos))
    assert value(metrics, "tandem_model_quality_kl") == 0.125
    assert value(metrics, "tandem_model_quality_kl", model_name="other") is None
