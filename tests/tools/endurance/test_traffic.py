"""A seed repeats what is asked, and another one asks for something else."""

import random
from collections import Counter
from itertools import islice

import pytest

from tools.endurance.order import NUM_VARIANTS, Catalogue, Names
from tools.endurance.traffic import Change, draw_request, errands

NAMES = Names("text", "image", "poet", "visitor", "guest", "upscaler", "matting")


def some(seed, names=NAMES, number=400):
    return list(islice(errands(Catalogue(seed, names), f"{seed} user 0"), number))


def test_a_seed_repeats_the_errands_of_its_users():
    seed = random.randrange(2**31)
    assert some(seed) == some(seed)
    assert some(seed) != some(seed + 1)
    assert some(seed) != list(islice(errands(Catalogue(seed, NAMES), f"{seed} user 1"), 400))


def test_all_kinds_manners_and_changes_occur():
    found = some(random.randrange(2**31), number=4000)
    requests = [step for one in found for step in one.steps if not isinstance(step, Change)]
    kinds = Counter(request.order.kind for request in requests)
    assert set(kinds) == {*Catalogue(0, NAMES).kinds, "bad", "visitor", "visiting adapter", "gone"}
    assert {request.manner for request in requests} >= {"whole", "stream", "slow", "leave"}
    changes = {
        step.path.partition("?")[0]
        for one in found
        for step in one.steps
        if isinstance(step, Change)
    }
    assert len(changes) == 5


def test_each_order_is_asked_often_enough_to_be_compared():
    rng, catalogue = random.Random(random.randrange(2**31)), Catalogue(1, NAMES)
    counts = Counter(draw_request(catalogue, rng).order.key for _ in range(3000))
    assert sum(counts.values()) / len(counts) > 10
    assert len(counts) <= len(catalogue.kinds) * NUM_VARIANTS + catalogue.num_bad


def test_a_server_without_an_upscaler_is_asked_for_no_chain():
    kinds = Catalogue(0, Names("text", "image", "poet", "visitor", "guest")).kinds
    assert "chain" not in kinds
    assert "picture" in kinds


@pytest.mark.parametrize("kind", Catalogue(0, NAMES).kinds)
def test_the_same_order_has_the_same_body_in_every_run(kind):
    seed, number = random.randrange(2**31), random.randrange(NUM_VARIANTS)
    assert Catalogue(seed, NAMES).order(kind, number) == Catalogue(seed, NAMES).order(kind, number)
