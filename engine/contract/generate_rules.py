"""The rules for requests for text. The server applies them to each request, with the client's field
names. The engine applies them again, because it does not rely on the server."""

from engine.contract.generate import GenerateRequest
from engine.contract.groups import Names, TextLimits, check_width
from engine.contract.picture_facts import PictureFacts
from engine.contract.sampling_params import SamplingParams
from engine.contract.structure import Structure
from engine.contract.token_ids import check_token_ids
from engine.errors import InvalidParameter

_OWN_NAMES: Names = {}


def check_generate(request: GenerateRequest, limits: TextLimits, names: Names = _OWN_NAMES) -> None:
    """Refuse a request that would fail later. Whether prompt and text fit together is another
    question: the server and the engine answer it differently.

    Raises:
        InvalidParameter, ContextLengthExceeded: the error names the field and the limit.
    """
    sampling, field = request.sampling, names.get("prompt", "prompt")
    if not request.prompt_token_ids:
        raise InvalidParameter(f"{field} has no tokens; send at least one", param=field)
    check_token_ids(request.prompt_token_ids, limits.vocab_size, field)
    _check_states(request, limits.pictures, field)
    check_token_ids(sampling.stop_token_ids, limits.vocab_size, "stop_token_ids")
    check_token_ids(sampling.logit_bias, limits.vocab_size, "logit_bias")
    allowed = sampling.allowed_token_ids
    if allowed is not None and (not allowed or len(allowed) % 4):
        raise InvalidParameter(
            "allowed_token_ids must hold at least one id, in 32 bits each",
            param="allowed_token_ids",
        )
    check_end(sampling.structure, sampling.ignore_eos)
    for name, least in (("n", 1), ("max_tokens", 0), ("min_tokens", 0)):
        if getattr(sampling, name) < least:
            raise InvalidParameter(
                f"{name} is {getattr(sampling, name)}; it must be at least {least}", param=name
            )
    _check_group(sampling, limits, names)


def _check_states(request: GenerateRequest, pictures: PictureFacts | None, field: str) -> None:
    parts, prompt = request.states, request.prompt_token_ids
    if pictures is None:
        if parts:
            raise InvalidParameter(
                f"{field} has pictures, but this model takes none; leave them out, or use a model "
                "that sees pictures",
                param=field,
            )
        return
    placeholder, rows, size = pictures.placeholder_id, pictures.rows_per_crop, 3 * pictures.side**2
    each = " for each square of the picture" if pictures.has_any_size else ""
    end = 0
    for part in parts:
        if not end <= part.start <= part.end <= len(prompt):
            raise InvalidParameter(
                f"{field} has a picture at rows {part.start} to {part.end}; pictures must lie "
                f"within its {len(prompt)} tokens, in order and without overlap",
                param=field,
            )
        end = part.end
        num_there = prompt[part.start : end].count(placeholder)
        if num_there != part.num_states or not pictures.fits(part):
            raise InvalidParameter(
                f"{field} has a picture of {part.num_states} rows, {num_there} placeholders and "
                f"{len(part.content)} bytes; this model needs {rows} rows, as many placeholders "
                f"(token {placeholder}) and {size} bytes{each}",
                param=field,
            )
    guidance = request.sampling.guidance
    negative = () if guidance is None else guidance.negative_token_ids
    for name, token_ids, expected in (
        (field, prompt, sum(part.num_states for part in parts)),
        ("negative_prompt", negative, 0),
    ):
        if token_ids.count(placeholder) != expected:
            raise InvalidParameter(
                f"{name} has token {placeholder}, the placeholder for pictures, where no picture "
                "is; leave that token out",
                param=name,
            )
    if parts and request.sampling.prompt_logprobs is not None:
        raise InvalidParameter(
            f"prompt_logprobs cannot be combined with pictures in {field}, because rows of "
            "pictures have no tokens to score; leave one of them out",
            param="prompt_logprobs",
        )


def check_end(structure: Structure | None, ignore_eos: bool) -> None:
    """Refuse a structure in a text that must not end.

    Raises:
        InvalidParameter: the error names both fields.
    """
    if structure is not None and ignore_eos:
        raise InvalidParameter(
            f"ignore_eos cannot be combined with {structure.param}, because such a text ends when "
            "it is complete; leave one of them out",
            param="ignore_eos",
        )


def _check_group(sampling: SamplingParams, limits: TextLimits, names: Names) -> None:
    group = sampling.group
    if group is None:
        return
    check_width(group, names, limits.max_num_seqs)
    for name, neutral in group.neutral.items():
        if getattr(sampling, name) != neutral:
            raise InvalidParameter(
                f"{name} cannot be combined with {group.field}; leave one of them out", param=name
            )
    if group.is_search and sampling.structure is not None:
        param = sampling.structure.param
        raise InvalidParameter(
            f"{param} asks for a given form, which cannot be combined with {group.field}; leave "
            "one of them out",
            param=param,
        )
    if sampling.max_tokens < 1:
        field = names.get("max_tokens", "max_tokens")
        raise InvalidParameter(
            f"{field} is {sampling.max_tokens}; with {group.field} it must be at least 1",
            param=field,
        )
    ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else limits.eos_token_ids)}
    if group.width + len(ends) > limits.vocab_size:
        field = names.get(group.width_field, group.width_field)
        raise InvalidParameter(
            f"the model has only {limits.vocab_size} tokens, too few for {group.field}; lower "
            f"{field}",
            param=field,
        )
    group.check(sampling.n, len(ends), limits, names)
