"""Converts a client's request to the engine's: resolves values, and checks bounds that need the
model.

All functions are pure. `server/protocol` has the checks that pydantic can make alone; this module
has those that depend on the served model: its defaults, its vocabulary, its context length.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from engine.contract import groups
from engine.contract.generate import GenerateRequest, ModelInfo, Pin
from engine.contract.generate_rules import check_generate
from engine.contract.prompt_states import StatePart
from engine.contract.sampler_order import OTHER_SAMPLER_NAMES, acting_order, without_unlisted
from engine.contract.sampling_params import (
    SAMPLER_PARAMETERS,
    Patterns,
    RepetitionDetection,
    SamplingParams,
)
from engine.contract.settings import EngineConfig
from engine.contract.structure import Structure
from engine.contract.token_ids import check_token_ids
from engine.errors import ContextLengthExceeded, InvalidParameter, Overflow, UnsupportedFeature
from server.http.owner import current_client
from server.http.turns import in_turns
from server.protocol.chat import ChatCompletionRequest
from server.protocol.common import SamplingRequest, given_or
from server.protocol.completions import CompletionRequest
from server.text.output import TextOptions
from server.text.prompt_limit import PromptLimit, max_counted_tokens, max_total_tokens
from server.text.sampler_tokens import SamplerTokens

DEFAULT_COMPLETION_TOKENS = 16
MAX_CHOICES = 4096

_DAY_S = 24 * 3600

_TO_THE_END = -1
"""Stands for as many tokens as the context has room for."""

_NO_TOKENS = SamplerTokens()

T = TypeVar("T")


def text_options(
    request: SamplingRequest,
    *,
    offsets: bool = False,
    keep_text: bool = False,
    kept_special_tokens: frozenset[int] = frozenset(),
) -> TextOptions:
    """The request's options for its text."""
    return TextOptions(
        stop=tuple(request.stop or ()),
        include_stop=given_or(request.include_stop_str_in_output, False),
        skip_special_tokens=given_or(request.skip_special_tokens, True),
        kept_special_tokens=kept_special_tokens,
        min_tokens=given_or(request.min_tokens, 0),
        offsets=offsets,
        uncertain_below=request.uncertain_below,
        tells_ranges=request.uncertain_below is not None
        or request.repetition_detection is not None,
        keep_text=keep_text,
    )


