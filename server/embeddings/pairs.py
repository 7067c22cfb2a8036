"""Puts the two texts of each pair together, as a reranker reads them."""

from dataclasses import dataclass

from engine.contract.score import RerankerInfo
from engine.errors import ContextLengthExceeded
from engine.text.tokenizer import Tokenizer
from server.embeddings.convert import check_room, limit_of
from server.embeddings.inputs import Inputs
from server.embeddings.scores import pair_indices
from server.http.turns import in_turns
from server.text.texts import ModelText

_SYSTEM = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""Qwen3-Reranker's prompt and its default instruction, as its makers document them."""

Pair = tuple[list[int], int]
"""The token ids of a pair, and how many of the first of them have the first token type."""


@dataclass(frozen=True, slots=True)
class PairForm:
    """The tokens around the two texts of a pair."""

    before: list[int]
    between: list[int]
    after: list[int]
    num_typed: int | None = None
    """How many tokens of `between` have the first text's token type; None: all tokens have one
    type."""
    cuts_longer: bool = True
    """Whether the longer text of a pair that is too long is cut first, as tokenizers do; otherwise
    the end is cut."""

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def pair(self, first: list[int], second: list[int]) -> Pair:
        """Put two texts together."""
        ids = [*self.before, *first, *self.between, *second, *self.after]
        if self.num_typed is None:
            return ids, len(ids)
        return ids, len(self.before) + len(first) + self.num_typed

    def cut(self, first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
        """Cut two texts to `room` tokens together."""
        if len(first) + len(second) <= room:
            return first, second
        num_first = min(len(first), room)
        if self.cuts_longer and len(first) > len(second):
            num_first = room - min(len(second), room // 2)
        elif self.cuts_longer:
            num_first = min(len(first), room // 2)
        return first[:num_first], second[: room - num_first]


async def pair_ids(
    inputs: Inputs,
    num_first: int,
    info: RerankerInfo,
    text: ModelText,
    keep: int | None,
    instruction: str | None,
) -> list[Pair]:
    """Tokenise the texts, each once, and put each pair together.

    Args:
        num_first: how many of the inputs are first texts.
        keep: number of tokens to keep of each pair; -1 keeps as many as the model takes, None all.

    Raises:
        ContextLengthExceeded: a pair has more tokens than the model takes; the message names it.
        InvalidParameter: all pairs together have too many tokens.
        QueueFull: too many long texts are being tokenised.
    """
    keep = info.max_model_len if keep == -1 else keep
    texts = [str(given) for given in inputs]
    form = (_prompt_form if info.has_prompt else _tokenizer_form)(text.tokenizer)
    if info.has_prompt:
        # A token may begin with the space, and none ends with the colon and the space.
        head = f"<Instruct>: {instruction or _INSTRUCTION}\n<Query>: "
        firsts = [f"{head}{one}\n<Document>:" for one in texts[:num_first]]
        texts = [*firsts, *(f" {one}" for one in texts[num_first:])]
    check_room(keep, form.num_tokens, "the model's form of a pair")
    # More than is kept, as the cut depends on which text of a pair is longer.
    limit = limit_of(inputs, info, None if keep is None else 2 * info.max_model_len)
    ids_of = await text.encode_all(texts, add_special_tokens=False, limit=limit)
    room = (keep or info.max_model_len) - form.num_tokens
    num_tokens = 0

    def put_together(indices: tuple[int, int]) -> Pair:
        nonlocal num_tokens
        first, second = (ids_of[index] for index in indices)
        if keep is not None:
            first, second = form.cut(first, second, room)
        elif len(first) + len(second) > room:
            raise _too_long(inputs, indices, len(first) + len(second) + form.num_tokens, info)
        num_tokens += len(first) + len(second) + form.num_tokens
        if num_tokens > limit.max_total_tokens:
            raise limit.total_exceeded(num_tokens)
        return form.pair(first, second)

    return await in_turns(put_together, pair_indices(num_first, len(texts)))


def _tokenizer_form(tokenizer: Tokenizer) -> PairForm:
    """What the tokenizer puts around two texts."""
    encoding = tokenizer.raw.encode("a", "b")
    ids, texts, types = encoding.ids, encoding.sequence_ids, encoding.type_ids
    first, second = texts.index(0), texts.index(1)
    first_end, second_end = first + texts.count(0), second + texts.count(1)
    return PairForm(
        before=ids[:first],
        between=ids[first_end:second],
        after=ids[second_end:],
        num_typed=types[first_end:second].count(0) if any(types) else None,
    )


def _prompt_form(tokenizer: Tokenizer) -> PairForm:
    """What Qwen3-Reranker's prompt puts around the query and the document with their titles."""
    before, after = (
        tokenizer.encode(part, add_special_tokens=False) for part in (_SYSTEM, _ANSWER)
    )
    return PairForm(before, [], after, cuts_longer=False)


def _too_long(
    inputs: Inputs, indices: tuple[int, int], num_tokens: int, info: RerankerInfo
) -> ContextLengthExceeded:
    first, second = map(inputs.name, indices)
    however = (
        f"{first} and {second} have {num_tokens} tokens together, with those around them. Please "
        "send shorter texts."
    )
    return ContextLengthExceeded.beyond(info.max_model_len, however, param=inputs.field(indices[1]))
