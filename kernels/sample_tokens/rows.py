"""The inputs of `sample_tokens` for each row, and its results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.sample_tokens.columns import COLUMN, COLUMNS
from kernels.shared.transfer import to_device

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

FINE, NOT_FINITE, NO_TOKEN_LEFT = range(3)
"""Error codes of `SampledTokens`."""

MIN_TEMPERATURE = 1e-5
"""Lower temperatures are greedy: there, both agree up to near ties, and 1 / temperature stays
within range."""


PARAMETERS = frozenset(
    {column.name for column in COLUMNS}
    - {"inverse_temperature", "least_probability", "seed", "index", "position"}
)
"""The parameters of `packed_row` besides the key of the random numbers and `least_probability`."""


def packed_row(
    *,
    temperature: float = 1.0,
    seed: int = 0,
    index: int = 0,
    position: int = 0,
    **parameters: float,
) -> Int64Array:
    """Make one row of `SamplingRows.table`.

    Args:
        temperature: at least 0; below `MIN_TEMPERATURE` the row is greedy.
        seed: any integer; equal modulo 2**64 means equal.
        index: the number of a request's completion, below 2**32.
        position: tokens generated before this one, below 2**32.
        parameters: values of other columns, by name; `columns.h` has the values of those left out,
            and the steps of `reference.py` define their meaning.

    Raises:
        TypeError: there is no column for a parameter.
    """
    if unknown := parameters.keys() - PARAMETERS - {"least_probability"}:
        raise TypeError(f"sample_tokens has no column for {', '.join(sorted(unknown))}")
    wrapped = (seed + (1 << 63)) % (1 << 64) - (1 << 63)
    parameters |= {"temperature": temperature, "inverse_temperature": _inverse(temperature)}
    parameters |= {"seed": wrapped, "index": index, "position": position}
    row = np.zeros(len(COLUMNS), dtype=np.int64)
    floats = row.view(np.float64)
    for place, column in enumerate(COLUMNS):
        value = parameters.get(column.name, column.neutral)
        if column.is_float:
            floats[place] = value
        else:
            row[place] = max(-(1 << 63), min(int(value), (1 << 63) - 1))
    return row


def _inverse(temperature: float) -> float:
    """Return the factor of scores: an fp32 above 0, infinity for a greedy row."""
    if temperature < MIN_TEMPERATURE:
        return float(np.inf)
    smallest = float(np.finfo(np.float32).tiny)  # with 0, -infinity * 0 would be NaN
    return max(float(np.float32(1.0 / temperature)), smallest)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitEdits:
    """Changes of the logits of R rows before a token is chosen: three lists of (row, token), and
    one of masks.

    Row r owns the entries offsets[r] .. offsets[r + 1] of a list. Within a list a token appears at
    most once per row, and a row has at most one mask. The lists apply one after the other:

        penalised   v > 0 ? v / repetition : v * repetition, for every entry; then minus
                    count * frequency, minus presence if count > 0
        biased      plus the bias
        forbidden   -infinity
        masks       -infinity, for every token whose bit is not set

    Computed in fp64; the first two round to fp32 and clamp to its finite range, and leave
    -infinity alone, so that no penalty makes infinity or NaN.

    Paper: repetition penalty, Keskar et al. 2019, arXiv:1909.05858, section 4.1.
    """

    offsets: Tensor
    """[4, R + 1] int64: offsets of the penalised, the biased, the forbidden, the masks."""
    penalties: Tensor
    """[R, 3] fp64: repetition, frequency, presence."""
    penalised_ids: Tensor
    """[E] int64: tokens seen in the prompt or in the output."""
    counts: Tensor
    """[E] int64, the number of occurrences in the output."""
    biased_ids: Tensor
    """[E] int64."""
    biases: Tensor
    """[E] fp64."""
    forbidden_ids: Tensor
    """[E] int64."""
    masks: Tensor
    """[M, ceil(V / 64)] int64: token i has bit i % 64 of word i // 64. Bits from V on do not
    count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRows:
    """The parameters and edits by which R rows choose their tokens."""

    table: Tensor
    """[R, columns] int64, in the layout of `columns.h`."""
    edits: LogitEdits | None = None
    """The edits; None leaves the logits unchanged."""

    @classmethod
    def from_host(
        cls,
        packed: Sequence[Int64Array],
        positions: Sequence[int],
        edits: "EditLists | None",
        device: torch.device,
    ) -> "SamplingRows":
        """Move rows to the device in one transfer.

        Args:
            packed: R rows of `packed_row`, whose positions are ignored.
            positions: R positions.
        """
        table = np.array(packed, dtype=np.int64).reshape(len(packed), len(COLUMNS))
        table[:, COLUMN["position"]] = positions
        if edits is not None:
            for row, probability in edits.least_probabilities.items():
                table.view(np.float64)[row, COLUMN["least_probability"]] = probability
        if edits is None or edits.is_empty:
            return cls(table=_moved([table], device)[0])
        table_, *parts = _moved([table, *edits.arrays(len(packed))], device)
        names = LogitEdits.__dataclass_fields__
        return cls(table=table_, edits=LogitEdits(**dict(zip(names, parts, strict=True))))

    def host_knobs(self) -> list[dict[str, Any]]:
        """Return the table as numbers; the host waits for the device."""
        table = self.table.cpu()
        columns = [
            (values.contiguous().view(torch.float64) if column.is_float else values).tolist()
            for column, values in zip(COLUMNS, table.unbind(1), strict=True)
        ]
        return [dict(zip(COLUMN, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(slots=True)
class EditLists:
    """Collects edits on the host, row by row. Ids must be valid; a row is penalised once."""

    penalised: list[tuple[int, Int64Array, Int64Array, tuple[float, float, float]]] = field(
        default_factory=list
    )
    biased: dict[int, tuple[Int64Array, Float64Array]] = field(default_factory=dict)
    forbidden: list[tuple[int, Int64Array]] = field(default_factory=list)
    masks: dict[int, Int64Array] = field(default_factory=dict)
    least_probabilities: dict[int, float] = field(default_factory=dict)
    """The probabilities for `SamplingRows.table`, by row."""

    @property
    def is_empty(self) -> bool:
        """Whether the logits stay unchanged."""
        return not (self.penalised or self.biased or self.forbidden or self.masks)

    def penalise(
        self,
        row: int,
        ids: Int64Array,
        counts: Int64Array,
        *,
        repetition: float,
        frequency: float,
        presence: float,
    ) -> None:
        """Penalise tokens for having occurred before; `counts` are the occurrences in the
        output."""
        self.penalised.append((row, ids, counts, (repetition, frequency, presence)))

    def add(self, row: int, ids: Int64Array, biases: Float64Array) -> None:
        """Add to logits. In repeated calls for a row, a token's biases add up."""
        if row in self.biased:
            other_ids, other_biases = self.biased[row]
            ids, places = np.unique(np.concatenate((other_ids, ids)), return_inverse=True)
            weights = np.concatenate((other_biases, biases))
            biases = np.bincount(places, weights).astype(np.float64, copy=False)
        self.biased[row] = (ids, biases)

    def forbid(self, row: int, ids: Int64Array) -> None:
        """Make tokens impossible; may be called repeatedly for a row."""
        self.forbidden.append((row, ids))

    def allow(self, row: int, mask: Int64Array) -> None:
        """Make all tokens impossible whose bit is not set (`LogitEdits.masks`). In repeated calls
        for a row, a token needs its bit in all masks."""
        self.masks[row] = mask & self.masks[row] if row in self.masks else mask

    def leave_out_below(self, row: int, probability: float) -> None:
        """Leave out tokens below a probability, above 0, and have the row's masses returned."""
        self.least_probabilities[row] = probability

    def arrays(self, num_rows: int) -> list[NDArray[Any]]:
        """Return the fields of `LogitEdits`, in their order."""
        penalties = np.tile(np.array([1.0, 0.0, 0.0]), (num_rows, 1))
        for row, _, _, values in self.penalised:
            penalties[row] = values
        biased = [(row, *entry) for row, entry in self.biased.items()]
        masks = list(self.masks.items())
        lists: list[list[Any]] = [self.penalised, biased, self.forbidden, masks]
        for one in lists:
            one.sort(key=lambda entry: int(entry[0]))
        offsets = np.zeros((4, num_rows + 1), dtype=np.int64)
        for lengths, one in zip(offsets, lists, strict=True):
            for entry in one:
                lengths[entry[0] + 1] += 1 if one is masks else len(entry[1])
        return [
            offsets.cumsum(axis=1),
            penalties,
            _joined([entry[1] for entry in self.penalised], np.int64),
            _joined([entry[2] for entry in self.penalised], np.int64),
            _joined([entry[1] for entry in biased], np.int64),
            _joined([entry[2] for entry in biased], np.float64),
            _joined([entry[1] for entry in self.forbidden], np.int64),
            np.array([mask for _, mask in masks], dtype=np.int64).reshape(
                len(masks), -1 if masks else 0
            ),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """One token per row, on the logits' device."""

    token_ids: Tensor
    """[R] int64; 0 where there is an error, so it is always a valid index."""
    errors: Tensor
    """[R] int64: `FINE`, `NOT_FINITE` (NaN or +infinity among the logits, or only -infinity) or
    `NO_TOKEN_LEFT` (the edits made all tokens impossible)."""
    num_kept: Tensor
    """[R] int64, the number of tokens that the row could have drawn; 0 with an error."""
    masses: Tensor
    """[R, 2] int64, the weight of the token, and of all tokens that the row could have drawn. 0
    without `least_probability`, at temperature 0, and with an error."""


def _joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def _moved(arrays: list[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Copy arrays of 8-byte numbers together and return them as tensors."""
    tensors = to_device([array.view(np.int64) for array in arrays], device)
    return [
        tensor.view(torch.float64) if array.dtype == np.float64 else tensor
        for tensor, array in zip(tensors, arrays, strict=True)
    ]
