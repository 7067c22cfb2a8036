"""How a model's layers share the blocks of the KV pool, and how many blocks a text needs.

Layers that look back equally far and whose keys have one shape form groups of about equal size. A
block holds the keys and values of one group, so that all blocks have the same size and one pool
serves every group. Each sequence has a block table per group; a group that slides gives back the
blocks that its window has passed:

    18 layers, every sixth looks back without limit: 6 groups of 3 layers

    layers 5 11 17, all          [ 7 | 3 | 9 | 12 ]
    layers 0 1 2, window 8       [ . | . | 4 | 15 ]      block_size 4, 15 tokens
    layers 3 4 6, window 8       [ . | . | 1 |  8 ]
    …
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

MAX_GROUPS = 8
"""The most block tables of a sequence: each costs time in every step."""
_MOST_TOKENS = 1 << 31


class KvShape(NamedTuple):
    """The shape of one token's key, and of its value, in one layer."""

    num_heads: int
    head_dim: int
    parts: int = 2
    """2 for a key and a value, 1 for a key that is the value, too."""

    @property
    def size(self) -> int:
        """The numbers of a key and a value."""
        return self.parts * self.num_heads * self.head_dim


class LayerKind(NamedTuple):
    """What layers of one group have in common."""

    window: int | None
    """How many positions each layer looks back, its own included; None is all."""
    shape: KvShape


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers whose keys and values share blocks."""

    layers: tuple[int, ...]
    window: int | None
    """See `LayerKind`."""
    shape: KvShape


def group_layers(kinds: Mapping[int, LayerKind]) -> tuple[LayerGroup, ...]:
    """Divide layers into groups of one kind each.

    Blocks of all groups have one size, counted in numbers. It is chosen to leave the least of it
    unused, first in the groups that look back farthest, which have most blocks, then in all groups.

    Args:
        kinds: the kind of each layer that keeps keys and values, by the layer's number.
    """
    layers_of: dict[LayerKind, list[int]] = {}
    for layer, kind in kinds.items():
        layers_of.setdefault(kind, []).append(layer)
    farthest = max(_reach(kind) for kind in layers_of)

    def num_groups(room: int, kind: LayerKind) -> int:
        return -(-len(layers_of[kind]) // (room // kind.shape.size))

    def unused(room: int) -> tuple[int, int, int]:
        padding = {
            kind: num_groups(room, kind) * room - len(layers) * kind.shape.size
            for kind, layers in layers_of.items()
        }
        of_farthest = sum(padding[kind] for kind in padding if _reach(kind) == farthest)
        return of_farthest, sum(padding.values()), -room

    least = max(kind.shape.size for kind in layers_of)
    rooms = {kind.shape.size * number for kind in layers_of for number in range(1, len(kinds) + 1)}
    # With more kinds of layers than that, each kind is one group.
    most = max(MAX_GROUPS, len(layers_of))
    few = [
        room
        for room in rooms
        if room >= least and sum(num_groups(room, kind) for kind in layers_of) <= most
    ]
    room = min(few, key=unused)
    return tuple(
        LayerGroup(tuple(layers[at : at + room // kind.shape.size]), *kind)
        for kind, layers in layers_of.items()
        for at in range(0, len(layers), room // kind.shape.size)
    )


def _reach(kind: LayerKind) -> int:
    return _MOST_TOKENS if kind.window is None else kind.window


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
