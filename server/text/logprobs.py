"""Log-probabilities on the wire: OpenAI's chat shape, its older completion shape, and vLLM's."""

from collections.abc import Callable, Sequence

from engine.text.detokenizer import IncrementalDetokenizer
from engine.types import TokenLogprob
from server.protocol.answers import PromptLogprob, PromptLogprobs
from server.protocol.chat import ChatLogprobs, TokenLogprobEntry, TopLogprob
from server.protocol.completions import CompletionLogprobs
from server.text.texts import ModelText

LOWEST_LOGPROB = -9999.0
"""JSON has no infinity; OpenAI writes this for what cannot happen."""

TokenNames = Callable[[int], str]


def token_names(text: ModelText, *, as_ids: bool | None) -> TokenNames:
    """How tokens are written: by their text or as `token_id:<id>`."""
    return (lambda token_id: f"token_id:{token_id}") if as_ids else text.token_text


def chat_logprobs(
    entries: Sequence[TokenLogprob], names: TokenNames, text: ModelText, num_top: int
) -> ChatLogprobs:
    """OpenAI's `choice.logprobs` of a chat."""
    return ChatLogprobs(
        content=[
            TokenLogprobEntry(
                token=names(entry.token_id),
                logprob=_finite(entry.logprob),
                bytes=text.token_bytes(entry.token_id),
                top_logprobs=[
                    TopLogprob(names(token_id), _finite(logprob), text.token_bytes(token_id))
                    for token_id, logprob in _top(entry, num_top)
                ],
            )
            for entry in entries
        ]
    )


def completion_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    offsets: Sequence[int],
    names: TokenNames,
    num_top: int,
) -> CompletionLogprobs:
    """OpenAI's older shape. An entry is None for a prompt's first token, which nothing precedes."""
    return CompletionLogprobs(
        tokens=[names(token_id) for token_id in token_ids],
        token_logprobs=[None if e is None else _finite(e.logprob) for e in entries],
        top_logprobs=[None if e is None else _named_top(e, names, num_top) for e in entries],
        text_offset=list(offsets),
    )


def join_completion_logprobs(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """Prompt and output, or the parts of a stream, as one."""
    return CompletionLogprobs(
        tokens=[x for part in parts for x in part.tokens],
        token_logprobs=[x for part in parts for x in part.token_logprobs],
        top_logprobs=[x for part in parts for x in part.top_logprobs],
        text_offset=[x for part in parts for x in part.text_offset],
    )


def prompt_logprobs(
    entries: Sequence[TokenLogprob | None], names: TokenNames, num_top: int
) -> PromptLogprobs:
    """vLLM's `prompt_logprobs`: the best candidates and the token itself, by token id."""
    return [None if e is None else _prompt_candidates(e, names, num_top) for e in entries]


def prompt_offsets(
    text: ModelText, token_ids: Sequence[int], *, skip_special_tokens: bool
) -> list[int]:
    """Characters of the prompt's text before each of its tokens."""
    detokenizer = IncrementalDetokenizer(text.tokenizer, skip_special_tokens=skip_special_tokens)
    offsets, num_chars = [], 0
    for token_id in token_ids:
        offsets.append(num_chars)
        num_chars += len(detokenizer.add((token_id,)))
    return offsets


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def _top(entry: TokenLogprob, num_top: int) -> list[tuple[int, float]]:
    """The engine may hold more candidates than this shape was asked for."""
    return list(zip(entry.top_ids[:num_top], entry.top_logprobs[:num_top], strict=True))


def _named_top(entry: TokenLogprob, names: TokenNames, num_top: int) -> dict[str, float]:
    """The likeliest first; the chosen token is always there. Tokens that look alike (parts of
    characters) share a key, which keeps the highest value."""
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
