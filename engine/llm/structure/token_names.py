"""Tokens that a grammar names: `<think>`, `<[1000]>`, or any token but that one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class TokenNames:
    """What a model's tokens are called.

    Attributes:
        special: ids of the tokens that no text is cut into, those left out that end a text.
        cut: token ids of a text.
        num_tokens: logits per row.
        never: ids that no grammar may ask for: of ends of a text, and those without a token.
    """

    special: Mapping[str, int] = field(default_factory=dict)
    cut: Callable[[str], list[int]] = lambda text: []
    num_tokens: int = 0
    never: frozenset[int] = frozenset()

    def id_of(self, name: str) -> int:
        """
        Args:
            name: `<[1000]>`, or a token's own text.

        Raises:
            ValueError: it is no token that a grammar may ask for.
        """
        if name.startswith("<[") and name.endswith("]>"):
            token_id = int(name[2:-2])
        else:
            ids = [self.special[name]] if name in self.special else self.cut(name)
            if len(ids) != 1:
                raise ValueError(f"{name} is no token of this model")
            [token_id] = ids
        if token_id >= self.num_tokens:
            raise ValueError(f"{name} is no token: the vocabulary ends at {self.num_tokens - 1}")
        if token_id in self.never:
            raise ValueError(f"{name} ends a text, or is none; a text ends where the grammar does")
        return token_id

    def all_but(self, token_id: int) -> str:
        """The ids of the other tokens that a grammar may ask for, as llguidance reads ranges."""
        return ",".join(_ranges_between({*self.never, token_id}, self.num_tokens))


def _ranges_between(left_out: Iterable[int], end: int) -> Iterable[str]:
    for one, other in pairwise([-1, *sorted(left_out), end]):
        if other - one > 2:
            yield f"{one + 1}-{other - 1}"
        elif other - one == 2:
            yield f"{one + 1}"
