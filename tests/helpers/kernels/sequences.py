"""Sequences with a filled cache, whose attention tests ask for in parts."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.paged_attention import PagedBatch, cases, cpu
from kernels.paged_attention.paged_batch import Int32Array

CPU = torch.device("cpu")
Part = tuple[int, int, int]
"""A sequence, its first query, and its last query + 1."""


@dataclass(frozen=True)
class Setup:
    """A model's heads and the kind of its cache."""

    dtype: torch.dtype = torch.bfloat16
    num_heads: int = 9
    num_kv_heads: int = 3
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    soft_cap: float | None = None
    kv_dtype: torch.dtype | None = None
    has_sinks: bool = False
    capability: int = 80
    """The chip whose tiles the interpreter uses."""


class Sequences:
    """Queries and a filled cache; any part of them can be asked for."""

    def __init__(
        self,
        setup: Setup,
        lengths: Sequence[int],
        run: Callable[..., Tensor] = cpu.paged_attention,
        device: torch.device = CPU,
        *,
        spread: float = 3.0,
        both_ways: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Args:
        both_ways: stretches of each text whose rows see each other in both directions; no
            part that is asked for may end within one.
        """
        self.setup, self.run, self.device = setup, run, device
        self.both_ways = both_ways
        blocks = [-(-length // setup.block_size) for length in lengths]
        order = np.random.permutation(sum(blocks)).astype(np.int32)
        self.tables = np.split(order, np.cumsum(blocks)[:-1])
        heads = (setup.num_heads, setup.head_dim)
        self.sinks = torch.randn(setup.num_heads, device=device) * 3 if setup.has_sinks else None
        # The spread makes weights far from uniform: maxima must change on the way.
        self.q = [
            torch.randn(n, *heads, device=device).mul(spread).to(setup.dtype) for n in lengths
        ]
        shape = (sum(blocks), 2, setup.num_kv_heads, setup.block_size, setup.head_dim)
        self.cache, self.scales = torch.randn(shape, device=device), None
        if setup.kv_dtype is None:
            self.cache = self.cache.to(setup.dtype)
        else:
            self.cache, self.scales = cases.quantised(self.cache, setup.kv_dtype)

    def attend(
        self,
        *parts: Part,
        run: Callable[..., Tensor] | None = None,
        recorded_for: int | None = None,
    ) -> list[Tensor]:
        """Compute the rows of parts, in their order.

        With `recorded_for` the host knows no context lengths, only that upper bound.
        """
        # Decodes first, the longest context first of all.
        ordered = sorted(parts, key=lambda part: (part[2] - part[1] > 1, -part[2]))
        num_queries = [last - first for _, first, last in ordered]
        width = max(len(table) for table in self.tables)
        batch = PagedBatch.from_host(
            np.stack([np.resize(self.tables[s], width) for s, _, _ in ordered]),
            np.array([last for _, _, last in ordered], dtype=np.int32),
            np.concatenate(([0], np.cumsum(num_queries))).astype(np.int32),
            num_queries.count(1),
            self.device,
            self._key_ends(ordered),
        )
        if recorded_for is not None:
            bound = np.full(len(parts), recorded_for, dtype=np.int32)
            batch = dataclasses.replace(batch, host_context_lens=bound)
        found = (run or self.run)(
            torch.cat([self.q[s][first:last] for s, first, last in ordered]),
            self.cache,
            batch,
            scale=self.setup.head_dim**-0.5,
            window=self.setup.window,
            soft_cap=self.setup.soft_cap,
            kv_scales=self.scales,
            sinks=self.sinks,
        ).split(num_queries)
        assert all(rows.isfinite().all() for rows in found)
        return [found[ordered.index(part)] for part in parts]

    def _key_ends(self, parts: Sequence[Part]) -> Int32Array | None:
        if not self.both_ways:
            return None
        ends = []
        for _, first, last in parts:
            of_part = np.arange(first, last) + 1
            for start, end in self.both_ways:
                of_part[max(0, start - first) : max(0, end - first)] = end
            ends.append(of_part)
        return np.concatenate(ends).astype(np.int32)
