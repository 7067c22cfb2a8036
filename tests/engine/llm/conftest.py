"""Fixtures of whole engines over small models, stepped by hand."""

import random
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.contract.settings import EngineConfig
from engine.llm.cost.step_budget import Price, StepBudget
from engine.llm.start.loading import load_engine
from engine.weights import decoder
from engine.weights.source import resolve_source
from kernels import native
from tests.helpers.host import Host
from tests.helpers.llm.logits import ATTENDING, SIZES, LogitsLog
from tests.helpers.llm.paged_executor import Answer, make_request


def make_engine(ref, *, cache_dir="", **knobs):
    """Make an fp32 engine on one thread, whose invariants are checked after every step unless told
    otherwise."""
    defaults = {
        "dtype": "float32",
        "device": "cpu",
        "num_threads": 1,
        "num_kv_blocks": 256,
        "seed": 0,
        "debug_invariants": True,
    }
    config = EngineConfig(**(defaults | knobs))
    checkpoint = resolve_source(
        str(ref), cache_dir=Path(cache_dir), offline=True, on_progress=lambda fraction, line: None
    )
    engine, _ = load_engine(checkpoint, "m", config, Host())
    return engine.texts


def run(engine, requests, *, arrivals=None, aborts=None):
    """Step until all is done; returns {(request_id, index): Answer}.

    `arrivals[i]` is the step before which request i is added (0 for all by default); `aborts` maps
    a request id to the step before which it is aborted.
    """
    arrivals = arrivals or [0] * len(requests)
    aborts = aborts or {}
    done = defaultdict(Answer)
    step = 0
    while True:
        for request, at in zip(requests, arrivals, strict=True):
            if at == step:
                engine.add(request)
        for request_id, at in aborts.items():
            if at == step:
                engine.abort(request_id)
        step += 1
        if not engine.has_work():
            if step > max(arrivals, default=0):
                return dict(done)
            continue
        for event in engine.step()[0]:
            done[event.request_id, event.index].add(event)
        if step > 1000:
            time.sleep(0.001)  # a grammar is in the making
        assert step < 20_000, "no end in sight"


def told(done):
    """Return the part of what `run` returns that must not depend on who shared the engine."""
    return {key: replace(answer, num_cached_tokens=0) for key, answer in done.items()}


def run_alone(ref, requests):
    """Run each request in an engine of its own without caches, and return what it is `told`."""
    done = {}
    for request in requests:
        done |= run(make_engine(ref, enable_prefix_caching=False), [request])
    return told(done)


def make_greedy_request(request_id, prompt, **facts):
    defaults = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": False}
    return make_request(request_id, prompt, **(defaults | facts))


@pytest.fixture(autouse=True)
def light(monkeypatch):
    """Use one thread and usual pages: small tensors gain nothing from more. Starting an engine
    does not read the sources of the operations again."""
    monkeypatch.setattr(decoder, "use_huge_pages", lambda: 0)
    monkeypatch.setattr(native, "is_built", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def engines():
    """Give test modules the functions above."""
    return SimpleNamespace(
        make=make_engine, run=run, run_alone=run_alone, told=told, request=make_greedy_request
    )


@pytest.fixture(scope="module")
def model(folder):
    """transformers' model, whose texts end only where that is asked for."""
    import transformers  # slowly, and only a few test files need it

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def rng():
    return random.Random(random.randrange(1 << 32))


@pytest.fixture
def log(monkeypatch):
    """The logits that engines draw tokens from."""
    log = LogitsLog()
    log.attach(monkeypatch)
    return log


@pytest.fixture(scope="module", params=[*ATTENDING, "tiny_mamba"])
def folder(request):
    """A model of each kind that must give the same bits in any company."""
    return request.getfixturevalue(request.param)(**SIZES)


@pytest.fixture
def cheap_rows(monkeypatch):
    """Make rows cheap, so that drafts do not depend on how busy the machine is."""
    price = Price(row=0.02, step_s=1000.0, num_tokens=1)
    monkeypatch.setattr(StepBudget, "price", lambda budget, decodes: price)
