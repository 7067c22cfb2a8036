"""The index against a search of the whole text."""

import random
import time

import pytest

from engine.llm.drafts.prompt_lookup import MAX_CANDIDATES, PromptLookup


def plain_search(text: list[int], shortest: int, longest: int) -> int:
    """The place whose tokens before are most like the text's end, of several the latest."""
    best, most = -1, shortest - 1
    for place in range(shortest, len(text)):
        equal = 0
        while equal < min(longest, place) and text[place - 1 - equal] == text[-1 - equal]:
            equal += 1
        if equal >= max(most, shortest):
            best, most = place, equal
    return best


def test_it_finds_what_a_search_of_the_whole_text_finds() -> None:
    num_found = 0
    for _ in range(60):
        shortest = random.randint(1, 4)
        longest = random.randint(shortest, 8)
        # So many that the search need not be cut short.
        letters = random.choice([4, 8, 12])
        lookup = PromptLookup(shortest, longest, random.choice([1, 50, 100_000]))
        text: list[int] = []
        for _ in range(letters**shortest if letters**shortest < 30 else 40):
            text.append(random.randrange(letters))
            while lookup.extend(text, random.randint(1, 5)):
                pass
            found = lookup.find(text, 5)
            tail = text[-shortest:]
            ends = range(shortest, len(text))
            num_places = sum(text[end - shortest : end] == tail for end in ends)
            if num_places > MAX_CANDIDATES:
                continue
            place = plain_search(text, shortest, longest)
            assert bool(found) == (place >= 0)
            if found:
                num_found += 1
                following = text[place:]
                while len(following) < 5:
                    following += text[place:]
                assert found == following[:5]
    assert num_found > 100


def test_a_text_that_repeats_itself_is_expected_to_go_on_so() -> None:
    lookup = PromptLookup(2, 4, 10)
    text = [9, 7, 8, 7, 8, 7, 8]
    lookup.extend(text, 100)
    assert lookup.find(text, 5) == [7, 8, 7, 8, 7]


def test_of_equal_places_the_latest_counts_and_of_others_the_most_alike() -> None:
    lookup = PromptLookup(1, 3, 10)
    text = [5, 1, 10, 1, 20, 5, 1]
    lookup.extend(text, 100)
    assert lookup.find(text, 1) == [10], "5 1 stood before it"
    text = [6, 1, 10, 1, 20, 5, 1]
    lookup = PromptLookup(1, 3, 10)
    lookup.extend(text, 100)
    assert lookup.find(text, 1) == [20]


def test_nothing_is_found_in_texts_that_are_too_short() -> None:
    lookup = PromptLookup(3, 8, 10)
    for text in ([], [1], [1, 1], [1, 1, 1]):
        lookup.extend(text, 100)
        assert lookup.find(text, 4) == []


def test_it_grows_by_what_it_may() -> None:
    text = [random.randrange(50) for _ in range(1000)]
    lookup = PromptLookup(3, 8, 1000)
    assert lookup.extend(text, 300) == 300
    assert lookup.num_indexed == 300
    assert lookup.extend(text, 1000) == 700
    assert lookup.extend(text, 1000) == 0


@pytest.mark.parametrize("letters", [1, 2, 40_000])
def test_a_step_costs_the_same_in_any_text(letters: int) -> None:
    """Comparing all places would take minutes."""
    text = [random.randrange(letters) for _ in range(200_000)]
    lookup = PromptLookup(3, 64, len(text))
    lookup.extend(text, len(text))
    start = time.process_time()
    for _ in range(2_000):
        text.append(random.randrange(letters))
        lookup.extend(text, 10)
        lookup.find(text, 8)
    assert time.process_time() - start < 5
