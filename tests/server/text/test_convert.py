"""How a client's fields become the engine's, with the model's defaults and limits."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from engine.contract.generate import GenerateRequest, ModelInfo
from engine.contract.sampling_params import SamplingParams
from engine.errors import ContextLengthExceeded, InvalidParameter
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.text import convert
from tests.helpers.server.fake_texts import model_info

INFO = model_info(max_model_len=100, vocab_size=50)
USER = {"role": "user", "content": "hi"}


def chat(prompt: list[int] | None = None, info: ModelInfo = INFO, **fields: Any) -> GenerateRequest:
    request = ChatCompletionRequest.model_validate({"messages": [USER], **fields})
    ids = [1, 2, 3] if prompt is None else prompt
    return convert.chat_request(request, info, ids, request_id="r")


def complete(*prompts: list[int], info: ModelInfo = INFO, **fields: Any) -> list[GenerateRequest]:
    request = CompletionRequest.model_validate({"prompt": "x", **fields})
    ids = prompts or ([1, 2, 3],)
    return asyncio.run(convert.completion_requests(request, info, ids, request_id="r"))


def test_defaults_are_openais() -> None:
    assert chat().sampling == SamplingParams(max_tokens=97)
    assert complete()[0].sampling == SamplingParams(max_tokens=16)


def test_the_models_own_defaults_come_before_openais_and_after_the_requests() -> None:
    own = {"temperature": 0.6, "top_p": 0.9, "top_k": 20.0, "min_p": 0.1, "repetition_penalty": 1.1}
    info = replace(INFO, default_sampling=own)
    sampling = chat(info=info).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    asked: dict[str, Any] = {
        "temperature": 0,
        "top_p": 1,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    assert chat(info=info, **asked).sampling == SamplingParams(max_tokens=97, temperature=0)


def test_every_field_reaches_the_engine() -> None:
    fields: dict[str, Any] = {
        "max_completion_tokens": 9,
        "min_tokens": 2,
        "n": 3,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.8,
        "min_p": 0.05,
        "typical_p": 0.7,
        "seed": -5,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": -0.4,
        "logit_bias": {"4": 1.5},
        "stop_token_ids": [6, 6, 7],
        "ignore_eos": True,
        "prompt_logprobs": 1,
        "cache_salt": "s",
    }
    request = chat(logprobs=True, top_logprobs=2, **fields)
    assert request.cache_salt == "s"
    assert request.sampling == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        n=3,
        temperature=0.5,
        top_k=7,
        top_p=0.8,
        min_p=0.05,
        typical_p=0.7,
        seed=-5,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=-0.4,
        logit_bias={4: 1.5},
        stop_token_ids=(6, 7),
        ignore_eos=True,
        logprobs=2,
        prompt_logprobs=1,
    )


def test_extreme_values_become_safe_ones() -> None:
    assert chat(temperature=5e-324).sampling.temperature == 0.0
    assert chat(temperature=1e-4).sampling.temperature == 1e-4
    assert chat(top_p=0).sampling.top_p > 0
    assert chat(typical_p=5e-324).sampling.typical_p > 1e-7
    assert chat(top_k=-1).sampling.top_k == 0
    assert chat(top_k=10**9).sampling.top_k == 10**9
    assert chat(top_k=49).sampling.top_k == 49


def test_max_tokens() -> None:
    assert chat(max_tokens=5).sampling.max_tokens == 5
    assert chat(max_tokens=5, max_completion_tokens=6).sampling.max_tokens == 6
    assert chat([1] * 99).sampling.max_tokens == 1
    assert complete([1] * 90)[0].sampling.max_tokens == 10
    assert complete(max_tokens=0)[0].sampling.max_tokens == 0
    assert complete([1] * 100, max_tokens=0)[0].sampling.max_tokens == 0
    assert complete(max_tokens=97)[0].sampling.max_tokens == 97


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_minus_one_is_what_the_context_has_room_for(name: str) -> None:
    minus_one: dict[str, Any] = {name: -1}
    assert chat([1] * 10, **minus_one).sampling.max_tokens == 90
    assert complete([1] * 10, **minus_one)[0].sampling.max_tokens == 90
    assert len(chat([1] * 300, truncate_prompt_tokens=-1, **minus_one).prompt_token_ids) == 99
    with pytest.raises(ContextLengthExceeded):
        complete([1] * 100, **minus_one)


def test_names_of_llama_cpp() -> None:
    for build in (lambda **f: chat(**f), lambda **f: complete(**f)[0]):
        assert build(n_predict=7).sampling.max_tokens == 7
        assert build(repeat_penalty=1.2).sampling.repetition_penalty == 1.2
    assert complete(n_predict=0)[0].sampling.max_tokens == 0


@pytest.mark.parametrize(
    ("length", "fields", "however"),
    [
        (100, {}, "your {} resulted in 100 tokens. Please reduce the length of the {} by"),
        (150, {}, "by at least 51."),
        (3, {"max_tokens": 98}, "you requested 101 tokens (3 in the {}, 98 in the completion)."),
        (99, {"max_completion_tokens": 2}, "the {} or completion; max_tokens can be at most 1 "),
        (150, {"max_tokens": 9}, "Please reduce the length of the {} or completion."),
    ],
)
def test_what_does_not_fit_is_refused_in_words_that_clients_know(
    length: int, fields: dict[str, Any], however: str
) -> None:
    """LiteLLM looks for OpenAI's opening words, LangChain for the code, to fall back to a model
    that takes more."""
    for build, param in ((chat, "messages"), (complete, "prompt")):
        with pytest.raises(ContextLengthExceeded) as caught:
            build([1] * length, **fields)
        message = caught.value.message
        opening = "This model's maximum context length is 100 tokens. However, you"
        assert message.startswith(opening)
        assert message.endswith("(context_length_exceeded)")
        assert however.format(param, param) in message
        assert caught.value.param == param
    with pytest.raises(ContextLengthExceeded, match="by at least 1"):
        complete([1] * 101, max_tokens=0)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_min_tokens_above_max_tokens_is_refused(field: str) -> None:
    with pytest.raises(InvalidParameter, match=r"min_tokens is 6.*here 5") as caught:
        chat(None, INFO, min_tokens=6, **{field: 5})
    assert caught.value.param == "min_tokens"
    assert chat(None, INFO, min_tokens=5, **{field: 5}).sampling.min_tokens == 5
    with pytest.raises(InvalidParameter):
        complete(min_tokens=17)


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    bad: dict[str, Any] = {"stop_token_ids": [50], "logit_bias": {"50": 1}}
    for name, value in bad.items():
        with pytest.raises(InvalidParameter, match=r"50.*49") as caught:
            chat(None, **{name: value})
        assert caught.value.param == name
    with pytest.raises(InvalidParameter, match="prompt"):
        complete([1, 50])
    assert chat([49], stop_token_ids=[49], logit_bias={"49": 1}).prompt_token_ids == [49]


def test_an_empty_prompt_is_refused() -> None:
    for build, field in ((chat, "messages"), (complete, "prompt")):
        with pytest.raises(InvalidParameter, match=f"^{field} has no tokens"):
            build([])


def test_truncation_keeps_the_last_tokens() -> None:
    ids = [i % 50 for i in range(300)]
    assert chat(ids, truncate_prompt_tokens=7).prompt_token_ids == ids[-7:]
    assert chat(ids[:5], truncate_prompt_tokens=7).prompt_token_ids == ids[:5]
    assert chat(ids, truncate_prompt_tokens=-1).prompt_token_ids == ids[-99:]
    request = chat(ids, truncate_prompt_tokens=-1, max_tokens=40)
    assert request.prompt_token_ids == ids[-60:]
    with pytest.raises(ContextLengthExceeded):
        chat(ids, truncate_prompt_tokens=-1, max_tokens=100)
    with pytest.raises(ContextLengthExceeded):
        chat(ids, truncate_prompt_tokens=10**6)


def test_each_prompt_is_a_request() -> None:
    requests = complete([1], [2, 3], n=2, logprobs=3)
    assert [r.request_id for r in requests] == ["r-0", "r-1"]
    assert [r.prompt_token_ids for r in requests] == [[1], [2, 3]]
    assert {r.sampling.n for r in requests} == {2}
    with pytest.raises(InvalidParameter, match="4128 texts; the limit is 4096"):
        complete(*[[1]] * 129, n=32)


def test_echo_asks_for_the_prompts_logprobs() -> None:
    def asked(**fields: Any) -> tuple[int | None, int | None]:
        sampling = complete(**fields)[0].sampling
        return sampling.logprobs, sampling.prompt_logprobs

    assert asked() == (None, None)
    assert asked(logprobs=0) == (0, None)
    assert asked(echo=True) == (None, None)
    assert asked(echo=True, logprobs=0) == (0, 0)
    assert asked(echo=True, logprobs=2, prompt_logprobs=5) == (2, 5)
    assert asked(echo=True, logprobs=5, prompt_logprobs=2) == (5, 5)
    assert asked(prompt_logprobs=4) == (None, 4)
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=False).sampling.logprobs is None
