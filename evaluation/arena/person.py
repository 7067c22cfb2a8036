"""A person votes in the terminal, without knowing which model wrote which answer."""

import random
import re
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.rule import Rule

from evaluation.arena.matches import Match
from evaluation.arena.vote import Vote, Winner
from evaluation.arena.vote_file import VoteFile

VOTER = "person"
_KEYS: Mapping[str, Winner] = {"1": "first", "2": "second", "t": "tie"}
_QUESTION = "Which is better? 1, 2, t (tie), s (skip), q (stop for now): "
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def vote_in_terminal(
    matches: Sequence[Match],
    file: VoteFile,
    console: Console,
    *,
    seed: int,
    ask: Callable[[str], str] = input,
) -> None:
    """Show each pair of answers once, in random order and on random sides, until all have a vote
    or the person stops."""
    generator = random.Random(seed)
    known = {_sides(vote.prompt, vote.first, vote.second) for vote in file.votes}
    by_sides: dict[tuple[str, frozenset[str]], list[Match]] = {}
    for match in matches:
        by_sides.setdefault(_sides(*match.key), []).append(match)
    shown = [generator.choice(both) for sides, both in by_sides.items() if sides not in known]
    generator.shuffle(shown)
    for number, match in enumerate(shown, start=1):
        _show(console, match, f"{number} of {len(shown)}")
        key = ""
        while key not in (*_KEYS, "s", "q"):
            key = ask(_QUESTION).strip().lower()
        if key == "q":
            return
        if key in _KEYS:
            file.append(Vote(*match.key, _KEYS[key], VOTER))


def _sides(prompt: str, first: str, second: str) -> tuple[str, frozenset[str]]:
    return prompt, frozenset((first, second))


def _show(console: Console, match: Match, title: str) -> None:
    question = match.item.prompt or "\n".join(
        f"{message['role']}: {message.get('content')}" for message in match.item.messages
    )
    parts = ((title, question), ("1", match.first_text), ("2", match.second_text))
    for heading, text in parts:
        console.print(Rule(heading, align="left"))
        # What a model writes must not control the terminal.
        console.print(_CONTROL.sub("�", text), markup=False, emoji=False, highlight=False)
