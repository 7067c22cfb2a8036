"""The official client, as its users use it."""

import asyncio
import json

import openai
import pytest

from engine.contract.sampling_params import SAMPLER_PARAMETERS, Patterns

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_chat_answers(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=24
    )
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint.startswith("fp_")


def test_a_streamed_chat_is_the_same_text(client):
    arguments = {"model": MODEL, "messages": QUESTION, "max_tokens": 40, "seed": 7}
    whole = client.chat.completions.create(**arguments)
    stream = client.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert [r for r in reasons if r] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions_with_log_probabilities_and_several_choices(client):
    answer = client.completions.create(
        model=MODEL, prompt=["Once upon", "The sea"], n=2, max_tokens=5, logprobs=3, seed=1
    )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert len(choice.logprobs.token_logprobs) == len(choice.logprobs.tokens) <= 5
        assert all(value <= 0 for value in choice.logprobs.token_logprobs)


def test_beam_search_finds_what_no_greedy_text_beats(client):
    arguments = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12, "logprobs": 0}
    search = {"use_beam_search": True, "beam_width": 4}
    whole = client.completions.create(**arguments, n=3, extra_body=search)
    texts = [choice.text for choice in whole.choices]
    assert len(set(texts)) == 3
    scores = [
        sum(choice.logprobs.token_logprobs) / len(choice.logprobs.tokens)
        for choice in whole.choices
    ]
    assert scores == sorted(scores, reverse=True)
    [greedy] = client.completions.create(**arguments, temperature=0).choices
    assert scores[0] >= sum(greedy.logprobs.token_logprobs) / len(greedy.logprobs.tokens)
    stream = client.completions.create(**arguments, n=3, stream=True, extra_body=search)
    chunks = [choice for chunk in stream for choice in chunk.choices]
    assert [(choice.index, choice.text) for choice in chunks] == list(enumerate(texts))


def test_the_best_of_several_texts(client):
    arguments = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "seed": 3}
    drawn = client.completions.create(**arguments, n=4, logprobs=0).choices
    [best] = client.completions.create(**arguments, best_of=4).choices
    means = {c.text: sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens) for c in drawn}
    assert best.text == max(means, key=means.get)


def test_how_sure_the_model_was_and_where_it_loops(client):
    arguments = {"model": MODEL, "prompt": "la la la la", "max_tokens": 30, "temperature": 0}
    extra = {
        "return_uncertainty": True,
        "uncertainty_threshold": 0.5,
        "repetition_detection": {"max_pattern_size": 8, "min_count": 3, "action": "report"},
        "logit_bias": [[" la", 50]],
    }
    [whole] = client.completions.create(**arguments, logprobs=0, extra_body=extra).choices
    told, values = whole.uncertainty, whole.logprobs.token_logprobs
    assert told["num_tokens"] == len(values)
    assert told["mean_logprob"] == pytest.approx(sum(values) / len(values))
    assert whole.repetition["tokens"] == [0, 30] and whole.finish_reason == "length"
    assert set(whole.text[slice(*whole.repetition["characters"])].split()) == {"la"}
    stream = client.completions.create(**arguments, stream=True, extra_body=extra)
    [*_, last] = [choice for chunk in stream for choice in chunk.choices]
    assert (last.uncertainty, last.repetition) == (told, whole.repetition)


def halfway(one):
    """A value that a request may give and that is not neutral."""
    if one.kind == Patterns:
        return ["\n", "."]
    if one.choices:
        return max(one.choices)
    bound = one.le if one.le != one.neutral else one.ge or one.gt or 0
    return one.kind((one.neutral + bound) / 2)


SAMPLERS = {name: halfway(one) for name, one in SAMPLER_PARAMETERS.items()}
OPENAI_S = {"frequency_penalty", "presence_penalty", "temperature", "top_p"}


def test_every_sampler_parameter_is_taken(client):
    named = {name: value for name, value in SAMPLERS.items() if name in OPENAI_S}
    extra = {name: value for name, value in SAMPLERS.items() if name not in OPENAI_S}
    texts = []
    for mirostat in (0, 2, 2):
        body = extra | {"mirostat": mirostat, "bad_words": ["sea"], "ignore_eos": True}
        answer = client.completions.with_raw_response.create(
            model=MODEL, prompt="The sea", max_tokens=12, seed=5, **named, extra_body=body
        )
        assert "x-ignored-fields" not in answer.headers
        texts.append(answer.parse().choices[0].text)
    assert texts[1] == texts[2] and texts[0]


def test_where_a_request_says_nothing_the_model_is_sampled_as_recommended(client):
    own = client.models.retrieve(MODEL).default_sampling
    assert own == {"temperature": 0.3, "top_p": 0.9}
    arguments = {"model": MODEL, "messages": QUESTION, "max_tokens": 24}

    def texts(**sampling):
        seeds = range(4)
        answers = [
            client.chat.completions.create(**arguments, seed=seed, **sampling) for seed in seeds
        ]
        return [answer.choices[0].message.content for answer in answers]

    assert texts() == texts(**own) == texts(temperature=own["temperature"])
    assert texts(temperature=1, top_p=1) != texts(), "what a request says counts"


