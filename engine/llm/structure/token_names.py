"""The names of tokens in grammars: `<think>`, `<[1000]>`, or any token but that one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class TokenNames:
    """The names of a model's tokens.

    Attributes:
        special: the ids of special tokens, which no text is cut into, without those that end a
            text.
        cut: splits a text into token ids.
        num_tokens: the number of logits per row.
        never: ids that no grammar may name: ends of a text, and ids without a token.
    """

    special: Mapping[str, int] = field(default_factory=dict)
    cut: Callable[[str], list[int]] = lambda text: []
    num_tokens: int = 0
    never: frozenset[int] = frozenset()

    def id_of(self, name: str) -> int:
        """Return the id of a named token.

        Args:
            name: `<[1000]>`, or a token's own text.

        Raises:
            ValueError: the name is not that of a token which a grammar may name.
        """
        if name.startswith("<[") and name.endswith("]>"):
            token_id = int(name[2:-2])
        else:
            ids = [self.special[name]] if name in self.special else self.cut(name)
            if len(ids) != 1:
                raise ValueError(f"{name} is not a token of this model")
            [token_id] = ids
        if token_id >= self.num_tokens:
            raise ValueError(
                f"{name} is not a token: this model's ids end at {self.num_tokens - 1}"
            )
        if token_id in self.never:
            raise ValueError(
                f"{name} ends a text or has no text; leave it out, the text ends with the grammar"
            )
        return token_id

    def all_but(self, token_id: int) -> str:
        """The ids of all other tokens that a grammar may name, written as llguidance's ranges."""
        return ",".join(_ranges_between({*self.never, token_id}, self.num_tokens))


def _ranges_between(left_out: Iterable[int], end: int) -> Iterable[str]:
    for one, other in pairwise([-1, *sorted(left_out), end]):
        if other - one > 2:
            yield f"{one + 1}-{other - 1}"
        elif other - one == 2:
            yield f"{one + 1}"
