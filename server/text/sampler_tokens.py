"""The tokens of strings that a request gives to its sampler: the engine sees only tokens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.contract.sampling_params import SAMPLER_PARAMETERS, Patterns
from server.protocol.common import SamplingRequest
from server.text.texts import ModelText


@dataclass(frozen=True, slots=True)
class SamplerTokens:
    """The tokens of one request's strings."""

    patterns: Mapping[str, Patterns] = field(default_factory=dict)
    """Patterns of `sampler_strings`, by parameter."""
    words: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Token ids of `sampler_words`, by string."""

    def logit_bias(self, request: SamplingRequest) -> dict[int, float]:
        """The bias of each token id; if a token has several, the last one."""
        return {
            token_id: bias
            for token_ids, bias in self._biases(request)
            for token_id in token_ids
            if bias is not False
        }

    def bad_words(self, request: SamplingRequest) -> tuple[tuple[int, ...], ...]:
        """The words that may not be written, including tokens with a bias of false as words of one
        token."""
        words = [self.words[one] for word in request.bad_words or () for one in _spellings(word)]
        for token_ids, bias in self._biases(request):
            words += [(token_id,) for token_id in token_ids if bias is False]
        return tuple(dict.fromkeys(word for word in words if word))

    def _biases(self, request: SamplingRequest) -> Iterable[tuple[Sequence[int], float]]:
        for key, bias in request.logit_bias or ():
            yield self.words[key] if isinstance(key, str) else (key,), bias


async def find_tokens(request: SamplingRequest, text: ModelText) -> SamplerTokens:
    """The tokens of a request's strings for its sampler.

    Raises:
        QueueFull: too many long texts are being processed.
    """
    return SamplerTokens(
        await text.patterns(sampler_strings(request)), await text.words(sampler_words(request))
    )


def sampler_strings(request: SamplingRequest) -> dict[str, tuple[str, ...]]:
    """The strings whose tokens the engine needs, by parameter, without those that have no
    effect."""
    strings = {}
    for name, one in SAMPLER_PARAMETERS.items():
        if one.kind == Patterns and _acts(request, one.acts_with):
            asked = getattr(request, name)
            strings[name] = one.strings if asked is None else tuple(asked)
    return strings


def sampler_words(request: SamplingRequest) -> list[str]:
    """The words that must be tokenised on their own."""
    words = [spelling for word in request.bad_words or () for spelling in _spellings(word)]
    return words + [key for key, _ in request.logit_bias or () if isinstance(key, str)]


def _spellings(word: str) -> Sequence[str]:
    """A word at a text's beginning and within it, as in vLLM, and as it was sent."""
    bare = word.lstrip()
    return (word, bare, f" {bare}") if bare else (word,)


def _acts(request: SamplingRequest, name: str | None) -> bool:
    asked = None if name is None else getattr(request, name)
    return name is None or (asked is not None and asked != SAMPLER_PARAMETERS[name].neutral)
