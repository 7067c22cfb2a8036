"""The fields of a request that set how many texts are made of a prompt and how many are returned,
and those of the ways to write a text with several sequences (`engine.contract.groups`)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from engine.contract.groups import (
    MAX_BEAM_WIDTH,
    MAX_CANDIDATES,
    MIN_CANDIDATES,
    BeamParams,
    ContrastParams,
    Groups,
    GuidanceParams,
    check_best_of,
    check_width,
    num_places,
)
from engine.contract.sampling_params import SAMPLER_PARAMETERS, Patterns
from engine.contract.structure import Structure
from engine.errors import InvalidParameter
from server.protocol.sampler_fields import SamplerFields

MAX_COMPLETIONS = 128
MAX_LENGTH_PENALTY = 10.0
MAX_GUIDANCE_SCALE = 20.0


Never = Annotated[Literal["never"], Field(json_schema_extra={"maxLength": 5})]


class GroupFields(SamplerFields):
    """The number of texts; beam search, contrastive search and guidance."""

    n: int | None = Field(
        None, ge=1, le=MAX_COMPLETIONS, description="Completions per prompt. Default 1."
    )
    best_of: int | None = Field(
        None,
        ge=1,
        le=MAX_COMPLETIONS,
        description="Make this many texts and return the n whose tokens are likeliest on "
        "average, all at the end. With use_beam_search: the number of beams. Default "
        "n.",
    )
    use_beam_search: bool | None = Field(
        None,
        description="Search for the likeliest texts instead of drawing tokens. They come at the "
        "end, best first. Default false.",
    )
    beam_width: int | None = Field(
        None,
        ge=1,
        le=MAX_BEAM_WIDTH,
        description="Another name for best_of with use_beam_search.",
    )
    length_penalty: float | None = Field(
        None,
        ge=-MAX_LENGTH_PENALTY,
        le=MAX_LENGTH_PENALTY,
        description="With use_beam_search: a text's score is its log-probability / (its number of "
        "tokens ^ length_penalty). Default 1.",
    )
    early_stopping: bool | Never | None = Field(
        None,
        description="With use_beam_search: when to stop, once as many texts as there are beams "
        "have ended. true: at once; false: if the best unfinished text scores no "
        "better now; never: if it could score no better at any length. Default false.",
    )
    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=MAX_GUIDANCE_SCALE,
        description="Classifier-free guidance: multiplies the difference that the prompt makes "
        "to the log-probabilities after negative_prompt. 1, the default, is off. "
        "With guidance each text takes two places.",
    )
    negative_prompt: str | None = Field(
        None,
        min_length=1,
        max_length=1 << 20,
        description="With guidance_scale: what the text should not be like. In chat it replaces "
        "the system messages. Default: only the prompt's last token.",
    )
    penalty_alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Contrastive search instead of drawing tokens: of the top_k likeliest "
        f"tokens, {MIN_CANDIDATES} to {MAX_CANDIDATES}, take the one with the highest "
        "(1 - penalty_alpha) * probability - penalty_alpha * similarity to the text "
        "before it. 0, the default, is off.",
    )

    @property
    def num_choices(self) -> int:
        """Number of a prompt's texts that are returned."""
        return self.n or 1

    @property
    def num_sequences(self) -> int:
        """Number of a prompt's texts that are made at a time."""
        return self.beam_width or self.best_of or self.num_choices

    @property
    def width_field(self) -> str:
        """The field that sets `num_sequences`."""
        if self.beam_width is not None:
            return "beam_width"
        return "n" if self.best_of is None else "best_of"

    @property
    def num_best(self) -> int | None:
        """How many of the drawn texts are returned; None: all."""
        is_choice = not self.use_beam_search and self.num_sequences > self.num_choices
        return self.num_choices if is_choice else None

    @property
    def num_places(self) -> int:
        """Number of sequences that run at a time for a prompt."""
        return num_places(self.groups.group, self.num_sequences)

    @property
    def groups(self) -> Groups:
        """The parameters of the ways that are asked for; the tokens of a negative prompt are still
        missing."""
        beams = contrast = guidance = None
        if self.use_beam_search:
            beams = BeamParams(
                width=self.num_sequences,
                length_penalty=1.0 if self.length_penalty is None else self.length_penalty,
                early_stopping=self.early_stopping or False,
            )
        if self.penalty_alpha:
            contrast = ContrastParams(alpha=float(self.penalty_alpha), width=self.top_k or 0)
        if self.guidance_scale is not None and self.guidance_scale != 1.0:
            guidance = GuidanceParams(scale=self.guidance_scale, negative_token_ids=())
        return Groups(beams=beams, contrast=contrast, guidance=guidance)


class _Beside(NamedTuple):
    """The fields that a way excludes, and those that need it, with the values that ask for
    nothing. Some are properties computed from fields."""

    excluded: Mapping[str, tuple[Any, ...]] = {}
    needing: Mapping[str, tuple[Any, ...]] = {}
    needed: str = ""
    """What the latter need."""


_OF_DRAWS: Mapping[str, tuple[Any, ...]] = {
    name: (one.neutral,)
    for one in SAMPLER_PARAMETERS.values()
    if one.kind != Patterns
    for name in (one.name, *one.other_names)
} | {
    "temperature": (1, 0),
    "top_k": (0, -1),
    "logit_bias": ({}, []),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "stop": ([],),
    "samplers": (),
    "repetition_detection": (),
    "structure": (),
}
_USED_BY_CONTRAST = ("top_k", "stop", "repetition_detection")

_BESIDE: Mapping[str, _Beside] = {
    "beams": _Beside(
        excluded=_OF_DRAWS,
        needing={"beam_width": (1,), "length_penalty": (1,), "early_stopping": (False,)},
        needed="use_beam_search: true",
    ),
    "contrast": _Beside(
        {name: _OF_DRAWS[name] for name in _OF_DRAWS if name not in _USED_BY_CONTRAST}
        | {"best_of": (1,)}
    ),
    "guidance": _Beside(needing={"negative_prompt": ()}, needed="a guidance_scale other than 1"),
}


def check_groups(request: GroupFields, names: Mapping[str, str]) -> None:
    """Refuse fields that contradict each other, or that a way to write the text excludes.

    Args:
        names: see `engine.contract.groups.Names`.

    Raises:
        InvalidParameter: names the field.
    """
    check_best_of(request.num_sequences, request.num_choices, request.width_field)
    group = request.groups.group
    for name, beside in _BESIDE.items():
        if group is None or getattr(request.groups, name) is None:
            _check_neutral(request, beside.needing, f"needs {beside.needed}")
            continue
        check_width(group, names)
        excluded = {**beside.excluded, **{key: (value,) for key, value in group.neutral.items()}}
        _check_neutral(request, excluded, f"cannot be combined with {group.field}; leave it out")


def _check_neutral(request: GroupFields, table: Mapping[str, tuple[Any, ...]], why: str) -> None:
    for name, neutral in table.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            param = value.param if isinstance(value, Structure) else name
            raise InvalidParameter(f"{param} {why}", param=param)
