"""Log-probabilities as JSON: OpenAI's chat form, its older completion form, and vLLM's."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from engine.contract.generate import TokenLogprob
from engine.text.detokenizer import IncrementalDetokenizer
from server.http.turns import in_turns
from server.protocol.answers import PromptLogprob, PromptLogprobs
from server.protocol.chat import ChatLogprobs, TokenLogprobEntry, TopLogprob
from server.protocol.completions import CompletionLogprobs
from server.text.texts import ModelText

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON lacks; OpenAI writes it for impossible tokens."""

TokenNames = Callable[[int], str]


def token_names(text: ModelText, *, as_ids: bool | None) -> TokenNames:
    """Returns how tokens are written: as their text or as `token_id:<id>`."""
    return (lambda token_id: f"token_id:{token_id}") if as_ids else text.token_text


def chat_logprobs(
    entries: Sequence[TokenLogprob], names: TokenNames, text: ModelText, num_top: int
) -> ChatLogprobs:
    """OpenAI's `choice.logprobs` of a chat."""
    return ChatLogprobs(content=[_chat_entry(entry, names, text, num_top) for entry in entries])


def written_chat_logprobs(
    entries: Iterable[TokenLogprob], names: TokenNames, text: ModelText, num_top: int
) -> list[Any]:
    """The entries of `ChatLogprobs` as JSON."""
    return [_written(_chat_entry(entry, names, text, num_top)) for entry in entries]


def _chat_entry(
    entry: TokenLogprob, names: TokenNames, text: ModelText, num_top: int
) -> TokenLogprobEntry:
    return TokenLogprobEntry(
        token=names(entry.token_id),
        logprob=_finite(entry.logprob),
        bytes=text.token_bytes(entry.token_id),
        top_logprobs=[
            TopLogprob(names(token_id), _finite(logprob), text.token_bytes(token_id))
            for token_id, logprob in _top(entry, num_top)
        ],
    )


def completion_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob],
    offsets: Sequence[int],
    names: TokenNames,
    num_top: int,
) -> CompletionLogprobs:
    """OpenAI's older form of a completion's log-probabilities."""
    return CompletionLogprobs(
        tokens=[names(token_id) for token_id in token_ids],
        token_logprobs=[_finite(entry.logprob) for entry in entries],
        top_logprobs=[_named_top(entry, names, num_top) for entry in entries],
        text_offset=list(offsets),
    )


def extend_completion_logprobs(first: CompletionLogprobs, more: CompletionLogprobs) -> None:
    """Append log-probabilities to others."""
    first.tokens += more.tokens
    first.token_logprobs += more.token_logprobs
    first.top_logprobs += more.top_logprobs
    first.text_offset += more.text_offset


def join_completion_logprobs(
    first: CompletionLogprobs, more: CompletionLogprobs
) -> CompletionLogprobs:
    """New log-probabilities, in which `more` follows `first`."""
    joined = CompletionLogprobs([], [], [], [])
    extend_completion_logprobs(joined, first)
    extend_completion_logprobs(joined, more)
    return joined


async def prompt_logprobs(
    entries: Sequence[TokenLogprob | None], names: TokenNames, num_top: int
) -> PromptLogprobs:
    """vLLM's `prompt_logprobs`: the best candidates and the token itself, by token id."""
    return await in_turns(
        lambda e: None if e is None else _written(_prompt_candidates(e, names, num_top)), entries
    )


async def echoed_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    text: ModelText,
    names: TokenNames,
    num_top: int,
    *,
    skip_special_tokens: bool,
) -> CompletionLogprobs:
    """The prompt's part of `completion_logprobs`."""
    offsets = await _prompt_offsets(text, token_ids, skip_special_tokens=skip_special_tokens)
    top = await in_turns(
        lambda e: None if e is None else _written(_named_top(e, names, num_top)), entries
    )
    logprobs = [None if e is None else _finite(e.logprob) for e in entries]
    return CompletionLogprobs(
        tokens=[names(token_id) for token_id in token_ids],
        token_logprobs=logprobs,
        top_logprobs=top,
        text_offset=offsets,
    )


async def _prompt_offsets(
    text: ModelText, token_ids: Sequence[int], *, skip_special_tokens: bool
) -> list[int]:
    """Characters of the prompt's text before each of its tokens."""
    detokenizer = IncrementalDetokenizer(text.tokenizer, skip_special_tokens=skip_special_tokens)
    lengths = await in_turns(lambda token_id: len(detokenizer.add((token_id,))), token_ids)
    return list(accumulate(lengths[:-1], initial=0))


def _written(entry: Any) -> Any:
    """The entry as JSON, written at once: it need not be kept as objects, nor be written with all
    others at the end."""
    return msgspec.Raw(msgspec.json.encode(entry))


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def _top(entry: TokenLogprob, num_top: int) -> list[tuple[int, float]]:
    """The best candidates. The engine may hold more of them than this request asked for."""
    return list(zip(entry.top_ids[:num_top], entry.top_logprobs[:num_top], strict=True))


def _named_top(entry: TokenLogprob, names: TokenNames, num_top: int) -> dict[str, float]:
    """The likeliest tokens first; the chosen token is always included. Tokens that look alike
    (parts of characters) share a key, which keeps the highest value."""
    top: dict[str, float] = {}
    for token_id, logprob in [*_top(entry, num_top), (entry.token_id, entry.logprob)]:
        top.setdefault(names(token_id), _finite(logprob))
    return top


def _prompt_candidates(
    entry: TokenLogprob, names: TokenNames, num_top: int
) -> dict[int, PromptLogprob]:
    candidates = {
        entry.token_id: PromptLogprob(_finite(entry.logprob), entry.rank, names(entry.token_id))
    }
    for rank, (token_id, logprob) in enumerate(_top(entry, num_top), start=1):
        candidates.setdefault(token_id, PromptLogprob(_finite(logprob), rank, names(token_id)))
    return candidates
