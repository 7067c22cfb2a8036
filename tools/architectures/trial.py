"""Serves a tiny random model as Tandem serves any folder, and compares it with transformers."""

import json
import random
import tempfile
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from engine.contract.generate import GenerateRequest, TokenEvent, TokenLogprob
from engine.contract.sampling_params import SamplingParams
from engine.contract.settings import EngineConfig
from engine.errors import EngineError, MissingWeight, UnsupportedArchitecture
from engine.llm.engine import LLMEngine
from engine.llm.runner.runner_factory import create_runner
from engine.llm.scheduler import Scheduler
from engine.llm.start.loading import load_weights
from engine.llm.start.sizing import sized
from engine.models.config import ModelConfig
from engine.models.registry import families, picture_readers
from engine.processes.telling_host import TellingHost
from engine.runtime.device import machine_facts
from engine.runtime.operations import build_operations
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint
from tools.architectures.tiny import VOCAB_SIZE, their_logits, tiny_model

TOLERANCE = 1e-3
_PROMPT, _OUTPUT = 52, 32
_TOP = 20
"""Log-probabilities that are compared at each position, those of the likeliest tokens."""
_BLOCKS = 14
"""KV blocks of each layer group, fewer than the texts of the crowd need, so that some are
preempted."""


def try_architecture(architecture: str) -> dict[str, Any]:
    """Make a tiny model, serve it, and say how that went, as a row of docs/models.json."""
    try:
        theirs = tiny_model(architecture)
    except Exception as error:
        refusal = _refusal(architecture)
        if refusal is not None:
            return {"state": "refused", "reason": refusal}
        return {"state": "not made", "reason": _described(error)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            served = _saved_and_loaded(theirs, Path(folder))
        except EngineError as error:
            return {"state": "refused", "reason": str(error)}
        try:
            their_logits(theirs, [1, 2, 3])
        except Exception as error:
            return {"state": "not made", "reason": _described(error)}
        by = served.config.architecture
        return {
            "state": "family" if by in families() else "fallback",
            "by": by,
            "pictures": _sees(architecture),
            **_compare(served, theirs),
        }


def _sees(architecture: str) -> bool:
    """Whether Tandem takes pictures for this architecture, if a folder has a processor's files."""
    family = families().get(architecture)
    own = family is not None and family.read_pictures is not None
    return own or architecture in picture_readers()


def _refusal(architecture: str) -> str | None:
    """The sentence with which an architecture is refused whatever its configuration says; None if
    it is not."""
    kind = getattr(transformers, architecture).config_class.model_type
    values = {"model_type": kind, "architectures": [architecture]}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values))
        try:
            load_model_config(Checkpoint("folder", Path(folder), "tiny"))
        except UnsupportedArchitecture as error:
            return str(error)
        except EngineError:
            return None
    return None


def _saved_and_loaded(theirs: Any, folder: Path) -> "Served":
    """Save a model with the names of published files, or, where transformers gets these wrong, with
    those in memory."""
    theirs.save_pretrained(folder)
    try:
        return Served.load(folder)
    except MissingWeight:
        theirs.save_pretrained(folder, save_original_format=False)
        return Served.load(folder)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request."""

    token_ids: list[int]
    prompt_logprobs: list[TokenLogprob]
    logprobs: list[TokenLogprob]
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model and its engine."""

    config: ModelConfig
    engine: LLMEngine

    @classmethod
    def load(cls, folder: Path) -> "Served":
        """Load a folder as a worker does, in fp32, with a small pool of blocks and small steps.

        Raises:
            EngineError: it cannot be served.
        """
        checkpoint = Checkpoint("folder", folder, "tiny")
        host = TellingHost(lambda progress: None)
        config = load_model_config(checkpoint)
        intent = EngineConfig(
            dtype="float32",
            device="cpu",
            num_threads=1,
            max_model_len=_PROMPT + _OUTPUT,
            max_num_seqs=8,
            max_num_batched_tokens=32,
            num_kv_blocks=_BLOCKS * len(config.layer_groups),
            prefix_cache_memory_gib=1.0,
        )
        build_operations(host)
        sizing = sized(checkpoint, config, intent, machine_facts(intent.device), host)
        model = load_weights(checkpoint, config, intent, sizing, host).model
        runner = create_runner(model, config, sizing.config)
        runner.warm_up()
        scheduler = Scheduler(
            sizing.config,
            eos_token_ids=(),
            vocab_size=config.vocab_size,
            windows=config.group_windows,
        )
        return cls(config, LLMEngine(scheduler, runner, sizing.config))

    def answers(self, requests: list[GenerateRequest]) -> list[Answer]:
        """Answer requests together."""
        events: dict[str, list[TokenEvent]] = {one.request_id: [] for one in requests}
        for request in requests:
            self.engine.add(request)
        while self.engine.has_work():
            for event in self.engine.step()[0]:
                if event.failure is not None:
                    raise RuntimeError(event.failure.message)
                events[event.request_id].append(event)
        return [_joined(one) for one in events.values()]


