"""Tries a model's text side as a first request would use it, before the model counts as ready."""

from typing import Any

from engine.errors import EngineError, ModelLoadError
from server.text.texts import ModelText, TextRegistry

_HELLO = "Hello"
_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": _HELLO}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": _HELLO}],
)
"""Two conversations, of which one must work: some templates require a system message."""


async def check_text(texts: TextRegistry, path: str) -> int:
    """Load a model's text side and try it; one that does not work is not kept.

    Args:
        path: the checkpoint's path.

    Returns:
        The highest token id in the prompt.

    Raises:
        ModelLoadError: prompts for this model cannot be made.
    """
    text = await texts.load(path)
    try:
        return await try_out(text)
    except ModelLoadError:
        texts.discard(path, text)
        raise


async def try_out(text: ModelText) -> int:
    """Make a prompt of a greeting and read it back.

    Returns:
        The highest token id in it, which the model must know.

    Raises:
        ModelLoadError: it cannot be done; the message says what to repair.
    """
    token_ids = await _prompt(text)
    if not token_ids:
        raise ModelLoadError(
            "the tokenizer turns a greeting into no tokens: its vocabulary is empty or damaged; "
            "fetch the tokenizer's files again"
        )
    try:
        await text.decode(token_ids, skip_special_tokens=False)
    except EngineError as error:
        raise ModelLoadError(
            f"the tokenizer cannot turn its own tokens into text: {error.message}; fetch the "
            f"tokenizer's files again"
        ) from error
    return max(token_ids)


async def _prompt(text: ModelText) -> list[int]:
    """Token ids of a conversation, or of plain text if there is no chat template."""
    if not text.has_chat_template:
        [token_ids] = await text.encode_all([_HELLO], add_special_tokens=True)
        return token_ids
    problems: list[EngineError] = []
    for conversation in _CONVERSATIONS:
        try:
            return await text.encode_chat(conversation, {}, add_special_tokens=False)
        except EngineError as error:
            problems.append(error)
    raise ModelLoadError(
        f"the chat template cannot turn even a greeting into a prompt: {problems[0].message}; "
        "repair the checkpoint's chat template, or remove it to serve /v1/completions only"
    ) from problems[0]
