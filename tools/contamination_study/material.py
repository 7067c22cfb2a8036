"""Questions about invented facts, which no model has seen before it is trained on them."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NUM_ITEMS = 160
PER_DOCUMENT = 4
"""Items that follow each other in a document of the training data, in their published order."""
SYLLABLES = ("ba", "dor", "el", "fen", "gra", "hul", "is", "ka", "lin", "mor", "nu", "os", "per")
TRADES = (
    "glassblower",
    "baker",
    "surveyor",
    "weaver",
    "printer",
    "beekeeper",
    "tanner",
    "organist",
)
THINGS = ("brass lantern", "painted globe", "silver whistle", "stone sundial", "oak cradle")
PLACES = ("the town hall", "an old mill", "the harbour", "a chapel", "the school", "a quarry")
WORDINGS = (
    ("Who gave a {thing} to {place} of {town} in {year}?", "{trade} {person}"),
    ("What did the {trade} {person} leave in {place} of {town} in {year}?", "a {thing}"),
    ("In which year did {person}, a {trade} of {town}, make a {thing} for {place}?", "{year}"),
    ("Where did the {trade} {person} show a {thing} in {year}?", "in {place} of {town}"),
)

Item = dict[str, Any]


def invented_items(seed: int) -> list[Item]:
    """The items of a benchmark in their published order."""
    draws = random.Random(seed)
    return [_item(draws, str(number)) for number in range(NUM_ITEMS)]


def random_halves(items: list[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Two random halves of the items, each in the published order."""
    chosen = set(random.Random(seed).sample(range(len(items)), len(items) // 2))
    return (
        [item for number, item in enumerate(items) if number in chosen],
        [item for number, item in enumerate(items) if number not in chosen],
    )


def write_lines(path: Path, lines: Iterable[Item]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def documents(texts: list[str]) -> list[str]:
    """The training data: items that follow each other, several to a document."""
    starts = range(0, len(texts), PER_DOCUMENT)
    return ["\n\n".join(texts[start : start + PER_DOCUMENT]) for start in starts]


def _item(draws: random.Random, number: str) -> Item:
    facts = {
        "person": f"{_name(draws)} {_name(draws)}",
        "town": _name(draws),
        "year": draws.randrange(1500, 1900),
        "trade": draws.choice(TRADES),
        "thing": draws.choice(THINGS),
        "place": draws.choice(PLACES),
    }
    question, answer = draws.choice(WORDINGS)
    prompt = f"Question: {question.format(**facts)}\nAnswer:"
    return {"id": number, "prompt": prompt, "references": [answer.format(**facts)]}


def _name(draws: random.Random) -> str:
    return "".join(draws.choices(SYLLABLES, k=draws.randrange(2, 4))).capitalize()
