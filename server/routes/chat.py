"""`POST /v1/chat/completions`, and the token count of a conversation."""

from typing import Any

from fastapi import APIRouter, Request, Response

from engine.contract.generate import ModelInfo
from engine.contract.kinds import TEXT
from engine.text.chat_format import ChatFormat
from server.catalog import config_of, find_model
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.shape import Shape, encode
from server.http.sse import until_disconnect
from server.protocol.answers import InputTokens, StoredList, error_answers, stream_answer
from server.protocol.chat import ChatCompletion, ChatCompletionRequest, ChatMessage
from server.protocol.common import RequestBody
from server.routes.deps import StateDep
from server.routes.ignored_fields import report_ignored_fields
from server.routes.semantic_entropy import semantic_judge
from server.state import AppState
from server.text.answer_format import AnswerFormat
from server.text.answer_structure import answer_structure
from server.text.chat_prompt import ChatPrompt, chat_prompt
from server.text.chat_reply import ChatReply
from server.text.convert import chat_request, check_width, prompt_limit, text_options
from server.text.generation import Generation
from server.text.kind import SERVED_TEXT
from server.text.prompt_limit import PromptLimit, counting_limit
from server.text.reply import ReplyHead
from server.text.sampler_tokens import find_tokens
from server.text.texts import ModelText

router = APIRouter(route_class=JsonRoute, tags=["text"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: stream_answer(ChatCompletion, "`chat.completion.chunk`"),
    **error_answers(),
}


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=_RESPONSES)
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, state: StateDep
) -> Response:
    """Answers whole, or with server-sent events if `stream` is set."""
    return await answer_chat(body, request, state)


@router.get("/v1/chat/completions", summary="List stored answers", responses=error_answers(401))
async def list_chat_completions() -> StoredList:
    """The list is always empty: `store` has no effect here. `/v1/responses` stores responses."""
    return StoredList()


async def answer_chat(
    body: ChatCompletionRequest,
    request: Request,
    state: AppState,
    *,
    sent: RequestBody | None = None,
    shape: Shape | None = None,
) -> Response:
    """Admit, convert, submit and reply, for OpenAI's API and for dialects.

    Args:
        sent: what the client sent, if `body` was made from it.
        shape: form of the reply. Default: OpenAI's.

    Raises:
        EngineError: the request is refused, or fails before the first byte.
    """
    headers = report_ignored_fields(request, sent or body)
    reply = await start_chat(body, request, state, shape)
    return await reply.send(
        request,
        stream=body.stream,
        heartbeat_s=state.settings.heartbeat_interval_s,
        headers=headers,
    )


@router.post(
    "/v1/chat/completions/input_tokens",
    summary="Count a conversation's tokens",
    responses={200: {"model": InputTokens}, **error_answers()},
)
async def count_chat_tokens(
    body: ChatCompletionRequest, request: Request, state: StateDep
) -> Response:
    """Counts the tokens of the conversation as the model's chat template writes it."""
    return await answer_with_count(body, request, state)


async def answer_with_count(
    body: ChatCompletionRequest,
    request: Request,
    state: AppState,
    *,
    sent: RequestBody | None = None,
) -> Response:
    """The number of tokens in a chat's prompt, which may be more than the model takes.

    Args:
        sent: what the client sent, if `body` was made from it.

    Raises:
        EngineError: the request is refused.
    """
    headers = report_ignored_fields(request, sent or body)
    info = find_model(state.engine, body.model)
    text = await state.texts.get(info)
    rendered = chat_prompt(
        body, body.messages, text.chat_format(config_of(state.engine, info.model))
    )
    encoding = _encode(body, rendered, text, counting_limit(info, body.prompt_field))
    counted = InputTokens(input_tokens=len(await until_disconnect(request.receive, encoding)))
    return Response(encode(counted), media_type="application/json", headers=headers)


async def _negative_ids(
    body: ChatCompletionRequest, text: ModelText, chat_format: ChatFormat, info: ModelInfo
) -> list[int] | None:
    """Token ids of the conversation with the negative prompt as its system message."""
    if body.negative_prompt is None:
        return None
    others = [one for one in body.messages if one.role not in ("system", "developer")]
    instead = ChatMessage.model_validate({"role": "system", "content": body.negative_prompt})
    rendered = chat_prompt(body, [instead, *others], chat_format)
    return await _encode(body, rendered, text, counting_limit(info, "negative_prompt"))


async def _encode(
    body: ChatCompletionRequest, rendered: ChatPrompt, text: ModelText, limit: PromptLimit
) -> list[int]:
    return await text.encode_chat(
        rendered.messages,
        rendered.options,
        add_special_tokens=bool(body.add_special_tokens),
        limit=limit,
    )


async def start_chat(
    body: ChatCompletionRequest, request: Request, state: AppState, shape: Shape | None = None
) -> ChatReply:
    """The reply to a conversation that the engine has. The caller must send or close it.

    Raises:
        EngineError: as in `answer_chat`; nothing is left to close.
    """
    settings = state.settings
    info = find_model(state.engine, body.model)
    annotate(request, model=info.name, stream=bool(body.stream))
    config = config_of(state.engine, info.model)
    priority = acting_priority(body.priority, config)
    check_width(body, config)
    judge = semantic_judge(body, state)
    lease = state.admission.admit(TEXT, info.model, body.num_places)
    async with Generation(state.engine, state.metrics.of(SERVED_TEXT), lease) as generation:
        text = await state.texts.get(info)
        chat_format = text.chat_format(config)
        rendered = chat_prompt(body, body.messages, chat_format)
        if settings.log_prompts:
            annotate(request, messages=rendered.messages)
        encoding = _encode(body, rendered, text, prompt_limit(body, info))
        prompt = await until_disconnect(request.receive, encoding)
        head = ReplyHead.create("chatcmpl", info)
        answers = AnswerFormat.of(body, chat_format, text.end_of(prompt))
        engine_request = chat_request(
            body,
            info,
            prompt,
            request_id=head.id,
            priority=priority,
            tokens=await find_tokens(body, text),
            structure=answer_structure(body, answers),
            negative=await _negative_ids(body, text, chat_format, info),
        )
        options = text_options(
            body,
            offsets=answers.reasoning is not None,  # reasoning tokens are counted by them
            keep_text=settings.log_prompts,
            kept_special_tokens=text.special_ids(answers.special_texts()),
        )
        state.live_requests.add(generation, request, id=head.id, kind=TEXT, model=head.model)
        await generation.submit(text.tokenizer, [engine_request], options, body.num_best)
        return ChatReply(body, head, text, generation, answers, shape, judge)