def chat_request(
    request: ChatCompletionRequest,
    info: ModelInfo,
    prompt: list[int],
    *,
    request_id: str,
    priority: int = 0,
    tokens: SamplerTokens = _NO_TOKENS,
    structure: Structure | None = None,
    negative: list[int] | None = None,
    states: tuple[StatePart, ...] = (),
) -> GenerateRequest:
    """The engine's request for a chat whose prompt has been tokenised.

    Args:
        states: the parts of the prompt that are pictures.
        tokens: the tokens of its strings for the sampler.
        negative: the negative prompt's tokens, if it has one.
        structure: what the text must look like (`answer_structure`).

    Raises:
        InvalidParameter, ContextLengthExceeded: as in `_generate_request`.
    """
    made = _generate_request(
        request,
        info,
        prompt,
        request_id=request_id,
        priority=priority,
        max_tokens=_asked_tokens(request),
        default_max_tokens=info.max_model_len,
        logprobs=given_or(request.top_logprobs, 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
        tokens=tokens,
        structure=structure,
        negative=negative,
        states=states,
    )
    return _with_kv_transfer(made, request, info)


def kept_prompt(request: ChatCompletionRequest, info: ModelInfo, prompt: list[int]) -> list[int]:
    """What the engine would be asked to read of a chat's prompt.

    Raises:
        ContextLengthExceeded: prompt and requested tokens exceed the model's context.
    """
    return _fitted(prompt, _asked_tokens(request), info.max_model_len, info, request)[0]


async def completion_requests(
    request: CompletionRequest,
    info: ModelInfo,
    prompts: Sequence[list[int]],
    *,
    request_id: str,
    priority: int = 0,
    tokens: SamplerTokens = _NO_TOKENS,
    negative: list[int] | None = None,
) -> list[GenerateRequest]:
    """The engine's requests, one per prompt; their ids are `request_id` and the prompt's number.

    Args:
        tokens: the tokens of its strings for the sampler.
        negative: the negative prompt's tokens, if it has one.

    Raises:
        InvalidParameter, ContextLengthExceeded: as in `_generate_request`.
    """
    num_sequences = len(prompts) * request.num_sequences
    if num_sequences > MAX_CHOICES:
        raise InvalidParameter(
            f"{len(prompts)} prompts with {request.num_sequences} texts each make {num_sequences} "
            f"texts; the limit is {MAX_CHOICES}; send fewer prompts, or ask for fewer texts",
            param="prompt",
        )
    if request.kv_transfer_params is not None and len(prompts) > 1:
        raise InvalidParameter(
            f"kv_transfer_params are for one prompt, and there are {len(prompts)}; send them in "
            "requests of their own",
            param="kv_transfer_params",
        )
    wanted = [request.prompt_logprobs, request.logprobs if request.echo else None]
    max_tokens = _asked_tokens(request)

    def one(numbered: tuple[int, list[int]]) -> GenerateRequest:
        number, prompt = numbered
        made = _generate_request(
            request,
            info,
            prompt,
            request_id=f"{request_id}-{number}",
            priority=priority,
            max_tokens=max_tokens,
            default_max_tokens=DEFAULT_COMPLETION_TOKENS,
            logprobs=request.logprobs,
            prompt_logprobs=max((k for k in wanted if k is not None), default=None),
            tokens=tokens,
            structure=request.structure,
            negative=negative,
        )
        return _with_kv_transfer(made, request, info)

    return await in_turns(one, enumerate(prompts))


def prompt_limit(
    request: ChatCompletionRequest | CompletionRequest, info: ModelInfo
) -> PromptLimit:
    """The limits of a request's prompts, before they are tokenised."""
    param = request.prompt_field
    asked = _asked_tokens(request)
    asked = None if asked == _TO_THE_END else asked
    most = info.max_model_len - given_or(asked, 1)
    keep = _num_kept(request.truncate_prompt_tokens, info, given_or(asked, 1))

    def exceeded(num_tokens: int, index: int) -> ContextLengthExceeded:
        return _does_not_fit(num_tokens, asked, info, request, is_exact=False)

    return PromptLimit(
        max_tokens=most,
        max_total_tokens=max_total_tokens(info.max_model_len),
        exceeded=exceeded,
        param=param,
        # Keeping more than fits does not avoid the refusal.
        keep_last=None if keep is None or keep > most else keep,
    )


def check_num_tokens(token_ids: Sequence[int], info: ModelInfo) -> None:
    """Refuse more token ids than `/tokenize` returns.

    Raises:
        InvalidParameter: names the number and the limit.
    """
    most = max_counted_tokens(info)
    if len(token_ids) > most:
        raise InvalidParameter(
            f"{len(token_ids)} tokens were sent; the limit is {most}; send them in parts",
            param="tokens",
        )


def _generate_request(
    request: SamplingRequest,
    info: ModelInfo,
    prompt: list[int],
    *,
    request_id: str,
    priority: int = 0,
    max_tokens: int | None,
    default_max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    tokens: SamplerTokens,
    structure: Structure | None,
    negative: list[int] | None,
    states: tuple[StatePart, ...] = (),
) -> GenerateRequest:
    """Join the request's fields with the model's defaults and limits.

    Raises:
        InvalidParameter: the prompt is empty, a token id is outside the vocabulary, or min_tokens
            is above max_tokens.
        ContextLengthExceeded: prompt and requested tokens exceed the model's context.
    """
    prompt, max_tokens = _fitted(prompt, max_tokens, default_max_tokens, info, request)
    sampling = _sampling_params(
        request, info, max_tokens, logprobs, prompt_logprobs, tokens, structure
    )
    if sampling.guidance is not None:
        token_ids = tuple(prompt[-1:] if negative is None else negative)
        guidance = replace(sampling.guidance, negative_token_ids=token_ids)
        sampling = replace(sampling, guidance=guidance)
    made = GenerateRequest(
        request_id=request_id,
        model=info.model,
        prompt_token_ids=prompt,
        sampling=sampling,
        priority=priority,
        arrival_time_s=time.time(),
        cache_salt=request.cache_salt,
        client=current_client(),
        adapter=info.adapter,
        states=states,
        pins=(Pin(len(prompt), _DAY_S),) if request.prompt_cache_retention == "24h" else (),
    )
    limits = groups.TextLimits(
        info.vocab_size, info.max_model_len, info.eos_token_ids, pictures=info.pictures
    )
    check_generate(made, limits, request.own_names)
    if sampling.beams is not None and sampling.beams.width == 1:
        # A search with one beam takes the likeliest token each time, which needs no group.
        return replace(made, sampling=replace(sampling, beams=None))
    return made


def _with_kv_transfer(
    made: GenerateRequest, request: ChatCompletionRequest | CompletionRequest, info: ModelInfo
) -> GenerateRequest:
    """The engine's request, with what it must do with KV blocks of other servers.

    Raises:
        InvalidParameter, UnsupportedFeature: it cannot.
    """
    params = request.kv_transfer_params
    if params is None or not (params.do_remote_decode or params.do_remote_prefill):
        return made
    if not info.shares_kv:
        raise UnsupportedFeature(
            "this model's KV blocks are not shared with other servers; start both with "
            "--kv-transfer HOST, or leave kv_transfer_params out",
            param="kv_transfer_params",
        )
    if params.do_remote_decode and request.stream:
        raise InvalidParameter(
            "kv_transfer_params with do_remote_decode is not available with stream: true; leave "
            "one of them out",
            param="kv_transfer_params",
        )
    return replace(made, lends_kv=bool(params.do_remote_decode), kv_loan=params.loan())


def _fitted(
    prompt: list[int], asked: int | None, default: int, info: ModelInfo, request: SamplingRequest
) -> tuple[list[int], int]:
    """What is kept of a prompt, and the most tokens that may follow it.

    Args:
        asked: the most tokens that the client wants.
        default: as many are meant if it does not say.
    """
    if asked == _TO_THE_END:
        asked, default = None, info.max_model_len
    keep = _num_kept(request.truncate_prompt_tokens, info, given_or(asked, 1))
    kept = prompt if keep is None else prompt[-keep:]
    return kept, _fitting_max_tokens(len(kept), asked, default, info, request)


def _num_kept(keep: int | None, info: ModelInfo, num_reserved: int) -> int | None:
    return max(1, info.max_model_len - num_reserved) if keep == -1 else keep


def _asked_tokens(request: ChatCompletionRequest | CompletionRequest) -> int | None:
    return _first(request.max_completion_tokens, request.max_tokens, request.n_predict)


def _fitting_max_tokens(
    num_prompt_tokens: int,
    asked: int | None,
    default: int,
    info: ModelInfo,
    request: SamplingRequest,
) -> int:
    room = info.max_model_len - num_prompt_tokens
    if given_or(asked, 1) > room:
        raise _does_not_fit(num_prompt_tokens, asked, info, request)
    return min(default, room) if asked is None else asked


def _does_not_fit(
    num_prompt_tokens: int,
    asked: int | None,
    info: ModelInfo,
    request: SamplingRequest,
    *,
    is_exact: bool = True,
) -> ContextLengthExceeded:
    """The error for a prompt that does not fit.

    Args:
        is_exact: the number of prompt tokens is exact, not a lower bound.
    """
    room = info.max_model_len - num_prompt_tokens
    however = _what_does_not_fit(num_prompt_tokens, asked, room, request, is_exact)
    error = ContextLengthExceeded.beyond(info.max_model_len, however, param=request.prompt_field)
    error.overflow = Overflow(num_prompt_tokens, given_or(asked, 1), info.max_model_len)
    return error


def _what_does_not_fit(
    num_prompt_tokens: int, asked: int | None, room: int, request: SamplingRequest, is_exact: bool
) -> str:
    """A message in OpenAI's words that also says what would fit."""
    param = request.prompt_field
    about = "" if is_exact else "at least "
    if not asked:
        return (
            f"your {param} resulted in {about}{num_prompt_tokens} tokens. Please reduce the length "
            f"of the {param} by at least {given_or(asked, 1) - room}."
        )
    fits = is_exact and room > 0
    fix = f"; {request.limit_field} can be at most {room} here" if fits else ""
    return (
        f"you requested {about}{num_prompt_tokens + asked} tokens ({about}{num_prompt_tokens} in "
        f"the {param}, "
        f"{asked} in the completion). Please reduce the length of the {param} or completion{fix}."
    )


def _sampling_params(
    request: SamplingRequest,
    info: ModelInfo,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
    tokens: SamplerTokens,
    structure: Structure | None,
) -> SamplingParams:
    min_tokens = given_or(request.min_tokens, 0)
    if min_tokens > max_tokens:
        raise InvalidParameter(
            f"min_tokens is {min_tokens}; it can be at most {request.limit_field}, here "
            f"{max_tokens}; ask for less",
            param="min_tokens",
        )
    stop_token_ids = tuple(dict.fromkeys(request.stop_token_ids or ()))
    named = [key for key, _ in request.logit_bias or () if isinstance(key, int)]
    check_token_ids(named, info.vocab_size, "logit_bias")
    check_token_ids(request.allowed_token_ids or (), info.vocab_size, "allowed_token_ids")
    asked, group = request.groups, request.groups.group
    if group is not None and group.is_search:
        values: dict[str, Any] = {"temperature": 0.0}
    else:
        values = _sampler_values(request, info.default_sampling, tokens.patterns)
        if request.samplers is not None:
            samplers = [OTHER_SAMPLER_NAMES.get(name, name) for name in request.samplers]
            values = without_unlisted(values, samplers)
            values["order"] = acting_order(values, samplers)
    values |= {name: getattr(asked, name) for name in groups.GROUPS}
    if request.num_best is not None or request.return_uncertainty:
        logprobs = given_or(logprobs, 0)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        n=request.num_choices if request.num_best is None else request.num_sequences,
        seed=request.seed,
        **values,
        logit_bias=tokens.logit_bias(request),
        allowed_token_ids=_as_bytes(request.allowed_token_ids),
        bad_words=tokens.bad_words(request),
        stop_token_ids=stop_token_ids,
        ignore_eos=given_or(request.ignore_eos, False),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        structure=structure,
        repetition_detection=_repetition_detection(request),
    )


