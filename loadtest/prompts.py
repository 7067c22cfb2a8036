"""Prompts of random common nouns, new in every run, so that no prefix cache helps."""

import random
from dataclasses import dataclass

WORDS = (  # noqa: SIM905 - a list literal of them would be one word a line
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind"
).split()

STORY = "Write a story that uses these words: "


def story_prompt(seed: int, num_words: int = 100) -> str:
    """The standard workload's prompt; 100 words are about 109 tokens for most tokenizers."""
    rng = random.Random(seed)
    return STORY + " ".join(rng.choice(WORDS) for _ in range(num_words)) + "."


def copy_prompt(seed: int, num_words: int = 80) -> str:
    """Words twice and the first of them once more, so that the text tells what follows."""
    rng = random.Random(seed)
    words = [rng.choice(WORDS) for _ in range(num_words)]
    return f"{' '.join(words)}\n\n{' '.join(words)}\n\n{' '.join(words[:4])}"


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Estimates the tokens of a prompt by a straight line fitted to the server's usage.

    A load generator has no tokenizer of its own, so it learns from two probes how many tokens a
    prompt has, chat template included.
    """

    fixed: float
    per_word: float

    @classmethod
    def fit(cls, probes: list[tuple[int, int]]) -> "TokenEstimate":
        """Fit two (words, prompt tokens) pairs. Raises ValueError if they do not give a line."""
        (few, few_tokens), (many, many_tokens) = sorted(probes)
        if many == few or many_tokens <= few_tokens:
            raise ValueError(f"prompts of {few} and {many} words gave no token counts to fit")
        per_word = (many_tokens - few_tokens) / (many - few)
        return cls(few_tokens - per_word * few, per_word)

    def num_words(self, num_tokens: int) -> int:
        """The number of words for a prompt of about `num_tokens`; at least one."""
        return max(1, round((num_tokens - self.fixed) / self.per_word))
