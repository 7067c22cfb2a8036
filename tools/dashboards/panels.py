"""The panels of each dashboard, in order."""

from tools.dashboards.panel import (
    CHOSEN,
    Panel,
    each,
    gauge,
    heat_map,
    latency,
    quantiles,
    rate,
    share,
)

_ALL = ""
"""Selects everything, for metrics that belong to no model."""


def _answers(status: str) -> str:
    """The rate of answers whose status fits; 0 if there was none yet."""
    counter = f'tandem_http_requests_total{{status=~"{status}"}}'
    return f"(sum(rate({counter}[$__rate_interval])) or vector(0))"


def _of_items(what: str, name: str, note: str) -> list[Panel]:
    """The panels of an operation whose requests hold items."""
    metric, ended = f"tandem_{name}", {"embedding": "inputs", "reranker": "inputs"}
    outcomes = rate(f"{metric}_{ended.get(name, 'images')}_total", "model_name, outcome")
    work = {
        "{{model_name}} running": gauge(f"{metric}_num_running"),
        "{{model_name}} waiting": gauge(f"{metric}_num_waiting"),
    }
    return [
        Panel(f"{what}: ended", "ops", each(outcomes, "model_name", "outcome"), note),
        Panel(f"{what}: running and waiting", "short", work, note),
        latency(f"{what}: time of a request", f"{metric}_request_latency_seconds", note),
        latency(f"{what}: time in the queue", f"{metric}_queue_seconds", note),
    ]


TEXT = [
    latency("Time of a request", "tandem_e2e_request_latency_seconds"),
    latency("Time to the first token", "tandem_time_to_first_token_seconds"),
    latency("Time between tokens", "tandem_inter_token_latency_seconds"),
    Panel(
        "Tokens per second",
        "short",
        {
            "{{model_name}} prompt": rate("tandem_prompt_tokens_total"),
            "{{model_name}} generated": rate("tandem_generation_tokens_total"),
        },
    ),
    Panel(
        "Running and waiting",
        "short",
        {
            "{{model_name}} running": gauge("tandem_num_requests_running"),
            "{{model_name}} waiting": gauge("tandem_num_requests_waiting"),
        },
    ),
    Panel("KV cache in use", "percentunit", each(gauge("tandem_kv_cache_usage_ratio"))),
    latency("Time in the queue", "tandem_request_queue_time_seconds"),
    latency("Time of the prompt", "tandem_request_prefill_time_seconds"),
    latency("Time of the answer", "tandem_request_decode_time_seconds"),
    Panel(
        "Ends",
        "ops",
        each(
            rate("tandem_request_success_total", "model_name, finished_reason"),
            "model_name",
            "finished_reason",
        ),
    ),
    heat_map("Length of prompts", "short", "tandem_request_prompt_tokens"),
    heat_map("Length of answers", "short", "tandem_request_generation_tokens"),
    Panel(
        "Prompt tokens from the prefix cache",
        "percentunit",
        each(share("tandem_prefix_cache_hits_total", "tandem_prefix_cache_queries_total")),
    ),
    Panel("Preemptions", "ops", each(rate("tandem_num_preemptions_total"))),
    Panel(
        "Guessed tokens that were right",
        "percentunit",
        each(
            share(
                "tandem_spec_decode_num_accepted_tokens_total",
                "tandem_spec_decode_num_draft_tokens_total",
            )
        ),
        "0 without speculation.",
    ),
    Panel(
        "Requests by adapter",
        "ops",
        each(rate("tandem_lora_requests_total", "lora_name"), "lora_name"),
        "Empty without adapters.",
    ),
    Panel(
        "Time of a step by part",
        "s",
        each(
            f"{rate('tandem_step_time_seconds_sum', 'model_name, part')}"
            f" / clamp_min({rate('tandem_step_time_seconds_count', 'model_name, part')}, 1e-9)",
            "model_name",
            "part",
        ),
    ),
    Panel("Tokens of a step", "short", quantiles("tandem_iteration_tokens")),
    *_of_items("Embeddings", "embedding", "Empty until a model has been asked for embeddings."),
    *_of_items("Rerankers", "reranker", "Empty without a reranker."),
]