def test_contrastive_search_and_several_guided_texts(client):
    arguments = {"model": MODEL, "prompt": "la la la la", "max_tokens": 16}
    texts = [
        client.completions.create(**arguments, extra_body=extra).choices[0].text
        for extra in ({"penalty_alpha": 0.6, "top_k": 4}, {"penalty_alpha": 1.0, "top_k": 4})
    ]
    stream = client.completions.create(
        **arguments, stream=True, extra_body={"penalty_alpha": 0.6, "top_k": 4}
    )
    assert "".join(c.text for chunk in stream for c in chunk.choices) == texts[0] != texts[1]
    away = {"guidance_scale": 1.5, "negative_prompt": "la"}
    several = client.completions.create(**arguments, n=2, seed=3, extra_body=away)
    [one] = client.completions.create(**arguments, seed=3, extra_body=away).choices
    assert [choice.index for choice in several.choices] == [0, 1]
    assert one.text == several.choices[0].text != several.choices[1].text
    assert several.usage.prompt_tokens == client.completions.create(**arguments).usage.prompt_tokens


def test_a_negative_prompt_and_an_order_of_samplers(client):
    arguments = {"model": MODEL, "messages": QUESTION, "max_tokens": 16, "seed": 3}
    plain = client.chat.completions.create(**arguments, temperature=0)
    away = {"guidance_scale": 4, "negative_prompt": "You always answer in one word."}
    guided = [
        client.chat.completions.create(**arguments, temperature=0, extra_body=away)
        for _ in range(2)
    ]
    texts = [answer.choices[0].message.content for answer in guided]
    assert texts[0] == texts[1] != plain.choices[0].message.content
    order = {"samplers": ["top_k", "temperature"], "top_k": 1}
    drawn = client.chat.completions.create(**arguments, temperature=2, extra_body=order)
    assert drawn.choices[0].message.content == plain.choices[0].message.content


def test_a_conversation_of_responses(client):
    first = client.responses.create(
        model=MODEL, input="What is the capital of France?", temperature=0, max_output_tokens=24
    )
    assert "Paris" in first.output_text
    arguments = {"model": MODEL, "input": "And of Italy?", "previous_response_id": first.id}
    whole = client.responses.create(**arguments, temperature=0, max_output_tokens=24)
    assert whole.usage.input_tokens > first.usage.total_tokens
    with client.responses.stream(**arguments, temperature=0, max_output_tokens=24) as stream:
        texts = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == whole.output_text
    forever = {"ignore_eos": True}  # a short answer would be over before it is cancelled
    job = client.responses.create(**arguments, background=True, extra_body=forever)
    assert client.responses.cancel(job.id).status == "cancelled"


def test_a_repeated_prompt_is_found_in_the_cache(client):
    prompt = "A prompt of more than one block of sixteen tokens that comes twice, " * 3
    for _ in range(2):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1, temperature=0)
    assert answer.usage.prompt_tokens_details.cached_tokens >= 32


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}]
)
def test_a_call_that_must_come_is_valid(client, choice, temperature):
    """The default model's template knows no tools, and the model hardly any."""
    arguments = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
        "tools": [WEATHER, NOW],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 100,
        "temperature": temperature,
        "seed": 5,
    }
    answer = client.chat.completions.create(**arguments).choices[0]
    with client.chat.completions.stream(**arguments) as stream:
        streamed = stream.get_final_completion().choices[0]
    [call], [same] = answer.message.tool_calls, streamed.message.tool_calls
    assert answer.finish_reason == streamed.finish_reason == "tool_calls"
    assert (call.function.name, call.function.arguments) == (
        same.function.name,
        same.function.arguments,
    )
    assert answer.message.content is streamed.message.content is None
    values = json.loads(call.function.arguments)
    if call.function.name == "now":
        assert values == {}
    else:
        assert values.keys() == {"city", "unit"}
        assert values["unit"] in ("celsius", "fahrenheit")
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sunny"}
    arguments |= {"messages": [*arguments["messages"], answer.message, result]}
    arguments |= {"tool_choice": "none"}
    assert client.chat.completions.create(**arguments).choices[0].message.content


def test_strict_functions_and_an_answers_form_leave_valid_json(client):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}, NOW],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object", "properties": {}}},
        },
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
    ).choices[0]
    texts = [call.function.arguments for call in answer.message.tool_calls or ()]
    texts = texts or [answer.message.content]
    if answer.finish_reason != "length":
        assert all(isinstance(json.loads(text), dict) for text in texts)


def test_errors_are_the_clients_types(client):
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 20000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    asked = {"type": "json_schema", "json_schema": {"name": "set", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=asked)
    assert caught.value.param == "response_format"


def test_the_models_are_listed(client):
    # Other tests of this server may have made it load the default models of other operations.
    assert {model.id for model in client.models.list()} >= {MODEL, "tiny", "tandem-shapes"}
    assert client.models.retrieve(MODEL).id == MODEL


async def test_a_seed_gives_the_same_text_whatever_shares_the_batch(server):
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:

        async def generate(seed, prompt="Tell me a story about a fox."):
            answer = await client.completions.create(
                model="tiny", prompt=prompt, seed=seed, max_tokens=40
            )
            return answer.choices[0].text

        alone = [await generate(seed) for seed in range(4)]
        others = [generate(100 + i, "x" * (i + 1)) for i in range(24)]
        together = await asyncio.gather(*(generate(seed) for seed in range(4)), *others)
        assert together[:4] == alone
        assert len(set(alone)) > 1
