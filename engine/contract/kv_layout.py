"""How a model's layers share the blocks of the KV pool, and how many blocks a text needs.

Layers that look back equally far form groups of equal size. A block holds the keys and values of
one group, so that all blocks have the same size and one pool serves every group. Each sequence has
a block table per group; a group that slides gives back the blocks that its window has passed:

    18 layers, every sixth looks back without limit: 6 groups of 3 layers

    layers 5 11 17, all          [ 7 | 3 | 9 | 12 ]
    layers 0 1 2, window 8       [ . | . | 4 | 15 ]      block_size 4, 15 tokens
    layers 3 4 6, window 8       [ . | . | 1 |  8 ]
    …
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

MAX_GROUPS = 8
"""The most block tables of a sequence: each costs time in every step."""
_MOST_TOKENS = 1 << 31


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers whose keys and values share blocks."""

    layers: tuple[int, ...]
    window: int | None = None
    """How many positions each layer looks back, its own included; None is all."""


def group_layers(windows: Sequence[int | None]) -> tuple[LayerGroup, ...]:
    """Divide layers into groups with one window each, none larger than the first.

    The size is chosen to leave the least of a block unused, first in the groups that look back
    farthest, which have most blocks, then in all groups.

    Args:
        windows: the window of each layer.
    """
    kinds = {window: [i for i, w in enumerate(windows) if w == window] for window in windows}
    farthest = max(kinds, key=lambda window: _MOST_TOKENS if window is None else window)

    def unused(size: int) -> tuple[int, int, int]:
        padding = {window: -len(layers) % size for window, layers in kinds.items()}
        return padding[farthest], sum(padding.values()), -size

    def num_groups(size: int) -> int:
        return sum(-(-len(layers) // size) for layers in kinds.values())

    sizes = range(1, len(windows) + 1)
    # With more kinds of layers than that, each kind is one group.
    few = [size for size in sizes if num_groups(size) <= max(MAX_GROUPS, len(kinds))]
    size = min(few, key=unused)
    return tuple(
        LayerGroup(tuple(layers[at : at + size]), window)
        for window, layers in kinds.items()
        for at in range(0, len(layers), size)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The layer groups of a model and the blocks that they need."""

    block_size: int
    windows: tuple[int | None, ...] = (None,)
    """The window of each group."""
    max_in_flight: int = 0
    """The tokens of one sequence in uncommitted steps; a window moves when a step is committed."""

    @property
    def slides(self) -> bool:
        """Whether some group gives blocks back."""
        return any(window is not None for window in self.windows)

    def num_passed(self, window: int | None, num_tokens: int) -> int:
        """The number of blocks that a group no longer needs after `num_tokens` tokens.

        One more token than the next one sees is kept, so that a text can be continued from one
        token earlier: its last token is computed again if its logits are missing.
        """
        return 0 if window is None else max(0, num_tokens - window) // self.block_size

    def num_unseen(self, window: int | None, num_tokens: int) -> int:
        """The number of blocks that tokens after the first `num_tokens` do not look at."""
        return 0 if window is None else max(0, num_tokens + 1 - window) // self.block_size

    def most_blocks(self, num_tokens: int) -> int:
        """The most blocks that a text holds at any time while it grows to `num_tokens` tokens."""
        whole = -(-num_tokens // self.block_size)
        return sum(
            whole if window is None else min(whole, self.most_in_window(window))
            for window in self.windows
        )

    def most_tokens(self, num_blocks: int) -> int:
        """The longest text that fits into `num_blocks` blocks."""
        return bisect_right(range(_MOST_TOKENS), num_blocks, key=self.most_blocks) - 1

    def most_in_window(self, window: int) -> int:
        """The most blocks of a window, for any start of a block: the window, the tokens in flight,
        and one partial block."""
        return -(-(window + self.max_in_flight) // self.block_size) + 1
