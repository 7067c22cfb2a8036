"""Continuing texts without a template."""

from collections.abc import Sequence

from fastapi import Response

from engine.contract.generate import GenerateRequest, ModelInfo
from engine.contract.operations import GENERATE
from server.http.engine_run import new_id
from server.http.shape import encode
from server.http.sse import until_disconnect
from server.operations.exchange import Exchange
from server.operations.ignored_fields import report_ignored_fields
from server.protocol.answers import RenderedPrompt
from server.protocol.completions import CompletionRequest
from server.state import ClientRequest
from server.text.completion_reply import CompletionReply
from server.text.convert import check_width, completion_requests, prompt_limit, text_options
from server.text.generation import Generation
from server.text.prompt_limit import counting_limit
from server.text.reply import ReplyHead
from server.text.sampler_tokens import find_tokens
from server.text.served import SERVED_TEXT
from server.text.texts import ModelText


async def answer_completion(
    body: CompletionRequest,
    client: ClientRequest,
) -> Response:
    """Like `server.operations.chat.answer_chat`, for text without a template."""
    exchange = await Exchange.begin(SERVED_TEXT, body, client)
    state, info = exchange.state, exchange.info
    exchange.log_prompts(prompts=body.prompt)
    check_width(body, exchange.config)
    id = new_id("cmpl")
    num_at_once = max(1, min(len(body.prompt), exchange.share // body.num_places))
    generation = exchange.admit(
        num_at_once * body.num_places,
        lambda lease: Generation(id, state.engine, exchange.metrics, lease, num_at_once),
    )
    async with generation:
        text = await state.texts.get(info)
        prompts, requests = await _prompts_and_requests(
            body, client, text, info, request_id=id, priority=exchange.priority
        )
        head = ReplyHead.create(id, info)
        echoes = await _echoes(body, text, prompts, requests)
        options = text_options(
            body, offsets=body.logprobs is not None, keep_text=state.settings.log_prompts
        )
        await generation.submit(text.tokenizer, requests, options, body.num_best)
        reply = CompletionReply(body, head, text, generation, echoes, client.shape)
        return await exchange.send(reply)


async def answer_with_prompts(body: CompletionRequest, client: ClientRequest) -> Response:
    """The tokens of each prompt, as `answer_completion` gives them to the model.

    Raises:
        EngineError: the request is refused, or a prompt is too long.
    """
    headers = report_ignored_fields(client.request, body)
    info = await client.find(GENERATE, body.model)
    text = await client.state.texts.get(info)
    _, requests = await _prompts_and_requests(body, client, text, info, request_id=new_id("cmpl"))
    rendered = [
        RenderedPrompt(
            request_id=request.request_id, model=info.name, token_ids=request.prompt_token_ids
        )
        for request in requests
    ]
    return Response(encode(rendered), media_type="application/json", headers=headers)


async def _prompts_and_requests(
    body: CompletionRequest,
    client: ClientRequest,
    text: ModelText,
    info: ModelInfo,
    *,
    request_id: str,
    priority: int = 0,
) -> tuple[list[list[int]], list[GenerateRequest]]:
    """The tokens of each prompt, and the engine's request for it."""
    prompts = await until_disconnect(client.request.receive, _token_ids(body, text, info))
    requests = await completion_requests(
        body,
        info,
        prompts,
        request_id=request_id,
        priority=priority,
        tokens=await find_tokens(body, text),
        negative=await _negative_ids(body, text, info),
    )
    return prompts, requests


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