def _repetition_detection(request: SamplingRequest) -> RepetitionDetection | None:
    wanted = request.repetition_detection
    if wanted is None or not wanted.max_pattern_size:
        return None
    return RepetitionDetection(
        min_pattern_size=wanted.min_pattern_size or 1,
        max_pattern_size=wanted.max_pattern_size,
        min_count=wanted.min_count,
        ends_text=wanted.action != "report",
    )


def _as_bytes(token_ids: list[int] | None) -> bytes | None:
    return None if token_ids is None else np.unique(token_ids).astype("<i4").tobytes()


def check_width(request: SamplingRequest, config: EngineConfig) -> None:
    """Refuse a request that needs more sequences at a time than a model of this configuration can
    run.

    Raises:
        InvalidParameter: names the limit.
    """
    most = min(config.max_num_seqs, config.max_num_batched_tokens)
    if group := request.groups.group:
        groups.check_width(group, request.own_names, most)


def _sampler_values(
    request: SamplingRequest, model: Mapping[str, float], patterns: Mapping[str, Patterns]
) -> dict[str, Any]:
    """The value of each sampler parameter: the request's, else the model's default, else the
    neutral one."""
    values: dict[str, Any] = {}
    for name, one in SAMPLER_PARAMETERS.items():
        if one.kind == Patterns:
            values[name] = patterns.get(name, one.neutral)
            continue
        asked = _first(*(getattr(request, each) for each in (name, *one.other_names)))
        value = given_or(asked, one.kind(model.get(name, one.neutral)))
        values[name] = one.settled(value) if one.settled else value
    return values


def _first(*values: T | None) -> T | None:
    return next((value for value in values if value is not None), None)
