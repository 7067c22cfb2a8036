# /// script
# dependencies = ["httpx", "pytest"]
# ///
"""SillyTavern is no library, so these are the bodies that it sends with its initial settings.

https://github.com/SillyTavern/SillyTavern: `createTextGenGenerationData` in
public/scripts/textgen-settings.js makes those of texts, of which
src/endpoints/backends/text-completions.js passes on to vLLM what vLLM knows, and to llama.cpp
everything; those of chats are from src/endpoints/backends/chat-completions.js, for a custom source.
"""

import json
import os

import httpx
import pytest

URL = os.environ["SERVER_URL"]
MODEL = "smollm2-135m-instruct"
STOP = ["\nUser:", "\nAssistant:"]
PROMPT = (
    "Write Assistant's next reply in a fictional chat between Assistant and User.\n"
    "Assistant: Hello!\nUser: Do you like the sea?\nAssistant:"
)
COMMON = {
    "prompt": PROMPT,
    "model": MODEL,
    "max_new_tokens": 24,
    "max_tokens": 24,
    "temperature": 0.7,
    "top_p": 0.5,
    "typical_p": 1,
    "typical": 1,
    "min_p": 0,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "top_k": 40,
    "skew": 0,
    "min_tokens": 0,
    "add_bos_token": True,
    "smoothing_factor": 0,
    "smoothing_curve": 1,
    "dry_allowed_length": 2,
    "dry_multiplier": 0,
    "dry_base": 1.75,
    "dry_sequence_breakers": ["\n", ":", '"', "*"],
    "dry_penalty_last_n": 0,
    "max_tokens_second": 0,
    "stopping_strings": STOP,
    "stop": STOP,
    "truncation_length": 8192,
    "ban_eos_token": False,
    "skip_special_tokens": True,
    "include_reasoning": True,
    "top_a": 0,
    "tfs": 1,
    "mirostat_mode": 0,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "custom_token_bans": "",
    "banned_strings": [],
    "xtc_threshold": 0.1,
    "xtc_probability": 0,
    "nsigma": 0,
    "top_n_sigma": 0,
    "min_keep": 0,
    "adaptive_target": -0.01,
    "adaptive_decay": 0.9,
}
VLLM = {
    name: COMMON[name]
    for name in (
        *("model", "prompt", "frequency_penalty", "max_tokens", "presence_penalty", "stop"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_tokens"),
        "skip_special_tokens",
    )
} | {"n": 1, "ignore_eos": False, "spaces_between_special_tokens": True}
LLAMA_CPP = COMMON | {
    "api_type": "llamacpp",
    "api_server": f"{URL}/",
    "n": 1,
    "samplers": [
        *("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "tfs_z", "typical_p", "top_p"),
        *("min_p", "xtc", "temperature", "adaptive_p"),
    ],
    "rep_pen": 1.2,
    "rep_pen_range": 0,
    "repetition_penalty_range": 0,
    "guidance_scale": 1,
    "negative_prompt": "",
    "repeat_penalty": 1.2,
    "repeat_last_n": 0,
    "n_predict": 24,
    "num_predict": 24,
    "num_ctx": 8192,
    "mirostat": 0,
    "ignore_eos": False,
    "rep_pen_slope": 1,
    "logit_bias": [],
    "grammar": "",
    "cache_prompt": True,
}
CHAT = {
    "messages": [
        {"role": "system", "content": "Write Assistant's next reply in a fictional chat."},
        {"role": "system", "content": "[Start a new Chat]"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Do you like the sea?"},
    ],
    "model": MODEL,
    "temperature": 1,
    "max_tokens": 24,
    "stream": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_p": 1,
    "stop": [],
    "logit_bias": {},
    "n": 1,
}
SEEDED = {"seed": 7}


def post(path, body):
    response = httpx.post(URL + path, json=body, timeout=300)
    assert response.status_code == 200, response.text
    return response


def parts_of(path, body):
    """The events of a stream, the last being none of JSON."""
    text = post(path, {**body, "stream": True}).text
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


def test_it_finds_the_model():
    models = httpx.get(f"{URL}/v1/models", timeout=60).json()["data"]
    assert MODEL in [model["id"] for model in models]


@pytest.mark.parametrize("more", [{}, {"guided_grammar": 'root ::= " Yes" | " No"'}])
def test_text_completion_as_for_vllm(more):
    body = {**VLLM, **more, **SEEDED}
    [choice] = post("/v1/completions", body).json()["choices"]
    assert choice["text"] and not any(stop in choice["text"] for stop in STOP)
    parts = [part["choices"][0]["text"] for part in parts_of("/v1/completions", body)]
    assert "".join(parts) == choice["text"]
    assert not more or choice["text"] in (" Yes", " No")


def test_text_completion_as_for_llama_cpp():
    body = {**LLAMA_CPP, **SEEDED}
    answer = post("/completion", body).json()
    assert answer["content"] and answer["stop"] is True
    assert "".join(part["content"] for part in parts_of("/completion", body)) == answer["content"]
    tokens = post("/tokenize", {"content": PROMPT, "prompt": PROMPT}).json()
    assert len(tokens["tokens"]) > 20


def test_chat_completion():
    body = {**CHAT, **SEEDED}
    [choice] = post("/v1/chat/completions", body).json()["choices"]
    content = choice["message"]["content"]
    assert content
    parts = [part["choices"][0]["delta"] for part in parts_of("/v1/chat/completions", body)]
    assert "".join(part.get("content") or "" for part in parts) == content
