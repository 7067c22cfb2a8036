"""Votes are read from our files, LMArena's and the playground's."""

import json

import pytest

from evaluation.arena.vote import Vote
from evaluation.arena.vote_file import VoteFile, load_votes
from evaluation.problem import EvaluationProblem

VOTES = [
    Vote("1", "a", "b", "first", "j", "better"),
    Vote("1", "b", "a", None, "j", "hm"),
    Vote("2", "a", "b", "tie", "j", "é"),
]


def test_votes_are_kept_and_a_half_line_is_dropped(tmp_path):
    path = tmp_path / "votes.jsonl"
    with VoteFile(path, {"judge": "j"}) as file:
        for vote in VOTES:
            file.append(vote)
    assert load_votes(path) == VOTES
    with path.open("a") as half:
        half.write('{"prompt_id": "3"')
    with VoteFile(path, {"judge": "j"}) as file:
        assert file.votes == VOTES
        file.append(VOTES[0])
    assert load_votes(path) == [*VOTES, VOTES[0]]


def test_votes_of_another_judge_are_not_mixed_in(tmp_path):
    path = tmp_path / "votes.jsonl"
    VoteFile(path, {"judge": "j"}).__exit__()
    with pytest.raises(EvaluationProblem, match="another judge: 'j' instead of 'k'"):
        VoteFile(path, {"judge": "k"})


def test_votes_of_lmarena(tmp_path):
    path = tmp_path / "arena.jsonl"
    winners = ("model_a", "model_b", "tie", "tie (bothbad)", "both_bad")
    path.write_text(
        "".join(
            json.dumps({"model_a": "x", "model_b": "y", "winner": one}) + "\n" for one in winners
        )
    )
    votes = load_votes(path)
    assert [vote.winner for vote in votes] == ["first", "second", "tie", "tie", "tie"]
    assert len({vote.prompt for vote in votes}) == 5


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"model_a": "x", "model_b": "y", "winner": "x"}, "`winner` is 'x'"),
        ({"model_a": "x", "model_b": "x", "winner": "tie"}, "two different models"),
        ({"model_a": "x", "winner": "tie"}, "`model_a` and `model_b`"),
        ({"format": "tandem-eval-run"}, "not a file of the form tandem-eval-votes"),
    ],
)
def test_wrong_lines_are_named(tmp_path, line, words):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(EvaluationProblem, match=r"votes\.jsonl:") as caught:
        load_votes(path)
    assert words in str(caught.value)


def message(id, model, vote, pair="p", **fields):
    return {
        "id": id, "parent": "u", "role": "assistant", "content": "x", "model": model,
        "pair": pair, "vote": vote, **fields,
    }  # fmt: skip


def test_votes_of_the_playground(tmp_path):
    """The form is that of `exported` in server/playground/chat/conversations.js."""
    user = {"id": "u", "parent": None, "role": "user", "content": "hi"}
    single = {"id": "s", "parent": "u", "role": "assistant", "content": "x", "model": "a"}
    conversations = [
        {"id": "one", "messages": [user, message("1", "a", "loss"), message("2", "b", "win")]},
        {
            "id": "two",
            "messages": [user, message("1", "b", "tie"), message("2", "a", "tie"), single],
        },
        {"id": "three", "messages": [user, message("1", "a", "win"), message("2", "a", "loss")]},
        {
            "id": "four",
            "messages": [
                message("1", "a", "loss"),
                message("2", "b", "win"),
                message("3", "c", "loss"),
                message("4", "a", "win", "q"),
                message("5", "c", "loss", "q"),
                message("6", "a", None, "r"),
                message("7", "c", None, "r"),
            ],
        },
    ]
    path = tmp_path / "conversations.json"
    document = {"format": "tandem-conversations", "version": 1, "conversations": conversations}
    path.write_text(json.dumps(document, indent=1))
    assert [(vote.prompt, vote.first, vote.second, vote.winner) for vote in load_votes(path)] == [
        ("one/p", "a", "b", "second"),
        ("two/p", "b", "a", "tie"),
        ("four/p", "a", "b", "second"),
        ("four/p", "b", "c", "first"),
        ("four/q", "a", "c", "first"),
    ]
