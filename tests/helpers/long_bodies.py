"""Requests that are made to take long where everybody waits, by what is long in them: path and
body."""

import json
import random
from collections.abc import Callable
from typing import Any

from server.protocol.groundedness import MAX_ANSWER_CHARS, MAX_PASSAGE_CHARS

MEGA = 1 << 20

Body = dict[str, Any]


def letters() -> str:
    return "".join(random.choices("abcdefgh", k=random.randrange(1, 6)))


def many(pattern: str, num: int) -> list[str]:
    return [pattern % number for number in range(num)]


def said(text: str) -> list[Body]:
    return [{"role": "user", "content": text}]


def chat(**fields: Any) -> tuple[str, Body]:
    return "/v1/chat/completions", {"messages": said("hi")} | fields


def calling(arguments: Any, num_calls: int = 1) -> tuple[str, Body]:
    """Make a conversation in which a function was called with these arguments."""
    function = {"name": "f", "arguments": arguments}
    ids = many("call_%d", num_calls)
    calls = [{"id": id, "type": "function", "function": function} for id in ids]
    results = [{"role": "tool", "tool_call_id": id, "content": "x"} for id in ids]
    return chat(messages=[*said("hi"), {"role": "assistant", "tool_calls": calls}, *results])


def long_function() -> Body:
    return {"name": "f", "parameters": {"properties": {name: {} for name in many("a%d", 40_000)}}}


def nested(depth: int, begin: str, end: str) -> str:
    return begin * depth + "1" + end * depth


def long_text() -> str:
    """Make a text longer than any model here reads: of words, one letter, digits, or bytes beyond
    ASCII."""
    return random.choice(
        [f"the {letters()} " * 2 * MEGA, letters()[0] * 20 * MEGA, "7" * 20 * MEGA, "世" * 4 * MEGA]
    )


def written(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


TO_EMBED: dict[str, Callable[[], tuple[str, Body]]] = {
    "sentences without end": lambda: (
        "/v1/groundedness",
        {"answer": f"{letters()}. " * 4 * MEGA, "passages": ["x"]},
    ),
    "as many characters as may be compared": lambda: (
        "/v1/groundedness",
        {
            "answer": f"{letters()} " * (MAX_ANSWER_CHARS // 8),
            "passages": [f"{letters()}. " * (MAX_PASSAGE_CHARS // 8)],
        },
    ),
    "as many sentences as may be compared": lambda: (
        "/v1/groundedness",
        {
            "answer": f"The {letters()} is here. " * 128,
            "passages": [f"The {letters()} was not 12. " * 15] * 127,
        },
    ),
    "many pairs": lambda: (
        "/v1/score",
        {"text_1": many(f"{letters()} %d", 1024), "text_2": many("wolf %d", 1024)},
    ),
    "many long documents": lambda: (
        "/v1/rerank",
        {"query": "x", "documents": [f"{letters()} " * 1000] * 1024, "truncate_prompt_tokens": 3},
    ),
    "a long input": lambda: ("/v1/embeddings", {"input": long_text()}),
    "many ids": lambda: ("/v1/embeddings", {"input": [[5] * 512] * 2048}),
    "a million nulls": lambda: ("/v1/embeddings", {"input": [None] * MEGA}),
}

TO_ANSWER: dict[str, Callable[[], tuple[str, Body]]] = {
    "a long message": lambda: chat(messages=said(long_text())),
    "a long prompt": lambda: ("/v1/completions", {"prompt": long_text()}),
    "a long prompt, cut": lambda: (
        "/v1/completions",
        {"prompt": f"the {letters()} " * 2 * MEGA, "truncate_prompt_tokens": 10, "max_tokens": 1},
    ),
    "a long negative prompt": lambda: chat(negative_prompt=long_text(), guidance_scale=2),
    "a long text to count": lambda: ("/tokenize", {"prompt": long_text()}),
    "a long text, in Anthropic's words": lambda: (
        "/v1/messages",
        {"max_tokens": 3, "messages": said(long_text())},
    ),
    "a long text to count, in Anthropic's words": lambda: (
        "/v1/messages/count_tokens",
        {"messages": said(long_text())},
    ),
    "a long text, in Ollama's words": lambda: (
        "/api/chat",
        {"messages": said(long_text())},
    ),
    "a long text, in llama-server's words": lambda: ("/completion", {"prompt": long_text()}),
    "a long text, as a response": lambda: ("/v1/responses", {"input": long_text()}),
    "many parts of a response": lambda: (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 16384}]},
    ),
    "deep arguments": lambda: calling(nested(900, '{"a":', "}"), 200),
    "deep lists as arguments": lambda: calling(nested(MEGA, "[", "]")),
    "floats as arguments": lambda: calling(f'{{"a":[{"1.5e300," * 250_000}1]}}'),
    "long integers as arguments": lambda: calling(f'{{"a":[{("1" * 4000 + ",") * 2500}1]}}'),
    "ten megabytes of arguments": lambda: calling(json.dumps({"a": "\n" * 5 * MEGA})),
    "many objects as arguments": lambda: calling({"a": [{"b": [1]}] * 60_000}),
    "many floats": lambda: chat(messages=[0.5 + random.random()] * 120_000),
    "many biases": lambda: chat(logit_bias=dict.fromkeys(many("%d", 10**5), 1)),
    "many biased words": lambda: chat(logit_bias=dict.fromkeys(many("w%d", 10**5), 1)),
    "many stop strings": lambda: chat(stop=many("w%d", 10**5)),
    "much metadata": lambda: chat(metadata={"a": [{"b": 1}] * 120_000}),
    "a schema of megabytes": lambda: chat(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"enum": many("x%d", 10**5)}},
        }
    ),
    "tools of megabytes": lambda: chat(tools=[{"type": "function", "function": long_function()}]),
    "many prompts": lambda: ("/v1/completions", {"prompt": [[5] * 50] * 900, "max_tokens": 1}),
    "a scored prompt": lambda: (
        "/v1/completions",
        {"prompt": [5, 6] * 3000, "max_tokens": 0, "echo": True, "logprobs": 20},
    ),
    "scores of many texts": lambda: chat(
        n=128, max_tokens=40, logprobs=True, top_logprobs=20, ignore_eos=True
    ),
    "many texts that are compared": lambda: chat(
        n=128, max_tokens=60, semantic_entropy=True, ignore_eos=True, temperature=1.5
    ),
}
