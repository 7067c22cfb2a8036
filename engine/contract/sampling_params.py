"""How a request wants its tokens chosen, with the one table of parameters that shape a
distribution.

`SamplingParams` is that table: a field made by `_parameter` states its bounds, its neutral value,
its names on the wire, where it acts and what it means. A request's validation and OpenAPI schema,
the defaults, the table in docs/API.md and the rows of `kernels.sample_tokens` are made from it. A
new parameter therefore needs only a field here and the code that acts on it. This module imports
neither torch nor wire libraries.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from engine.contract.groups import Groups, num_places
from engine.contract.structure import Structure

MAX_COUNT = (1 << 31) - 1
"""The largest whole number that a parameter takes."""
MAX_STRINGS, MAX_STRING_CHARS = 16, 40
"""The most strings that a parameter takes, and their greatest length: searching for them takes time
before and in the engine's steps."""


@dataclass(frozen=True, slots=True)
class TokenPattern:
    """The tokens that spell a string: one of `heads`, then those of `tail`."""

    heads: bytes
    """The token ids as little-endian int32, ascending; there may be as many as in the
    vocabulary."""
    tail: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetection:
    """When a text counts as repeating itself: once a pattern of a size within these limits occurs
    `min_count` times in a row."""

    min_pattern_size: int
    max_pattern_size: int
    min_count: int
    ends_text: bool = True
    """Whether the repetition ends the text; otherwise it is only reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerParameter:
    """One sampler parameter, with all that code needs to know to read, document or apply it."""

    name: str = ""
    """The name of the field in `SamplingParams` and in a request."""
    kind: Any = float
    """`int`, `float` or `Patterns`. For patterns a request has strings, and the server finds their
    tokens."""
    neutral: Any
    """The value that changes nothing, which is the default; for patterns, none."""
    text: str
    """Its effect, in one or two sentences."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    """The bounds of values in a request."""
    choices: tuple[int, ...] = ()
    """All allowed values, in place of bounds."""
    other_names: tuple[str, ...] = ()
    """Other fields of a request with the same meaning, such as llama.cpp's name for it."""
    on_host: bool = False
    """Whether it acts as a processor of `engine.llm.sampling.logits_processors`; otherwise it is
    the parameter of the same name of `kernels.sample_tokens.packed_row`."""
    reads_text: bool = False
    """Whether, unless it is neutral, the draw depends on the tokens before, so that no step is
    launched before the host knows them."""
    in_generation_config: bool = False
    """Whether a checkpoint's generation_config.json may give another default under this name."""
    gguf_key: str | None = None
    """The name after `general.sampling.` of the default in a GGUF file."""
    strings: tuple[str, ...] = ()
    """The default strings of patterns."""
    acts_with: str | None = None
    """Another parameter, without which this one has no effect."""
    sampler: str | None = None
    """The name of the sampler that it belongs to, perhaps with others, in a request's order of
    samplers. The sampler does nothing if all its parameters are neutral."""
    settled: Callable[[Any], Any] | None = None
    """Converts a value within the bounds for the engine; None leaves it as it is."""

    @property
    def in_checkpoints(self) -> bool:
        """Whether some checkpoints may give another default."""
        return self.in_generation_config or self.gguf_key is not None

    @property
    def bounds(self) -> str:
        """The bounds in words, such as `0 to 2`."""
        if self.kind == Patterns:
            return f"at most {MAX_STRINGS}, each of 1 to {MAX_STRING_CHARS} characters"
        if self.choices:
            return " or ".join(map(str, self.choices))
        least = f"above {self.gt:g}" if self.ge is None else f"{self.ge:g}"
        most = "2^31 - 1" if self.le == MAX_COUNT else f"{self.le:g}"
        return f"{least} to {most}"


Patterns = tuple[TokenPattern, ...]

_KEY = "sampler"
_SMALLEST_PROBABILITY = 1e-6
_GREEDY_BELOW = 1e-5


def _parameter(neutral: Any, text: str, **facts: Any) -> Any:
    """Make a field of `SamplingParams` with its `SamplerParameter`."""
    parameter = SamplerParameter(neutral=neutral, text=text, **facts)
    return field(default=neutral, metadata={_KEY: parameter})


