"""The ways to write a text with several sequences that run as one (`engine.llm.request.Group`):
their parameters, their width and their rules.

A way is a class here and a row of `Groups`. `SamplingParams`, the scheduler and the server read
that table.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

from engine.contract.picture_facts import PictureFacts
from engine.contract.token_ids import check_token_ids
from engine.errors import ContextLengthExceeded, InvalidParameter

MAX_BEAM_WIDTH, MAX_BEAM_ENDS = 16, 16
"""The most beams of a request, and the most tokens that can end one. A step returns at most as many
of a row's likeliest tokens as both together."""
MIN_CANDIDATES, MAX_CANDIDATES = 2, 16
"""The fewest and the most tokens that contrastive search tries."""

Names = Mapping[str, str]
"""Field names in the client's request, where they differ from those of `SamplingParams`."""


class TextLimits(NamedTuple):
    """The limits of a text model."""

    vocab_size: int
    max_num_tokens: int
    """The most tokens of a sequence."""
    eos_token_ids: Collection[int]
    max_num_seqs: int | None = None
    """The most sequences that it runs at a time, if that is known."""
    pictures: PictureFacts | None = None
    """How it sees pictures; None if it takes none."""


class _Way:
    """The facts about a way. Its class also has a `width`: the number of sequences that run as
    one."""

    __slots__ = ()
    runs: ClassVar[str]
    """The `engine.llm.request.Group` that runs it, as `module:name`."""
    field: ClassVar[str]
    """The field of a request that asks for it."""
    width_field: ClassVar[str]
    """The field that sets the width."""
    widths: ClassVar[tuple[int, int]]
    """The least and the greatest width."""
    is_search: ClassVar[bool] = True
    """Whether no tokens are drawn and one group finds all texts of a request. Otherwise each text
    is drawn by a group of its own."""
    reads_states: ClassVar[bool] = False
    """Whether it needs the hidden states of the whole text, so that cached tokens run, too."""
    neutral: ClassVar[Mapping[str, object]] = {}
    """Fields of `SamplingParams` that it excludes, and the values that they must have."""

    def check(self, n: int, num_ends: int, limits: TextLimits, names: Names) -> None:
        """Check the rules that only this way has.

        Args:
            num_ends: the number of tokens that can end a text.

        Raises:
            InvalidParameter, ContextLengthExceeded: the error names the field and the limit.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamParams(_Way):
    """Beam search: looks for the likeliest texts instead of drawing tokens."""

    runs = "engine.llm.groups.beams:Beams"
    field = "use_beam_search"
    width_field = "best_of"
    widths = (1, MAX_BEAM_WIDTH)

    width: int
    """The number of texts that continue after each token."""
    length_penalty: float = 1.0
    """The exponent in a text's score: log-probability / (number of tokens ^ this)."""
    early_stopping: bool | Literal["never"] = False
    """When the search ends, once `width` texts have ended. True: at once. False: if the best
    continuing text, at its present length, would score no higher than they. "never": if it could
    score no higher at any length."""

    def check(self, n: int, num_ends: int, limits: TextLimits, names: Names) -> None:
        """See `_Way`."""
        check_best_of(self.width, n, names.get(self.width_field, self.width_field))
        if num_ends > MAX_BEAM_ENDS:
            raise InvalidParameter(
                f"{num_ends} tokens end the text, including end-of-sequence; with "
                f"use_beam_search there can be at most {MAX_BEAM_ENDS}; send fewer stop_token_ids",
                param="stop_token_ids",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastParams(_Way):
    """Contrastive search: takes, of the likeliest tokens, the one with the highest (1 - alpha) *
    probability - alpha * similarity to the text before."""

    runs = "engine.llm.groups.contrastive_search:Candidates"
    field = "penalty_alpha"
    width_field = "top_k"
    widths = (MIN_CANDIDATES, MAX_CANDIDATES)
    reads_states = True
    neutral: ClassVar[Mapping[str, object]] = {"n": 1, "min_tokens": 0}

    alpha: float
    width: int
    """The number of tokens that are tried."""

    def check(self, n: int, num_ends: int, limits: TextLimits, names: Names) -> None:
        """See `_Way`."""
        if not 0.0 < self.alpha <= 1.0:
            raise InvalidParameter(
                f"penalty_alpha is {self.alpha:g}; it must be above 0 and at most 1",
                param="penalty_alpha",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceParams(_Way):
    """Classifier-free guidance: draws tokens away from what a negative prompt makes likely."""

    runs = "engine.llm.groups.guided_pair:GuidedPair"
    field = "guidance_scale"
    width_field = "guidance_scale"
    widths = (2, 2)
    is_search = False

    scale: float
    """The factor on the difference between the log-probabilities after both prompts; 1 is no
    guidance."""
    negative_token_ids: tuple[int, ...]

    @property
    def width(self) -> int:
        """Two: one sequence has the prompt, the other the negative prompt."""
        return 2

    def check(self, n: int, num_ends: int, limits: TextLimits, names: Names) -> None:
        """See `_Way`."""
        num_tokens, most = len(self.negative_token_ids), limits.max_num_tokens
        if not num_tokens:
            raise InvalidParameter(
                "negative_prompt has no tokens; send some text, or leave it out",
                param="negative_prompt",
            )
        check_token_ids(self.negative_token_ids, limits.vocab_size, "negative_prompt")
        if num_tokens >= most:
            raise ContextLengthExceeded.beyond(
                most,
                f"negative_prompt has {num_tokens} tokens. Please shorten it.",
                param="negative_prompt",
            )


GroupParams = BeamParams | ContrastParams | GuidanceParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The table of all ways. A request sets at most one; with a search, everything that shapes a
    draw is neutral."""

    beams: BeamParams | None = None
    contrast: ContrastParams | None = None
    guidance: GuidanceParams | None = None

    @property
    def group(self) -> GroupParams | None:
        """The parameters of sequences that run as one; None if all are independent.

        Raises:
            InvalidParameter: two ways are set; the error names both fields.
        """
        asked: list[GroupParams] = [one for name in GROUPS if (one := getattr(self, name))]
        for other in asked[1:]:
            raise InvalidParameter(
                f"{other.field} cannot be combined with {asked[0].field}; leave one of them out",
                param=other.field,
            )
        return asked[0] if asked else None

    @property
    def num_together(self) -> int:
        """The number of sequences that run as one; 1 if they are independent."""
        return 1 if self.group is None else self.group.width


GROUPS = tuple(one.name for one in fields(Groups))


def num_places(group: GroupParams | None, n: int) -> int:
    """The number of sequences that a request for `n` texts runs at a time."""
    if group is None:
        return n
    return group.width * (1 if group.is_search else n)


def check_width(group: GroupParams, names: Names, most_at_once: int | None = None) -> None:
    """Check the width of a group.

    Args:
        most_at_once: the most sequences that the model runs at a time, if that is known.

    Raises:
        InvalidParameter: the error names the field and the limit.
    """
    (least, most), field = group.widths, names.get(group.width_field, group.width_field)
    if not least <= group.width <= most:
        raise InvalidParameter(
            f"{field} is {group.width}; with {group.field} it must be {least} to {most}",
            param=field,
        )
    if most_at_once is not None and group.width > most_at_once:
        less = f"lower {field}, or " if least < most else ""
        raise InvalidParameter(
            f"{group.field} needs {group.width} sequences at a time here, and the model runs at "
            f"most {most_at_once} (max_num_seqs); {less}leave {group.field} out",
            param=field,
        )


def check_best_of(num_made: int, n: int, field: str) -> None:
    """Refuse to return more texts than are made; `field` sets how many are made.

    Raises:
        InvalidParameter: the error names the field and the limit.
    """
    if num_made < n:
        raise InvalidParameter(
            f"{field} is {num_made} and n is {n}; {field} must be at least n; raise it, or lower n",
            param=field,
        )
