"""Answering a conversation, and counting its tokens."""

from collections.abc import Sequence
from dataclasses import replace

from fastapi import Response

from engine.contract.generate import GenerateRequest, ModelInfo, Pin
from engine.contract.operations import GENERATE
from engine.errors import InvalidParameter
from engine.text.chat_format import ChatFormat
from server.http.engine_run import new_id
from server.http.shape import encode
from server.http.sse import until_disconnect
from server.operations.chat_pictures import ChatPictures
from server.operations.exchange import Exchange
from server.operations.ignored_fields import report_ignored_fields
from server.operations.semantic_entropy import semantic_judge
from server.operations.tokenize import chat_token_ids
from server.protocol.answers import InputTokens, RenderedPrompt
from server.protocol.chat import ChatCompletionRequest, ChatMessage
from server.state import ClientRequest
from server.text.answer_format import AnswerFormat
from server.text.answer_structure import answer_structure
from server.text.cache_marks import CacheMark
from server.text.chat_prompt import ChatPrompt, chat_prompt
from server.text.chat_reply import ChatReply
from server.text.convert import (
    chat_request,
    check_width,
    kept_prompt,
    prompt_limit,
    text_options,
)
from server.text.generation import Generation
from server.text.metrics import TextMetrics
from server.text.picture_rows import PictureRows
from server.text.prompt_limit import PromptLimit, counting_limit
from server.text.reply import ReplyHead
from server.text.sampler_tokens import find_tokens
from server.text.served import SERVED_TEXT
from server.text.texts import ModelText


async def answer_chat(
    body: ChatCompletionRequest,
    client: ClientRequest,
    marks: Sequence[CacheMark] = (),
) -> Response:
    """Answer a conversation, whole or as a stream.

    Args:
        marks: places up to which it stays cached.

    Raises:
        EngineError: the request is refused, or fails before the first byte.
    """
    exchange = await Exchange.begin(SERVED_TEXT, body, client)
    return await exchange.send(await start_chat(exchange, body, marks))


async def start_chat(
    exchange: Exchange[ModelInfo, TextMetrics],
    body: ChatCompletionRequest,
    marks: Sequence[CacheMark] = (),
) -> ChatReply:
    """The reply to a conversation that the engine has. The caller must send or close it.

    Raises:
        EngineError: as in `answer_chat`; nothing is left to close.
    """
    state, info = exchange.state, exchange.info
    check_width(body, exchange.config)
    judge = await semantic_judge(body, state)
    pictures = ChatPictures(body.messages, info, state, body.prompt_field)
    if pictures.urls:
        _check_combinable(body)
    id = new_id("chatcmpl")
    generation = exchange.admit(
        body.num_places, lambda lease: Generation(id, state.engine, exchange.metrics, lease)
    )
    async with generation:
        text = await state.texts.get(info)
        chat_format = text.chat_format(exchange.config)
        receive = exchange.request.receive
        if pictures.urls:
            await until_disconnect(receive, generation.perform(pictures.open()))
        rendered = chat_prompt(body, body.messages, chat_format, pictures.marker)
        exchange.log_prompts(messages=rendered.messages)
        encoding = _encode(body, rendered, text, prompt_limit(body, info), pictures.rows)
        prompt = await until_disconnect(receive, encoding)
        head = ReplyHead.create(id, info)
        answers = AnswerFormat.of(body, chat_format, text.end_of(prompt))
        engine_request = chat_request(
            body,
            info,
            prompt,
            request_id=id,
            priority=exchange.priority,
            tokens=await find_tokens(body, text),
            structure=answer_structure(body, answers),
            negative=await _negative_ids(body, text, chat_format, info, pictures.rows),
            states=pictures.rows.states(prompt) if pictures.rows else (),
        )
        if marks:
            finding = _pins(marks, engine_request, text, chat_format, info, pictures)
            pins = await until_disconnect(receive, finding)
            engine_request = replace(engine_request, pins=(*engine_request.pins, *pins))
        if engine_request.states:
            decoding = pictures.decode(engine_request.states, generation, exchange.priority)
            states = await until_disconnect(receive, generation.perform(decoding))
            engine_request = replace(engine_request, states=states)
        options = text_options(
            body,
            offsets=answers.reasoning is not None,  # reasoning tokens are counted by them
            keep_text=state.settings.log_prompts,
            kept_special_tokens=text.special_ids(answers.special_texts()),
        )
        await generation.submit(text.tokenizer, [engine_request], options, body.num_best)
        generation.let_go()  # of the memory for pictures, which the engine has now
        return ChatReply(body, head, text, generation, answers, exchange.shape, judge)


