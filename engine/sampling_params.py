"""How a request wants its tokens chosen, and the one table of what shapes a distribution.

`SamplingParams` is that table: a field made by `_parameter` states its bounds, its neutral value,
its names on the wire, where it acts and what it means. A request's validation and OpenAPI schema,
the defaults, the table in docs/API.md and the rows of `kernels.sample_tokens` are made from it, so
a new parameter is a field here and the code that acts on it. Free of torch and of wire libraries.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from engine.structure import Structure

MAX_COUNT = (1 << 31) - 1
"""Largest whole number that a parameter takes."""
MAX_BEAM_WIDTH, MAX_BEAM_ENDS = 16, 16
"""Beams of a request, and tokens that can end one: the likeliest tokens of a row that a step brings
back are at most as many as both."""
MIN_CANDIDATES, MAX_CANDIDATES = 2, 16
"""Tokens that contrastive search tries."""
MAX_STRINGS, MAX_STRING_CHARS = 16, 40
"""What a parameter takes that is strings: looking for them takes time, before the engine's steps
and in them."""


@dataclass(frozen=True, slots=True)
class TokenPattern:
    """A string as tokens that spell it: one of `heads`, then the tokens of `tail`."""

    heads: bytes
    """Little-endian int32, ascending: there may be as many as the vocabulary has tokens."""
    tail: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetection:
    """When a text repeats itself: once a pattern of so many tokens stands there so many times in a
    row."""

    min_pattern_size: int
    max_pattern_size: int
    min_count: int
    ends_text: bool = True
    """Or it is only told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerParameter:
    """One parameter, as everyone who reads requests, documents them or acts on them sees it."""

    name: str = ""
    """Field of `SamplingParams` and of a request."""
    kind: Any = float
    """int or float; or `Patterns`: a request has strings, the server finds their tokens."""
    neutral: Any
    """The value that changes nothing, and the default; of patterns those of no string."""
    text: str
    """What it does, in a sentence or two."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    """Bounds of what a request may say."""
    choices: tuple[int, ...] = ()
    """In place of bounds: all that it may say."""
    other_names: tuple[str, ...] = ()
    """Fields of a request that mean the same, such as llama.cpp's name for it."""
    on_host: bool = False
    """Acts as a processor of `engine.llm.logits_processors`; else as the parameter of this name of
    `kernels.sample_tokens.packed_row`."""
    reads_text: bool = False
    """Unless it is neutral, what may be drawn depends on the tokens before, which the host must
    know by then: no step is launched ahead."""
    in_generation_config: bool = False
    """A checkpoint's generation_config.json may give another default under this name."""
    gguf_key: str | None = None
    """What follows `general.sampling.` where a GGUF file gives one."""
    strings: tuple[str, ...] = ()
    """Default strings of patterns."""
    acts_with: str | None = None
    """The parameter without which this one does nothing."""
    sampler: str | None = None
    """What a request that says in which order samplers act calls it, by itself or with others; the
    sampler does nothing where all of them are neutral."""
    settled: Callable[[Any], Any] | None = None
    """What the engine gets for a value within the bounds; None: the value itself."""

    @property
    def in_checkpoints(self) -> bool:
        """Whether some checkpoints may give another default."""
        return self.in_generation_config or self.gguf_key is not None

    @property
    def bounds(self) -> str:
        """Such as `0 to 2`."""
        if self.kind == Patterns:
            return f"at most {MAX_STRINGS}, each of 1 to {MAX_STRING_CHARS} characters"
        if self.choices:
            return " or ".join(map(str, self.choices))
        least = f"above {self.gt:g}" if self.ge is None else f"{self.ge:g}"
        most = "2^31 - 1" if self.le == MAX_COUNT else f"{self.le:g}"
        return f"{least} to {most}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamParams:
    """Beam search: no token is drawn, the likeliest texts are looked for."""

    width: int
    """Texts that are gone on with after each token."""
    length_penalty: float = 1.0
    """A text's score is its log-probability / (number of its tokens ^ this)."""
    early_stopping: bool | Literal["never"] = False
    """When the search is over, once as many texts as `width` have ended: True: at once; False: if
    the best text that goes on, as long as it is, would score no higher than they; "never": if it
    could not score higher at any length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastParams:
    """Contrastive search: of the likeliest tokens the one with the best (1 - alpha) * probability
    - alpha * similarity to the text before is taken."""

    alpha: float
    width: int
    """Tokens that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceParams:
    """Classifier-free guidance: tokens are drawn away from what a negative prompt makes likely."""

    scale: float
    """Times the difference of the log-probabilities behind both prompts; 1 is no guidance."""
    negative_token_ids: tuple[int, ...]


