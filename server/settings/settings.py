"""The operator's settings, and the only reader of environment variables and YAML.

Precedence: command line → environment (`TANDEM_PORT`, nested `TANDEM_ENGINE__MAX_NUM_SEQS`) → YAML
(`--config file`) → defaults. Nothing is read at import; `load_settings` reads once, and a wrong
value becomes one line (`SettingsProblem`) that names its source.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from engine.contract.adapter_settings import check_adapter, split_adapter
from engine.contract.gpus import VARIABLE
from engine.contract.model_spec import DEFAULT_MODELS, ModelSpec
from engine.contract.settings import EngineConfig
from engine.contract.worker_settings import CpuIsa
from engine.errors import InvalidParameter
from server.settings.presets import read_presets
from server.settings.problem import (
    ENV_PREFIX,
    Origins,
    SettingsProblem,
    did_you_mean,
    one_line,
    variable_name,
)

ANY_MODEL = "*"
"""Stands for any model or adapter in `loadable_models` and `loadable_loras`."""
MAX_KEY_NAME = 64
"""The most characters of the name of an API key."""
MAX_LORAS = 16
"""The most adapters of a model, if clients may load some and `max_loras` is not set."""

DERIVED_ENGINE_FIELDS = {"max_num_queued": "max_queued_requests"}
"""Engine fields that follow from a setting of the server and cannot be set themselves."""

_ENGINE_OBJECTS = ("override_generation_config", "kv_events_config", "profiler_config")
"""Engine fields that are JSON objects."""


def engine_knobs() -> list[str]:
    """Names of the engine's fields that an operator sets, in their order."""
    return [f.name for f in fields(EngineConfig) if f.name not in DERIVED_ENGINE_FIELDS]