IMAGES = [
    Panel(
        "Images",
        "ops",
        each(rate("tandem_image_images_total", "model_name, outcome"), "model_name", "outcome"),
    ),
    Panel(
        "Drawn and waiting images",
        "short",
        {
            "{{model_name}} running": gauge("tandem_image_num_running"),
            "{{model_name}} waiting": gauge("tandem_image_num_waiting"),
        },
    ),
    latency("Time of a request", "tandem_image_request_latency_seconds"),
    Panel(
        "Time of an image by phase",
        "s",
        quantiles("tandem_image_phase_seconds", "phase"),
    ),
    Panel("Steps per second", "ops", each(rate("tandem_image_image_steps_total"))),
    Panel(
        "Megapixels times steps per second",
        "short",
        each(rate("tandem_image_megapixel_steps_total")),
    ),
    Panel("Rows of a step", "short", quantiles("tandem_image_step_rows")),
    latency("Time of a step", "tandem_image_step_seconds"),
    Panel(
        "Prompts from the prompt cache",
        "percentunit",
        each(
            share("tandem_image_prompt_cache_hits_total", "tandem_image_prompt_cache_queries_total")
        ),
    ),
    Panel("Previews", "ops", each(rate("tandem_image_previews_total"))),
    Panel("Steps saved by cancelling", "ops", each(rate("tandem_image_cancelled_steps_total"))),
    Panel(
        "Share of time left to text",
        "percentunit",
        each(rate("tandem_image_throttle_seconds_total")),
    ),
    Panel(
        "Images by adapter",
        "ops",
        each(rate("tandem_image_lora_images_total", "lora_name"), "lora_name"),
        "Empty without adapters.",
    ),
    *_of_items("Larger images", "upscale", "Empty until an image has been enlarged."),
    *_of_items("Background removal", "matting", "Empty until a picture has been cut out."),
]

FLEET = [
    Panel(
        "Models",
        "short",
        {
            "ready": "sum(tandem_model_ready)",
            "asleep": "sum(tandem_model_sleeping)",
            "known": "count(tandem_model_ready)",
        },
    ),
    Panel("Wakes", "ops", each(rate("tandem_model_wakes_total"))),
    Panel(
        "Time of a wake",
        "s",
        each(share("tandem_model_wake_seconds_total", "tandem_model_wakes_total")),
    ),
    Panel(
        "Memory of models",
        "bytes",
        {
            "{{model_name}} on {{device}}": "tandem_memory_held_bytes",
            "budget of {{device}}": "tandem_memory_budget_bytes",
        },
    ),
    Panel(
        "Answers by status",
        "ops",
        each(rate("tandem_http_requests_total", "status", _ALL), "status"),
    ),
    Panel(
        "Share of server errors",
        "percentunit",
        {"5xx": f"{_answers('5..')} / clamp_min({_answers('...')}, 1e-9)"},
    ),
    Panel("Requests that were refused for lack of room", "ops", {"429": _answers("429")}),
    Panel(
        "Connections cut",
        "ops",
        each(rate("tandem_connections_cut_total", "reason", _ALL), "reason"),
        "Empty until one was cut.",
    ),
    Panel(
        "Requests by route", "ops", each(rate("tandem_http_requests_total", "route", _ALL), "route")
    ),
    Panel(
        "Workers restarted",
        "short",
        {
            "{{model_name}} all": f"increase(tandem_engine_restarts_total{{{CHOSEN}}}[1h])",
            "{{model_name}} hung": f"increase(tandem_engine_stalls_total{{{CHOSEN}}}[1h])",
        },
    ),
    Panel("Threads of a step", "short", each(gauge("tandem_num_threads"))),
    Panel(
        "Prediction of steps",
        "short",
        quantiles("tandem_step_prediction_ratio"),
        "Measured over predicted time; far above 1, something else uses the processor. Empty "
        "without a target.",
    ),
    Panel("Memory of the server process", "bytes", {"resident": "process_resident_memory_bytes"}),
    Panel(
        "Processor time of the server process",
        "percentunit",
        {"busy": "rate(process_cpu_seconds_total[$__rate_interval])"},
    ),
    Panel("Open files of the server process", "short", {"open": "process_open_fds"}),
    Panel(
        "Divergence from the original",
        "short",
        each(gauge("tandem_model_quality_kl")),
        "Empty without a measured model.",
    ),
]

DASHBOARDS = {
    "text": ("Tandem: text", TEXT),
    "images": ("Tandem: images", IMAGES),
    "fleet": ("Tandem: fleet", FLEET),
}
