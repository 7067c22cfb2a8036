"""The log-likelihoods of choices are sums over the tokens of the choices, on any server that
scores prompts."""

import asyncio
import random
import re

import httpx
import pytest

from evaluation.choice_scores import is_likeliest, is_likeliest_per_byte
from evaluation.endpoint import Endpoint, RequestProblem
from evaluation.likelihoods import ChoiceLikelihoods
from tests.helpers.evaluation.word_server import WordServer, logprob, pieces, template
from tests.helpers.server.text_server import MODEL, TextServer, write_tokenizer

WORDS = ["red", "green", "blue", "grey", "black"]


def texts(num):
    return [" ".join(random.choices(WORDS, k=random.randint(1, 4))) + str(i) for i in range(num)]


def likelihood(context, whole):
    """The sum over the tokens after a context."""
    tokens = pieces(whole)
    return sum(logprob(tokens, i) for i in range(len(pieces(context)), len(tokens)))


async def after_text(server, context, choices):
    async with server.endpoint() as endpoint:
        return await ChoiceLikelihoods(endpoint, "words", {}).after_text(context, choices)


@pytest.mark.parametrize("echo", ["zero", "one"])
async def test_choices_continue_a_text(echo):
    server = WordServer()
    server.echo = echo
    context, choices = texts(1)[0], texts(4)
    found = await after_text(server, context, choices)
    assert found.loglikelihoods == pytest.approx(
        [likelihood(context, f"{context} {choice}") for choice in choices]
    )
    assert all(body["echo"] and body["temperature"] == 0 for _, body in server.bodies)


@pytest.mark.parametrize(
    ("context", "choice", "whole"),
    [
        ("Answer:\n", "red", "Answer:\nred"),
        ("Answer:", "red", "Answer: red"),
        ("Answer:", "\nred", "Answer:\nred"),
        ("Answer: ", "red", "Answer: red"),
    ],
)
async def test_white_space_between_belongs_to_the_choice(context, choice, whole):
    server = WordServer()
    found = await after_text(server, context, [choice, "other"])
    assert found.loglikelihoods[0] == pytest.approx(likelihood("Answer:", whole))
    assert server.bodies[0][1]["prompt"] == "Answer:"


async def test_a_choice_that_changes_the_tokens_of_the_text_is_compared_fairly():
    server = WordServer()
    server.tokens_of = lambda text: re.findall(r" is it|\s*\S+", text)
    found = await after_text(server, "What is", ["it", "he"])
    # All start at the first token that differs.
    joined, apart = ["What", " is it"], ["What", " is", " he"]
    wanted = [logprob(joined, 1), logprob(apart, 1) + logprob(apart, 2)]
    assert found.loglikelihoods == pytest.approx(wanted)


async def test_choices_answer_a_conversation():
    server = WordServer()
    messages = [{"role": "user", "content": texts(1)[0]}]
    choices = texts(3)
    async with server.endpoint() as endpoint:
        asked = ChoiceLikelihoods(endpoint, "words", {"cache_salt": "s"})
        found = await asked.after_chat(messages, choices)
    context = pieces(template(messages))
    for choice, value in zip(choices, found.loglikelihoods, strict=True):
        tokens = [*context, *pieces(choice)]
        wanted = sum(logprob(tokens, i) for i in range(len(context), len(tokens)))
        assert value == pytest.approx(wanted)
    scored = [body for path, body in server.bodies if path == "/v1/completions"]
    assert all(body["cache_salt"] == "s" for body in scored)


async def test_requests_at_the_same_time_all_learn_what_is_refused():
    server = WordServer()
    server.echo = "one"
    async with server.endpoint() as endpoint:
        asked = ChoiceLikelihoods(endpoint, "words", {})
        found = await asyncio.gather(*(asked.after_text(text, ["a", "b"]) for text in texts(4)))
    assert len(found) == 4


async def test_a_server_that_ignores_echo_is_told_apart():
    server = WordServer()
    server.echo = "none"
    with pytest.raises(RequestProblem, match="as llama-server does not") as caught:
        await after_text(server, "a b", ["c", "d"])
    assert caught.value.concerns_all


@pytest.mark.parametrize("logprobs", [None, {"content": []}, {"tokens": ["a"]}])
async def test_other_forms_of_log_probabilities_are_told_apart(logprobs):
    server = WordServer()
    answer = {"choices": [{"text": "", "logprobs": logprobs}], "usage": {"prompt_tokens": 1}}
    server.faults["/v1/completions"] = [httpx.Response(200, json=answer)]
    with pytest.raises(RequestProblem, match="no log-probabilities of a prompt"):
        await after_text(server, "a b", ["c", "d"])


async def test_a_server_without_tokens_of_conversations():
    server = WordServer()
    server.faults["/tokenize"] = [httpx.Response(404, json={"error": {"message": "no route"}})]
    async with server.endpoint() as endpoint:
        asked = ChoiceLikelihoods(endpoint, "words", {})
        with pytest.raises(RequestProblem, match="--endpoint completions"):
            await asked.after_chat([{"role": "user", "content": "a"}], ["b", "c"])


async def test_our_own_server_scores_choices(tmp_path):
    server = TextServer(write_tokenizer(tmp_path))
    choices = ["the fox", "lazy dog jumps", "quick"]
    async with server.listening() as url, Endpoint(url) as endpoint:
        asked = ChoiceLikelihoods(endpoint, MODEL, {})
        continued = await asked.after_text("seven wizards make", choices)
        answered = await asked.after_chat([{"role": "user", "content": "seven"}], choices)
    await server.aclose()
    # Its engine finds every token equally likely.
    spaced = [len(server.encode(f"seven wizards make {choice}")) for choice in choices]
    before = len(server.encode("seven wizards make"))
    assert continued.loglikelihoods == pytest.approx([-0.5 * (num - before) for num in spaced])
    plain = [len(server.encode(choice)) for choice in choices]
    assert answered.loglikelihoods == pytest.approx([-0.5 * num for num in plain])


def test_the_likeliest_choice():
    assert is_likeliest([-3.0, -1.0, -1.0], 1) == 1
    assert is_likeliest([-3.0, -1.0, -1.0], 2) == 0
    assert is_likeliest([-4.0, -3.0], 1) == 1
    assert is_likeliest_per_byte([-4.0, -3.0], 0, ["long answer", "no"]) == 1
    # A letter of two bytes counts as two.
    assert is_likeliest_per_byte([-3.0, -2.0], 0, ["éé", "no"]) == 1
    assert is_likeliest_per_byte([-3.0, -2.0], 0, ["ee", "no"]) == 0