async def answer_with_count(
    body: ChatCompletionRequest,
    client: ClientRequest,
) -> Response:
    """The number of tokens in a chat's prompt, which may be more than the model takes.

    Raises:
        EngineError: the request is refused.
    """
    headers = report_ignored_fields(client.request, client.sent or body)
    info = await client.find(GENERATE, body.model)
    tokens = await _token_ids(body, client, info, counting_limit(info, body.prompt_field))
    counted = InputTokens(input_tokens=len(tokens))
    return Response(encode(counted), media_type="application/json", headers=headers)


async def answer_with_prompt(body: ChatCompletionRequest, client: ClientRequest) -> Response:
    """The tokens of a chat's prompt, as `answer_chat` gives them to the model.

    Raises:
        EngineError: the request is refused, or the prompt is too long.
    """
    headers = report_ignored_fields(client.request, body)
    info = await client.find(GENERATE, body.model)
    tokens = await _token_ids(body, client, info, prompt_limit(body, info))
    tokens = kept_prompt(body, info, tokens)
    rendered = RenderedPrompt(request_id=new_id("chatcmpl"), model=info.name, token_ids=tokens)
    return Response(encode(rendered), media_type="application/json", headers=headers)


async def _token_ids(
    body: ChatCompletionRequest, client: ClientRequest, info: ModelInfo, limit: PromptLimit
) -> list[int]:
    text = await client.state.texts.get(info)
    adds = bool(body.add_special_tokens)
    encoding = chat_token_ids(body, body.messages, client.state, info, text, limit, adds)
    return await until_disconnect(client.request.receive, encoding)


async def _pins(
    marks: Sequence[CacheMark],
    request: GenerateRequest,
    text: ModelText,
    chat_format: ChatFormat,
    info: ModelInfo,
    pictures: ChatPictures,
) -> list[Pin]:
    """Find the marks among the tokens of a request."""
    pins = []
    for mark in marks:
        rendered = chat_prompt(mark.marked, mark.marked.messages, chat_format, pictures.marker)
        limit = counting_limit(info, mark.marked.prompt_field)
        tokens = await _encode(mark.marked, rendered, text, limit, pictures.rows)
        pins.append(mark.find(request.prompt_token_ids, tokens))
    return pins


async def _negative_ids(
    body: ChatCompletionRequest,
    text: ModelText,
    chat_format: ChatFormat,
    info: ModelInfo,
    pictures: PictureRows | None,
) -> list[int] | None:
    """Token ids of the conversation with the negative prompt as its system message."""
    if body.negative_prompt is None:
        return None
    others = [one for one in body.messages if one.role not in ("system", "developer")]
    instead = ChatMessage.model_validate({"role": "system", "content": body.negative_prompt})
    rendered = chat_prompt(body, [instead, *others], chat_format)
    rows = pictures and replace(pictures, param="negative_prompt")
    return await _encode(body, rendered, text, counting_limit(info, "negative_prompt"), rows)


def _check_combinable(body: ChatCompletionRequest) -> None:
    """Refuse what cannot be combined with pictures.

    Raises:
        InvalidParameter: names the field.
    """
    for name in ("negative_prompt", "truncate_prompt_tokens"):
        if getattr(body, name) is not None:
            raise InvalidParameter(
                f"{name} cannot be combined with images; leave it out", param=name
            )


async def _encode(
    body: ChatCompletionRequest,
    rendered: ChatPrompt,
    text: ModelText,
    limit: PromptLimit,
    pictures: PictureRows | None,
) -> list[int]:
    return await text.encode_chat(
        rendered.messages,
        rendered.options,
        add_special_tokens=bool(body.add_special_tokens),
        limit=limit,
        pictures=pictures,
    )
