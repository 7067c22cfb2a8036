"""Judges whether an answer says what given passages say, by embeddings of sentences and by their
words.

Two ways to be ungrounded are distinguished (Ji et al. 2023, arXiv:2202.03629, section 2.2): an
intrinsic hallucination contradicts the passages, an extrinsic one cannot be checked against them.
This module decides neither. It finds two cheap signs: a sentence is like one of a passage but has
other details, or nothing in the passages is like it.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import islice

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidParameter
from server.embeddings.convert import Embedded
from server.embeddings.inputs import Inputs
from server.embeddings.sentences import Sentence, sentences_of, terms_of, words_of
from server.protocol.embeddings import EmbeddingUsage
from server.protocol.groundedness import (
    MAX_SENTENCES,
    GroundednessAnswer,
    GroundednessRequest,
    GroundedSentence,
    Risk,
)
from server.protocol.prompts import MAX_PROMPTS
from server.text.encoding_pool import EncodingPool

_DEFAULT_THRESHOLD = 0.5
_NEGATION = "negation"
_LEAST_NORM = 1e-8


@dataclass(frozen=True, slots=True)
class Comparison:
    """An answer's sentences and those of the passages, before they are embedded.

    Splitting and comparing the longest accepted texts takes about a second, so both are done in
    threads.
    """

    body: GroundednessRequest
    answer: list[Sentence]
    passages: list[list[Sentence]]

    @classmethod
    async def of(cls, body: GroundednessRequest, pool: EncodingPool) -> "Comparison":
        """Split the answer and the passages into sentences.

        Raises:
            InvalidParameter: the answer or the passages have too many sentences, or none.
            QueueFull: too many long texts are being processed.
        """
        with pool.place():
            return await pool.run(partial(cls._split, body))

    @classmethod
    def _split(cls, body: GroundednessRequest) -> "Comparison":
        answer = list(islice(sentences_of(body.answer), MAX_SENTENCES + 1))
        if not 1 <= len(answer) <= MAX_SENTENCES:
            found = f"more than {MAX_SENTENCES}" if answer else "no"
            raise InvalidParameter(
                f"answer has {found} sentences; it must have 1 to {MAX_SENTENCES}; send a long "
                "answer in parts",
                param="answer",
            )
        most = MAX_PROMPTS - len(answer)
        passages: list[list[Sentence]] = []
        num_sources = 0
        for passage in body.passages:
            passages.append(list(islice(sentences_of(passage), most + 1 - num_sources)))
            num_sources += len(passages[-1])
        if not 1 <= num_sources <= most:
            found = f"more than {most}" if num_sources else "no"
            raise InvalidParameter(
                f"passages have {found} sentences; with this answer they must have 1 to {most} in "
                "total; send fewer at once",
                param="passages",
            )
        return cls(body, answer, passages)

    def inputs(self) -> Inputs:
        """The texts to embed."""
        parts = {"answer": [sentence.text for sentence in self.answer]}
        for number, passage in enumerate(self.passages):
            parts[f"passages[{number}]"] = [sentence.text for sentence in passage]
        return Inputs(parts)

    async def written(self, pool: EncodingPool, embedded: Embedded) -> bytes:
        """The answer of `/v1/groundedness`."""
        return await pool.run(partial(self._write, embedded))

    def _write(self, embedded: Embedded) -> bytes:
        vectors = np.array(
            [np.frombuffer(event.embedding, "<f4") for event in embedded.events], dtype=np.float64
        )
        vectors /= np.maximum(np.sqrt((vectors * vectors).sum(1, keepdims=True)), _LEAST_NORM)
        num = len(self.answer)
        sources = _Sources(self, vectors[num:])
        pairs = zip(self.answer, vectors[:num], strict=True)
        sentences = [sources.judge(sentence, vector) for sentence, vector in pairs]
        answer = GroundednessAnswer(
            id=embedded.request.request_id,
            created=int(time.time()),
            model=embedded.request.model,
            groundedness=sum(map(_groundedness, sentences)) / num,
            intrinsic_risk=max(sentence.intrinsic_risk for sentence in sentences),
            extrinsic_risk=max(sentence.extrinsic_risk for sentence in sentences),
            sentences=sentences,
            usage=EmbeddingUsage(embedded.num_tokens, embedded.num_tokens),
        )
        return msgspec.json.encode(answer)


class _Sources:
    """The passages, ready for comparison.

    Args:
        vectors: [sentences of all passages, dimensions] fp64, of length 1.
    """

    def __init__(self, comparison: Comparison, vectors: NDArray[np.float64]) -> None:
        body, self._vectors = comparison.body, vectors
        asked = body.risk_threshold
        self._threshold = _DEFAULT_THRESHOLD if asked is None else asked
        self._sentences = [
            (number, sentence)
            for number, passage in enumerate(comparison.passages)
            for sentence in passage
        ]
        self._words = [words_of(passage) for passage in body.passages]
        self._all_words = frozenset[str]().union(*self._words)

    def judge(self, sentence: Sentence, vector: NDArray[np.float64]) -> GroundedSentence:
        # Row by row and in 64 bits, so that the result does not depend on the rest of the request.
        cosines = (self._vectors * vector).sum(1)
        nearest = int(cosines.argmax())
        similarity = min(1.0, max(0.0, float(cosines[nearest])))
        passage, source = self._sentences[nearest]
        terms = terms_of(sentence.text)
        missing = [term for term in terms.content if term not in self._all_words]
        coverage = 1.0 - len(missing) / len(terms.content) if terms.content else 1.0
        conflicts = [term for term in terms.details if term not in self._words[passage]]
        if terms.is_negated != terms_of(source.text).is_negated:
            conflicts.append(_NEGATION)
        intrinsic = similarity if conflicts else 0.0
        extrinsic = 1.0 - (similarity + coverage) / 2
        return GroundedSentence(
            characters=sentence.characters,
            passage=passage,
            similarity=similarity,
            coverage=coverage,
            missing_terms=missing,
            conflicts=conflicts,
            intrinsic_risk=intrinsic,
            extrinsic_risk=extrinsic,
            risk=self._risk(intrinsic, extrinsic),
        )

    def _risk(self, intrinsic: float, extrinsic: float) -> Risk | None:
        if max(intrinsic, extrinsic) < self._threshold:
            return None
        return "intrinsic" if intrinsic >= extrinsic else "extrinsic"


def _groundedness(sentence: GroundedSentence) -> float:
    return (1.0 - sentence.intrinsic_risk) * (1.0 - sentence.extrinsic_risk)
