"""Compares a text on the paged cache, in pieces and beside others, with transformers' own
attention.

`trace.py` examines the model's code without numbers; this comparison is the proof with numbers: a
model that keeps other state between steps, or uses masks or positions differently, gives different
results.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext, GroupContext
from engine.models.layers.weight_slots import WeightOptions
from engine.models.recurrent_config import allocate_states
from kernels import PagedBatch
from kernels.shared.recurrent_batch import NO_SLOT, RecurrentBatch

_BLOCK = 16
_SHORTEST, _LONGEST = 24, 160
_COMPANY = 7
"""Tokens of the text beside the compared one."""


class Compared(Protocol):
    """A model that can compute both ways."""

    config: ModelConfig
    options: WeightOptions

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """See `CausalLM.forward`."""
        ...

    def forward_in_their_way(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """Compute [T, C] from [T] token ids of one whole text."""
        ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison."""

    difference: float
    """Median over the text's tokens of the error of states relative to their length. Routers may
    choose other experts for single tokens, since sums are rounded in another order."""
    states: Tensor
    """The text's states, [T, C]."""
    same_bits: bool
    """Whether the text alone has the same bits as in pieces and beside others."""


def compare(model: Compared) -> Comparison:
    """Compare with a text that is long enough, within reason, to leave the shortest window."""
    config, device = model.config, model.options.device
    window = min((w for w in config.layer_windows if w is not None), default=0)
    longest = min(_LONGEST, config.max_position_embeddings)
    length = min(max(_SHORTEST, window + 8), longest)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(config.vocab_size, (length + _COMPANY,), generator=generator).to(device)
    text, company = drawn[:length], drawn[length:]
    cut = length // 2
    alone = _Cache(model).run([(text, 0)])[0]
    cache = _Cache(model)
    begin = cache.run([(text[:cut], 0), (company[:-1], 0)])[0]
    middle, _ = cache.run([(text[cut : cut + 1], cut), (company[-1:], len(company) - 1)])
    end = cache.run([(text[cut + 1 :], cut + 1)])[0]
    pieces = torch.cat((begin, middle, end))
    theirs = model.forward_in_their_way(text, cache.context([len(text)], [0])).float()
    errors = (pieces.float() - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-12)
    difference = errors.nan_to_num(0.0).median().item()
    return Comparison(difference, alone, torch.equal(alone, pieces))


class _Cache:
    """Two texts' keys and values. Text t has the blocks from t times the blocks per text."""

    def __init__(self, model: Compared) -> None:
        self._model = model
        self._num_layers = model.config.num_hidden_layers
        self._width = -(-_LONGEST // _BLOCK)
        num_blocks, options = 2 * self._width, model.options
        self._layers = [
            torch.zeros(
                (num_blocks, 2, shape.num_heads, _BLOCK, shape.head_dim),
                dtype=options.dtype,
                device=options.device,
            )
            for shape in model.config.layer_kv_shapes
        ]
        self._states = allocate_states(model.config, 2, options.dtype, options.device)

    def run(self, pieces: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Compute the states of some texts' next tokens, given with their start positions."""
        sizes = [len(tokens) for tokens, _ in pieces]
        starts = [start for _, start in pieces]
        device = self._layers[0].device
        at = [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        positions = torch.tensor([p for text in at for p in text], device=device)
        tokens = torch.cat([tokens for tokens, _ in pieces])
        states = self._model.forward(tokens, positions, self.context(sizes, starts))
        return list(torch.split(states, sizes))

    def context(self, sizes: list[int], starts: list[int]) -> ForwardContext:
        """The context of texts 0, 1, … with these numbers of tokens from these positions."""
        tables = np.arange(len(sizes) * self._width, dtype=np.int32).reshape(len(sizes), -1)
        device = self._layers[0].device
        lengths = np.array(starts, np.int32) + np.array(sizes, np.int32)
        offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
        # Single tokens come first as batches require; only steps of single tokens have them.
        num_decodes = len(sizes) if max(sizes) == 1 else 0
        batch = PagedBatch.from_host(tables, lengths, offsets, num_decodes, device)
        rows = [
            (text * self._width + position // _BLOCK, position % _BLOCK)
            for text, (start, size) in enumerate(zip(starts, sizes, strict=True))
            for position in range(start, start + size)
        ]
        blocks, slots = torch.tensor(rows, device=device).T.contiguous()
        written = np.arange(len(sizes), dtype=np.int32)
        read = np.where(np.array(starts) > 0, written, NO_SLOT).astype(np.int32)
        recurrent = RecurrentBatch.from_host(offsets, read, written, device)
        return ForwardContext(
            groups=(GroupContext(batch, (blocks, slots)),),
            group_of_layer=(0,) * self._num_layers,
            kv_caches=self._layers,
            recurrent=recurrent,
            recurrent_states=self._states,
        )
