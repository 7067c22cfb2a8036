"""The judge finds what is planted: another answer, growth, a block that is still held."""

import json
import random

import httpx
import pytest

from tools.endurance.asking import Answer, judged
from tools.endurance.judge import BOUNDS_PER_HOUR, LEAST_POINTS, Twins, growths, remains, theil_sen
from tools.endurance.order import Order
from tools.endurance.sample import Sample, work_of

ORDER = Order("text", 3, "/v1/completions", {})
MIB = 1 << 20


def completion(text, logprob=-0.5, finish="length"):
    choice = {"index": 0, "text": text, "finish_reason": finish}
    choice["logprobs"] = {"token_logprobs": [logprob]}
    return json.dumps({"id": str(random.random()), "choices": [choice]}).encode()


def stream(*chunks):
    events = [
        json.dumps({"choices": [chunk]}) if isinstance(chunk, dict) else chunk for chunk in chunks
    ]
    return "".join(f"data: {event}\n\n" for event in events).encode()


def test_an_answer_that_differs_in_one_bit_is_found():
    twins, text = Twins(), f"once {random.random()}"
    assert twins.problem(ORDER, judged(200, completion(text), False, 0.1)) is None
    assert twins.problem(ORDER, judged(200, completion(text), False, 0.1)) is None
    assert twins.num_compared["text"] == 1
    for other in (
        completion(text + "."),
        completion(text, -0.5000001),
        completion(text, finish="stop"),
    ):
        problem = twins.problem(ORDER, judged(200, other, False, 0.1))
        assert problem == "text 3: differs from the first answer"


def test_a_stream_is_compared_with_the_whole_answer():
    """However its text is cut."""
    whole = judged(200, completion("one two", -0.25), False, 0.1)
    scores = {"token_logprobs": [-0.25]}
    body = stream(
        {"index": 0, "text": "one", "logprobs": scores, "finish_reason": None},
        {"index": 0, "text": " two", "logprobs": None, "finish_reason": "length"},
        "[DONE]",
    )
    assert judged(200, body, True, 0.1).bits == whole.bits
    assert judged(200, body.replace(b" two", b" too"), True, 0.1).bits != whole.bits


def test_calls_of_a_stream_are_compared_with_those_of_the_whole_answer():
    call = {"id": "call_1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    whole = judged(200, json.dumps({"choices": [choice]}).encode(), False, 0.1)
    first = {"index": 0, "id": "call_9", "function": {"name": "f", "arguments": ""}}
    parts = [first, *({"index": 0, "function": {"arguments": part}} for part in ('{"a"', ": 1}"))]
    chunks = [{"index": 0, "delta": {"tool_calls": [part]}} for part in parts]
    body = stream(*chunks, {"index": 0, "delta": {}, "finish_reason": "tool_calls"}, "[DONE]")
    assert judged(200, body, True, 0.1).bits == whole.bits


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(None, 9, problem="no end in 9 s"), "no end in 9 s"),
        (
            judged(503, b'{"error": {"message": "no", "code": "engine_dead"}}', False, 1),
            "HTTP 503 engine_dead",
        ),
        (judged(500, b"Internal Server Error", False, 1), "malformed"),
        (judged(200, stream('{"choices": []}'), True, 1), "without [DONE]"),
        (
            judged(
                200,
                stream('{"error": {"message": "no", "code": "engine_dead"}}', "[DONE]"),
                True,
                1,
            ),
            "HTTP 200 engine_dead",
        ),
        (judged(200, b'{"choices": ', False, 1), "malformed"),
    ],
)
def test_an_answer_that_is_none_is_found(answer, problem):
    assert problem in Twins().problem(ORDER, answer)


def test_bad_input_must_be_refused():
    order = Order("bad", 0, "/v1/completions", b"{", (400,))
    refusal = judged(400, b'{"error": {"message": "no JSON", "code": "invalid"}}', False, 1)
    assert Twins().problem(order, refusal) is None
    assert Twins().problem(order, judged(200, completion("a"), False, 1)) == "bad 0: HTTP 200"


def samples(per_hour_mib=0.0, descriptors_per_hour=0.0, number=40, noise=4.0):
    """An hour of quiet points, with noise and an outlier."""
    found = []
    for place in range(number):
        hours = place / number
        memory = 900 + per_hour_mib * hours + random.uniform(-noise, noise)
        memory += 400 * (place == number // 2)
        found.append(
            Sample(
                hours * 3600,
                {"server": round(memory * MIB)},
                descriptors=round(100 + descriptors_per_hour * hours),
                processes={"server": 1},
            )
        )
    return found


def too_much(some):
    return {growth.name for growth in growths(some, 900) if growth.is_too_much}


def test_growth_is_found_and_noise_is_not():
    assert too_much(samples()) == set()
    assert too_much(samples(per_hour_mib=0.6 * BOUNDS_PER_HOUR["memory"])) == set()
    assert too_much(samples(per_hour_mib=1.5 * BOUNDS_PER_HOUR["memory"])) == {"memory"}
    assert too_much(samples(descriptors_per_hour=40)) == {"descriptors"}


def test_what_happens_while_the_server_warms_up_is_no_growth():
    some = samples()
    early = [Sample(one.at_s, {"server": MIB}) for one in some if one.at_s < 900]
    assert too_much([*early, *some[len(early) :]]) == set()


def test_few_points_say_nothing():
    assert growths(samples(per_hour_mib=9000, number=LEAST_POINTS), 900) == []


def test_a_line_is_fitted_through_its_outliers():
    slope = random.uniform(-3, 3)
    xs = [float(x) for x in range(20)]
    ys = [slope * x + 5 for x in xs]
    ys[random.randrange(20)] += 1000
    assert theil_sen(xs, ys) == pytest.approx(slope)


async def test_a_block_that_is_still_held_is_found(monkeypatch):
    lines = [
        'tandem_num_requests_running{model_name="a"} 0.0',
        'tandem_image_num_waiting{model_name="b"} 0.0',
        'tandem_kv_cache_usage_ratio{model_name="a"} 0.125',
        'tandem_model_ready{model_name="a"} 1.0',
    ]

    def answer(request):
        return httpx.Response(200, text="\n".join(lines))

    client = httpx.AsyncClient
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **_: client(transport=httpx.MockTransport(answer))
    )
    work = await work_of("http://server")
    assert len(work) == 3
    assert remains(work) == ["kv_cache_usage_ratio is 0.125 though nobody asks"]
