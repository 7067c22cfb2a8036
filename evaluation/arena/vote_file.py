"""Files of votes: our own, LMArena's, and conversations exported from the playground."""

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluation.arena.vote import Vote, Winner
from evaluation.line_file import LineFile, check_format
from evaluation.problem import EvaluationProblem
from evaluation.task import json_lines, read_bytes

FORMAT = "tandem-eval-votes"
_CONVERSATIONS = "tandem-conversations"


class VoteFile(LineFile):
    """A file that gets votes: a line about where they come from, then a line per vote.

    Args:
        source: prompts, models and voter. A file of votes from elsewhere is refused.

    Attributes:
        votes: what the file has.
    """

    def __init__(self, path: Path, source: Mapping[str, Any]) -> None:
        header = {"format": FORMAT, "version": 1, **source}
        self.votes: list[Vote] = []

        def take_in(path: Path) -> None:
            _check_same(path, header)
            self.votes = load_votes(path)

        super().__init__(path, header, take_in)

    def append(self, vote: Vote) -> None:
        self.votes.append(vote)
        self.write(vote.to_json())


def load_votes(path: Path) -> list[Vote]:
    """The votes of a file.

    Raises:
        EvaluationProblem: the file has another form, or a line is wrong.
    """
    data = read_bytes(path)
    conversations = _exported(data)
    if conversations is not None:
        return [vote for one in conversations for vote in _votes_of(one)]
    lines = json_lines(path, data)
    if lines and "format" in lines[0][1]:
        check_format(path, data, FORMAT)
        lines = lines[1:]
    return [Vote.from_json(entry, f"{path}:{line}") for line, entry in lines]


def _check_same(path: Path, header: Mapping[str, Any]) -> None:
    lines = json_lines(path, read_bytes(path))
    before = lines[0][1] if lines else {}
    for name, value in header.items():
        if before.get(name) != value:
            raise EvaluationProblem(
                f"{path} has votes with another {name}: {before.get(name)!r} instead of {value!r}; "
                "name another --output, or delete the file"
            )


def _exported(data: bytes) -> list[dict[str, Any]] | None:
    """The conversations of a file that the playground has exported, or None if it is none."""
    try:
        whole = json.loads(data)
    except ValueError:
        return None
    if not isinstance(whole, dict) or whole.get("format") != _CONVERSATIONS:
        return None
    conversations: list[dict[str, Any]] = whole["conversations"]
    return conversations


def _votes_of(conversation: Mapping[str, Any]) -> list[Vote]:
    """The reader's votes in a conversation. Answers that stand side by side have the same `pair`;
    the left one comes first."""
    beside: dict[str, list[Mapping[str, Any]]] = {}
    for message in conversation["messages"]:
        if message.get("pair") and message.get("vote"):
            beside.setdefault(message["pair"], []).append(message)
    votes = []
    for pair, messages in beside.items():
        for left, right in combinations(messages, 2):
            winner = _winner(left["vote"], right["vote"])
            if winner is not None and left["model"] != right["model"]:
                prompt = f"{conversation['id']}/{pair}"
                votes.append(Vote(prompt, left["model"], right["model"], winner, "playground"))
    return votes


def _winner(left: str, right: str) -> Winner | None:
    """The winner of two of the answers side by side; None if both lost to a third."""
    if left == right:
        return "tie" if left == "tie" else None
    return "first" if left == "win" else "second"
