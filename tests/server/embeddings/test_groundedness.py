"""`/v1/groundedness`: sentences, their terms and their risks, and what is refused."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from server.embeddings import groundedness
from server.embeddings.sentences import Sentence, sentences_of, terms_of, words_of
from server.protocol.groundedness import (
    MAX_ANSWER_CHARS,
    MAX_PASSAGE_CHARS,
    MAX_PASSAGES,
    MAX_SENTENCES,
)
from server.protocol.prompts import MAX_PROMPTS
from tests.helpers.server.embedding_server import EmbeddingServer
from tests.helpers.server.fake_embeddings import vector
from tests.helpers.server.fake_server import answer_of, error_of

PATH = "/v1/groundedness"
PASSAGES = [
    "The dog jumps over 12 lazy foxes. Seven wizards brew.",
    "A toxic brew makes nobody happy.",
]


async def answered(server: EmbeddingServer, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = answer_of(await server.post(PATH, **{"passages": PASSAGES} | body))
    return answer


async def refused(server: EmbeddingServer, **body: Any) -> dict[str, Any]:
    return error_of(await server.post(PATH, **{"passages": PASSAGES, "answer": "x"} | body))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        (
            'It cost 3.5 million. "Really?" he said.',
            ["It cost 3.5 million.", '"Really?"', "he said."],
        ),
        ("  a line\n\n- another. And more\r\n", ["a line", "- another.", "And more"]),
        ("日本語です。次の文\uff01", ["日本語です。", "次の文\uff01"]),
        ("no end", ["no end"]),
        ("...", ["..."]),
        (" \n\t ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    found = list(sentences_of(text))
    assert [sentence.text for sentence in found] == sentences
    for sentence in found:
        start, end = sentence.characters
        assert text[start:end] == sentence.text


@pytest.mark.parametrize(
    ("text", "content", "details"),
    [
        (
            "塔は1889年に完成した",
            ["塔は", "1889", "年に", "に完", "完成", "成し", "した"],
            ["1889"],
        ),
        ("高１２米", ["高", "12", "米"], ["12"]),
        ("หอคอย สูง 330 เมตร", None, ["330"]),
        ("Die Türme, 3.5 m", ["türme", "3.5"], ["türme", "3.5"]),
    ],
)
def test_terms_of_scripts_without_spaces(
    text: str, content: list[str] | None, details: list[str]
) -> None:
    terms = terms_of(text)
    assert content is None or list(terms.content) == content
    assert list(terms.details) == details
    assert set(terms.content) <= words_of(f"、{text}。"), "also within a passage"


async def test_a_clause_without_spaces_conflicts_by_its_numbers_alone(
    server: EmbeddingServer,
) -> None:
    passages = ["その塔は1889年に完成した。"]
    same = await answered(server, passages=passages, answer="塔は1889年に完成した。")
    other = await answered(server, passages=passages, answer="塔は1887年に完成した。")
    assert [same["sentences"][0][name] for name in ("conflicts", "coverage")] == [[], 1.0]
    assert other["sentences"][0]["conflicts"] == other["sentences"][0]["missing_terms"] == ["1887"]


def test_nothing_but_white_space_is_lost_between_sentences() -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(300):
        text = "".join(rng.choice("ab .!?\n\"')。\uff01 1") for _ in range(rng.randrange(60)))
        rest, at = "", 0
        for sentence in sentences_of(text):
            start, end = sentence.characters
            assert sentence.text == text[start:end] == text[start:end].strip() != "", seed
            rest, at = rest + text[at:start], end
        assert not (rest + text[at:]).strip(), seed


def test_a_text_of_marks_is_read_in_one_go() -> None:
    """Backtracking would take hours."""
    for text in ("." * 300_000 + "x", ".)" * 150_000, "。" * 200_000 + "x", "a." * 150_000):
        assert list(sentences_of(text))


def test_terms() -> None:
    terms = terms_of("The Eiffel Tower, 1,000 feet tall, isn't in Rome's old town 3.5.")
    assert list(terms.content) == [
        "eiffel",
        "tower",
        "1000",
        "feet",
        "tall",
        "isn't",
        "rome",
        "town",
        "3.5",
    ]
    assert list(terms.details) == ["eiffel", "tower", "1000", "rome", "3.5"]
    assert terms.is_negated
    assert not terms_of("Nothing notable happened.").is_negated
    assert terms_of("It never was.").is_negated


async def test_each_sentence_is_compared_with_the_most_similar_one(server: EmbeddingServer) -> None:
    answer = "Seven wizards brew.  The lazy dog has 13 Foxes! Nobody was not happy."
    told = await answered(server, answer=answer)
    sources = [
        ("The dog jumps over 12 lazy foxes.", 0),
        ("Seven wizards brew.", 0),
        (PASSAGES[1], 1),
    ]
    details = [set(), {"13", "foxes"}, set()]
    missing = [[], ["13"], []]
    assert len(told["sentences"]) == 3
    for found, detail, gone in zip(told["sentences"], details, missing, strict=True):
        start, end = found["characters"]
        a = _unit(server, answer[start:end])
        cosines = [float(a @ _unit(server, text)) for text, _ in sources]
        nearest = int(np.argmax(cosines))
        source, passage = sources[nearest]
        assert found["passage"] == passage
        assert found["similarity"] == pytest.approx(min(1, max(0, cosines[nearest])), abs=1e-12)
        terms = terms_of(answer[start:end])
        assert found["missing_terms"] == [
            term
            for term in terms.content
            if term not in " ".join(PASSAGES).lower().replace(".", "").split()
        ]
        assert gone == [term for term in found["missing_terms"] if any(map(str.isdigit, term))]
        coverage = 1 - len(found["missing_terms"]) / len(terms.content)
        assert found["coverage"] == pytest.approx(coverage)
        words = PASSAGES[passage].lower().replace(".", "").split()
        conflicts = [term for term in terms.details if term not in words]
        assert set(terms.details) == detail
        if terms.is_negated:
            conflicts.append("negation")
        assert found["conflicts"] == conflicts
        assert found["intrinsic_risk"] == (found["similarity"] if conflicts else 0)
        extrinsic = 1 - (found["similarity"] + coverage) / 2
        assert found["extrinsic_risk"] == pytest.approx(extrinsic)
        assert source
    first = told["sentences"][0]
    assert first["similarity"] == pytest.approx(1) and first["risk"] is None
    assert told["intrinsic_risk"] == max(s["intrinsic_risk"] for s in told["sentences"])
    assert told["extrinsic_risk"] == max(s["extrinsic_risk"] for s in told["sentences"])
    scores = [(1 - s["intrinsic_risk"]) * (1 - s["extrinsic_risk"]) for s in told["sentences"]]
    assert told["groundedness"] == pytest.approx(sum(scores) / 3)
    assert told["model"] == "embedder" and told["id"].startswith("ground-")
    texts = [answer[slice(*s["characters"])] for s in told["sentences"]] + [
        text for text, _ in sources
    ]
    assert told["usage"]["prompt_tokens"] == sum(len(server.ids(text)) for text in texts)


async def test_the_greater_risk_is_named_from_a_threshold_on(server: EmbeddingServer) -> None:
    same = {"answer": "Seven wizards never brew.", "passages": ["Seven wizards brew."]}
    for threshold, name in ((0.0, "intrinsic"), (1.0, None)):
        told = await answered(server, **same, risk_threshold=threshold)
        (found,) = told["sentences"]
        assert found["conflicts"] == ["negation"]
        assert found["intrinsic_risk"] == found["similarity"]
        expected = (
            "intrinsic" if found["intrinsic_risk"] >= found["extrinsic_risk"] else "extrinsic"
        )
        assert found["risk"] == (
            expected if name or max(found["intrinsic_risk"], found["extrinsic_risk"]) >= 1 else None
        )


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("answer", {"answer": ""}),
        ("answer", {"answer": "  \n "}),
        ("answer", {"answer": "a. " * (MAX_SENTENCES + 1)}),
        ("answer", {"answer": "a" * (MAX_ANSWER_CHARS + 1)}),
        ("passages", {"passages": []}),
        ("passages", {"passages": ["x"] * (MAX_PASSAGES + 1)}),
        ("passages", {"passages": ["  "]}),
        ("passages", {"passages": ["a. " * 2048]}),
        ("passages", {"passages": ["a" * (MAX_PASSAGE_CHARS // 4)] * 5}),
        ("passages", {"passages": "x"}),
        ("passages[1]", {"passages": ["x", "the fox " * 100]}),
        ("risk_threshold", {"risk_threshold": 2}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 5}),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_cannot_be_compared_is_refused(
    server: EmbeddingServer, param: str, body: dict[str, Any]
) -> None:
    error = await refused(server, **body)
    assert error["param"] == param


async def test_texts_are_split_and_compared_in_threads_and_no_further_than_allowed(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten million sentences took the event loop 17 seconds before they were counted."""
    loop_thread = threading.get_ident()
    threads: list[int] = []
    num_split = 0

    def split(text: str) -> Iterator[Sentence]:
        nonlocal num_split
        for sentence in sentences_of(text):
            threads.append(threading.get_ident())
            num_split += 1
            yield sentence

    judge = groundedness._Sources.judge

    def judged(self: Any, *args: Any) -> Any:
        threads.append(threading.get_ident())
        return judge(self, *args)

    monkeypatch.setattr(groundedness, "sentences_of", split)
    monkeypatch.setattr(groundedness._Sources, "judge", judged)
    await answered(server, answer="Seven wizards brew.")
    assert num_split == 4 and len(threads) == 5
    for fields in (
        {"answer": "x. " * (MAX_ANSWER_CHARS // 3)},
        {"passages": ["x. " * (MAX_PASSAGE_CHARS // 9)] * 3},
    ):
        num_split = 0
        assert "more than" in (await refused(server, **fields))["message"]
        assert num_split <= MAX_PROMPTS + 1
    for fields in ({"answer": "x. " * MAX_ANSWER_CHARS}, {"passages": ["x. " * MAX_PASSAGE_CHARS]}):
        num_split = 0
        assert "characters" in (await refused(server, **fields))["message"]
        assert num_split == 0
    assert loop_thread not in threads


def _unit(server: EmbeddingServer, text: str) -> np.ndarray:
    numbers = np.array(vector(server.ids(text)))
    return numbers / np.linalg.norm(numbers)