def _at_least_a_little(share: float) -> float:
    return max(share, _SMALLEST_PROBABILITY)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(Groups):
    """How tokens are chosen. Values are already checked; `engine.llm.sampling.sampler` has the
    maths.

    The order is: the processors of `engine.llm.sampling.sampler.Sampler` on the logits →
    temperature → the steps of `kernels.sample_tokens` → draw.
    """

    max_tokens: int = 16
    """The most generated tokens; 0 only scores the prompt."""
    min_tokens: int = 0
    """The number of tokens before which end-of-sequence and `stop_token_ids` cannot be drawn."""
    n: int = 1
    """The number of completions per prompt; they share the prompt's KV blocks."""
    seed: int | None = None
    """Any int64; None lets the engine draw one."""

    repetition_penalty: float = _parameter(
        1.0,
        "Divides the logits of tokens in the prompt and the text so far; above 1 they get less "
        "likely.",
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
        "Subtracted from a token's logit for each time that it was generated before.",
        ge=-2,
        le=2,
        on_host=True,
        reads_text=True,
        sampler="penalties",
    )
    presence_penalty: float = _parameter(
        0.0,
        "Subtracted once from the logits of tokens that were generated before.",
        ge=-2,
        le=2,
        on_host=True,
        reads_text=True,
        sampler="penalties",
    )
    repeat_last_n: int = _parameter(
        -1,
        "How many of the last tokens of prompt and text the three penalties above look at; -1: "
        "all, 0: none.",
        ge=-1,
        le=MAX_COUNT,
        on_host=True,
        gguf_key="penalty_last_n",
    )
    dry_multiplier: float = _parameter(
        0.0,
        "DRY (don't repeat yourself): the logit of a token that would continue a repetition is "
        "lowered by dry_multiplier * dry_base^(length - dry_allowed_length). 0 turns it off.",
        ge=0,
        le=100,
        on_host=True,
        reads_text=True,
        sampler="dry",
    )
    dry_base: float = _parameter(
        1.75,
        "The factor by which each further token of a repetition raises the DRY penalty.",
        ge=1,
        le=100,
        on_host=True,
        acts_with="dry_multiplier",
    )
    dry_allowed_length: int = _parameter(
        2,
        "Shorter repetitions are not penalised.",
        ge=1,
        le=MAX_COUNT,
        on_host=True,
        acts_with="dry_multiplier",
    )
    dry_penalty_last_n: int = _parameter(
        -1,
        "How many of the last tokens of prompt and text DRY looks at; -1: all, 0: none.",
        ge=-1,
        le=MAX_COUNT,
        on_host=True,
        acts_with="dry_multiplier",
    )
    dry_sequence_breakers: Patterns = _parameter(
        (),
        "Strings that end a repetition. Tokens that contain one are never penalised.",
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
        "Higher values make the text more random; 0 always takes the most likely token.",
        ge=0,
        le=2,
        in_generation_config=True,
        gguf_key="temp",
        # Dividing by less would overflow. The draw would be greedy anyway, and vLLM does the same.
        settled=lambda value: 0.0 if value < _GREEDY_BELOW else value,
        sampler="temperature",
    )
    dynatemp_range: float = _parameter(
        0.0,
        "Dynamic temperature: the temperature goes up or down by at most this, up where the model "
        "is less certain. 0 turns it off.",
        ge=0,
        le=2,
        sampler="temperature",
    )
    dynatemp_exponent: float = _parameter(
        1.0,
        "The model's uncertainty (0 to 1), raised to this power, sets where in that range the "
        "temperature is.",
        ge=0,
        le=100,
        acts_with="dynatemp_range",
    )
    top_k: int = _parameter(
        0,
        "Keep this many of the likeliest tokens; 0 or -1 keeps all.",
        ge=-1,
        le=MAX_COUNT,
        in_generation_config=True,
        gguf_key="top_k",
        settled=lambda value: max(value, 0),
        sampler="top_k",
    )
    top_p: float = _parameter(
        1.0,
        "Keep the likeliest tokens that together have this probability.",
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
        "Locally typical sampling: keep the most typical tokens that together have this "
        "probability.",
        gt=0,
        le=1,
        settled=_at_least_a_little,
        sampler="typical_p",
    )
    xtc_probability: float = _parameter(
        0.0,
        "XTC (exclude top choices): how often a token is drawn without the top choices. The seed "
        "decides when.",
        ge=0,
        le=1,
        gguf_key="xtc_probability",
        sampler="xtc",
    )
    xtc_threshold: float = _parameter(
        0.1,
        "A top choice has at least this probability. The least likely of them is kept, so XTC does "
        "nothing above 0.5, where there cannot be two.",
        ge=0,
        le=1,
        gguf_key="xtc_threshold",
        acts_with="xtc_probability",
    )

    mirostat: int = _parameter(
        0,
        "2: Mirostat 2 leaves out unlikely tokens so that the surprise of the drawn ones stays "
        "near mirostat_tau. top_n_sigma, top_k, top_p, min_p, typical_p and XTC then do nothing. "
        "0 turns it off.",
        choices=(0, 2),
        on_host=True,
        reads_text=True,
    )
    mirostat_tau: float = _parameter(
        5.0,
        "The surprise that Mirostat aims at, in bits per token.",
        ge=0,
        le=100,
        on_host=True,
        acts_with="mirostat",
    )
    mirostat_eta: float = _parameter(
        0.1,
        "How fast Mirostat adapts: the share of the error that each token corrects.",
        ge=0,
        le=1,
        on_host=True,
        acts_with="mirostat",
    )

    order: tuple[str, ...] | None = None
    """The samplers that act, if in another order than that of the fields above
    (`engine.contract.sampler_order`); always None if tokens are not drawn."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: bytes | None = None
    """The only tokens that may be drawn, as little-endian int32; there may be as many as in the
    vocabulary, and there is at least one. None allows any."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids, none empty, that the text must not contain."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """The number of alternatives per generated token, from the unmodified logits. None reports no
    log-probabilities; 0 only that of the chosen token."""
    prompt_logprobs: int | None = None
    """The same as `logprobs`, for prompt tokens."""
    structure: Structure | None = None
    """The form that the text must have."""
    repetition_detection: RepetitionDetection | None = None

    @property
    def num_sequences(self) -> int:
        """The number of sequences that run at a time."""
        return num_places(self.group, self.n)

    @property
    def reads_text(self) -> bool:
        """Whether the draw depends on the preceding tokens."""
        if self.structure is not None or self.group is not None:
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
"""All sampler parameters by name, in the order in which they act."""
_READS_TEXT = [one for one in SAMPLER_PARAMETERS.values() if one.reads_text]
