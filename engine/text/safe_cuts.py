"""Places where a text can be cut so that the parts' tokens are those of the whole.

Between a letter and a single space (or line break, or Chinese comma or full stop) before another
letter, every pattern known here ends one word and begins the next, whatever surrounds them, and
each word is tokenised separately. SentencePiece's BPE has no words; there the cut is safe because
no token has a space after a letter. Tokenizers of other kinds have no safe cuts.
"""

import re

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models

from engine.text.gguf_pre_tokenizers import KNOWN_CUTS
from engine.text.token_bound import pipeline_steps

_LETTER = "[A-Za-z一-龥]"
_SPACE = "▁"
_SEPARATORS = " \n\u3002\uff0c\u3001"
"""Space, line break, and the Chinese full stop, comma and enumeration comma."""
_LOCAL_FORMS = frozenset(("NFC", "NFD", "NFKC", "NFKD"))
"""Normalisations that compose or reorder nothing across a space, line break, comma or full stop."""
_PROBES = (("alpha Beta", "Gamma delta"), ("Zoë said", "nothing 42"), ("你好", "世界"))


class SafeCuts:
    """The safe cuts of one tokenizer's texts. Thread-safe.

    Attributes:
        exist: whether texts of this kind of tokenizer can be cut.
    """

    def __init__(self, raw: RawTokenizer) -> None:
        self._drops_space = False
        separators = self._separators(raw)
        self._pattern = re.compile(f"(?<={_LETTER})(?=[{separators}]{_LETTER})")
        self.exist = bool(separators) and self._holds(raw, separators)

    def first(self, text: str, start: int, end: int) -> int | None:
        """Return the first safe cut from `start` on and before `end`, or None."""
        match = self._pattern.search(text, start, end) if self.exist else None
        return match.start() if match else None

    def part(self, text: str, start: int, end: int) -> str:
        """Return the text between two places in the form in which it must be tokenised."""
        if start and self._drops_space:
            start += 1
        return text[start:end]

    def _separators(self, raw: RawTokenizer) -> str:
        if not isinstance(raw.model, models.BPE) or _has_odd_tokens(raw):
            return ""
        normalizers, cutters = pipeline_steps(raw.normalizer), pipeline_steps(raw.pre_tokenizer)
        kinds = {step["type"] for step in normalizers}
        if any(step["type"] == "ByteLevel" for step in cutters):
            known = kinds <= _LOCAL_FORMS and all(map(_ends_words, cutters))
            adds_space = any(step.get("add_prefix_space") for step in cutters)
            return "" if not known else " " if adds_space else _SEPARATORS
        if not kinds <= {"Prepend", "Replace"} or not all(map(_is_metaspace, cutters)):
            return ""
        # The normaliser puts a space before every text, so the part's own space is left out.
        self._drops_space = "Prepend" in kinds
        return " " if _keeps_spaces_in_front(raw) else ""

    def _holds(self, raw: RawTokenizer, separators: str) -> bool:
        """Check with a few texts that cut and whole ones have the same tokens."""
        for before, after in _PROBES:
            for separator in separators:
                text = before + separator + after
                parts = before, self.part(text, len(before), len(text))
                ids = [i for part in parts for i in raw.encode(part, add_special_tokens=False).ids]
                if ids != raw.encode(text, add_special_tokens=False).ids:
                    return False
        return True


def _has_odd_tokens(raw: RawTokenizer) -> bool:
    """Whether tokens that are matched whole may lie across a cut or swallow the space at one."""
    edge = re.compile(f"^{_LETTER}|{_LETTER}$|{_LETTER}[{_SEPARATORS}]{_LETTER}")
    return any(edge.search(token.content) for token in raw.get_added_tokens_decoder().values())


def _ends_words(step: dict[str, object]) -> bool:
    match step:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            return pattern in KNOWN_CUTS
        case {"type": "ByteLevel" | "Digits"}:
            return True
    return False


def _is_metaspace(step: dict[str, object]) -> bool:
    return step["type"] == "Metaspace" and step.get("replacement") == _SPACE


def _keeps_spaces_in_front(raw: RawTokenizer) -> bool:
    vocabulary = raw.get_vocab()
    behind = re.compile(_LETTER + _SPACE)
    return _SPACE in vocabulary and not any(behind.search(token) for token in vocabulary)
