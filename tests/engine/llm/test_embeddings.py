"""A served text model embeds with its own weights, as a model that only embeds does."""

import random

import numpy as np
import pytest
import torch

from engine.contract.embed import EmbeddingEvent, EmbeddingRequest
from engine.contract.generate import GenerateRequest, TokenEvent
from engine.contract.operations import EMBED
from engine.contract.sampling_params import SamplingParams
from engine.contract.settings import EngineConfig
from engine.embedding import loading as embedding_loading
from engine.errors import ContextLengthExceeded, InsufficientMemory
from engine.llm.start.loading import load_engine
from engine.weights.source import Checkpoint
from tests.helpers.host import Host

CONFIG = EngineConfig(device="cpu", num_threads=1, num_kv_blocks=64, seed=0)


def texts_request(name, prompt, num=6):
    sampling = SamplingParams(max_tokens=num, ignore_eos=True, seed=7)
    return GenerateRequest(request_id=name, model="m", prompt_token_ids=prompt, sampling=sampling)


def run(engine, *requests):
    """{request id: embeddings [B, C], or token ids}"""
    for request in requests:
        engine.add(request)
    vectors, tokens = {}, {}
    while engine.has_work():
        for event in engine.step()[0]:
            assert event.failure is None, event.failure
            if isinstance(event, EmbeddingEvent):
                numbers = np.frombuffer(event.embedding, "<f4").copy()
                vectors.setdefault(event.request_id, {})[event.index] = torch.tensor(numbers)
            elif isinstance(event, TokenEvent):
                tokens.setdefault(event.request_id, []).extend(event.token_ids)
    embedded = {
        name: torch.stack([found[index] for index in range(len(found))])
        for name, found in vectors.items()
    }
    return embedded | tokens


@pytest.fixture(params=["tiny_llama", "tiny_gemma3"])
def checkpoint(request):
    return Checkpoint("folder", request.getfixturevalue(request.param)(), "m")


@pytest.fixture
def inputs():
    return [random.choices(range(3, 200), k=random.randint(1, 60)) for _ in range(5)]


def test_the_bits_are_those_of_a_model_that_only_embeds_and_no_company_changes_any(
    checkpoint, inputs
):
    embeds = EmbeddingRequest(request_id="e", model="m", inputs=inputs)
    alone, _ = embedding_loading.load_engine(checkpoint, "m", CONFIG, Host())
    expected = run(alone, embeds)["e"]
    engine, info = load_engine(checkpoint, "m", CONFIG, Host())
    assert EMBED.info_among(info).dimensions == expected.shape[1]
    before = run(engine, texts_request("t", inputs[0]))["t"]
    both = run(engine, texts_request("t", inputs[0]), embeds)
    assert torch.equal(both["e"], expected)
    assert both["t"] == before


def test_what_cannot_be_embedded_is_refused(checkpoint):
    engine, info = load_engine(checkpoint, "m", CONFIG, Host())
    longest = EMBED.info_among(info).max_model_len
    with pytest.raises(ContextLengthExceeded, match=f"length is {longest} tokens"):
        engine.add(EmbeddingRequest(request_id="e", model="m", inputs=[[1] * (longest + 1)]))
    assert not engine.has_work()


def test_memory_is_asked_for_once_and_a_refusal_ends_one_request(checkpoint, inputs):
    class Poor(Host):
        def __init__(self):
            super().__init__()
            self.num_refusals, self.borrowed = 1, []

        def borrow(self, device, purpose, num_bytes, capacity_bytes):
            if self.num_refusals:
                self.num_refusals -= 1
                raise InsufficientMemory("there is no memory left")
            self.borrowed.append(purpose)
            return super().borrow(device, purpose, num_bytes, capacity_bytes)

    host = Poor()
    engine, _ = load_engine(checkpoint, "m", CONFIG, host)
    assert host.borrowed == []
    engine.add(EmbeddingRequest(request_id="e", model="m", inputs=inputs[:1]))
    [event] = engine.step()[0]
    assert "there is no memory left" in event.failure.message
    for name in ("f", "g"):
        assert len(run(engine, EmbeddingRequest(request_id=name, model="m", inputs=inputs))[name])
    assert host.borrowed == ["embeddings"]


def test_statistics_have_embeddings_once_there_were_some(checkpoint, inputs):
    engine, _ = load_engine(checkpoint, "m", CONFIG, Host())
    run(engine, texts_request("t", inputs[0]))
    assert EMBED.stats_among(engine.stats()) is None
    run(engine, EmbeddingRequest(request_id="e", model="m", inputs=inputs))
    assert EMBED.stats_among(engine.stats()).num_tokens == sum(map(len, inputs))
    assert not engine.stats().is_busy


def test_an_abort_ends_either(checkpoint, inputs):
    engine, _ = load_engine(checkpoint, "m", CONFIG, Host())
    engine.add(texts_request("t", inputs[0]))
    engine.add(EmbeddingRequest(request_id="e", model="m", inputs=inputs))
    for name in ("e", "t", "nobody"):
        engine.abort(name)
    assert not engine.has_work()
