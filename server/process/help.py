"""The text of `tandem serve --help`: the few settings that most people need, and with `--help-all`
all of them, in groups."""

import shutil
import textwrap
from collections.abc import Mapping

import typer

from server.settings.reference import SettingRow, setting_rows

FEW = (
    *("config", "models", "host", "port", "api_keys", "log_level", "offline", "device"),
    *("quantization", "max_model_len", "kv_cache_memory_gib", "num_threads", "lora"),
)
"""The settings that `--help` shows, in this order."""
_MAX_FORM = 30
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Models": (
        *("models", "device", "kind", "dtype", "quantization", "max_kl", "max_model_len"),
        *("tool_call_parser", "reasoning_parser", "generation_config"),
        *("override_generation_config", "seed", "deterministic", "mmproj"),
    ),
    "Address and keys": (
        *("host", "port", "uds", "root_path", "ssl_certfile", "ssl_keyfile", "api_keys"),
        *("api_key_file", "admin_keys", "cors_allow_origins"),
    ),
    "Loading models while the server runs": (
        *("load_on_first_use", "enable_runtime_loading", "models_dir", "loadable_models"),
        *("loras_dir", "loadable_loras", "models_max"),
    ),
    "LoRA adapters": ("lora", "max_loras", "max_cpu_loras", "lora_memory_gib", "lora_dtype"),
    "KV cache": (
        *("kv_cache_memory_gib", "kv_cache_dtype", "num_kv_blocks", "block_size"),
        *("gpu_memory_utilization", "enable_prefix_caching", "prefix_cache_memory_gib"),
        *("kv_store", "kv_store_bytes", "kv_transfer", "kv_transfer_key", "kv_lease_duration"),
        "kv_events_config",
    ),
    "Scheduling": (
        *("max_num_seqs", "max_num_batched_tokens", "max_step_ms", "scheduling_policy"),
        *(
            "replicas",
            "num_threads",
            "adaptive_threads",
            "async_scheduling",
            "record_steps",
            "cpu_isa",
            "optimize_for",
        ),
    ),
    "Speculation": (
        *("num_speculative_tokens", "speculative_model", "speculative_quantization"),
        *("prompt_lookup_min", "prompt_lookup_max", "shared_lookup_tokens"),
    ),
    "Images": (
        *("image_dtype", "image_quantization", "image_share", "max_num_rows", "max_num_images"),
        *("max_batch_megapixels", "image_metadata", "image_store_bytes", "image_url_ttl_s"),
    ),
    "Limits of requests": (
        *("max_queued_requests", "max_queued_images", "max_queued_encodings", "max_body_bytes"),
        *("max_header_bytes", "max_connections", "header_timeout_s", "body_timeout_s"),
        *("min_body_bytes_per_s", "write_timeout_s", "max_image_megapixel_steps"),
        *("max_image_input_pixels", "max_upscaled_pixels", "max_images_per_prompt"),
        "allowed_media_domains",
    ),
    "Logs and files": ("config", "log_format", "log_level", "log_prompts", "cache_dir", "offline"),
}
_OTHERS = "Everything else"
_INDENT = 6
_HEAD = """\
Each option can also be set by the environment variable in brackets, or under its own name in the
YAML file of --config, where the engine's options (TANDEM_ENGINE__…) are in a section `engine`. The
command line wins, then the environment, then the file."""


def full_help(width: int) -> str:
    """Every option with its whole description, in groups."""
    rows = {row.name: row for row in setting_rows()}
    grouped = {name for names in _GROUPS.values() for name in names}
    others = tuple(name for name in rows if name not in grouped)
    lines = textwrap.wrap(_HEAD, max(30, width))
    for title, names in {**_GROUPS, _OTHERS: others}.items():
        lines += ["", f"{title}:"]
        for name in names:
            if name in rows:
                lines += _described(rows[name], width)
    return "\n".join(lines)


def _described(row: SettingRow, width: int) -> list[str]:
    negative = f", --no-{row.option.removeprefix('--')}" if row.kind is bool else ""
    value = "" if row.kind is bool else f" {row.kind_name}"
    text = textwrap.wrap(
        _whole_text(row), max(30, width - _INDENT), break_on_hyphens=False, break_long_words=False
    )
    return [f"  {row.option}{negative}{value}", *(" " * _INDENT + line for line in text)]


def _whole_text(row: SettingRow) -> str:
    """The description of a setting, the other ways to set it, and its default."""
    repeatable = " May be given several times." if row.is_list else ""
    default = f"; default {row.default_text}" if row.default_text else ""
    return f"{row.help}{repeatable} [{row.variable}{default}]"


def place_in_help(row: SettingRow) -> int:
    """The place of a setting in `--help`."""
    return FEW.index(row.name) if row.name in FEW else len(FEW)


def short_text(row: SettingRow) -> str:
    """The first sentence about a setting, and its default."""
    default = f" [{row.default_text}]" if row.default_text else ""
    return f"{row.help.partition('. ')[0].removesuffix('.')}.{default}"


def short_form(row: SettingRow) -> str:
    """The allowed values, as many as fit."""
    form = row.kind_name
    return form if len(form) <= _MAX_FORM else f"{form[: form.rindex('|', 0, _MAX_FORM)]}|…"


def show_all(wanted: bool) -> None:
    """Print all options and exit, for `--help-all`."""
    if wanted:
        typer.echo(full_help(shutil.get_terminal_size().columns))
        raise typer.Exit
