"""The rules for requests for text, as the server and the engine apply them."""

from typing import Any

import pytest

from engine.contract.generate import GenerateRequest
from engine.contract.generate_rules import check_generate
from engine.contract.groups import (
    GROUPS,
    BeamParams,
    ContrastParams,
    GroupParams,
    GuidanceParams,
    TextLimits,
)
from engine.contract.sampling_params import SamplingParams
from engine.contract.structure import Structure
from engine.errors import InvalidParameter, RequestError

LIMITS = TextLimits(vocab_size=50, max_num_tokens=128, eos_token_ids=(1, 2), max_num_seqs=8)
ENDS = tuple(range(3, 18))
FORM = {"structure": Structure.of_choice(["a"], param="grammar")}


def beams(width: int = 4) -> dict[str, Any]:
    return {"beams": BeamParams(width=width)}


def contrast(alpha: float = 0.6, width: int = 4) -> dict[str, Any]:
    return {"contrast": ContrastParams(alpha=alpha, width=width)}


def guidance(negative: list[int]) -> dict[str, Any]:
    return {"guidance": GuidanceParams(scale=2.0, negative_token_ids=tuple(negative))}


def check(prompt: list[int], names: Any = None, **fields: Any) -> None:
    limits = {name: fields.pop(name) for name in LIMITS._fields if name in fields}
    sampling = SamplingParams(**fields)
    request = GenerateRequest(request_id="r", model="m", prompt_token_ids=prompt, sampling=sampling)
    check_generate(request, LIMITS._replace(**limits), names or {})


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "message"),
    [
        ([], {}, "prompt", "prompt has no tokens"),
        ([50], {}, "prompt", "token id 50; this model's token ids are 0 to 49"),
        ([1, -1], {}, "prompt", "token id -1"),
        ([1], {"stop_token_ids": (99,)}, "stop_token_ids", "token id 99"),
        ([1], {"logit_bias": {-5: 1.0}}, "logit_bias", "token id -5"),
        ([1], {"allowed_token_ids": b""}, "allowed_token_ids", "at least one"),
        ([1], {"allowed_token_ids": b"abc"}, "allowed_token_ids", "32 bits"),
        ([1], {"ignore_eos": True, **FORM}, "ignore_eos", "combined with grammar"),
        ([1], {"n": 0}, "n", "n is 0"),
        ([1], {"max_tokens": -1}, "max_tokens", "max_tokens is -1"),
        ([1], {"min_tokens": -1}, "min_tokens", "min_tokens is -1"),
        ([1], beams(17), "best_of", "best_of is 17; .* must be 1 to 16"),
        ([1], beams(0), "best_of", "best_of is 0"),
        ([1], beams(9), "best_of", "needs 9 sequences .* most 8 .* lower best_of, or leave"),
        ([1], {"n": 3, **beams(2)}, "best_of", "best_of is 2 and n is 3"),
        ([1], {"max_tokens": 0, **beams()}, "max_tokens", "is 0; with use_beam_search"),
        ([1], {"stop_token_ids": ENDS, **beams()}, "stop_token_ids", "17 tokens .* at most 16"),
        ([1], {**FORM, **beams()}, "grammar", "given form, which cannot be combined with use_beam"),
        ([1], contrast(width=1), "top_k", "top_k is 1; .* must be 2 to 16"),
        ([1], contrast(width=17), "top_k", "top_k is 17"),
        ([1], contrast(width=9), "top_k", "needs 9 sequences .* lower top_k"),
        ([1], contrast(alpha=0.0), "penalty_alpha", "above 0"),
        ([1], contrast(alpha=1.5), "penalty_alpha", "1.5; .* at most 1"),
        ([1], {"n": 2, **contrast()}, "n", "n cannot be combined with penalty_alpha"),
        ([1], {"min_tokens": 1, **contrast()}, "min_tokens", "combined with penalty_alpha"),
        ([1], {**FORM, **contrast()}, "grammar", "combined with penalty_alpha"),
        ([1], {"max_tokens": 0, **contrast()}, "max_tokens", "with penalty_alpha"),
        ([1], {**beams(), **contrast()}, "penalty_alpha", "combined with use_beam_search"),
        ([1], {**contrast(), **guidance([1])}, "guidance_scale", "combined with penalty_alpha"),
        ([1], {**beams(), **guidance([1])}, "guidance_scale", "combined with use_beam_search"),
        ([1], {"max_tokens": 0, **guidance([1])}, "max_tokens", "with guidance_scale"),
        ([1], guidance([]), "negative_prompt", "negative_prompt has no tokens"),
        ([1], guidance([1, -1]), "negative_prompt", "token id -1"),
        ([1], guidance([1] * 128), "negative_prompt", "negative_prompt has 128 tokens"),
        (
            [1],
            {"max_num_seqs": 1, **guidance([1])},
            "guidance_scale",
            "2 .* most 1 .*; leave guidance",
        ),
        ([1], {"vocab_size": 5, **beams()}, "best_of", "only 5 tokens, too few"),
        ([1], {"vocab_size": 3, **contrast()}, "top_k", "only 3 tokens, too few"),
    ],
    ids=str,
)
def test_a_request_that_cannot_run_is_refused(prompt, fields, param, message):
    with pytest.raises(RequestError, match=message) as caught:
        check(prompt, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "fields",
    [beams(8), {"n": 4, **beams()}, contrast(1.0, 8), {"n": 9, **FORM, **guidance([1] * 127)}],
    ids=str,
)
def test_what_is_within_the_limits_passes(fields):
    check([1], **fields)
    check([1], max_num_seqs=None, **fields)


def test_errors_name_the_clients_fields():
    names = {"prompt": "messages", "max_tokens": "n_predict", "best_of": "beam_width"}
    for prompt, fields in (([], {}), ([1], {"max_tokens": 0, **beams()}), ([1], beams(17))):
        with pytest.raises(InvalidParameter) as caught:
            check(prompt, names=names, **fields)
        assert caught.value.param in names.values()
        assert caught.value.message.startswith(caught.value.param)


def test_each_way_has_a_field_and_a_width():
    ways = [beams(3), contrast(), guidance([1])]
    assert tuple(name for way in ways for name in way) == GROUPS
    for way, together, at_a_time in zip(ways, (3, 4, 2), (3, 4, 6), strict=True):
        sampling = SamplingParams(n=3, **way)
        assert isinstance(sampling.group, GroupParams)
        assert (sampling.num_together, sampling.num_sequences) == (together, at_a_time)
        assert sampling.reads_text, "no step is launched ahead"
    plain = SamplingParams(n=3)
    assert (plain.group, plain.num_together, plain.num_sequences) == (None, 1, 3)
