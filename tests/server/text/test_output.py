"""A completion's text is the same however its tokens arrive; stop strings never leak."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.contract.generate import TokenEvent, TokenLogprob
from engine.contract.request import FinishReason
from engine.text.tokenizer import Tokenizer, load_tokenizer
from server.text.output import ChoiceOutput, Delta, TextOptions
from tests.helpers.server.text_server import BOS, EOS


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def play(
    tokenizer: Tokenizer,
    token_ids: Sequence[int],
    options: TextOptions | None = None,
    *,
    sizes: Sequence[int] = (),
    reason: FinishReason = FinishReason.LENGTH,
    stop_token_id: int | None = None,
) -> tuple[ChoiceOutput, list[Delta]]:
    """Feed tokens in events of the given sizes (then one each); stops where the choice does."""
    choice = ChoiceOutput(0, tokenizer, (), options or TextOptions())
    rest, deltas, sizes = list(token_ids), [], list(sizes)
    while choice.finish_reason is None:
        size = sizes.pop(0) if sizes else 1
        ids, rest = rest[:size], rest[size:]
        event = TokenEvent(
            request_id="r",
            token_ids=ids,
            logprobs=[TokenLogprob(i, -1.0, 1, [], []) for i in ids],
            finish_reason=None if rest else reason,
            stop_token_id=None if rest else stop_token_id,
        )
        deltas.append(choice.add(event))
    return choice, deltas


def text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_random_tokens_give_the_same_text_however_they_arrive(tokenizer: Tokenizer) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(100):
        ids = [rng.randrange(2, 400) for _ in range(rng.randrange(1, 40))]
        sizes = [rng.randrange(1, 5) for _ in range(40)]
        offsets = rng.random() < 0.5
        _, deltas = play(tokenizer, ids, TextOptions(offsets=offsets), sizes=sizes)
        _, one_by_one = play(tokenizer, ids)
        text, whole = text_of(deltas), tokenizer.decode(ids)
        assert text == text_of(one_by_one), f"seed {seed}"
        # Only a character that is cut off at the end is left out.
        assert whole.startswith(text) and whole[len(text) :] in ("", "\ufffd"), f"seed {seed}"


def test_characters_are_not_split(tokenizer: Tokenizer) -> None:
    text = "naïve 🦊 日本語"
    _, deltas = play(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert text_of(deltas) == text
    assert all("�" not in delta.text for delta in deltas)
    assert "🦊" in [delta.text.strip() for delta in deltas]


def test_random_stop_strings_never_leak(tokenizer: Tokenizer) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    num_matched = 0
    for _ in range(200):
        text = "".join(rng.choice("ab ") for _ in range(30))
        stop = tuple(
            {"".join(rng.choice("ab ") for _ in range(rng.randrange(1, 6))) for _ in "xyz"}
        )
        ids = tokenizer.encode(text, add_special_tokens=False)
        choice, deltas = play(tokenizer, ids, TextOptions(stop=stop), sizes=[rng.randrange(1, 4)])
        shown = text_of(deltas)
        # The first place where any of them is complete ends the text.
        ends = [(text.find(s) + len(s), s) for s in stop if s in text]
        if not ends:
            assert shown == text, f"seed {seed}"
            continue
        num_matched += 1
        end = min(ends)[0]
        matched = deltas[-1].stop_reason
        assert matched in [s for e, s in ends if e == end], f"seed {seed}"
        assert shown == text[: end - len(str(matched))], f"seed {seed}"
        assert not any(s in shown for s in stop), f"seed {seed}"
        assert deltas[-1].finish_reason is FinishReason.STOP, f"seed {seed}"
        # Tokens up to the one that completed it count, however many came in the same event.
        needed = next(n for n in range(1, len(ids) + 1) if len(tokenizer.decode(ids[:n])) >= end)
        assert choice.num_tokens == needed, f"seed {seed}"
        assert sum(len(d.token_ids) for d in deltas) == needed, f"seed {seed}"
        assert sum(len(d.logprobs) for d in deltas) == needed, f"seed {seed}"
    assert num_matched > 50, f"seed {seed}"


def test_what_could_begin_a_stop_string_is_held_back_then_given(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x STOx", add_special_tokens=False)
    _, deltas = play(tokenizer, ids, TextOptions(stop=("STOP",)))
    assert text_of(deltas) == "x STOx"
    assert "S" not in text_of(deltas[:-1])
    _, deltas = play(
        tokenizer, tokenizer.encode("x STO", add_special_tokens=False), TextOptions(stop=("STOP",))
    )
    assert text_of(deltas) == "x STO"
    assert deltas[-1].finish_reason is FinishReason.LENGTH


def test_include_stop_keeps_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two", add_special_tokens=False)
    _, deltas = play(tokenizer, ids, TextOptions(stop=("e t",), include_stop=True))
    assert text_of(deltas) == "one t"
    assert deltas[-1].stop_reason == "e t"


def test_a_stop_string_wins_over_the_engines_own_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc", add_special_tokens=False)
    _, deltas = play(tokenizer, ids, TextOptions(stop=("c",)), sizes=[len(ids)])
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == (FinishReason.STOP, "c")


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("zzzzz", add_special_tokens=False)
    assert len(ids) == 5
    choice, deltas = play(tokenizer, ids, TextOptions(stop=("z",), min_tokens=3))
    assert text_of(deltas) == "zzz"
    assert choice.num_tokens == 4
    _, deltas = play(tokenizer, ids, TextOptions(stop=("z",), min_tokens=5), sizes=[5])
    assert text_of(deltas) == "zzzzz"


@pytest.mark.parametrize("stop_token_id", [None, 300])
def test_the_token_that_ended_it_is_not_text(
    tokenizer: Tokenizer, stop_token_id: int | None
) -> None:
    last = EOS if stop_token_id is None else stop_token_id
    ids = [*tokenizer.encode("ab", add_special_tokens=False), last]

    def shown(**options: Any) -> str:
        choice, deltas = play(
            tokenizer,
            ids,
            TextOptions(**options),
            sizes=[2],
            reason=FinishReason.STOP,
            stop_token_id=stop_token_id,
        )
        assert choice.num_tokens == len(ids)
        assert deltas[-1].stop_reason == stop_token_id
        return text_of(deltas)

    assert shown() == "ab"
    assert shown(skip_special_tokens=False) == "ab"
    assert shown(include_stop=True, skip_special_tokens=False) == "ab" + tokenizer.token_text(last)


def test_special_tokens_are_skipped_unless_wanted(tokenizer: Tokenizer) -> None:
    ids = [BOS, *tokenizer.encode("ab", add_special_tokens=False), EOS]
    _, deltas = play(tokenizer, ids)
    assert text_of(deltas) == "ab"
    _, deltas = play(tokenizer, ids, TextOptions(skip_special_tokens=False))
    assert text_of(deltas) == "<|s|>ab<|e|>"


def test_offsets_say_where_each_token_begins(tokenizer: Tokenizer) -> None:
    text = "the fox 🦊 ok"
    ids = tokenizer.encode(text, add_special_tokens=False)
    _, deltas = play(tokenizer, ids, TextOptions(offsets=True), sizes=[3, 2])
    offsets = [offset for delta in deltas for offset in delta.offsets]
    assert len(offsets) == len(ids)
    for token_id, offset in zip(ids, offsets, strict=True):
        piece = tokenizer.token_text(token_id)
        if "�" in piece:
            assert text[offset] in " 🦊"
        else:
            assert text[offset:].startswith(piece)


def test_an_end_without_tokens(tokenizer: Tokenizer) -> None:
    for reason in (FinishReason.LENGTH, FinishReason.STOP):
        choice, deltas = play(tokenizer, [], reason=reason)
        assert (text_of(deltas), choice.num_tokens) == ("", 0)
        assert choice.finish_reason is reason


def test_text_is_kept_when_asked_for(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello", add_special_tokens=False)
    assert play(tokenizer, ids, TextOptions(keep_text=True))[0].text == "hello"
    assert play(tokenizer, ids)[0].text == ""
