"""The pictures in a prompt: where they are, and how many rows they take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from engine.contract.picture_facts import Crop, PictureFacts
from engine.contract.prompt_states import StatePart
from engine.errors import EngineError, InvalidParameter
from server.text.prompt_limit import PromptLimit


@dataclass(frozen=True, slots=True)
class PictureRows:
    """The rows that the pictures of a conversation take in the prompt of a model that sees them.

    Attributes:
        pictures: the pieces of each picture, in the conversation's order; none if it has no
            pictures. Then its text must not stand for any either.
        param: the field that messages name.
    """

    facts: PictureFacts
    pictures: list[list[str | Crop]]
    param: str

    @property
    def crops(self) -> list[Crop]:
        return [piece for pieces in self.pictures for piece in pieces if isinstance(piece, Crop)]

    @property
    def _lines(self) -> list[int]:
        """The number of states of each line of all crops."""
        return [length for crop in self.crops for length in self.facts.lines(crop)]

    def _text(self, crop: Crop) -> str:
        """The text that shows a crop, with one placeholder for each line."""
        lines = [self.facts.placeholder] * len(self.facts.lines(crop))
        return (self.facts.line_end or "").join(lines)

    def reduced(self, limit: PromptLimit) -> PromptLimit:
        """The limit for the text, in which a placeholder stands for all states of a line.

        Raises:
            EngineError: the pictures alone are too long.
        """
        num_more = sum(length - 1 for length in self._lines)
        if not num_more:
            return limit
        if num_more > limit.max_tokens:
            raise limit.exceeded(num_more, 0)

        def exceeded(num_tokens: int, index: int) -> EngineError:
            return limit.exceeded(num_tokens + num_more, index)

        return replace(limit, max_tokens=limit.max_tokens - num_more, exceeded=exceeded)

    def inserted(self, text: str) -> str:
        """A rendered conversation with the pictures' pieces; each line of a crop, or the whole crop
        if it is not divided into lines, is one placeholder.

        Raises:
            InvalidParameter: the text has another number of markers than there are pictures.
        """
        before, *rest = text.split(self.facts.marker)
        if len(rest) > len(self.pictures):
            raise self._spelled(self.facts.marker)
        if len(rest) < len(self.pictures):
            raise InvalidParameter(
                f"the model's chat template shows {len(rest)} of the {len(self.pictures)} images; "
                "send images in messages of the user",
                param=self.param,
            )
        joined = [before]
        for pieces, after in zip(self.pictures, rest, strict=True):
            joined += [piece if isinstance(piece, str) else self._text(piece) for piece in pieces]
            joined.append(after)
        return "".join(joined)

    def expanded(self, token_ids: list[int]) -> list[int]:
        """The token ids with a placeholder for each state of a crop.

        Raises:
            InvalidParameter: the conversation's own text has a placeholder.
        """
        is_line = np.equal(token_ids, self.facts.placeholder_id)
        lines = self._lines
        if np.count_nonzero(is_line) != len(lines):
            raise self._spelled(self.facts.placeholder)
        if not lines:
            return token_ids
        repeats = np.ones(len(token_ids), dtype=np.int64)
        repeats[is_line] = lines
        ids: list[int] = np.repeat(token_ids, repeats).tolist()
        return ids

    def states(self, prompt: Sequence[int]) -> tuple[StatePart, ...]:
        """The parts of an expanded prompt that are states; until the pictures are decoded, their
        crops are black."""
        crops = self.crops
        places = np.flatnonzero(np.equal(prompt, self.facts.placeholder_id))
        firsts = accumulate((sum(self.facts.lines(crop)) for crop in crops[:-1]), initial=0)
        return tuple(
            self.facts.black(crop, int(places[first]))
            for crop, first in zip(crops, firsts, strict=False)
        )

    def _spelled(self, text: str) -> InvalidParameter:
        return InvalidParameter(
            f"{self.param} contains the text {text}, which stands for an image in this model's "
            "prompts; leave it out, and send images as parts of a message",
            param=self.param,
        )
