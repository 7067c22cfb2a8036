"""Tries a grammar out by the beginnings of some texts that it allows.

Many structures compile and then cannot be followed: a thousand objects that begin alike, or
hundreds of optional properties, are more than llguidance keeps track of. Most show it within
a few tokens.
"""

import random
import time

from llguidance import LLMatcher, LLTokenizer

NUM_TEXTS = 4
NUM_TOKENS = 16
"""Of each text, if it does not end before."""
TOKEN_SECONDS = 0.1
"""Of processor time, for one token: in a step of the worker others would wait."""
SECONDS = 0.03
"""Of processor time, after which no further token is tried."""
_NUM_GUESSES = 8


def problem_of(start: LLMatcher, tokens: LLTokenizer, seed: str) -> str | None:
    """Why texts could not be held to a grammar; None: no reason was found.

    Args:
        start: at the beginning of a text; stays there.
        seed: decides which tokens are tried.
    """
    rng = random.Random(seed)
    started_s = time.process_time()
    for _ in range(NUM_TEXTS):
        text = start.deep_copy()
        for _ in range(NUM_TOKENS):
            problem = _next_token(text, tokens, rng)
            if problem is not None:
                return problem
            if text.is_stopped() or time.process_time() - started_s > SECONDS:
                break
    return None


def _next_token(text: LLMatcher, tokens: LLTokenizer, rng: random.Random) -> str | None:
    """Write one more token. Returns what is wrong with that, if anything is."""
    started_s = time.process_time()
    allowed = text.compute_bitmask()
    text.compute_ff_tokens()
    if not text.is_error():
        text.try_consume_tokens([_some_token(allowed, tokens, rng)])
    if text.is_error():
        return text.get_error()
    too_long = time.process_time() - started_s > TOKEN_SECONDS
    return "it takes too long to follow" if too_long else None


def _some_token(allowed: bytes, tokens: LLTokenizer, rng: random.Random) -> int:
    """One of the allowed, and none of spaces alone if that is easily had: these lead nowhere."""
    token_id = 0
    for _ in range(_NUM_GUESSES):
        token_id = _some_bit(allowed, rng)
        if tokens.decode_bytes([token_id]).strip():
            break
    return token_id


def _some_bit(octets: bytes, rng: random.Random) -> int:
    size, first = len(octets), rng.randrange(len(octets))
    places = (place % size for place in range(first, first + size))
    place = next(place for place in places if octets[place])
    return place * 8 + rng.choice([bit for bit in range(8) if octets[place] >> bit & 1])