def _split_commas(value: object) -> object:
    """The elements of a list: environment variables hold lists as `a,b` or in JSON, other sources
    as lists."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    if value.lstrip().startswith("{"):
        return [value]
    return [part.strip() for part in value.split(",")]


def _check_engine_keys(value: object) -> object:
    """Check the names of engine settings, as a dataclass would drop unknown ones. Lists and objects
    may come as text."""
    if isinstance(value, Mapping):
        lists = [f.name for f in fields(EngineConfig) if isinstance(f.default, tuple)]
        value = {k: _split_commas(v) if k in lists else v for k, v in value.items()}
        value = {k: _read_object(v) if k in _ENGINE_OBJECTS else v for k, v in value.items()}
        for key in value:
            if key in DERIVED_ENGINE_FIELDS:
                raise ValueError(
                    f"{key} is derived from {DERIVED_ENGINE_FIELDS[key]}; set that instead"
                )
            if key not in engine_knobs():
                raise ValueError(
                    f"there is no setting {key}{did_you_mean(str(key), engine_knobs())}"
                )
    return {} if value is None else value  # `engine:` with every line under it commented out


def _read_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("it must be a JSON object") from None


def _check_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a key must be one or more visible ASCII characters, without spaces")
    return key


def _check_model(value: object) -> object:
    """The text of a model. An object, as YAML has it, becomes JSON."""
    text, of_whom = value, ""
    if isinstance(value, Mapping):
        text = json.dumps(value, default=str)
        of_whom = f"model {value.get('name') or value.get('ref')}: "
    if not isinstance(text, str):
        return text  # refused later, as it is not a string
    try:
        ModelSpec.parse(text)
    except InvalidParameter as error:
        raise ValueError(of_whom + error.message) from None
    return text


def _check_loadable(value: object) -> object:
    return value if value == ANY_MODEL else _check_model(value)


def _check_loadable_lora(value: str) -> str:
    if value != ANY_MODEL:
        try:
            check_adapter(*split_adapter(value))
        except InvalidParameter as error:
            raise ValueError(error.message) from None
    return value


def _check_origin(origin: str) -> str:
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
        raise ValueError("must be *, or scheme and host without a path: https://app.example")
    return origin


def _check_root_path(path: str) -> str:
    if not re.fullmatch(r"(/[^/?#\s]+)*", path):
        raise ValueError("must begin with / and not end with it, such as /llm")
    return path


def _check_public_url(url: str | None) -> str | None:
    if url is not None and not re.fullmatch(r"https?://[^/?#\s@]+(/[^/?#\s]+)*/?", url):
        raise ValueError(
            "must be http:// or https:// and a host name, optionally with a port and a path"
        )
    return None if url is None else url.rstrip("/")


def _check_otlp_endpoint(url: str | None) -> str | None:
    if url is None:
        return None
    if not _is_installed("opentelemetry.exporter.otlp.proto.http"):
        raise ValueError("needs additional packages: pip install 'tandem-server[otel]'")
    return _check_public_url(url)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a package that it lies in
        return False


def _check_is_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError("no such file")
    return path


def _check_is_folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError("no such folder")
    return path


CommaList = (NoDecode, BeforeValidator(_split_commas))
ApiKey = Annotated[SecretStr, AfterValidator(_check_key)]
ModelText = Annotated[str, BeforeValidator(_check_model)]
LoadableText = Annotated[str, BeforeValidator(_check_loadable)]
LoadableLora = Annotated[str, AfterValidator(_check_loadable_lora)]
Origin = Annotated[str, AfterValidator(_check_origin)]
ExistingFile = Annotated[Path, AfterValidator(_check_is_file)]
ExistingFolder = Annotated[Path, AfterValidator(_check_is_folder)]


class _EnvSource(EnvSettingsSource):
    def __call__(self) -> dict[str, Any]:
        # Every field is looked for, in many ways, which takes a while.
        if not any(name.upper().startswith(ENV_PREFIX) for name in os.environ):
            return {}
        data = super().__call__()
        # Kubernetes sets TANDEM_PORT=tcp://… in every pod next to a service named tandem.
        if str(data.get("port", "")).startswith(("tcp://", "udp://")):
            del data["port"]
        # The clients' variable; an operator who sets it for the server does not want an open
        # server.
        key = os.environ.get(variable_name("api_key"))
        if key is not None:
            data.setdefault("api_keys", [key])
        return data


class Settings(BaseSettings):
    """All settings of the server. Frozen; unknown names are refused. The descriptions are the text
    of `serve --help-all`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )

    config: Path | None = Field(None, description="YAML file with settings, under the same names.")
    models: Annotated[tuple[ModelText, ...], *CommaList] = Field(
        DEFAULT_MODELS,
        min_length=1,
        description="What to serve: a hub id, a folder, a .gguf file or a built-in name, or "
        "NAME=any of these to serve it as NAME. To give a model its own settings, write it as an "
        'object with ref, name, device and settings, in JSON or YAML: {"ref": "./a.gguf", '
        '"settings": {"max_model_len": 2048}}.',
    )
    load_on_first_use: bool = Field(
        True,
        description="Download and load the default model for a kind of request, such as u2netp for "
        "background removal, on the first such request if no suitable model is served.",
    )
    enable_runtime_loading: bool = Field(
        False,
        description="Let clients load and unload models while the server runs: POST /models/load "
        "and /models/unload; and LoRA adapters: POST /v1/load_lora_adapter and "
        "/v1/unload_lora_adapter.",
    )
    models_dir: ExistingFolder | None = Field(
        None,
        description="Folder whose models may be loaded at run time: each folder and each "
        ".gguf, .safetensors, .pth and .param file in it, by its name.",
    )
    loadable_models: Annotated[tuple[LoadableText, ...], *CommaList] = Field(
        (),
        description="Other models that may be loaded at run time, written as for models; * "
        "allows any hub id and any file that the server can read.",
    )
    loras_dir: ExistingFolder | None = Field(
        None,
        description="Folder whose LoRA adapters may be loaded at run time: each adapter "
        "folder and each .safetensors file in it, by its name.",
    )
    loadable_loras: Annotated[tuple[LoadableLora, ...], *CommaList] = Field(
        (),
        description="LoRA adapters that may be loaded at run time, as NAME=PATH; * allows any "
        "folder or file that the server can read.",
    )
    models_max: int = Field(
        8,
        ge=1,
        le=1024,
        description="Maximum number of models at once; beyond it, no model can be loaded at run "
        "time.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    uds: Path | None = Field(
        None, description="Unix domain socket to listen on instead of host and port."
    )
    root_path: Annotated[str, AfterValidator(_check_root_path)] = Field(
        "",
        description="Path under which a reverse proxy exposes this server, such as /llm.",
    )
    forwarded_allow_ips: Annotated[tuple[str, ...], *CommaList] = Field(
        ("127.0.0.1",),
        description="Addresses and networks of reverse proxies whose X-Forwarded headers are "
        "trusted; * trusts any.",
    )
    public_url: Annotated[str | None, AfterValidator(_check_public_url)] = Field(
        None,
        description="URL at which clients reach this server, such as https://ai.example.com/llm; "
        "the URLs of stored images begin with it.",
    )
    ssl_certfile: ExistingFile | None = Field(
        None, description="PEM file with the TLS certificate chain; serves HTTPS."
    )
    ssl_keyfile: ExistingFile | None = Field(
        None, description="PEM file with the private key, if it is not in ssl_certfile."
    )
    api_keys: Annotated[tuple[ApiKey, ...], *CommaList] = Field(
        (),
        description="Accepted API keys; if any are set, every route except /health, /ready and "
        "the pages / and /docs requires one.",
    )
    api_key_file: ExistingFile | None = Field(
        None,
        description="File with more API keys, one per line, each optionally followed by a space "
        "and a name for the log and /v1/usage; # begins a comment line.",
    )
    admin_keys: Annotated[tuple[ApiKey, ...], *CommaList] = Field(
        (),
        description="Keys that may also load and unload models; if any are set, ordinary API keys "
        "may not.",
    )
    cors_allow_origins: Annotated[tuple[Origin, ...], *CommaList] = Field(
        (),
        description="Origins whose web pages may call this server; * allows any. By default CORS "
        "is off.",
    )
    allowed_hosts: Annotated[tuple[str, ...], *CommaList] = Field(
        (),
        description="Host names accepted by a server that listens on 127.0.0.1 without API keys, "
        "such as ai.example.com, besides localhost and the host of public_url; * allows any, "
        "which also lets websites in this machine's browsers use the server.",
    )
    max_body_bytes: int = Field(
        32 << 20, ge=1024, le=1 << 32, description="Largest request body, in bytes."
    )
    max_header_bytes: int = Field(
        64 << 10,
        ge=8192,
        le=1 << 24,
        description="Maximum size of a request's URL, headers and trailers together, in bytes; "
        "larger requests get 431.",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Maximum number of open connections; beyond it, an idle one is closed or, if "
        "there is none, the new one gets 503.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="How long a client may take to send a request's headers, in seconds.",
    )
    body_timeout_s: float = Field(
        30.0,
        gt=0,
        le=86_400,
        description="How long a client may take to send the body, in seconds, plus what "
        "min_body_bytes_per_s allows.",
    )
    min_body_bytes_per_s: int = Field(
        4096,
        ge=1,
        le=1 << 30,
        description="A body may take one more second for each block of this many bytes received.",
    )
    write_timeout_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="How long a client may stop reading a response before its connection is "
        "closed and its request aborted, in seconds.",
    )
    max_queued_requests: int = Field(
        1024,
        ge=0,
        le=1_000_000,
        description="Sequences per model that may wait, in addition to the max_num_seqs running "
        "ones; any more get 429. A request with many prompts or texts takes at most half of all "
        "these places, and twice max_num_seqs; its further ones wait for its own.",
    )
    max_queued_images: int = Field(
        128,
        ge=0,
        le=100_000,
        description="Images per model that may wait, in addition to the max_num_images being "
        "drawn; any more get 429.",
    )
    max_queued_encodings: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Requests with long texts that may be tokenised at once, taking turns; any "
        "more get 429.",
    )
    max_image_megapixel_steps: float = Field(
        1000.0,
        gt=0,
        le=1e9,
        description="Largest image request: pixels times steps times n, in millions.",
    )
    max_image_input_pixels: int = Field(
        1 << 24,
        ge=1,
        le=1 << 30,
        description="Maximum number of pixels in all input images of a request together, once "
        "decoded; in a conversation, in each image.",
    )
    max_images_per_prompt: int = Field(
        16, ge=0, le=1024, description="Maximum number of images in a conversation."
    )
    allowed_media_domains: Annotated[tuple[str, ...], *CommaList] = Field(
        (),
        description="Hosts from which the server fetches images that clients link to, such as "
        "upload.wikimedia.org; subdomains are not included. A non-public address must be "
        "listed itself.",
    )
    max_decoded_image_bytes: int = Field(
        512 << 20,
        ge=1,
        le=1 << 40,
        description="Memory for the decoded input images of all requests together. Requests that "
        "do not fit wait, with their images still encoded. Images between the stages of requests "
        "may take as much again.",
    )
    max_upscaled_pixels: int = Field(
        1 << 26,
        ge=1,
        le=1 << 32,
        description="Maximum number of pixels in an upscaled image.",
    )
    image_store_bytes: int = Field(
        256 << 20,
        ge=0,
        le=1 << 40,
        description="Memory for images requested by url; the oldest are dropped first. 0 stores "
        "none and refuses such requests.",
    )
    image_url_ttl_s: float = Field(
        3600.0, ge=1, le=604_800, description="How long an image's URL remains valid, in seconds."
    )
    response_store_bytes: int = Field(
        64 << 20,
        ge=0,
        le=1 << 40,
        description="Memory for responses of /v1/responses, so that they can be continued or read "
        "again; the least recently used are dropped first. 0 stores none.",
    )
    max_stored_responses: int = Field(
        10_000, ge=1, le=10_000_000, description="Maximum number of stored responses."
    )
    response_ttl_s: float = Field(
        86_400.0,
        ge=1,
        le=2_592_000,
        description="How long a response is kept after it ended or was last continued, in seconds.",
    )
    conversations_dir: Path | None = Field(
        None,
        description="Folder in which conversations are kept, separately for each API key, until "
        "they are deleted: those of /v1/conversations, otherwise kept in the memory for "
        "responses, and the playground's, otherwise kept only in the browser.",
    )
    image_metadata: bool = Field(
        True,
        description="Write prompt, seed and parameters into image files, so that the images can be "
        "reproduced.",
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        le=86_400,
        description="How long running requests may take to finish after SIGTERM, in seconds.",
    )
    require_all: bool = Field(
        False,
        description="Answer /ready with 200 only while every model is served; by default, models "
        "that failed to load are listed there but do not count.",
    )
    heartbeat_interval_s: float = Field(
        15.0,
        ge=0.01,
        le=3600,
        description="Send a comment in a stream after this many seconds of silence.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="Format of log lines; auto means json or, on a terminal, progress bars and "
        "console lines for warnings and errors.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum severity to log; debug includes one line per request."
    )
    access_log: bool = Field(
        False, description="Log one line per request at level info, not only at debug."
    )
    slow_request_seconds: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Log a warning for each request that takes at least this many seconds, with "
        "the time spent in each phase.",
    )
    otlp_endpoint: Annotated[str | None, AfterValidator(_check_otlp_endpoint)] = Field(
        None,
        description="URL of an OpenTelemetry collector, such as http://127.0.0.1:4318, to which "
        "traces of requests and metrics are sent as OTLP over HTTP; needs the extra otel.",
    )
    vllm_metrics: bool = Field(
        True,
        description="Also expose the metrics of text models under vLLM's names (vllm:…), which "
        "routers and dashboards for vLLM read.",
    )
    playground: bool = Field(
        True,
        description="Serve a page for chats, images and models to browsers that open /; when off, "
        "they get /docs.",
    )
    playground_presets: ExistingFile | None = Field(
        None,
        description="YAML or JSON file with named presets for chats, which the playground offers; "
        "new chats start with those marked default: true.",
    )
    log_prompts: bool = Field(
        False, description="Include prompts and answers in the log lines of requests."
    )
    cache_dir: Path | None = Field(
        None,
        description="Folder for downloads and compiled operations; by default tandem in the "
        "user's cache folder.",
    )
    offline: bool = Field(
        False, description="Never use the network; serve only what is in the cache."
    )
    cpu_isa: CpuIsa = Field(
        "auto",
        description="Instruction set that the C++ operations may use. auto: the best one included "
        "in the installation, otherwise as native. native: everything that this processor "
        "supports. Otherwise that of every x86-64-v3 (AVX2, FMA), x86-64-v4 (AVX-512) or 64-bit "
        "ARM (armv8-a) processor, plus the extension in the suffix: VNNI, BF16 (with VNNI), AMX "
        "(with both).",
    )
    engine: Annotated[EngineConfig, BeforeValidator(_check_engine_keys)] = Field(
        default_factory=EngineConfig, description="The engine's settings."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        environment = InitSettingsSource(settings_cls, _EnvSource(settings_cls)())
        config = init_settings().get("config") or environment().get("config")
        from_file = InitSettingsSource(settings_cls, _read_yaml(Path(config)) if config else {})
        return init_settings, environment, from_file

    @field_validator("models")
    @classmethod
    def _check_names_differ(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        names = [ModelSpec.parse(text).name for text in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two models would be served as {name}; give one of them another name with "
                    "NAME=REF"
                )
        return models

    @field_validator("api_key_file")
    @classmethod
    def _check_file_has_keys(cls, path: Path | None) -> Path | None:
        # An empty file must not open the server to everybody.
        if path is not None and not _read_keys(path):
            raise ValueError("the file contains no key; write one per line")
        return path

    @field_validator("playground_presets")
    @classmethod
    def _check_presets(cls, path: Path | None) -> Path | None:
        if path is not None:
            read_presets(path)
        return path

    @model_validator(mode="after")
    def _check_loading(self) -> Self:
        of_loading = ("models_dir", "loadable_models", "loras_dir", "loadable_loras", "admin_keys")
        for name in of_loading:
            if getattr(self, name) and not self.enable_runtime_loading:
                raise ValueError(
                    f"{name} needs enable_runtime_loading; set both, or leave {name} out"
                )
        served = {spec.name: spec.ref for spec in map(ModelSpec.parse, self.models)}
        for text in self.loadable_models:
            spec = ModelSpec.parse(text)
            if served.get(spec.name, spec.ref) != spec.ref:
                raise ValueError(
                    f"two models of models and loadable_models would be served as {spec.name}; "
                    "give one of them another name with NAME=REF"
                )
        return self

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        specs = [ModelSpec.parse(text) for text in self.models]
        for spec in specs:
            for name in spec.config(self.engine).adapters:
                if name in [other.name for other in specs]:
                    raise ValueError(
                        f"an adapter and a model would be served as {name}; give one of them "
                        "another name"
                    )
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile; set both")
        return self

    @property
    def model_specs(self) -> list[ModelSpec]:
        """The models to serve from the start."""
        return [self.complete(ModelSpec.parse(text)) for text in self.models]

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's settings, with those that follow from the server's."""
        return replace(
            self.engine,
            max_num_queued=self._max_num_queued(self.engine),
            max_loras=self._max_loras(),
        )

    def complete(self, spec: ModelSpec) -> ModelSpec:
        """The model's settings, with those that follow from the server's."""
        max_num_queued = self._max_num_queued(spec.config(self.engine))
        return replace(spec, settings={**spec.settings, "max_num_queued": max_num_queued})

    def _max_num_queued(self, config: EngineConfig) -> int:
        """Length of the engine's own queue. Admission is the only gate, so this queue must hold
        everything that admission lets in."""
        sequences = config.replicas * config.max_num_seqs + self.max_queued_requests
        images = config.replicas * config.max_num_images + self.max_queued_images
        return max(sequences, images)

    def _max_loras(self) -> int | None:
        is_said = self.engine.max_loras is not None or self.engine.max_cpu_loras is not None
        if is_said or not (self.loras_dir or self.loadable_loras):
            return self.engine.max_loras
        specs = map(ModelSpec.parse, self.models)
        return max(MAX_LORAS, *(len(spec.config(self.engine).lora) for spec in specs))

    @property
    def own_hosts(self) -> tuple[str, ...]:
        """The names that the operator gives this server."""
        public = urlsplit(self.public_url or "").hostname
        return (*self.allowed_hosts, *([public] if public else []))

    @property
    def cache_path(self) -> Path:
        return _cache_path(self.cache_dir)

    @property
    def worker_tunables(self) -> str:
        """GLIBC_TUNABLES of workers: malloc takes huge pages at once, which is quicker than to move
        weights there later. The operator's own tunables come last, so they win."""
        own = os.environ.get("GLIBC_TUNABLES", "")
        return f"glibc.malloc.hugetlb=1:{own}".rstrip(":")

    @property
    def visible_gpus(self) -> tuple[str, ...] | None:
        """CUDA's names of the GPUs that the server may use; None means all."""
        names = os.environ.get(VARIABLE)
        return None if names is None else tuple(n.strip() for n in names.split(",") if n.strip())

    def read_playground_presets(self) -> dict[str, dict[str, Any]]:
        """The operator's presets for chats, by their names."""
        return read_presets(self.playground_presets) if self.playground_presets else {}

    def read_api_keys(self) -> tuple[str, ...]:
        """All API keys: the given ones and those in the file."""
        given = tuple(key.get_secret_value() for key in self.api_keys)
        return given + (_read_keys(self.api_key_file) if self.api_key_file else ())

    def key_names(self) -> dict[str, str]:
        """The names of all keys: those in the key file or, for a key without one, its place, such
        as key-2 or admin-1."""
        named = _read_key_names(self.api_key_file) if self.api_key_file else {}
        names = {key: f"admin-{place}" for place, key in enumerate(self.read_admin_keys(), 1)}
        for place, key in enumerate(self.read_api_keys(), 1):
            names[key] = named.get(key) or names.get(key) or f"key-{place}"
        return names

    def read_admin_keys(self) -> tuple[str, ...]:
        """The keys that may load and unload models. If there are any, only they may."""
        return tuple(key.get_secret_value() for key in self.admin_keys)


class ClientSettings(BaseSettings):
    """Settings of the commands that talk to a running server."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", frozen=True)

    url: str = Field(
        "http://127.0.0.1:8000", pattern=r"^https?://[^/\s]", description="URL of the server."
    )
    api_key: ApiKey | None = Field(None, description="Key to send, if the server requires one.")
    cache_dir: Path | None = Field(
        None, description="Folder in which the commands keep their data."
    )
    chat_history: bool = Field(True, description="Remember chat input for the arrow keys.")

    @property
    def cache_path(self) -> Path:
        return _cache_path(self.cache_dir)


class TerminalSettings(BaseSettings):
    """What the environment says of the terminal, as all programs read it."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    term: str = ""
    term_program: str = ""
    lc_terminal: str = ""
    kitty_window_id: str = ""
    tmux: str = ""
    sty: str = ""


def _cache_path(cache_dir: Path | None) -> Path:
    if cache_dir is not None:
        return cache_dir.expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tandem"


def load_settings(given: Mapping[str, Any]) -> Settings:
    """Join the command line's values with environment, YAML and defaults.

    Raises:
        SettingsProblem: the first wrong setting, in one line.
    """
    origins = _origins(given, Settings)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise origins.problem(error.errors()[0]) from None
    except InvalidParameter as error:
        is_engine = error.param in engine_knobs()
        location = ("engine", error.param or "") if is_engine else (error.param or "",)
        raise origins.engine_problem(location, error.message) from None
    except SettingsError:
        raise SettingsProblem(f"{ENV_PREFIX}ENGINE is not valid JSON") from None


def unknown_variables() -> list[str]:
    """Environment variables with our prefix that are not settings: probably typing mistakes."""
    known = {variable_name(name) for name in (*Settings.model_fields, *ClientSettings.model_fields)}
    known |= {variable_name(name, engine=True) for name in engine_knobs()}
    # Kubernetes sets these in every pod next to a service named tandem.
    injected = (f"{ENV_PREFIX}SERVICE_", f"{ENV_PREFIX}PORT_")
    return sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX)
        and name.upper() not in known
        and not name.upper().startswith(injected)
    )


