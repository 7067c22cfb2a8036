"""Long texts in parts of bounded size, so that tokenising takes bounded memory at a time.

Tokenising takes about 300 bytes of memory per byte. Texts are cut where `SafeCuts` finds a place;
the parts' token ids joined are those of the whole.
"""

from collections.abc import Iterator

from engine.errors import InvalidParameter
from engine.text.safe_cuts import SafeCuts
from engine.text.token_bound import TokenBound
from engine.text.tokenizer import Tokenizer

PART_CHARS = 1 << 16
"""Characters of a part, which take about 20 ms and 20 MB to tokenise."""
LONGEST_PART_CHARS = 1 << 20
_CHARS_PER_TOKEN = 8
"""More characters per token than any language has. A text without safe cuts may have this many for
each token that fits."""
_LEAST_TAIL_CHARS = 1 << 12


class LongText:
    """The bounds and cuts of one tokenizer's texts. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bound = TokenBound(tokenizer.raw)
        self.cuts = SafeCuts(tokenizer.raw)
        self.prefix, self.suffix = _boundary_ids(tokenizer)
        """The tokens that `add_special_tokens` puts before and after a text."""

    def parts(self, text: str, max_tokens: int, start: int = 0) -> Iterator[str]:
        """Cut the text from `start` on, which must be 0 or a safe cut.

        Args:
            max_tokens: the most tokens that the model takes; with a higher limit, a text that
                cannot be cut may be longer.

        Raises:
            InvalidParameter: a stretch without a safe cut is too long.
        """
        longest = self._longest(max_tokens)
        while len(text) - start > PART_CHARS:
            cut = self.cuts.first(text, start + PART_CHARS, start + longest)
            if cut is None:
                break
            yield self.cuts.part(text, start, cut)
            start = cut
        if len(text) - start > longest:
            raise _uncut(len(text) - start, longest)
        yield self.cuts.part(text, start, len(text))

    def tails(self, text: str, num_tokens: int, max_tokens: int) -> Iterator[int]:
        """Yield places to start at for the last tokens: safe cuts, each earlier than the last, and
        finally 0.

        Args:
            max_tokens: see `parts`.

        Raises:
            InvalidParameter: a stretch without a safe cut is too long.
        """
        longest = self._longest(max_tokens)
        size = max(_LEAST_TAIL_CHARS, _CHARS_PER_TOKEN * num_tokens)
        end = searched = len(text)
        while size < len(text):
            start = len(text) - size
            cut = self.cuts.first(text, start, min(end, searched + 1))
            searched = start
            if cut is not None:
                yield cut
                end = cut
            elif end - start > longest:  # no start before it is of use
                raise _uncut(end - start, longest)
            size *= 2
        yield 0

    def _longest(self, max_tokens: int) -> int:
        """Return the most characters of a stretch that cannot be cut."""
        if self.cuts.exist:
            return LONGEST_PART_CHARS
        return max(LONGEST_PART_CHARS, _CHARS_PER_TOKEN * max_tokens)

    def encode(self, part: str) -> list[int]:
        """Return the token ids of one part of a cut text, which may be encoded in parallel with
        others."""
        return self._tokenizer.encode(part, add_special_tokens=False)


def _uncut(num_chars: int, longest: int) -> InvalidParameter:
    return InvalidParameter(
        f"the text has a stretch of {num_chars} characters where this model's tokenizer cannot "
        f"split it, for example at a space between two words; the limit is {longest} characters"
    )


def _boundary_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    encoding = tokenizer.raw.encode("a", add_special_tokens=True)
    own = [i for i, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
    if not own:
        return encoding.ids, []
    return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]