def _joined(events: list[TokenEvent]) -> Answer:
    return Answer(
        token_ids=[token_id for one in events for token_id in one.token_ids],
        prompt_logprobs=[score for one in events for score in one.prompt_logprobs or () if score],
        logprobs=[score for one in events for score in one.logprobs or ()],
        num_cached_tokens=max(one.num_cached_tokens for one in events),
    )


def _compare(served: Served, theirs: Any) -> dict[str, Any]:
    """Compare a random text with transformers', and with itself with its prompt in the cache, and
    among others with so few blocks that it is preempted."""
    ordinary = _ordinary_tokens(theirs.config, served.config.vocab_size)
    prompt = random.choices(ordinary, k=_PROMPT)
    allowed = array("i", ordinary).tobytes()

    def request(name: str, token_ids: list[int], salt: str = "", **more: Any) -> GenerateRequest:
        greedy = SamplingParams(
            **{
                "temperature": 0.0,
                "max_tokens": _OUTPUT,
                "ignore_eos": True,
                "allowed_token_ids": allowed,
                "logprobs": _TOP,
                **more,
            }
        )
        return GenerateRequest(
            request_id=name, model="", prompt_token_ids=token_ids, sampling=greedy, cache_salt=salt
        )

    [alone] = served.answers([request("alone", prompt, prompt_logprobs=_TOP)])
    strangers = [
        request(f"stranger {i}", random.choices(ordinary, k=random.randint(1, _PROMPT)))
        for i in range(4)
    ]
    [again] = served.answers([request("again", prompt)])
    *_, anew = served.answers([*strangers, request("anew", prompt, salt="anew")])
    return {
        "difference": _difference(alone, prompt, theirs),
        "same_in_company": anew.logprobs == alone.logprobs,
        "same_after_hit": again.logprobs == alone.logprobs,
        "num_cached_tokens": again.num_cached_tokens,
        "num_preemptions": served.engine.stats().num_preemptions,
    }


def _difference(answer: Answer, prompt: list[int], theirs: Any) -> float:
    """The greatest difference of a log-probability from transformers'."""
    expected = their_logits(theirs, prompt + answer.token_ids[:-1]).float().log_softmax(-1)
    scores = [*answer.prompt_logprobs, *answer.logprobs]
    ours = torch.tensor([one.top_logprobs for one in scores])
    found = expected.gather(1, torch.tensor([one.top_ids for one in scores]))
    return (ours - found).abs().max().item()


def _ordinary_tokens(config: Any, vocab_size: int) -> list[int]:
    """The tokens that no configuration mentions."""
    special = set()
    parts = [config.to_dict()]
    while parts:
        for name, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif str(name).endswith(("_id", "_index", "_ids")):
                special |= {str(one) for one in (value if isinstance(value, list) else [value])}
    return [one for one in range(min(VOCAB_SIZE, vocab_size)) if str(one) not in special]


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
