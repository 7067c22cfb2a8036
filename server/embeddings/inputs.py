"""The texts that a request wants embedded, with the names that its client knows."""

from collections.abc import Iterator, Mapping, Sequence

Given = Sequence[str] | Sequence[list[int]]
"""Texts, as strings or as token ids."""


class Inputs:
    """All texts of one request, one after another. A field holds either only strings or only ids.

    Args:
        fields: texts by name of their field.
    """

    def __init__(self, fields: Mapping[str, Given]) -> None:
        self._fields = fields
        self.num_inputs = sum(map(len, fields.values()))

    def __iter__(self) -> Iterator[str | list[int]]:
        for given in self._fields.values():
            yield from given

    def name(self, index: int) -> str:
        """The client's name for an input: `input`, or `documents[3]` if the field has several."""
        field, position = self._place(index)
        return field if len(self._fields[field]) == 1 else f"{field}[{position}]"

    def field(self, index: int) -> str:
        """The field that holds an input."""
        return self._place(index)[0]

    @property
    def last_field(self) -> str:
        """The field to shorten if all inputs together are too long."""
        return list(self._fields)[-1]

    def _place(self, index: int) -> tuple[str, int]:
        for field, given in self._fields.items():
            if index < len(given):
                return field, index
            index -= len(given)
        raise IndexError(index)