Patterns = tuple[TokenPattern, ...]

_KEY = "sampler"
_SMALLEST_PROBABILITY = 1e-6
_GREEDY_BELOW = 1e-5


def _parameter(neutral: Any, text: str, **facts: Any) -> Any:
    """A field of `SamplingParams` with what `SamplerParameter` says about it."""
    parameter = SamplerParameter(neutral=neutral, text=text, **facts)
    return field(default=neutral, metadata={_KEY: parameter})


def _at_least_a_little(share: float) -> float:
    return max(share, _SMALLEST_PROBABILITY)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Values are already checked; see `engine.llm.sampling` for the maths.

    Order: the processors of `engine.llm.sampling.Sampler` on the logits → temperature → the steps
    of `kernels.sample_tokens` → draw.
    """

    max_tokens: int = 16
    """Upper bound on generated tokens; 0 only scores the prompt."""
    min_tokens: int = 0
    """End-of-sequence and `stop_token_ids` cannot be sampled before this many tokens."""
    n: int = 1
    """Completions per prompt; they share the prompt's KV blocks."""
    seed: int | None = None
    """Any int64. None draws a fresh one in the engine."""

    repetition_penalty: float = _parameter(
        1.0,
        "Divides the logits of tokens in prompt and text so far.",
        ge=0.01,
        le=100,
        other_names=("repeat_penalty",),
        on_host=True,
        reads_text=True,
        in_generation_config=True,
        gguf_key="penalty_repeat",
        sampler="penalties",
    )
    frequency_penalty: float = _parameter(
        0.0,
        "Subtracted per earlier generation of a token.",
        ge=-2,
        le=2,
        on_host=True,
        reads_text=True,
        sampler="penalties",
    )
    presence_penalty: float = _parameter(
        0.0,
        "Subtracted once from tokens that were generated before.",
        ge=-2,
        le=2,
        on_host=True,
        reads_text=True,
        sampler="penalties",
    )
    repeat_last_n: int = _parameter(
        -1,
        "The three penalties above look at so many of the last tokens of prompt and text; -1: at "
        "all, 0: at none.",
        ge=-1,
        le=MAX_COUNT,
        on_host=True,
        gguf_key="penalty_last_n",
    )
    dry_multiplier: float = _parameter(
        0.0,
        "DRY, don't repeat yourself: a token that would continue a repetition of some length "
        "loses dry_multiplier * dry_base^(length - dry_allowed_length). 0 is off.",
        ge=0,
        le=100,
        on_host=True,
        reads_text=True,
        sampler="dry",
    )
    dry_base: float = _parameter(
        1.75,
        "What each further token of a repetition multiplies the loss by.",
        ge=1,
        le=100,
        on_host=True,
        acts_with="dry_multiplier",
    )
    dry_allowed_length: int = _parameter(
        2,
        "Shorter repetitions cost nothing.",
        ge=1,
        le=MAX_COUNT,
        on_host=True,
        acts_with="dry_multiplier",
    )
    dry_penalty_last_n: int = _parameter(
        -1,
        "So many tokens of prompt and text are looked at; -1: all, 0: none.",
        ge=-1,
        le=MAX_COUNT,
        on_host=True,
        acts_with="dry_multiplier",
    )
    dry_sequence_breakers: Patterns = _parameter(
        (),
        "Strings that no repetition reaches across. Tokens that contain one are never penalised.",
        strings=("\n", ":", '"', "*"),
        acts_with="dry_multiplier",
        on_host=True,
    )
    top_n_sigma: float = _parameter(
        0.0,
        "Keep tokens whose logit is at most this many standard deviations below the greatest, "
        "at any temperature; 0 or less keeps all.",
        ge=-1,
        le=100,
        settled=lambda value: max(value, 0.0),
        sampler="top_n_sigma",
    )
    temperature: float = _parameter(
        1.0,
        "0 takes the most likely token.",
        ge=0,
        le=2,
        in_generation_config=True,
        gguf_key="temp",
        # Dividing by less overflows; the draw would be greedy anyway, as in vLLM.
        settled=lambda value: 0.0 if value < _GREEDY_BELOW else value,
        sampler="temperature",
    )
    dynatemp_range: float = _parameter(
        0.0,
        "Dynamic temperature: between so much below the temperature and so much above it, the "
        "higher the less certain the model is. 0 is off.",
        ge=0,
        le=2,
        sampler="temperature",
    )
    dynatemp_exponent: float = _parameter(
        1.0,
        "The model's uncertainty, from 0 to 1, to this power says where in that range the "
        "temperature is.",
        ge=0,
        le=100,
        acts_with="dynatemp_range",
    )
    top_k: int = _parameter(
        0,
        "Keep this many tokens; 0 or -1 keeps all.",
        ge=-1,
        le=MAX_COUNT,
        in_generation_config=True,
        gguf_key="top_k",
        settled=lambda value: max(value, 0),
        sampler="top_k",
    )
    top_p: float = _parameter(
        1.0,
        "Keep the likeliest tokens of this total probability.",
        ge=0,
        le=1,
        in_generation_config=True,
        gguf_key="top_p",
        settled=_at_least_a_little,
        sampler="top_p",
    )
    min_p: float = _parameter(
        0.0,
        "Drop tokens below this share of the likeliest one's probability.",
        ge=0,
        le=1,
        in_generation_config=True,
        gguf_key="min_p",
        sampler="min_p",
    )
    typical_p: float = _parameter(
        1.0,
        "Locally typical sampling.",
        gt=0,
        le=1,
        settled=_at_least_a_little,
        sampler="typical_p",
    )
    xtc_probability: float = _parameter(
        0.0,
        "XTC, exclude top choices: how often a token is drawn without them. The seed decides when.",
        ge=0,
        le=1,
        gguf_key="xtc_probability",
        sampler="xtc",
    )
    xtc_threshold: float = _parameter(
        0.1,
        "A top choice has at least this probability; the least likely of them stays. Above 0.5 XTC "
        "is off, since there cannot be two.",
        ge=0,
        le=1,
        gguf_key="xtc_threshold",
        acts_with="xtc_probability",
    )

    mirostat: int = _parameter(
        0,
        "2: Mirostat 2 leaves out unlikely tokens so that the surprise of those that are drawn "
        "comes near mirostat_tau. The steps that leave tokens out then do nothing: top_n_sigma, "
        "top_k, top_p, min_p, typical_p and XTC. 0 is off.",
        choices=(0, 2),
        on_host=True,
        reads_text=True,
    )
    mirostat_tau: float = _parameter(
        5.0,
        "The surprise to come near, in bits per token.",
        ge=0,
        le=100,
        on_host=True,
        acts_with="mirostat",
    )
    mirostat_eta: float = _parameter(
        0.1,
        "How fast it gets there: this share of the error per token.",
        ge=0,
        le=1,
        on_host=True,
        acts_with="mirostat",
    )

    order: tuple[str, ...] | None = None
    """Samplers that act, where they do in another order than that of the fields above
    (`engine.sampler_order`); none where tokens are not drawn."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: bytes | None = None
    """The only tokens that may be drawn: little-endian int32, at least one, since there may be as
    many as the vocabulary has tokens. None: any."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token ids in a row, none empty, that the text must not contain."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Alternatives per generated token, from the unmodified logits. None: none at all; 0: only the
    chosen token's own."""
    prompt_logprobs: int | None = None
    """The same for prompt tokens."""
    structure: Structure | None = None
    """What the text must look like."""
    repetition_detection: RepetitionDetection | None = None
    beams: BeamParams | None = None
    """Look for the `n` best texts instead of drawing; all that shapes a draw is neutral then."""
    guidance: GuidanceParams | None = None
    contrast: ContrastParams | None = None
    """Tokens are not drawn: all that shapes a draw is neutral then."""

    @property
    def num_together(self) -> int:
        """Sequences that run as one; of independent ones 1."""
        if self.beams is not None:
            return self.beams.width
        if self.contrast is not None:
            return self.contrast.width
        return 1 if self.guidance is None else 2

    @property
    def num_sequences(self) -> int:
        """Texts in the making at a time."""
        searches = self.beams is not None or self.contrast is not None
        return self.num_together * (1 if searches else self.n)

    @property
    def reads_text(self) -> bool:
        """Whether what may be drawn depends on the tokens before."""
        in_groups = (self.beams, self.guidance, self.contrast)
        if self.structure is not None or any(one is not None for one in in_groups):
            return True
        if any(len(word) > 1 for word in self.bad_words):
            return True
        return any(getattr(self, one.name) != one.neutral for one in _READS_TEXT)


def _parameters() -> Mapping[str, SamplerParameter]:
    kinds = get_type_hints(SamplingParams)
    return {
        one.name: dataclasses.replace(one.metadata[_KEY], name=one.name, kind=kinds[one.name])
        for one in fields(SamplingParams)
        if _KEY in one.metadata
    }


SAMPLER_PARAMETERS = _parameters()
"""By name, in the order in which they act."""
_READS_TEXT = [one for one in SAMPLER_PARAMETERS.values() if one.reads_text]
