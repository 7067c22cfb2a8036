"""What the evaluation asks: held-out pairs only where they belong; scenes and captions never."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from tools.demo_image_model.captions import caption, vocabulary
from tools.demo_image_model.classify import Reading, Seen
from tools.demo_image_model.palette import HELD_OUT, PLACE_PHRASES, PLACES
from tools.demo_image_model.questions import (
    SUITES,
    Ask,
    Question,
    circle,
    judge,
    kind_of_phrase,
    placed,
)
from tools.demo_image_model.scenes import draw_scene, scene_rng
from tools.demo_image_model.tokenizer import write_tokenizer

NUM = 2000


@pytest.fixture
def seed() -> int:
    return random.randrange(2**31)


def neighbours(text: str) -> set[tuple[str, str]]:
    words = text.split()
    return set(pairwise(words))


def test_scenes_and_captions_hold_no_held_out_pair(seed):
    for index in range(NUM):
        rng = scene_rng(seed, index)
        scene = draw_scene(rng)
        assert not HELD_OUT & {(i.colour, i.shape) for i in scene.items}, index
        assert not HELD_OUT & neighbours(caption(scene, rng)), index


def test_scenes_follow_from_their_index(seed):
    first = [draw_scene(scene_rng(seed, i)) for i in range(50)]
    again = [draw_scene(scene_rng(seed, i)) for i in reversed(range(50))][::-1]
    assert first == again


@pytest.mark.parametrize("name", SUITES)
def test_held_out_pairs_are_asked_for_where_they_belong(name):
    for index in range(500):
        question = SUITES[name](index)
        pairs = {(ask.colour, ask.shape) for ask in question.asks}
        assert bool(pairs & HELD_OUT) == name.startswith("held_out")
        assert len(pairs) == (2 if "double" in name else 1)
        assert all(f"{colour} {shape}" in question.prompt for colour, shape in pairs)


def test_circles_are_asked_for_alone():
    for index in range(200):
        (ask,) = circle(index).asks
        assert ask.shape == "circle" and (ask.colour, "circle") not in HELD_OUT


def test_every_phrase_of_a_place_is_asked_for_and_is_in_captions(seed):
    phrases = {phrase: place for place, ways in PLACE_PHRASES.items() for phrase in ways}
    for index in range(len(phrases)):
        question, phrase = placed(index)
        assert question.prompt.endswith(f" {phrase}") and question.place == phrases.pop(phrase)
    assert not phrases
    said = set()
    for index in range(20 * NUM):
        rng = scene_rng(seed, index)
        said.add(caption(draw_scene(rng, single_share=1), rng))
    for ways in PLACE_PHRASES.values():
        for phrase in ways:
            assert any(text.endswith(f" {phrase}") for text in said), phrase


def test_phrases_are_of_one_kind_when_they_differ_in_directions():
    assert kind_of_phrase("at the bottom right") == kind_of_phrase("at the top left")
    assert kind_of_phrase("at the lower right") == kind_of_phrase("at the upper left")
    assert kind_of_phrase("at the upper right") != kind_of_phrase("at the top right")


@pytest.mark.parametrize("name", SUITES)
def test_questions_are_fresh_and_repeatable(name):
    questions = [SUITES[name](i) for i in range(500)]
    assert questions == [SUITES[name](i) for i in range(500)]
    assert len({(q.prompt, q.seed) for q in questions}) == 500


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_word_is_one_token(seed, tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    for word in vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    texts = [SUITES[name](i).prompt for name in SUITES for i in range(100)]
    for index in range(300):
        rng = scene_rng(seed, index)
        texts.append(caption(draw_scene(rng), rng))
    for text in texts:
        num_tokens = len(tokenizer(text).input_ids)
        assert num_tokens == len(text.replace(",", " ,").split()) + 2, text
        assert num_tokens <= tokenizer.model_max_length, text


RED = Seen("circle", "red", 0.25, 0.5, 0.12)
BLUE = Seen("square", "blue", 0.75, 0.5, 0.2)
BOTH = Question("", 0, (Ask("red", "circle"), Ask("blue", "square")), relation="left")


def test_judge_wants_exactly_the_objects():
    assert judge(BOTH, Reading("white", (BLUE, RED)))["all"]
    for seen in ((RED,), (RED, BLUE, BLUE), (), (RED, RED), (RED, replace(BLUE, colour="red"))):
        verdict = judge(BOTH, Reading("white", seen))
        assert not verdict["objects"] and not verdict["relation"] and not verdict["all"]


def test_judge_tells_swapped_attributes_from_right_ones():
    swapped = (replace(RED, colour="blue"), replace(BLUE, colour="red"))
    verdict = judge(BOTH, Reading("white", swapped))
    assert verdict["colours"] and verdict["shapes"] and not verdict["objects"]


def test_judge_reads_the_relation():
    swapped = replace(RED, x=0.75), replace(BLUE, x=0.25)
    verdict = judge(BOTH, Reading("white", swapped))
    assert verdict["objects"] and not verdict["relation"]


@pytest.mark.parametrize("place", PLACES)
def test_judge_reads_the_place(place):
    question = Question("", 0, (Ask("red", "circle", "small"),), "white", place)
    x, y = PLACES[place]
    assert judge(question, Reading("white", (replace(RED, x=x, y=y),)))["all"]
    away = replace(RED, x=(x + 0.25) % 1, y=y)
    assert not judge(question, Reading("white", (away,)))["place"]
    large = replace(RED, x=x, y=y, radius=0.2)
    assert not judge(question, Reading("white", (large,)))["size"]
    assert not judge(question, Reading("black", (replace(RED, x=x, y=y),)))["background"]


def test_judge_skips_what_was_not_said():
    verdict = judge(Question("", 0, (Ask("red", "circle"),)), Reading("white", (RED,)))
    assert set(verdict) == {"count", "colours", "shapes", "objects", "all"}
