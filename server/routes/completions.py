"""`POST /v1/completions`."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from engine.contract.generate import GenerateRequest, ModelInfo
from engine.contract.kinds import TEXT
from server.catalog import config_of, find_model
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.shape import Shape
from server.http.sse import until_disconnect
from server.protocol.answers import error_answers, stream_answer
from server.protocol.common import RequestBody
from server.protocol.completions import Completion, CompletionRequest
from server.routes.deps import StateDep
from server.routes.ignored_fields import report_ignored_fields
from server.state import AppState
from server.text.completion_reply import CompletionReply
from server.text.convert import check_width, completion_requests, prompt_limit, text_options
from server.text.generation import Generation
from server.text.kind import SERVED_TEXT
from server.text.prompt_limit import counting_limit
from server.text.reply import ReplyHead
from server.text.sampler_tokens import find_tokens
from server.text.texts import ModelText

router = APIRouter(route_class=JsonRoute, tags=["text"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: stream_answer(Completion, "`text_completion`"),
    **error_answers(),
}


@router.post("/v1/completions", summary="Continue text", responses=_RESPONSES)
async def create_completion(body: CompletionRequest, request: Request, state: StateDep) -> Response:
    """Answers whole, or with server-sent events if `stream` is set."""
    return await answer_completion(body, request, state)


async def answer_completion(
    body: CompletionRequest,
    request: Request,
    state: AppState,
    *,
    sent: RequestBody | None = None,
    shape: Shape | None = None,
) -> Response:
    """Like `server.routes.chat.answer_chat`, for text without a template."""
    settings = state.settings
    headers = report_ignored_fields(request, sent or body)
    info = find_model(state.engine, body.model)
    annotate(request, model=info.name, stream=bool(body.stream))
    if settings.log_prompts:
        annotate(request, prompts=body.prompt)
    config = config_of(state.engine, info.model)
    priority = acting_priority(body.priority, config)
    check_width(body, config)
    lease = state.admission.admit(TEXT, info.model, len(body.prompt) * body.num_places)
    async with Generation(state.engine, state.metrics.of(SERVED_TEXT), lease) as generation:
        text = await state.texts.get(info)
        prompts = await until_disconnect(request.receive, _token_ids(body, text, info))
        head = ReplyHead.create("cmpl", info)
        requests = await completion_requests(
            body,
            info,
            prompts,
            request_id=head.id,
            priority=priority,
            tokens=await find_tokens(body, text),
            negative=await _negative_ids(body, text, info),
        )
        echoes = await _echoes(body, text, prompts, requests)
        options = text_options(
            body, offsets=body.logprobs is not None, keep_text=settings.log_prompts
        )
        state.live_requests.add(generation, request, id=head.id, kind=TEXT, model=head.model)
        await generation.submit(text.tokenizer, requests, options, body.num_best)
        reply = CompletionReply(body, head, text, generation, echoes, shape)
        return await reply.send(
            request,
            stream=body.stream,
            heartbeat_s=settings.heartbeat_interval_s,
            headers=headers,
        )


async def _token_ids(body: CompletionRequest, text: ModelText, info: ModelInfo) -> list[list[int]]:
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    if not texts:
        return [prompt for prompt in body.prompt if isinstance(prompt, list)]
    return await text.encode_all(
        texts,
        add_special_tokens=body.add_special_tokens is not False,
        limit=prompt_limit(body, info),
    )


async def _negative_ids(
    body: CompletionRequest, text: ModelText, info: ModelInfo
) -> list[int] | None:
    if body.negative_prompt is None:
        return None
    (ids,) = await text.encode_all(
        [body.negative_prompt],
        add_special_tokens=body.add_special_tokens is not False,
        limit=counting_limit(info, "negative_prompt"),
    )
    return ids


async def _echoes(
    body: CompletionRequest,
    text: ModelText,
    prompts: Sequence[list[int]],
    requests: Sequence[GenerateRequest],
) -> list[str]:
    """Each prompt's text: as it was sent, or from its remaining token ids."""
    if not body.echo:
        return [""] * len(requests)
    echoes = []
    for given, ids, request in zip(body.prompt, prompts, requests, strict=True):
        if isinstance(given, str) and len(ids) == len(request.prompt_token_ids):
            echoes.append(given)
        else:
            skip = body.skip_special_tokens is not False
            echoes.append(await text.decode(request.prompt_token_ids, skip_special_tokens=skip))
    return echoes
