"""How much of a text is in a corpus, word for word."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from evaluation.problem import EvaluationProblem

_WORD = re.compile(r"\w+")

Run = tuple[str, ...]


def shares_in_corpus(texts: Sequence[str], corpus: Iterable[str], size: int) -> list[float]:
    """The share of each text's runs of `size` words that the corpus has; a text with fewer words is
    one run.

    Args:
        corpus: its words, in order. They are not kept, so they may be many.
    """
    runs = [_runs(words_of(text), size) for text in texts]
    wanted = set().union(*runs)
    lengths = sorted({len(run) for run in wanted})
    found: set[Run] = set()
    last: deque[str] = deque(maxlen=size)
    for word in corpus:
        last.append(word)
        ended = tuple(last)
        found.update(run for num in lengths if (run := ended[-num:]) in wanted)
    return [len(own & found) / len(own) if own else 0.0 for own in runs]


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters and without punctuation."""
    return _WORD.findall(text.casefold())


def corpus_words(paths: Sequence[Path]) -> Iterator[str]:
    """The words of text files, and of all files in folders."""
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_dir():
                continue
            try:
                with file.open(encoding="utf-8", errors="replace") as lines:
                    for line in lines:
                        yield from words_of(line)
            except OSError as error:
                raise EvaluationProblem(f"{file}: cannot be read: {error.strerror}") from None


def _runs(words: Sequence[str], size: int) -> set[Run]:
    size = min(size, len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1) if size}
