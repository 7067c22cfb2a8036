"""What is told of how sure a model was: against sums and ranges written out, whole and streamed."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.contract.generate import Repetition, TokenEvent, TokenLogprob
from engine.contract.request import FinishReason
from engine.text.tokenizer import Tokenizer, load_tokenizer
from server.text.output import ChoiceOutput, Delta, TextOptions
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.text_server import TextServer

ROUTES = ["/v1/chat/completions", "/v1/completions"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def test_numbers_and_ranges_are_those_of_the_tokens(tokenizer: Tokenizer) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    whole = [i for i in range(2, 400) if "\ufffd" not in tokenizer.decode([i])]
    for _ in range(60):
        ids = [rng.choice(whole) for _ in range(rng.randrange(1, 40))]
        tokens = [
            TokenLogprob(i, -rng.expovariate(0.7), 1, [], [], rng.random(), rng.random())
            for i in ids
        ]
        threshold = rng.choice([0.0, 0.2, 0.6, 1.0])
        start = rng.randrange(len(ids))
        found = Repetition(1, start, rng.randrange(1, len(ids) - start + 1))
        options = TextOptions(uncertain_below=threshold, tells_ranges=True)
        last = _last(tokenizer, tokens, options, found, rng)
        told, repetition = last.uncertainty, last.repetition
        assert told is not None and repetition is not None, seed
        assert told.num_tokens == len(ids)
        for mean, values in (
            (told.mean_logprob, [token.logprob for token in tokens]),
            (told.mean_entropy, [token.entropy for token in tokens]),
            (told.mean_varentropy, [token.varentropy for token in tokens]),
        ):
            assert mean == pytest.approx(math.fsum(values) / len(ids)), seed
        unlikely = [math.exp(token.logprob) < threshold for token in tokens]
        in_spans = [False] * len(ids)
        for span in told.low_confidence_spans:
            first, end = span.tokens
            assert first < end and (end == len(ids) or not unlikely[end]), seed
            in_spans[first:end] = [True] * (end - first)
            assert span.min_logprob == min(token.logprob for token in tokens[first:end])
            assert span.characters == _characters(tokenizer, ids, first, end), seed
        assert in_spans == unlikely, seed
        end = start + found.num_tokens
        assert repetition.tokens == [start, end]
        assert repetition.characters == _characters(tokenizer, ids, start, end), seed


def test_ranges_end_where_the_shown_text_ends(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the quick brown fox jumps")
    options = TextOptions(uncertain_below=1.0, tells_ranges=True, stop=("own f",))
    choice = ChoiceOutput(0, tokenizer, (), options)
    event = TokenEvent(
        request_id="r",
        token_ids=ids,
        logprobs=[TokenLogprob(i, -1.0, 1, [], []) for i in ids],
        repetition=Repetition(1, 0, len(ids)),
        finish_reason=FinishReason.LENGTH,
    )
    delta = choice.add(event)
    assert delta.text == "the quick br"
    assert delta.uncertainty is not None and delta.repetition is not None
    for told in (*delta.uncertainty.low_confidence_spans, delta.repetition):
        assert told.tokens == [0, len(delta.token_ids)]
        assert told.characters == [0, len(delta.text)]
    behind = ChoiceOutput(0, tokenizer, (), options)
    start = len(delta.token_ids)
    assert behind.add(replace(event, repetition=Repetition(1, start, 1))).repetition is None


@pytest.mark.parametrize("route", ROUTES)
async def test_a_stream_tells_in_its_last_chunk_what_the_whole_answer_tells(
    server: TextServer, route: str
) -> None:
    server.say("the fox jumps over the lazy dog")
    asked = {"n": 2, "return_uncertainty": True, "uncertainty_threshold": 0.7, "max_tokens": 50}
    body = (await server.ask(route, **asked)).json()
    whole = [choice["uncertainty"] for choice in body["choices"]]
    num_tokens = len(server.encode("the fox jumps over the lazy dog")) + 1
    for told in whole:
        assert told["num_tokens"] == num_tokens == body["usage"]["completion_tokens"] / 2
        assert told["mean_logprob"] == -0.5
        (span,) = told["low_confidence_spans"]
        assert span["tokens"] == [0, num_tokens]
        assert span["characters"] == [0, len("the fox jumps over the lazy dog")]
    assert body["choices"][0]["logprobs"] is None
    lines = (await server.ask(route, stream=True, **asked)).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ends = [choice for choice in choices if "uncertainty" in choice]
    assert [end["uncertainty"] for end in sorted(ends, key=lambda end: end["index"])] == whole
    assert all(end["finish_reason"] == "stop" for end in ends)
    sampled = server.last_request.sampling
    assert sampled.logprobs == 0


@pytest.mark.parametrize("route", ROUTES)
async def test_nothing_is_told_unasked(server: TextServer, route: str) -> None:
    body = (await server.ask(route, logprobs=1 if "chat" not in route else True)).json()
    assert body["choices"][0]["uncertainty"] is None
    assert body["choices"][0]["repetition"] is None
    assert (await server.ask(route)).status_code == 200
    assert server.last_request.sampling.logprobs is None


async def test_texts_with_scores_are_in_the_histograms(server: TextServer) -> None:
    await server.complete(max_tokens=3)
    await server.complete(max_tokens=3, return_uncertainty=True, n=2)
    lines = (await server.client.get("/metrics")).text.splitlines()
    samples = [line for line in lines if line.startswith("tandem_mean_token")]
    counts = {line.split("{")[0]: float(line.split()[-1]) for line in samples}
    assert counts["tandem_mean_token_surprise_nats_count"] == 2
    assert counts["tandem_mean_token_surprise_nats_sum"] == 1.0
    assert counts["tandem_mean_token_entropy_nats_count"] == 2


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("uncertainty_threshold", {"uncertainty_threshold": 0.5}),
        ("uncertainty_threshold", {"uncertainty_threshold": 1.5, "return_uncertainty": True}),
        ("return_uncertainty", {"return_uncertainty": "yes"}),
        (
            "repetition_detection.action",
            {"repetition_detection": {"max_pattern_size": 3, "min_count": 2, "action": "x"}},
        ),
    ],
)
async def test_bad_values_are_refused_by_name(
    server: TextServer, route: str, param: str, fields: dict[str, Any]
) -> None:
    error = error_of(await server.ask(route, **fields))
    assert error["param"] == param


def _last(
    tokenizer: Tokenizer,
    tokens: list[TokenLogprob],
    options: TextOptions,
    repetition: Repetition,
    rng: random.Random,
) -> Delta:
    """The last delta of a choice whose tokens come in events of any size."""
    choice, rest = ChoiceOutput(0, tokenizer, (), options), list(tokens)
    while True:
        part, rest = (rest[: (size := rng.randrange(1, 5))], rest[size:])
        event = TokenEvent(
            request_id="r",
            token_ids=[token.token_id for token in part],
            logprobs=part,
            repetition=None if rest else repetition,
            finish_reason=None if rest else FinishReason.LENGTH,
        )
        delta = choice.add(event)
        if not rest:
            return delta


def _characters(tokenizer: Tokenizer, ids: list[int], first: int, end: int) -> list[int]:
    """Find the characters by detokenising each beginning of the text anew."""
    return [len(tokenizer.decode(ids[:first])), len(tokenizer.decode(ids[:end]))]
