"""The texts of a request that are embedded, by the names that its client knows."""

from collections.abc import Iterator, Mapping, Sequence

Given = Sequence[str] | Sequence[list[int]]
"""Texts, written out or as token ids."""


class Inputs:
    """All texts of one request, one after the other. All of a field are text or all are ids.

    Args:
        fields: name of a field → its texts.
    """

    def __init__(self, fields: Mapping[str, Given]) -> None:
        self._fields = fields
        self.num_inputs = sum(map(len, fields.values()))

    def __iter__(self) -> Iterator[str | list[int]]:
        for given in self._fields.values():
            yield from given

    def name(self, index: int) -> str:
        """How the client may call one of them: `input`, or `documents[3]` of several."""
        field, position = self._place(index)
        return field if len(self._fields[field]) == 1 else f"{field}[{position}]"

    def field(self, index: int) -> str:
        """Which field holds it."""
        return self._place(index)[0]

    @property
    def last_field(self) -> str:
        """The one to shorten where all together are too many."""
        return list(self._fields)[-1]

    def _place(self, index: int) -> tuple[str, int]:
        for field, given in self._fields.items():
            if index < len(given):
                return field, index
            index -= len(given)
        raise IndexError(index)
