"""Short hashes of the values that shape a model's answers."""

import hashlib


def fingerprint(facts: object) -> str:
    """Eight hexadecimal digits for values whose `repr` is complete."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
