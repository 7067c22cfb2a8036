"""Ratings: against arena-rank, a general optimiser, and one vote after another."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from evaluation.arena.bradley_terry import fit_ratings
from evaluation.arena.elo import STEP, elo_ratings
from evaluation.arena.order_effect import agreement, order_effect
from evaluation.arena.ratings import ratings_report
from evaluation.arena.tally import Tally
from evaluation.arena.vote import Vote
from evaluation.problem import EvaluationProblem

DATA = Path(__file__).parents[2] / "data" / "arena_rank.json"


def drawn_votes(num_prompts, strengths, *, first_is_worth=0.0, ties=0.2):
    """Votes of a judge who sees each pair in both orders."""
    votes = []
    for prompt in range(num_prompts):
        for first in strengths:
            for second in strengths:
                if first == second:
                    continue
                ahead = strengths[first] - strengths[second] + first_is_worth
                is_won = random.random() < 1 / (1 + math.exp(-ahead))
                winner = "first" if is_won else "second"
                winner = "tie" if random.random() < ties else winner
                votes.append(Vote(str(prompt), first, second, winner, "judge"))
    return votes


STRENGTHS = {"a": 0.0, "b": 0.4, "c": 1.1, "d": -0.3}


def test_ratings_are_those_of_arena_rank():
    """The file comes from `python -m tools.arena_rank_ratings`."""
    for case in json.loads(DATA.read_text())["cases"]:
        votes = [
            Vote.from_json(dict(zip(("model_a", "model_b", "winner"), vote, strict=True)), str(i))
            for i, vote in enumerate(case["votes"])
        ]
        found = {one["model"]: one["rating"] for one in ratings_report(votes)["models"]}
        # arena-rank's search ends within about 0.01.
        assert found == pytest.approx(case["ratings"], abs=0.05)


def test_ratings_are_the_likeliest():
    tally = Tally(drawn_votes(20, STRENGTHS))
    ours = fit_ratings(tally.pairs, tally.scores, tally.counts[None], 4)[0]

    def loss(strengths):
        ahead = strengths[tally.pairs[:, 0]] - strengths[tally.pairs[:, 1]]
        return (tally.counts * (np.logaddexp(0, ahead) - tally.scores * ahead)).sum()

    theirs = minimize(loss, np.zeros(4), tol=1e-10).x
    theirs = 1000 + 400 / math.log(10) * (theirs - theirs.mean())
    assert ours == pytest.approx(theirs, abs=0.05)
    assert ours.mean() == pytest.approx(1000)


def test_several_sets_of_votes_are_rated_at_once():
    tally = Tally(drawn_votes(10, STRENGTHS))
    counts = np.random.poisson(2.0, (5, len(tally.scores))).astype(float) + 0.1
    together = fit_ratings(tally.pairs, tally.scores, counts, 4)
    for row, found in zip(counts, together, strict=True):
        alone = fit_ratings(tally.pairs, tally.scores, row[None], 4)[0]
        assert found == pytest.approx(alone, abs=1e-4)


def test_intervals_hold_the_truth():
    held = 0
    truth = 400 / math.log(10) * (STRENGTHS["c"] - np.mean(list(STRENGTHS.values()))) + 1000
    for _ in range(12):
        models = ratings_report(drawn_votes(40, STRENGTHS, ties=0.0))["models"]
        (one,) = [one for one in models if one["model"] == "c"]
        held += one["rating_low"] <= truth <= one["rating_high"]
        assert 20 < one["rating_high"] - one["rating_low"] < 160
    assert held >= 8  # fewer come with a probability of 0.0002


def test_elo_follows_one_vote_after_another():
    votes = drawn_votes(5, STRENGTHS)
    tally = Tally(votes)
    pairs, scores = tally.pairs[tally.kind_of], tally.scores[tally.kind_of]
    orders = [np.random.permutation(len(votes)), np.arange(7), np.array([3, 3, 0])]
    found = elo_ratings(pairs, scores, orders, 4)
    for order, ratings in zip(orders, found, strict=True):
        slow = dict.fromkeys(tally.models, 1000.0)
        for number in order:
            vote = votes[number]
            ahead = slow[vote.first] - slow[vote.second]
            change = STEP * (vote.score - 1 / (1 + 10 ** (-ahead / 400)))
            slow[vote.first] += change
            slow[vote.second] -= change
        assert list(ratings) == pytest.approx(list(slow.values()))


def test_the_order_is_told_apart_from_strength():
    shown = order_effect(Tally(drawn_votes(150, STRENGTHS, first_is_worth=0.8, ties=0.0)), seed=1)
    none = order_effect(Tally(drawn_votes(150, STRENGTHS, ties=0.0)), seed=1)
    assert shown is not None and none is not None
    assert shown[1].low > 0.1 and shown[1].low < shown[0] < shown[1].high < 0.25
    assert abs(none[0]) < 0.06 and none[1].low < 0.02 and none[1].high > -0.02


def test_a_better_model_that_is_always_first_shows_no_effect_of_the_order():
    votes = [Vote(str(i), "good", "bad", "first") for i in range(9)]
    assert order_effect(Tally(votes), seed=0) is None
    # One vote in the other order, which the better model wins too.
    both = [*votes, Vote("x", "bad", "good", "second")]
    found = order_effect(Tally(both), seed=0)
    assert found is not None and found[0] == 0.0


def test_agreement_counts_pairs_judged_alike_in_both_orders():
    votes = [
        Vote("1", "a", "b", "first", "j"),
        Vote("1", "b", "a", "second", "j"),
        Vote("2", "a", "b", "first", "j"),
        Vote("2", "b", "a", "first", "j"),
        Vote("3", "a", "b", "tie", "j"),
        Vote("3", "b", "a", "tie", "j"),
        Vote("5", "a", "b", "second", "j"),
        Vote("5", "b", "a", "second", "j"),
        Vote("4", "a", "b", "tie", "j"),
        Vote("4", "b", "a", "tie", "k"),
    ]
    random.shuffle(votes)
    found = agreement(votes)
    assert found is not None and found[:2] == (2, 4)
    assert agreement(votes[:1]) is None


def test_models_without_a_common_scale_are_named():
    votes = [Vote("1", "a", "b", "tie"), Vote("2", "c", "d", "tie")]
    with pytest.raises(EvaluationProblem, match="compares any of a, b with any of c, d"):
        ratings_report(votes)


def test_no_ratings_fit_when_a_model_never_loses():
    votes = [
        *(Vote(str(i), "best", "b", "first") for i in range(3)),
        Vote("x", "b", "c", "first"),
        Vote("y", "b", "c", "second"),
    ]
    report = ratings_report(votes)
    assert [one["rating"] for one in report["models"]] == [None] * 3
    assert report["models"][0]["model"] == "best" and report["models"][0]["elo"] > 1000
    assert report["notes"][0].startswith("best gave no point to any other model")
    with_a_tie = ratings_report([*votes, Vote("z", "c", "best", "tie")])
    assert with_a_tie["notes"] == [] and with_a_tie["models"][0]["rating"] > 1000


def test_a_report_counts_votes():
    votes = drawn_votes(10, {"a": 0.0, "judge": 0.5})
    unread = Vote("0", "a", "judge", None, "judge", "hmm")
    report = ratings_report([*votes, unread])
    assert (report["num_votes"], report["num_unreadable"], report["num_prompts"]) == (20, 1, 10)
    assert report["num_ties"] == sum(vote.winner == "tie" for vote in votes)
    unreadable, own = report["notes"][:1], report["notes"][-1]
    assert "1 verdicts could not be read" in unreadable[0]
    assert "judge judged its own answers" in own
    (pair,) = report["pairs"]
    points = sum(vote.score if vote.first == "a" else 1 - vote.score for vote in votes)
    assert pair == {"models": ["a", "judge"], "num_votes": 20, "share_of_first": points / 20}


def test_without_votes_there_are_no_ratings():
    with pytest.raises(EvaluationProblem, match="no votes"):
        ratings_report([Vote("0", "a", "b", None)])
