"""The fields of a request that set how many texts are made of a prompt, and which ones are
returned."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from engine.contract.sampling_params import MAX_BEAM_WIDTH, SAMPLER_PARAMETERS, BeamParams, Patterns
from engine.contract.structure import Structure
from engine.errors import InvalidParameter

MAX_COMPLETIONS = 128
MAX_LENGTH_PENALTY = 10.0


Never = Annotated[Literal["never"], Field(json_schema_extra={"maxLength": 5})]


class SearchFields(BaseModel):
    """The number of texts, and beam search instead of drawing tokens."""

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
    def beams(self) -> BeamParams | None:
        """The parameters of beam search; None if tokens are drawn. A search with one beam takes the
        likeliest token each time."""
        if not self.use_beam_search or self.num_sequences == 1:
            return None
        return BeamParams(
            width=self.num_sequences,
            length_penalty=1.0 if self.length_penalty is None else self.length_penalty,
            early_stopping=self.early_stopping or False,
        )


def check_search(request: SearchFields) -> None:
    """Refuse fields that contradict each other and, with beam search, fields that say how to draw
    tokens.

    Raises:
        InvalidParameter: names the field.
    """
    if None not in (request.best_of, request.beam_width) and request.best_of != request.beam_width:
        raise InvalidParameter(
            f"best_of is {request.best_of} and beam_width is {request.beam_width}; they mean the "
            "same, so send one of them",
            param="beam_width",
        )
    if request.num_sequences < request.num_choices:
        raise InvalidParameter(
            f"{request.width_field} is {request.num_sequences} and n is {request.n}; "
            f"{request.width_field} must be at least n; raise it, or lower n",
            param=request.width_field,
        )
    if not request.use_beam_search:
        check_neutral(request, _OF_BEAMS, "needs use_beam_search: true")
        return
    if request.num_sequences > MAX_BEAM_WIDTH:
        raise InvalidParameter(
            f"{request.num_sequences} beams were requested; the limit is {MAX_BEAM_WIDTH}; ask "
            "for fewer",
            param=request.width_field,
        )
    check_neutral(request, OF_DRAWS, "cannot be combined with use_beam_search; leave it out")


_OF_BEAMS: Mapping[str, tuple[Any, ...]] = {
    "beam_width": (1,),
    "length_penalty": (1,),
    "early_stopping": (False,),
}
OF_DRAWS: Mapping[str, tuple[Any, ...]] = {
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
"""Fields, or properties computed from them → values that ask for nothing."""


def check_neutral(request: BaseModel, table: Mapping[str, tuple[Any, ...]], why: str) -> None:
    """Refuse fields of the table that ask for something.

    Raises:
        InvalidParameter: a field of the table asks for something.
    """
    for name, neutral in table.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            param = value.param if isinstance(value, Structure) else name
            raise InvalidParameter(f"{param} {why}", param=param)
