"""`create_app` puts the server together. No globals: each app has its own state.

The engine starts and stops with the app's lifespan; it is passed in so that tests can bring their
own.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from engine.contract.kinds import imported
from engine.contract.operations import AnyOperation
from engine.version import __version__
from engine.worker.client import EngineClient
from server import middleware, openapi
from server.catalog import config_of
from server.chat_history import ChatHistory
from server.dialects.table import DIALECTS
from server.first_use import FirstUse
from server.http import errors
from server.http.admission import Admission, Places
from server.http.lifecycle import Lifecycle
from server.http.live_requests import LiveRequests
from server.http.owner_files import OwnerFiles
from server.http.usage import UsageTable
from server.images.jobs import ImageJobs
from server.images.links import PictureLinks
from server.images.picture_processes import PictureProcesses
from server.images.pictures import Pictures
from server.images.store import ImageStore
from server.metrics import ServerMetrics
from server.models.library import ModelLibrary
from server.responses.background import BackgroundJobs
from server.responses.conversations import ConversationStore
from server.responses.shape import error_shape as responses_error_shape
from server.responses.store import ResponseStore
from server.routes import (
    adapter_loading,
    docs,
    health,
    live_requests,
    metrics,
    model_info,
    model_loading,
    models,
    playground,
    prefix_cache,
    profiling,
    sleeping,
    usage,
)
from server.served import SERVED
from server.settings import Settings
from server.state import AppState
from server.text.check import check_text
from server.text.encoding_pool import EncodingPool
from server.text.texts import TextRegistry

_ROUTERS = (
    *(imported(name) for served in SERVED.values() for name in served.routers),
    model_info.router,
    model_loading.router,
    sleeping.router,
    sleeping.pins,
    prefix_cache.router,
    profiling.router,
    adapter_loading.router,
    live_requests.router,
    usage.router,
    health.router,
    metrics.router,
    docs.router,
    playground.router,
    *(dialect.router for dialect in DIALECTS),
    models.router,  # last: a dialect answers its own clients on these paths
)
ERROR_SHAPES = {
    **dict.fromkeys(("/v1/responses", "/responses"), responses_error_shape),
    **dict(dialect.failures for dialect in DIALECTS if dialect.failures is not None),
}
"""By the beginning of a path, how its failures are written; OpenAI's shape elsewhere."""


def create_app(settings: Settings, engine: EngineClient) -> FastAPI:
    """The ASGI app. Startup returns while models still load; `/ready` tells when they serve."""
    state = _create_state(settings, engine)

    engine.check_text = partial(check_text, state.texts)
    engine.on_gone = partial(_forget, state)
    app = FastAPI(
        title="Tandem",
        summary="OpenAI-compatible inference server",
        version=__version__,
        lifespan=_lifespan,
        openapi_url=None,  # FastAPI makes it on the event loop
        docs_url=None,  # its page loads scripts from other sites
        redoc_url=None,
    )
    app.state.tandem = state
    for router in _ROUTERS:
        app.include_router(router)
    errors.install(app, ERROR_SHAPES)
    openapi.install(app, engine, {k: v for one in DIALECTS for k, v in one.bodies.items()})
    middleware.install(app, settings, state.metrics, state.usage)
    return app


def build_routes(app: FastAPI) -> None:
    """Make the validators of all routes now. FastAPI makes a router's validators when a request
    first looks for a route in it; that takes a tenth of a second, during which all streams stop."""
    scope = {"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": []}
    for route in app.routes:
        route.matches(scope)


def _create_state(settings: Settings, engine: EngineClient) -> AppState:
    encoding_pool = EncodingPool(settings.max_queued_encodings)
    lifecycle = Lifecycle(settings.drain_timeout_s, require_all=settings.require_all)

    def places(kind: AnyOperation, model: str) -> Places:
        return SERVED[kind].places(settings, config_of(engine, model))

    responses = ResponseStore(
        max_bytes=settings.response_store_bytes,
        max_items=settings.max_stored_responses,
        ttl_s=settings.response_ttl_s,
        max_conversation_bytes=settings.max_body_bytes,
    )
    folder = settings.conversations_dir
    files = None if folder is None else OwnerFiles(folder)
    image_store = ImageStore(max_bytes=settings.image_store_bytes, ttl_s=settings.image_url_ttl_s)
    return AppState(
        settings=settings,
        engine=engine,
        library=ModelLibrary(settings, engine, lifecycle),
        first_use=FirstUse(settings, engine),
        encoding_pool=encoding_pool,
        texts=TextRegistry(encoding_pool),
        metrics=ServerMetrics(engine),
        usage=UsageTable(),
        lifecycle=lifecycle,
        admission=Admission(lifecycle, places),
        live_requests=LiveRequests(),
        image_jobs=ImageJobs(),
        image_store=image_store,
        pictures=Pictures(
            PictureProcesses(settings.max_image_input_pixels),
            settings.max_decoded_image_bytes,
            PictureLinks(
                () if settings.offline else settings.allowed_media_domains,
                image_store,
                settings.max_body_bytes,
            ),
        ),
        responses=responses,
        background_responses=BackgroundJobs(),
        conversations=ConversationStore(
            responses.table if responses.is_on else None, files, settings.max_body_bytes
        ),
        playground_presets=settings.read_playground_presets(),
        chat_history=ChatHistory(files),
    )


def _forget(state: AppState, model: str, text_path: str | None) -> None:
    """Forget a removed model, and the text side at `text_path`, given if no other model uses it."""
    state.metrics.forget(model)
    if text_path is not None:
        state.texts.forget(text_path)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: AppState = app.state.tandem
    await state.engine.start()
    try:
        yield
    finally:
        state.lifecycle.begin_drain()
        try:
            if not state.lifecycle.cut_short:
                await state.engine.stop(state.lifecycle.remaining_drain_s())
        finally:
            state.pictures.close()
            await state.background_responses.aclose()
            await state.conversations.aclose()
            await state.texts.aclose()
