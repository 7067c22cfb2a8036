"""Finding the tokens that rows may draw, with as little sorting as their parameters allow.

    greedy    temperature 0            the first maximum
    short     top_k <= 256             weights of the k first tokens
    plain     temperature, min_p       weights of all tokens, nothing sorted
    nucleus   top_p without top_k      the first tokens; longer nuclei row by row
    single    typical_p, longer top_k  row by row

The maths is in `engine.llm.truncation`. Weights are exact, so which way a row goes depends on its
own parameters and logits alone, and so does its outcome.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

import torch
from torch import Tensor

from engine.llm import truncation
from engine.llm.truncation import DRAW_BLOCK, Knobs, top_k_limit, weight_unit
from engine.types import SamplingParams

MIN_TEMPERATURE = 1e-5
"""Lower ones are greedy: the two agree there up to near ties, and 1 / temperature stays sane."""
MAX_SHORT_TOP_K = 256
"""Longest prefix of the order that is looked up for many rows at once."""
NUM_NUCLEUS_CANDIDATES = 128
"""Prefix in which a nucleus is looked for first; few are longer unless text is near random."""
_CHUNK_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 22}
"""Weights that exist at one time: on a CPU about what its caches hold."""


class Method(Enum):
    """How a row's parameters let its support be found."""

    GREEDY = auto()
    SHORT = auto()
    PLAIN = auto()
    NUCLEUS = auto()
    SINGLE = auto()

    @classmethod
    def of(cls, params: SamplingParams, vocab_size: int) -> "Method":
        if params.temperature < MIN_TEMPERATURE:
            return cls.GREEDY
        if params.typical_p < 1.0:
            return cls.SINGLE
        num_left = top_k_limit(params, vocab_size)
        if num_left < vocab_size:
            return cls.SHORT if num_left <= MAX_SHORT_TOP_K else cls.SINGLE
        return cls.NUCLEUS if params.top_p < 1.0 else cls.PLAIN


@dataclass(slots=True)
class Support:
    """The tokens that some rows may draw. Column `c` of row `r` is token `ids[r, c]`."""

    rows: list[int]
    """Their places among the step's rows."""
    ids: Tensor | None
    """[R, C] int64, or None: column = token id."""
    weights: Tensor
    """[R, C] int64; 0 is never drawn. Each row has a positive one."""

    def token_ids(self, columns: Tensor) -> Tensor:
        """Tokens of one column per row; [R] int64 both."""
        return columns if self.ids is None else self.ids.gather(1, columns.unsqueeze(1)).squeeze(1)