def load_client_settings(given: Mapping[str, Any]) -> ClientSettings:
    """The settings of commands that talk to a server; None stands for values that were not
    given."""
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return ClientSettings(**given)
    except ValidationError as error:
        raise _origins(given, ClientSettings).problem(error.errors()[0]) from None


def _origins(given: Mapping[str, Any], settings: type[BaseSettings]) -> Origins:
    return Origins(given, {name.upper() for name in os.environ}, list(settings.model_fields))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsProblem(f"--config {path}: {reason}") from None
    except yaml.YAMLError as error:
        raise SettingsProblem(one_line(f"--config {path}: not valid YAML: {error}")) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsProblem(f"--config {path}: expected `name: value` lines at the top level")
    if "config" in data:
        raise SettingsProblem(
            f"--config {path}: a config file cannot name another one; leave config out"
        )
    return {str(key): value for key, value in data.items()}


def _read_keys(path: Path) -> tuple[str, ...]:
    return tuple(_read_key_names(path))


def _read_key_names(path: Path) -> dict[str, str]:
    """The keys of a file, each with the name behind it, which may be empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise ValueError("the file cannot be read as UTF-8 text") from None
    names: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            key, _, name = line.partition(" ")
            name = name.strip()
            if len(name) > MAX_KEY_NAME or not name.isprintable():
                raise ValueError(f"a key's name may have at most {MAX_KEY_NAME} visible characters")
            names[_check_key(SecretStr(key)).get_secret_value()] = name
    return names
