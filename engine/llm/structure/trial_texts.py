"""Tries out a grammar on the first tokens of some texts that it allows.

Many structures compile but then cannot be followed: a thousand objects that begin alike, or
hundreds of optional properties, are more than llguidance can track. Most show it within a few
tokens.
"""

import random
import time

from llguidance import LLMatcher, LLTokenizer

NUM_TEXTS = 4
NUM_TOKENS = 16
"""The number of tokens of each text, if it does not end before."""
TOKEN_SECONDS = 0.1
"""The most processor time for one token: in a step of the worker, other requests would wait."""
SECONDS = 0.03
"""The processor time after which no further token is tried."""
_NUM_GUESSES = 8


def problem_of(start: LLMatcher, tokens: LLTokenizer, seed: str) -> str | None:
    """Find out why texts cannot follow a grammar; None if no reason was found.

    Args:
        start: a matcher at the beginning of a text; stays there.
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
    """Write one more token. Returns the problem, if there is one."""
    started_s = time.process_time()
    allowed = text.compute_bitmask()
    text.compute_ff_tokens()
    if not text.is_error():
        text.try_consume_tokens([_some_token(allowed, tokens, rng)])
    if text.is_error():
        return text.get_error()
    too_long = time.process_time() - started_s > TOKEN_SECONDS
    return "following it takes too long" if too_long else None


def _some_token(allowed: bytes, tokens: LLTokenizer, rng: random.Random) -> int:
    """Choose an allowed token, if easily possible not one of whitespace alone, which shows
    nothing."""
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
