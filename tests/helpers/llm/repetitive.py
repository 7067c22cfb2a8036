"""Random requests whose texts repeat themselves, so that much is guessed."""

import random
from itertools import pairwise

import numpy as np

VOCAB = 400


def repetitive(rng: random.Random, length: int) -> list[int]:
    """A text in which n-grams come again, so that much is guessed; tiny models repeat it, too."""
    stock = [[rng.randrange(VOCAB) for _ in range(rng.randint(2, 9))] for _ in range(4)]
    text: list[int] = []
    while len(text) < length:
        text += rng.choice(stock)
    return text[:length]


def make_requests(engines, rng, count=8, output_tokens=(1, 50), shared=0.4, **common):
    """Make requests that speculation could get wrong; at most one in four forbids it."""
    requests = []
    prefix = repetitive(rng, 40)
    for i in range(count):
        prompt = (prefix if rng.random() < shared else []) + repetitive(rng, rng.randrange(1, 70))
        # What makes repetitions less likely makes right guesses rare: not in all of them.
        choices = {
            "temperature": rng.choice([0.3, 0.8, 1.3]),
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.05,
            "repetition_penalty": rng.choice([0.8, 1.2]),
            "presence_penalty": rng.choice([-0.5, 0.5]),
            "frequency_penalty": rng.choice([-0.3, 0.3]),
            "repeat_last_n": rng.choice([1, 5, 40]),
            "dry_multiplier": 0.8,
            "xtc_probability": 0.5,
            "top_n_sigma": 1.0,
            "order": ("min_p", "temperature", "top_k"),
            "dynatemp_range": 0.5,
            "mirostat": 2 if i % 4 == 3 else 0,
            "mirostat_tau": 2.0,
            "xtc_threshold": 0.01,
            "bad_words": tuple(pairwise(repetitive(rng, 60))),
            "allowed_token_ids": np.arange(0, VOCAB, 3, dtype="<i4").tobytes(),
            "logit_bias": {rng.randrange(VOCAB): 3.0 for _ in range(3)},
            "min_tokens": rng.randrange(20),
            "stop_token_ids": tuple(rng.sample(range(VOCAB), 12)),
            "logprobs": rng.randrange(3),
            "prompt_logprobs": 1,
            "ignore_eos": True,
            "n": 3,
        }
        chosen = {name: value for name, value in choices.items() if rng.random() < 0.25}
        requests.append(
            engines.request(
                str(i),
                prompt,
                max_tokens=rng.randrange(*output_tokens),
                seed=rng.randrange(1 << 63),
                **(chosen | common),
            )
        )
    return requests


def outcome(done):
    """Everything that a client gets, logits' bits included."""
    return {
        key: (c.token_ids, c.finish_reason, c.logprobs, c.prompt_logprobs)
        for key, c in done.items()
    }


def check_outcome(found, expected, aborted=()):
    """Everybody got what was expected, and requests that were aborted got a beginning of it."""
    for key, one in expected.items():
        if key[0] not in aborted:
            is_same = found[key] == one
            assert is_same, key  # a comparison of long texts would take seconds to explain
        elif key in found:
            tokens = found[key][0]
            assert tokens == one[0][: len(tokens)], key


def without_drafts(engines, folder, requests, **knobs):
    """The outcome of the requests in an engine that guesses nothing."""
    engine = engines.make(folder, num_speculative_tokens=0, **knobs)
    return outcome(engines.run(engine, requests))
