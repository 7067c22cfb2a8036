"""`GET /get_model_info`, `GET /server_info` and `GET /v1/loads`: facts that SGLang's clients and
routers ask for."""

from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter

from engine.contract.generate import EngineStats, ModelInfo
from engine.contract.operations import GENERATE
from engine.version import __version__
from server.catalog import config_of, find_any_model, find_model
from server.dependencies import ModelName, StateDep
from server.protocol.answers import error_answers
from server.state import AppState

router = APIRouter(tags=["models"])


@dataclass(slots=True, kw_only=True)
class AskedModel:
    """A model by SGLang's names."""

    model_path: str
    """The model's id; paths of this machine stay private."""
    tokenizer_path: str
    is_generation: bool
    weight_version: str
    """Digest of the model's files."""


@dataclass(slots=True, kw_only=True)
class AskedServer:
    """A text model and its limits by SGLang's names."""

    model_path: str
    served_model_name: str
    tokenizer_path: str
    weight_version: str
    version: str
    context_length: int
    max_total_tokens: int
    """Tokens that the KV cache holds, of all replicas together."""
    max_running_requests: int
    page_size: int
    """Tokens in a block of the KV cache."""
    tp_size: int
    dp_size: int
    """Always 1: the server itself chooses among replicas."""


@dataclass(slots=True, kw_only=True)
class Load:
    """What a text model does at present, by SGLang's names. Requests are sequences."""

    model: str
    dp_rank: int
    """The model's place in this list."""
    num_running_reqs: int
    num_waiting_reqs: int
    num_total_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    token_usage: float
    cache_hit_rate: float
    """Share of the prompt tokens since the model was loaded that were cached."""
    utilization: float
    """Running requests, as a share of those that may run."""
    max_running_requests: int


@dataclass(slots=True, kw_only=True)
class LoadList:
    """What all text models do at present."""

    timestamp: str
    version: str
    dp_rank_count: int
    loads: list[Load]


@router.get(
    "/get_model_info", summary="Describe a model", responses=error_answers(400, 401, 404, 503)
)
@router.get("/model_info", include_in_schema=False)
async def get_model_info(state: StateDep, model: ModelName = None) -> AskedModel:
    """Describes a model with SGLang's names; `?model=` names one if several are served."""
    info = find_any_model(state.engine, model) if model else find_model(state.engine, None)
    return AskedModel(
        model_path=info.name,
        tokenizer_path=info.name,
        is_generation=isinstance(info, ModelInfo),
        weight_version=info.digest,
    )


@router.get(
    "/server_info", summary="Describe a model's limits", responses=error_answers(400, 401, 404, 503)
)
@router.get("/get_server_info", include_in_schema=False)
async def get_server_info(state: StateDep, model: ModelName = None) -> AskedServer:
    """Describes a text model and how much it can do at a time, with SGLang's names; `?model=` names
    one if several are served."""
    info = find_model(state.engine, model)
    config = config_of(state.engine, info.model)
    return AskedServer(
        model_path=info.name,
        served_model_name=info.name,
        tokenizer_path=info.name,
        weight_version=info.digest,
        version=__version__,
        context_length=info.max_model_len,
        max_total_tokens=config.replicas * info.num_kv_blocks * info.kv_block_size,
        max_running_requests=config.replicas * config.max_num_seqs,
        page_size=info.kv_block_size,
        tp_size=config.tensor_parallel_size,
        dp_size=1,
    )


@router.get("/v1/loads", summary="What text models do", responses=error_answers(401))
async def list_loads(state: StateDep) -> LoadList:
    """Lists running and waiting requests and the use of the KV cache of each text model, as
    SGLang's `core` section does."""
    infos = state.engine.infos(GENERATE)
    return LoadList(
        timestamp=datetime.now(UTC).isoformat(),
        version=__version__,
        dp_rank_count=len(infos),
        loads=[_load(state, info, place) for place, info in enumerate(infos)],
    )


def _load(state: AppState, info: ModelInfo, place: int) -> Load:
    config = config_of(state.engine, info.model)
    stats = GENERATE.stats_among(state.engine.stats(info.model)) or EngineStats()
    num_blocks = config.replicas * info.num_kv_blocks
    most = config.replicas * config.max_num_seqs
    return Load(
        model=info.model,
        dp_rank=place,
        num_running_reqs=stats.num_running,
        num_waiting_reqs=stats.num_waiting,
        num_total_reqs=stats.num_running + stats.num_waiting,
        num_used_tokens=stats.kv_blocks_used * info.kv_block_size,
        max_total_num_tokens=num_blocks * info.kv_block_size,
        token_usage=stats.kv_blocks_used / num_blocks,
        cache_hit_rate=stats.prefix_cache_hits / max(1, stats.prefix_cache_queries),
        utilization=stats.num_running / most,
        max_running_requests=most,
    )
