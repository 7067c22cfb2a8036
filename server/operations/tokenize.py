"""Token ids of what a client sends, for every route that needs no more."""

from fastapi import Request

from engine.contract.generate import ModelInfo
from engine.contract.operations import GENERATE
from engine.errors import InvalidParameter
from server.catalog import config_of
from server.http.sse import until_disconnect
from server.operations.chat_pictures import ChatPictures
from server.protocol.chat import ChatMessage, ChatTemplateOptions
from server.protocol.tokenize import TokenizeRequest
from server.state import AppState
from server.text.chat_prompt import chat_prompt
from server.text.prompt_limit import PromptLimit, counting_limit
from server.text.texts import ModelText


async def token_ids(body: TokenizeRequest, request: Request, state: AppState) -> list[int]:
    """Token ids of a prompt or a conversation, for other routes.

    Raises:
        EngineError: the text is refused, or too long.
    """
    info = await until_disconnect(request.receive, state.first_use.find(GENERATE, body.model))
    if isinstance(body.text, list):
        raise InvalidParameter("prompt must be a single text here; send one string", param="prompt")
    encoding = all_token_ids(body, state, info, await state.texts.get(info))
    [tokens] = await until_disconnect(request.receive, encoding)
    return tokens


async def chat_token_ids(
    body: ChatTemplateOptions,
    messages: list[ChatMessage],
    state: AppState,
    info: ModelInfo,
    text: ModelText,
    limit: PromptLimit,
    adds_special_tokens: bool,
) -> list[int]:
    """Token ids of a conversation, whose pictures are not decoded.

    Raises:
        EngineError: it is refused, or too long.
    """
    pictures = ChatPictures(messages, info, state, limit.param)
    await pictures.open()
    chat_format = text.chat_format(config_of(state.engine, info.model))
    rendered = chat_prompt(body, messages, chat_format, pictures.marker)
    return await text.encode_chat(
        rendered.messages,
        rendered.options,
        add_special_tokens=adds_special_tokens,
        limit=limit,
        pictures=pictures.rows,
    )


async def all_token_ids(
    body: TokenizeRequest, state: AppState, info: ModelInfo, text: ModelText
) -> list[list[int]]:
    """Token ids of a prompt or a conversation, or of each of several prompts.

    Raises:
        EngineError: a text is refused, or too long.
    """
    if body.messages is not None:
        adds = body.adds_special_tokens
        limit = counting_limit(info, "messages")
        return [await chat_token_ids(body, body.messages, state, info, text, limit, adds)]
    texts = body.text or ""
    return await text.encode_all(
        [texts] if isinstance(texts, str) else texts,
        add_special_tokens=body.adds_special_tokens,
        limit=counting_limit(info),
    )
