"""llama-server's own routes. `/tokenize`, `/detokenize`, `/rerank` and `/models` are also ours, and
are in our own modules."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from engine.contract.generate import ModelInfo
from engine.contract.kinds import kind_for
from engine.contract.operations import EMBED, GENERATE
from engine.errors import CapacityError
from engine.version import __version__
from server.catalog import config_of, find_model
from server.dependencies import ClientDep, ModelName, StateDep
from server.dialects.dialect import Dialect, responses
from server.dialects.llamacpp.convert import completion_body, infill_body
from server.dialects.llamacpp.infill import GapTokens, infill_prompt, texts_of
from server.dialects.llamacpp.protocol import (
    LlamaCompletionRequest,
    LlamaEmbeddingRequest,
    LlamaInfillRequest,
    LlamaTextRequest,
)
from server.dialects.llamacpp.shape import LlamaShape, embeddings_answer
from server.http.json_route import JsonRoute
from server.http.owner import owner_of
from server.http.sse import until_disconnect
from server.operations.completion import answer_completion
from server.operations.embed import answer_embeddings
from server.operations.tokenize import token_ids
from server.protocol.completions import CompletionRequest
from server.protocol.tokenize import TokenizeRequest
from server.state import AppState, ClientRequest
from server.text.prompt_limit import counting_limit

router = APIRouter(route_class=JsonRoute, tags=["llama-server"])

_FAILURE = {"error": {"message": "...", "type": "invalid_request_error"}}
_answers = partial(responses, failure=_FAILURE)
_text_answers = partial(
    _answers, {"content": "...", "stop": True}, stream_type=LlamaShape.framing.media_type
)
_PROMPTS = {"prompt", "input_prefix", "input_suffix", "input_extra"}
Flag = Annotated[
    str, Query(max_length=16, description="Any value: answer 503 while all slots are busy.")
]


@router.post("/completion", summary="Continue a prompt", responses=_text_answers())
@router.post("/completions", include_in_schema=False)
async def complete(body: LlamaCompletionRequest, client: ClientDep) -> Response:
    """Answers whole, or with server-sent events if `stream` is set."""
    return await _answer(completion_body(body), body, client)


@router.post("/infill", summary="Fill a gap", responses=_text_answers())
async def infill(body: LlamaInfillRequest, client: ClientDep) -> Response:
    """Fills a gap in a text. The model must have tokens for gaps."""
    info = await client.find(GENERATE, body.model)
    text = await client.state.texts.get(info)
    tokens = GapTokens.of(text.tokenizer.raw.token_to_id)
    texts = texts_of(body)
    encoding = text.encode_all(
        texts, add_special_tokens=False, limit=counting_limit(info, "input_prefix")
    )
    ids_of = dict(zip(texts, await until_disconnect(client.request.receive, encoding), strict=True))
    prompt = infill_prompt(body, tokens, ids_of, text.tokens_before)
    return await _answer(infill_body(body, prompt, tokens), body, client)


@router.post(
    "/embedding",
    summary="Embed texts",
    responses=_answers([{"index": 0, "embedding": [[0.1, 0.2]]}]),
)
@router.post("/embeddings", include_in_schema=False)
async def embed_texts(body: LlamaEmbeddingRequest, client: ClientDep) -> Response:
    """Returns one embedding per text, in the order of the texts, each in an array of its own."""
    return await answer_embeddings(body, body.texts, embeddings_answer, client)


@router.post(
    "/apply-template", summary="Write a conversation out", responses=_answers({"prompt": "..."})
)
async def apply_template(
    body: TokenizeRequest, request: Request, state: StateDep
) -> dict[str, str]:
    """Returns the conversation as the model sees it."""
    tokens = await token_ids(body, request, state)
    text = await state.texts.get(find_model(state.engine, body.model))
    return {"prompt": await text.decode(tokens, skip_special_tokens=False)}


@router.get("/props", summary="A model and its settings", responses=_answers({"total_slots": 64}))
async def props(state: StateDep, model: ModelName = None) -> dict[str, Any]:
    """Returns what clients of llama-server ask before they begin. A slot is a text that is being
    written."""
    info = find_model(state.engine, model)
    tokenizer = (await state.texts.get(info)).tokenizer
    return {
        "default_generation_settings": {
            "n_ctx": info.max_model_len,
            "params": {"n_predict": -1, **info.default_sampling},
        },
        "total_slots": _num_slots(info, state),
        "model_alias": info.name,
        "model_path": info.name,
        "modalities": {"vision": info.pictures is not None, "audio": False},
        "chat_template": tokenizer.chat_template or "",
        "bos_token": tokenizer.special_tokens.get("bos_token") or "",
        "eos_token": tokenizer.special_tokens.get("eos_token") or "",
        "build_info": f"tandem {__version__}",
        "is_sleeping": state.engine.is_asleep(info.model),
    }


@router.get("/slots", summary="Texts that run", responses=_answers([{"id": 0}]))
async def slots(
    request: Request, state: StateDep, model: ModelName = None, fail_on_no_slot: Flag = ""
) -> list[dict[str, Any]]:
    """Lists as many slots as texts can run at a time; with API keys, only slots of the asking key
    are shown as busy."""
    info = find_model(state.engine, model)
    busy = _running(info, request, state)
    free = {"n_ctx": info.max_model_len, "speculative": False, "is_processing": False}
    total = _num_slots(info, state)
    if fail_on_no_slot and len(busy) >= total:
        raise CapacityError(f"all {total} slots of {info.model} are busy; try again later")
    shown = [free | one for one in busy[:total]]
    return [{"id": number, **one} for number, one in enumerate([*shown, *[free] * total][:total])]


def _num_slots(info: ModelInfo, state: AppState) -> int:
    config = config_of(state.engine, info.model)
    return config.replicas * config.max_num_seqs


def _running(info: ModelInfo, request: Request, state: AppState) -> list[dict[str, Any]]:
    busy = []
    for label, run in state.live_requests.of(owner_of(request)):
        progress = run.progress()
        if (
            label.kind == kind_for(GENERATE).name
            and label.model in info.names
            and progress.is_begun
        ):
            left = (progress.num_results or 1) - (progress.num_finished or 0)
            one = {"id_task": label.id, "is_processing": True}
            busy += [one | {"n_decoded": progress.num_generated_tokens}] * left
    return busy


async def _answer(
    openai: CompletionRequest, body: LlamaTextRequest, client: ClientRequest
) -> Response:
    info = await client.find(GENERATE, body.model)
    text = await client.state.texts.get(info)
    told = (body.model_fields_set & type(body).model_fields.keys()) - _PROMPTS
    [prompt] = openai.prompt
    shape = LlamaShape(
        text,
        prompt if isinstance(prompt, str) else "",
        body.model_dump(mode="json", include=told),
    )
    return await answer_completion(openai, client.with_sent(body, shape))


LLAMACPP = Dialect(
    router=router,
    bodies={
        LlamaCompletionRequest: GENERATE,
        LlamaInfillRequest: GENERATE,
        LlamaEmbeddingRequest: EMBED,
    },
)
