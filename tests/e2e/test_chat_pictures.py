"""Pictures in the chats of real servers: the same tokens and scores as transformers."""

import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
import transformers

from tests.helpers.draws import some
from tests.helpers.models.tiny_wrappers import load_processor, make_wrapper
from tests.helpers.server.picture_server import data_url, encoded, noise

pytestmark = pytest.mark.e2e
KINDS = some(["gemma3", "smolvlm", "qwen2_5_vl", "mistral3", "llava_next", "gemma4"], 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in made.items():
        make_wrapper(folder, kind)
    return made


@pytest.fixture(scope="module")
def server(start_shared_server, folders):
    models = [word for kind in KINDS for word in ("--model", f"{kind}={folders[kind]}")]
    return start_shared_server(*models, "--dtype", "float32")


def messages_of(*turns):
    """OpenAI's and transformers' messages: user's turns of text and pictures, and answers."""
    ours, theirs = [], []
    for role, parts in turns:
        url = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_url(encoded(part))}}
            for part in parts
        ]
        own = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": part}
            for part in parts
        ]
        ours.append({"role": role, "content": url})
        theirs.append({"role": role, "content": own})
    return ours, theirs


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_scores_are_those_of_transformers(server, folders, kind):
    sides = [random.randint(1, 150) for _ in range(4)]
    first, second = noise(*sides[:2]), noise(*sides[2:])
    turns = [("user", [first, "What is it?"])]
    processor = load_processor(folders[kind])
    name = type(processor.image_processor).__name__
    by_pillow = getattr(transformers, f"{name}Pil")
    processor.image_processor = by_pillow.from_pretrained(folders[kind])
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folders[kind], dtype=torch.float32
    ).eval()
    cached = 0
    for _ in range(2):
        ours, theirs = messages_of(*turns)
        body = {"model": kind, "messages": ours, "max_tokens": 4, "temperature": 0}
        asked = {"logprobs": True, "return_token_ids": True, "ignore_eos": True}
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json=body | asked, timeout=300
        ).json()
        inputs = processor.apply_chat_template(
            theirs, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        prompt = inputs["input_ids"][0].tolist()
        assert answer["prompt_token_ids"] == prompt
        usage = answer["usage"]
        assert usage["prompt_tokens"] == len(prompt)
        [choice] = answer["choices"]
        with torch.no_grad():
            scores = model(**inputs).logits[0, -1].log_softmax(-1)
        written = choice["logprobs"]["content"][0]["logprob"]
        assert written == pytest.approx(float(scores[choice["token_ids"][0]]), abs=1e-3)
        assert written == pytest.approx(float(scores.max()), abs=1e-3)
        assert usage["prompt_tokens_details"]["cached_tokens"] >= cached
        # The conversation goes on with another picture, and its beginning is known.
        cached = len(prompt) // 16 * 16 - 16
        turns += [("assistant", ["A thing."]), ("user", ["And this?", second])]


def test_an_answer_is_the_same_in_any_company(server):
    bodies = []
    for number in range(8):
        parts = [*[noise() for _ in range(random.randint(1, 2))], "What is it?"]
        ours, _ = messages_of(("user", parts[number % 2 :]))
        asked = {"logprobs": True, "temperature": 0, "max_tokens": 8, "ignore_eos": True}
        bodies.append({"model": KINDS[number % len(KINDS)], "messages": ours, **asked})

    def ask(body):
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
        return answer.raise_for_status().json()["choices"]

    alone = [ask(body | {"cache_salt": "alone"}) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as threads:
        assert list(threads.map(ask, bodies)) == alone
