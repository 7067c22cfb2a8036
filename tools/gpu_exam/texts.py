"""Texts of the whole engine: right ones, and the same bits whatever else happens."""

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.contract.generate import EngineStats, GenerateRequest
from engine.contract.sampling_params import SamplingParams
from engine.contract.text_settings import TextSettings
from engine.llm.engine import LLMEngine
from engine.llm.start.loading import load_engine
from engine.weights.source import Checkpoint
from tools.gpu_exam.place import Place
from tools.gpu_exam.record import Facts, Record
from tools.tiny_models import TINY_MODELS

VOCAB = 400
EXACT, ROUNDED = 2e-3, 0.3
"""How much less likely than the best a chosen token may be, in nats: in fp32, and in 16 bits."""
FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "float16": {"dtype": "float16"},
    "int8-weights": {"quantization": "int8-weights"},
    "int4": {"quantization": "int4"},
    "bnb-nf4": {"quantization": "bnb-nf4"},
    "bnb-fp4": {"quantization": "bnb-fp4"},
    "bnb-int8": {"quantization": "bnb-int8"},
    "int8 cache": {"kv_cache_dtype": "int8"},
    "fp8 cache": {"kv_cache_dtype": "fp8"},
}
"""How weights and caches are kept, where the engine itself rounds them."""
COMPARED = ("llama", "gemma3", "qwen3_moe", "deepseek")
"""Families whose bits are compared."""
SAME_BITS = {"deterministic": True, "enable_prefix_caching": False}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is computed: a rehearsal's kernels are a thousand times slower."""

    num_tokens: int
    num_texts: int
    settings: dict[str, Any]
    model: dict[str, Any]