class SupportFinder:
    """Finds supports for one vocabulary.

    Weights of whole vocabularies live in scratch memory that is kept between steps: fresh memory of
    that size would cost more page faults than the arithmetic takes.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._unit = weight_unit(vocab_size)
        elements = _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS["cpu"])
        self._chunk_rows = max(1, elements // _padded(vocab_size))
        self._scratch: _Scratch | None = None
        """Made at first use; greedy and short rows need none."""

    def find(
        self,
        logits: Tensor,
        peaks: Tensor,
        params: Sequence[SamplingParams],
        rows: Sequence[int],
    ) -> Iterator[Support]:
        """Supports that together cover `rows` once.

        A support is overwritten when the next one is asked for.

        Args:
            logits: [R, V] fp32, finite or −infinity where `rows` point.
            peaks: [R, 1] fp32, the rows' maxima, finite where `rows` point.
            params: of the R rows.
            rows: places to cover, ascending.
        """
        groups: dict[Method, list[int]] = {}
        for row in rows:
            groups.setdefault(Method.of(params[row], self._vocab_size), []).append(row)
        finders = {
            Method.GREEDY: self._greedy,
            Method.SHORT: self._short,
            Method.PLAIN: self._plain,
            Method.NUCLEUS: self._nucleus,
            Method.SINGLE: self._single,
        }
        for method, group in groups.items():
            # Greedy and short need no scratch, singles take one row at a time of their own accord.
            step = self._chunk_rows if method in (Method.PLAIN, Method.NUCLEUS) else len(group)
            for start in range(0, len(group), step):
                part = group[start : start + step]
                places = _places(part, self._device)
                yield from finders[method](
                    part, logits[places], peaks[places], [params[row] for row in part]
                )

    def _greedy(
        self, rows: list[int], logits: Tensor, peaks: Tensor, params: Sequence[SamplingParams]
    ) -> Iterator[Support]:
        ids = logits.max(-1, keepdim=True).indices  # of equal maxima the first, as documented
        yield Support(rows, ids, torch.ones_like(ids))

    def _short(
        self, rows: list[int], logits: Tensor, peaks: Tensor, params: Sequence[SamplingParams]
    ) -> Iterator[Support]:
        most = max(p.top_k for p in params)
        yield Support(rows, *truncation.top_tokens(logits, peaks, self._knobs(params), most))

    def _plain(
        self, rows: list[int], logits: Tensor, peaks: Tensor, params: Sequence[SamplingParams]
    ) -> Iterator[Support]:
        knobs = self._knobs(params)
        weights = self._weights(logits, peaks, knobs)
        if any(p.min_p > 0 for p in params):
            truncation.keep_likely(weights, knobs.min_p, self._unit)
        yield Support(rows, None, weights)

    def _nucleus(
        self, rows: list[int], logits: Tensor, peaks: Tensor, params: Sequence[SamplingParams]
    ) -> Iterator[Support]:
        knobs = self._knobs(params)
        weights = self._weights(logits, peaks, knobs)
        num_candidates = min(NUM_NUCLEUS_CANDIDATES, self._vocab_size)
        ids, some, reached = truncation.first_tokens(logits, weights, knobs, num_candidates)
        within = [i for i, found in enumerate(reached.tolist()) if found]
        if within:
            yield Support([rows[i] for i in within], ids[within], some[within])
        for i in sorted(set(range(len(rows))) - set(within)):
            yield self._selected(rows[i], logits[i], weights[i], params[i])

    def _single(
        self, rows: list[int], logits: Tensor, peaks: Tensor, params: Sequence[SamplingParams]
    ) -> Iterator[Support]:
        for i, row in enumerate(rows):
            one = slice(i, i + 1)
            others = replace(params[i], typical_p=1.0)
            if Method.of(others, self._vocab_size) is Method.SINGLE:
                weights = self._weights(logits[one], peaks[one], self._knobs([others]))
                support = self._selected(row, logits[i], weights[0], others)
            else:
                (support,) = self.find(logits[one], peaks[one], [others], [0])
                support.rows = [row]
            if params[i].typical_p < 1.0:
                typical = truncation.keep_typical(support.weights[0], params[i].typical_p)
                support.weights = typical.unsqueeze(0)
            yield support

    def _selected(
        self, row: int, logits: Tensor, weights: Tensor, params: SamplingParams
    ) -> Support:
        ids, kept = truncation.selected_tokens(logits, weights[: self._vocab_size], params)
        return Support([row], ids.unsqueeze(0), kept.unsqueeze(0))

    def _weights(self, logits: Tensor, peaks: Tensor, knobs: Knobs) -> Tensor:
        """Weights under temperature alone, in the scratch; [R, V rounded up] int64."""
        if self._scratch is None:
            self._scratch = _Scratch.create(self._chunk_rows, self._vocab_size, self._device)
        floats = self._scratch.floats[: len(logits)]
        torch.sub(logits, peaks, out=floats)
        truncation.scaled_weights(floats, knobs.temperature, self._unit)
        weights = self._scratch.weights[: len(logits)]
        weights[:, : self._vocab_size].copy_(floats)
        return weights

    def _knobs(self, params: Sequence[SamplingParams]) -> Knobs:
        return Knobs.of(params, self._vocab_size, self._device)


@dataclass(slots=True)
class _Scratch:
    floats: Tensor
    """[R, V] fp32."""
    weights: Tensor
    """[R, V rounded up to whole draw blocks] int64; the columns beyond V stay 0."""

    @classmethod
    def create(cls, num_rows: int, vocab_size: int, device: torch.device) -> "_Scratch":
        return cls(
            floats=torch.empty(num_rows, vocab_size, dtype=torch.float32, device=device),
            weights=torch.zeros(num_rows, _padded(vocab_size), dtype=torch.int64, device=device),
        )


def _padded(vocab_size: int) -> int:
    """Columns of a table of weights: whole draw blocks."""
    return vocab_size + -vocab_size % DRAW_BLOCK


def _places(rows: list[int], device: torch.device) -> slice | Tensor:
    """An index for ascending rows; neighbours come as a slice, which copies nothing."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows, device=device)
