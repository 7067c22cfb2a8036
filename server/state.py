"""The state of one running app, and a client's request to it. `create_app` builds the state and
keeps it at `app.state.tandem`; there are no globals."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request

from engine.contract.operations import AnyOperation, Operation
from engine.contract.request import InfoT
from engine.errors import ModelNotReady
from engine.worker.client import EngineClient
from server.catalog import find_offering
from server.chat_history import ChatHistory
from server.first_use import FirstUse
from server.http.admin import has_admin_key
from server.http.admission import Admission
from server.http.lifecycle import Lifecycle
from server.http.live_requests import LiveRequests
from server.http.shape import Shape
from server.http.sse import until_disconnect
from server.http.usage import UsageTable
from server.images.jobs import ImageJobs
from server.images.pictures import Pictures
from server.images.store import ImageStore
from server.metrics import ServerMetrics
from server.models.library import ModelLibrary
from server.protocol.common import RequestBody
from server.responses.background import BackgroundJobs
from server.responses.conversations import ConversationStore
from server.responses.store import ResponseStore
from server.settings import Settings
from server.text.encoding_pool import EncodingPool
from server.text.texts import TextRegistry


@dataclass(frozen=True, slots=True)
class AppState:
    """The parts of an app, which `server.dependencies.StateDep` hands to every route."""

    settings: Settings
    engine: EngineClient
    library: ModelLibrary
    first_use: FirstUse
    encoding_pool: EncodingPool
    texts: TextRegistry
    metrics: ServerMetrics
    usage: UsageTable
    lifecycle: Lifecycle
    admission: Admission
    live_requests: LiveRequests
    image_jobs: ImageJobs
    image_store: ImageStore
    pictures: Pictures
    responses: ResponseStore
    background_responses: BackgroundJobs
    conversations: ConversationStore
    playground_presets: Mapping[str, Any]
    chat_history: ChatHistory


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A client's request to an operation.

    Attributes:
        sent: what the client sent, if the operation's body was made from it.
        shape: form of the reply. Default: OpenAI's.
    """

    request: Request
    state: AppState
    sent: RequestBody | None = None
    shape: Shape | None = None

    @property
    def may_manage(self) -> bool:
        """Whether it may do what needs an admin key, if the server has any."""
        return not self.state.settings.admin_keys or has_admin_key(self.request.scope)

    async def find(self, operation: Operation[Any, Any, InfoT], name: str | None) -> InfoT:
        """The model that a request means, which may be loaded first, unless llama-server's
        `autoload` in the query is false.

        Raises:
            ModelNotReady: it sleeps, and must not be woken.
            RequestAborted: the client left meanwhile.
            EngineError: as in `FirstUse.find`.
        """
        if not self._may_wake:
            info = find_offering(self.state.engine, operation, name)
            if self.state.engine.is_asleep(info.model):
                raise ModelNotReady(
                    f"model {info.model!r} sleeps, and autoload is false; leave autoload out, or "
                    f"POST /wake_up first",
                    param="autoload",
                )
            return info
        return await until_disconnect(
            self.request.receive, self.state.first_use.find(operation, name)
        )

    async def wake(self, operation: AnyOperation, name: str | None) -> None:
        """Wake a model of that id that has not served yet, as `find` does.

        Raises:
            RequestAborted: the client left meanwhile.
            EngineError: as in `EngineClient.wake`.
        """
        if self._may_wake:
            waking = self.state.first_use.wake(operation, name)
            await until_disconnect(self.request.receive, waking)

    @property
    def _may_wake(self) -> bool:
        return self.request.query_params.get("autoload") not in ("false", "0")

    def with_sent(self, sent: RequestBody, shape: Shape | None = None) -> "ClientRequest":
        """The same request, which came in another form and is answered in that shape."""
        return replace(self, sent=sent, shape=shape)