ON_GPU = Scale(24, 10, {"num_kv_blocks": 128, "max_num_seqs": 16}, {})
REHEARSED = Scale(
    2,
    2,
    {"num_kv_blocks": 16, "max_num_seqs": 2, "max_num_batched_tokens": 16},
    {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
)


def scale(place: Place) -> Scale:
    return REHEARSED if place.is_rehearsal else ON_GPU


class WrongText(AssertionError):
    """A text is not what it should be."""


@dataclass(slots=True)
class Text:
    """An answer with the probability of each of its tokens."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    num_cached_tokens: int = 0


class LonelyHost:
    """A host that grants everything, as no other model is loaded."""

    def report(self, *args: Any, **kwargs: Any) -> None:
        pass

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        return capacity_bytes - num_bytes


def examine(record: Record, place: Place, shard: int, num_shards: int) -> None:
    """Run this process's share of the cases."""
    most = 1 if place.is_rehearsal else None
    families, formats, compared = list(TINY_MODELS)[:most], list(FORMATS)[:most], COMPARED[:most]
    cases: dict[str, Callable[[], Facts | None]] = {
        f"greedy {name}": partial(equals_transformers, name, place) for name in families
    }
    cases |= {f"greedy {name}": partial(equals_cpu, FORMATS[name], place) for name in formats}
    for name in compared:
        cases |= {
            f"company {name}": partial(bits_in_company, name, place),
            f"recorded {name}": partial(recorded_overlapped_steps, name, place),
            f"preemption {name}": partial(preemption, name, place),
            f"prefix {name}": partial(prefix_hits, name, place),
        }
    for name in list(cases)[shard::num_shards]:
        record.run(name, partial(seeded, cases[name]))


def seeded(case: Callable[[], Facts | None]) -> Facts:
    seed = random.getrandbits(31)
    random.seed(seed)
    try:
        return {"seed": seed} | (case() or {})
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise


@torch.inference_mode()
def equals_transformers(family: str, place: Place) -> None:
    """Whether each greedy token is transformers' best, in fp32."""
    import transformers

    with saved(family, place, "float32") as folder:
        prompts = some_prompts(place)
        with place.examined():
            texts, _ = answers(loaded(folder, place, dtype="float32"), prompts, place)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
        for prompt, text in zip(prompts, texts, strict=True):
            logits = theirs(torch.tensor([prompt + text.token_ids])).logits[0, len(prompt) - 1 : -1]
            shares = logits.log_softmax(-1)
            chosen = shares.gather(1, torch.tensor(text.token_ids)[:, None])[:, 0]
            check_choices(text, shares.max(-1).values - chosen, EXACT)


def equals_cpu(settings: dict[str, Any], place: Place) -> None:
    """Whether each greedy token is the best one of our engine on the CPU with the same settings."""
    with saved("llama", place, hidden_size=128, intermediate_size=256) as folder:
        prompts = some_prompts(place)
        with place.examined():
            texts, _ = answers(loaded(folder, place, **settings), prompts, place)
        there = loaded(folder, place, **settings, device="cpu")
        for prompt, text in zip(prompts, texts, strict=True):
            check_choices(text, lost(there, prompt, text), ROUNDED)


def check_choices(text: Text, losses: torch.Tensor, allowed: float) -> None:
    worst = int(losses.argmax())
    if not losses[worst] <= allowed:
        raise WrongText(
            f"token {worst}, {text.token_ids[worst]}, is {losses[worst]:.4f} nats less likely than "
            f"the best one"
        )


def lost(engine: LLMEngine, prompt: list[int], text: Text) -> torch.Tensor:
    """How much less likely each token of an answer is than the best, by another engine."""
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
    engine.add(
        GenerateRequest(
            request_id="scored",
            model="exam",
            prompt_token_ids=prompt + text.token_ids,
            sampling=sampling,
        )
    )
    found: list[float] = []
    while engine.has_work():
        for event in engine.step()[0]:
            for one in (event.prompt_logprobs or ())[len(prompt) :]:
                assert one is not None
                found.append(one.top_logprobs[0] - one.logprob)
    return torch.tensor(found)


def bits_in_company(family: str, place: Place) -> None:
    """Whether a text alone and beside others has the same tokens with the same probabilities."""
    with saved(family, place) as folder, place.examined():
        prompts = some_prompts(place)
        engine = loaded(folder, place, **SAME_BITS)
        alone = [answers(engine, [prompt], place)[0][0] for prompt in prompts[:3]]
        check_equal(answers(engine, prompts, place)[0][:3], alone)


def recorded_overlapped_steps(family: str, place: Place) -> None:
    """Whether CUDA graphs and steps that are launched ahead change a bit."""
    with saved(family, place) as folder, place.examined():
        prompts = some_prompts(place)
        plain = loaded(folder, place, **SAME_BITS, record_steps=False, async_scheduling="off")
        expected, _ = answers(plain, prompts, place)
        engine = loaded(folder, place, **SAME_BITS)
        for _ in range(1 if place.is_rehearsal else 10):  # graphs are recorded meanwhile
            check_equal(answers(engine, prompts, place)[0], expected)


def preemption(family: str, place: Place) -> Facts:
    """Whether texts that had to give up their blocks go on as if they had not."""
    with saved(family, place) as folder, place.examined():
        size = 2 if place.is_rehearsal else 16  # of a block; each text comes to need three
        prompts = some_prompts(place, lengths=(size, size + 1))
        how = SAME_BITS | {"block_size": size}
        expected, _ = answers(loaded(folder, place, **how), prompts, place, size + 2)
        small = loaded(folder, place, **how, num_kv_blocks=2 * len(prompts))
        texts, stats = answers(small, prompts, place, size + 2)
        check_equal(texts, expected)
        if not stats.num_preemptions:
            raise WrongText("no text was preempted")
        return {"preemptions": stats.num_preemptions}


def prefix_hits(family: str, place: Place) -> Facts:
    """Whether a prompt whose beginning is cached has the same answer."""
    with saved(family, place) as folder, place.examined():
        (prompt, *_) = some_prompts(place, lengths=(18, 60))
        engine = loaded(folder, place, deterministic=True)
        first, again = (answers(engine, [prompt], place)[0][0] for _ in range(2))
        check_equal([again], [first])
        if not again.num_cached_tokens:
            raise WrongText("nothing was found in the cache")
        return {"cached_tokens": again.num_cached_tokens}


@contextlib.contextmanager
def saved(family: str, place: Place, dtype: str = "bfloat16", **sizes: int) -> Iterator[Path]:
    """Make a tiny model of a family with new weights."""
    sizes = scale(place).model if place.is_rehearsal else sizes
    with tempfile.TemporaryDirectory() as folder:
        TINY_MODELS[family].save(Path(folder), seed=random.getrandbits(31), dtype=dtype, **sizes)
        yield Path(folder)


def loaded(folder: Path, place: Place, **settings: Any) -> LLMEngine:
    """Load a model as a worker does."""
    usual = scale(place).settings | {"device": place.device.type, "async_scheduling": "on"}
    intent = TextSettings(**(usual | settings))
    found = Checkpoint("folder", folder, "exam")
    return load_engine(found, "exam", intent, LonelyHost())[0]  # type: ignore[arg-type,return-value]


def some_prompts(place: Place, lengths: tuple[int, int] = (2, 30)) -> list[list[int]]:
    """Make prompts with lengths in a range, the shortest ones in a rehearsal."""
    shortest, end = lengths
    longest = shortest if place.is_rehearsal else end - 1
    return [
        [random.randrange(2, VOCAB) for _ in range(random.randint(shortest, longest))]
        for _ in range(scale(place).num_texts)
    ]


def answers(
    engine: LLMEngine,
    prompts: Sequence[list[int]],
    place: Place,
    num_tokens: int | None = None,
) -> tuple[list[Text], EngineStats]:
    """Answer all prompts at once, greedily."""
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=num_tokens or scale(place).num_tokens,
        ignore_eos=True,
        logprobs=1,
    )
    for number, prompt in enumerate(prompts):
        engine.add(
            GenerateRequest(
                request_id=str(number), model="exam", prompt_token_ids=prompt, sampling=sampling
            )
        )
    texts = [Text() for _ in prompts]
    stats = engine.stats()
    while engine.has_work():
        events, stats = engine.step()
        for event in events:
            if event.failure is not None:
                raise WrongText(str(event.failure))
            text = texts[int(event.request_id)]
            text.token_ids += event.token_ids
            text.logprobs += [one.logprob for one in event.logprobs or ()]
            text.num_cached_tokens = max(text.num_cached_tokens, event.num_cached_tokens)
    return texts, stats


def check_equal(found: list[Text], expected: list[Text]) -> None:
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.token_ids != theirs.token_ids or ours.logprobs != theirs.logprobs:
            pairs = zip(ours.logprobs, theirs.logprobs, strict=False)
            first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            raise WrongText(f"text {number} differs from token {first}: {ours} is not {theirs}")
