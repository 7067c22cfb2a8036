"""vLLM's names of our metrics, so that the tools of its fleets read this server, too.

The numbers are those that Prometheus gets under our names, not counted again.
"""

import time
from collections.abc import Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from engine.contract.operations import GENERATE
from engine.worker.client import EngineClient
from server.http.live_requests import LiveRequests
from server.http.model_metrics import MODEL

_NAMES: Mapping[str, tuple[str, ...]] = {
    "kv_cache_usage_ratio": ("kv_cache_usage_perc",),
    "inter_token_latency_seconds": ("inter_token_latency_seconds", "time_per_output_token_seconds"),
} | {
    name: (name,)
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "num_preemptions",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
        "request_prompt_tokens",
        "request_generation_tokens",
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "spec_decode_num_drafts",
        "spec_decode_num_draft_tokens",
        "spec_decode_num_accepted_tokens",
    )
}
"""vLLM's names by ours, all without prefix. Of two, the second is an older one."""


def vllm_metrics(
    metrics: Iterable[Metric], engine: EngineClient, live: LiveRequests
) -> list[Metric]:
    """These metrics by vLLM's names, if it has them, and its two that hold facts in labels."""
    renamed = (
        _renamed(metric, f"vllm:{name}")
        for metric in metrics
        for name in _NAMES.get(metric.name.removeprefix("tandem_"), ())
    )
    return [*renamed, _cache_config(engine), _lora_requests(engine, live)]


def _renamed(metric: Metric, name: str) -> Metric:
    renamed = Metric(name, metric.documentation, metric.type)
    renamed.samples = [
        sample._replace(name=name + sample.name.removeprefix(metric.name))
        for sample in metric.samples
    ]
    return renamed


def _cache_config(engine: EngineClient) -> Metric:
    labels = [MODEL, "block_size", "num_gpu_blocks"]
    family = GaugeMetricFamily("vllm:cache_config_info", "Always 1.", labels=labels)
    for info in engine.infos(GENERATE):
        family.add_metric([info.model, str(info.kv_block_size), str(info.num_kv_blocks)], 1)
    return family


def _lora_requests(engine: EngineClient, live: LiveRequests) -> Metric:
    """The adapters that requests use or wait with. The value is the time, as gateways believe the
    series with the largest."""
    names = ("running_lora_adapters", "waiting_lora_adapters")
    family = GaugeMetricFamily(
        "vllm:lora_requests_info", "When the labels were true.", labels=[MODEL, "max_lora", *names]
    )
    asked = [(label.model, run.progress().is_begun) for label, run in live.all()]
    for info in engine.infos(GENERATE):
        config = engine.config(info.model)
        if config is None or not config.max_adapter_slots:
            continue
        running, waiting = (
            ",".join(name for name in info.adapters if (name, is_begun) in asked)
            for is_begun in (True, False)
        )
        values = [info.model, str(config.max_adapter_slots), running, waiting]
        family.add_metric(values, time.time())
    return family
