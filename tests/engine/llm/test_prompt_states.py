"""Prompts with pictures: the right logits, the same bits in any company, and no work twice."""

from dataclasses import replace

import pytest
import torch
import transformers

from engine.contract.groups import BeamParams, ContrastParams, GuidanceParams
from engine.contract.request import FinishReason
from engine.errors import InvalidParameter, ModelLoadError
from engine.llm.kept_states import KeptStates
from tests.helpers.llm.logits import alone, check_same_bits, cramped, logits_of, number_of_changes
from tests.helpers.llm.toy_pictures import (
    PLACEHOLDER,
    ROWS,
    give_sight,
    random_picture,
    reference_logits,
    seeing,
    with_grids,
    with_lines,
)


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=11)


@pytest.fixture
def encoders(monkeypatch):
    return give_sight(monkeypatch)


@pytest.fixture
def pictures(rng):
    """Few pictures, so that they occur again."""
    return [random_picture(rng) for _ in range(3)]


def random_text(rng, least=1, most=60):
    return [rng.randrange(PLACEHOLDER) for _ in range(rng.randrange(least, most))]


def random_request(engines, rng, name, pictures, stem=(), most_pictures=4, **sampling):
    """A request whose pictures may touch each other and both ends of the prompt."""
    text = [*stem, *random_text(rng)]
    places = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(1, most_pictures + 1)))
    sampling = {"max_tokens": rng.randrange(1, 12), "ignore_eos": True} | sampling
    request = engines.request(name, text, **sampling)
    return seeing(request, [(place, rng.choice(pictures)) for place in places])


def random_requests(engines, rng, pictures, count=6, **sampling):
    """Requests with pictures among others without; their prompts differ."""
    requests = [random_request(engines, rng, str(i), pictures, **sampling) for i in range(count)]
    plain = engines.request("plain", random_text(rng), max_tokens=30, ignore_eos=True)
    return [*requests, plain]


FAMILIES = {
    "tiny_llama": {},
    "tiny_gemma3": {"looks_both_ways": True},
    "tiny_qwen3": {"has_axes": True},
    "tiny_qwen3_5": {"has_axes": True},
    "tiny_qwen2": {"parts_lines": True},
}
"""How each of them sees pictures."""


@pytest.fixture(params=FAMILIES)
def sighted(request, monkeypatch):
    """A model of each kind."""
    give_sight(monkeypatch, **FAMILIES[request.param])
    return request.getfixturevalue(request.param)(seed=11)


@pytest.fixture
def shaped(request):
    """Gives the pictures of requests the shape that the model needs."""
    sees = FAMILIES[request.node.callspec.params["sighted"]]
    change = {"has_axes": with_grids, "parts_lines": with_lines}.get(next(iter(sees), ""))
    return lambda requests: [change(one) if change else one for one in requests]


def gemma_masks(num_tokens, parts):
    """Both kinds of masks [1, 1, T, T], as transformers makes them of token types."""
    at = torch.arange(num_tokens)
    sees = at[None, :] <= at[:, None]
    for part in parts:
        sees[part.start : part.end, part.start : part.end] = True
    sliding = sees & (at[None, :] > at[:, None] - 24)
    return {"full_attention": sees[None, None], "sliding_attention": sliding[None, None]}


@pytest.mark.parametrize("sighted", ["tiny_llama", "tiny_gemma3", "tiny_qwen2"], indirect=True)
def test_logits_equal_those_of_transformers(engines, shaped, rng, log, sighted, pictures):
    model = transformers.AutoModelForCausalLM.from_pretrained(sighted, dtype=torch.float32).eval()
    masks = gemma_masks if "gemma" in model.config.model_type else None
    requests = shaped(random_requests(engines, rng, pictures))
    engine = engines.make(sighted, max_num_batched_tokens=48, max_num_seqs=rng.choice([2, 40]))
    done = engines.run(engine, requests)
    for one in requests:
        output = done[one.request_id, 0].token_ids
        expected = reference_logits(model, one, output, masks)
        found = [log.rows[(*key_of(one), i)] for i in range(len(output))]
        torch.testing.assert_close(torch.stack(found), expected, atol=2e-4, rtol=1e-3)


def key_of(request):
    return tuple(request.prompt_token_ids), 0


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_the_same_in_any_company_and_chunks(
    engines, sighted, shaped, rng, log, pictures, dtype
):
    requests = shaped(random_requests(engines, rng, pictures))
    expected = logits_of(log, lambda: alone(engines, sighted, requests, dtype=dtype))
    budget = rng.choice([ROWS, ROWS + 1, 17, 100])
    engine = engines.make(
        sighted, dtype=dtype, max_num_batched_tokens=budget, max_num_seqs=min(budget, 5)
    )
    arrivals = [rng.randrange(10) for _ in requests]
    check_same_bits(log, lambda: engines.run(engine, requests, arrivals=arrivals), expected)


@pytest.mark.drawn(3)
def test_bits_survive_preemption(engines, sighted, shaped, rng, log, pictures):
    requests = random_requests(engines, rng, pictures, 4, max_tokens=rng.randrange(80, 100))
    requests = shaped(requests)
    expected = logits_of(log, lambda: alone(engines, sighted, requests))
    engine = engines.make(sighted, **cramped(sighted))
    check_same_bits(log, lambda: engines.run(engine, requests), expected)
    assert engine.stats().num_preemptions > 0


def test_equal_pictures_hit_and_others_do_not(engines, folder, rng, encoders):
    text = random_text(rng, 90, 100)
    right, wrong = random_picture(rng), random_picture(rng)
    place = rng.randrange(17, 40)
    engine = engines.make(folder)

    def cached(name, picture, salt=None):
        request = engines.request(name, text, max_tokens=1, cache_salt=salt)
        [done] = engines.run(engine, [seeing(request, [(place, picture)])]).values()
        return done.num_cached_tokens

    length = len(text) + ROWS
    whole = min(length // 16 * 16, length - 1)  # the last token's logits are needed
    assert cached("first", right) == 0
    assert cached("again", right) == whole
    assert cached("other", wrong) == place // 16 * 16
    assert cached("other again", wrong) == whole
    assert cached("salted", right, "salt") == 0
    [encoder] = encoders
    assert encoder.num_encoded == 1 + 2  # the first when the engine was warmed up


def test_a_picture_is_encoded_once_wherever_it_stands(engines, folder, rng, encoders):
    picture = random_picture(rng)
    engine = engines.make(folder, enable_prefix_caching=False)
    [encoder] = encoders
    before = encoder.num_encoded
    requests = [random_request(engines, rng, str(i), [picture], n=2) for i in range(4)]
    engines.run(engine, requests)
    assert encoder.num_encoded == before + 1


def test_a_hit_that_ends_inside_a_picture_is_exact(engines, sighted, shaped, rng, log, pictures):
    picture, start = pictures[0], rng.randrange(16 * 2 - ROWS + 1, 16 * 2)
    text = random_text(rng, 60, 90)
    first, second = shaped(
        seeing(
            engines.request(name, [*text[:start], *more], max_tokens=4, ignore_eos=True),
            [(start, picture)],
        )
        for name, more in (("first", text[:5]), ("second", text[5:9]))
    )
    expected = logits_of(log, lambda: alone(engines, sighted, [second]))
    engine, done = engines.make(sighted), {}
    logits_of(log, lambda: engines.run(engine, [first]))
    check_same_bits(log, lambda: done.update(engines.run(engine, [second])), expected)
    assert done["second", 0].num_cached_tokens == 32


def test_other_texts_stream_while_many_pictures_are_encoded(
    engines, folder, rng, encoders, monkeypatch
):
    note_time = KeptStates.note_time

    def note_even_time(states, num_slices, seconds, *, has_rows=True):
        note_time(states, num_slices, float(num_slices + has_rows), has_rows=has_rows)

    monkeypatch.setattr(KeptStates, "note_time", note_even_time)
    stream = engines.request("stream", random_text(rng), max_tokens=100, ignore_eos=True)
    engine = engines.make(folder, max_num_batched_tokens=512)
    engine.add(stream)
    while not engine.step()[0]:
        pass
    [encoder] = encoders
    pictures = [random_picture(rng) for _ in range(9)]
    request = engines.request("pictures", random_text(rng, 20, 30), max_tokens=1)
    engine.add(seeing(request, [(i, one) for i, one in enumerate(pictures)]))
    before, streamed, told = encoder.num_encoded, 0, False
    while not told:
        at_first = encoder.num_encoded
        events, _ = engine.step()
        assert encoder.num_encoded - at_first <= 1
        streamed += sum(len(event.token_ids) for event in events if event.request_id == "stream")
        told = any(event.request_id == "pictures" for event in events)
    assert encoder.num_encoded == before + 9
    assert streamed >= 9


def test_a_picture_that_cannot_be_encoded_fails_its_request_alone(
    engines, folder, rng, monkeypatch, pictures
):
    broken = random_picture(rng)
    give_sight(monkeypatch, fails_for=broken)
    requests = random_requests(engines, rng, pictures, count=3)
    expected = engines.run_alone(folder, requests)
    doomed = random_request(engines, rng, "doomed", [broken])
    for budget in (512, 5):
        engine = engines.make(folder, max_num_batched_tokens=budget, max_num_seqs=5)
        done = engines.told(engines.run(engine, [requests[0], doomed, *requests[1:]]))
        assert done.pop(("doomed", 0)).finish_reason is FinishReason.ERROR
        assert done == expected
        assert engine.stats().kv_blocks_used == 0


SEARCHES = {
    "drawn": {"temperature": 1.0, "seed": 5, "n": 3},
    "beams": {"beams": BeamParams(width=3), "n": 2},
    "contrast": {"contrast": ContrastParams(alpha=0.6, width=4)},
    "guided": {"guidance": GuidanceParams(scale=1.5, negative_token_ids=(5, 6, 7))},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_every_way_to_write_a_text_sees_pictures(engines, folder, rng, encoders, pictures, search):
    requests = [
        random_request(engines, rng, str(i), pictures, max_tokens=8, **SEARCHES[search])
        for i in range(3)
    ]
    expected = engines.run_alone(folder, requests)
    engine = engines.make(folder, max_num_batched_tokens=rng.randrange(12, 40), max_num_seqs=8)
    assert engines.told(engines.run(engine, requests)) == expected
    blind = [seeing(replace(one, states=()), ()) for one in requests]
    with pytest.raises(InvalidParameter, match="placeholder"):
        engines.run(engine, blind)
    changed = [
        replace(one, states=tuple(replace(p, content=random_picture(rng)) for p in one.states))
        for one in requests
    ]
    assert engines.told(engines.run(engine, changed)) != expected


def test_recorded_steps_have_the_bits_of_others(engines, folder, rng, log, encoders, pictures):
    requests = random_requests(engines, rng, pictures)
    eager = engines.make(folder, record_steps=False)
    expected = logits_of(log, lambda: engines.run(eager, requests))
    engine = engines.make(folder, record_steps=True)
    while engine.use_idle_time():
        pass
    check_same_bits(log, lambda: engines.run(engine, requests), expected)


def test_drafts_change_nothing(engines, folder, rng, log, encoders, cheap_rows, pictures):
    """The text before a picture comes again at the end of the prompt."""
    cue = random_text(rng, 8, 12)
    request = engines.request("copy", [*cue, *cue], max_tokens=12, ignore_eos=True)
    request = seeing(request, [(len(cue), pictures[0])])
    expected = logits_of(log, lambda: alone(engines, folder, [request]))
    engine = engines.make(folder, num_speculative_tokens=4)
    found = logits_of(log, lambda: engines.run(engine, [request]))
    assert number_of_changes({key: found[key] for key in expected}, expected) == 0


def test_a_drawn_placeholder_is_a_token_like_others(engines, folder, rng, encoders, pictures):
    bias = {PLACEHOLDER: 100.0}
    requests = [
        random_request(engines, rng, str(i), pictures, max_tokens=20, logit_bias=bias)
        for i in range(3)
    ]
    expected = engines.run_alone(folder, requests)
    engine = engines.make(folder, num_kv_blocks=14, max_model_len=14 * 16)
    found = engines.told(engines.run(engine, requests))
    assert found == expected
    assert {token for one in found.values() for token in one.token_ids} == {PLACEHOLDER}


def refused(engines, folder, request, match, param):
    engine = engines.make(folder)
    with pytest.raises(InvalidParameter, match=match) as caught:
        engine.add(request)
    assert caught.value.param == param


RULES = {
    "beyond the prompt": ({"start": 1000}, "within its", "prompt"),
    "before the prompt": ({"start": -3}, "within its", "prompt"),
    "too short": ({"length": ROWS - 1}, f"needs {ROWS} rows", "prompt"),
    "no placeholders": ({"start": 0}, f"needs {ROWS} rows", "prompt"),
    "wrong size": ({"content": b"abc"}, "bytes", "prompt"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_part_that_breaks_a_rule_is_refused(engines, folder, rng, encoders, pictures, rule):
    changes, match, param = RULES[rule]
    request = engines.request("bad", random_text(rng, 10, 20))
    request = seeing(request, [(8, pictures[0])])
    [part] = request.states
    refused(engines, folder, replace(request, states=(replace(part, **changes),)), match, param)


def test_pictures_that_are_not_in_order_are_refused(engines, folder, rng, encoders, pictures):
    request = seeing(engines.request("bad", random_text(rng)), [(0, pictures[0]), (1, pictures[1])])
    refused(engines, folder, replace(request, states=request.states[::-1]), "in order", "prompt")
    twice = replace(request, states=(request.states[0],) * 2)
    refused(engines, folder, twice, "without overlap", "prompt")


def test_placeholders_without_a_picture_are_refused(engines, folder, rng, encoders, pictures):
    request = engines.request("bad", [*random_text(rng), PLACEHOLDER])
    refused(engines, folder, request, "placeholder", "prompt")
    guidance = GuidanceParams(scale=1.5, negative_token_ids=(5, PLACEHOLDER))
    request = engines.request("bad", random_text(rng), guidance=guidance)
    refused(engines, folder, request, "placeholder", "negative_prompt")


def test_scores_of_a_prompt_with_pictures_are_refused(engines, folder, rng, encoders, pictures):
    request = random_request(engines, rng, "bad", pictures, prompt_logprobs=0)
    refused(engines, folder, request, "prompt_logprobs", "prompt_logprobs")


def test_a_model_without_an_encoder_takes_no_pictures(engines, folder, rng, pictures):
    request = random_request(engines, rng, "bad", pictures)
    refused(engines, folder, request, "takes none", "prompt")
    plain = engines.request("good", [PLACEHOLDER], max_tokens=1)
    assert engines.run(engines.make(folder), [plain])["good", 0].token_ids


def test_a_picture_larger_than_a_step_is_refused_when_the_model_is_loaded(
    engines, tiny_gemma3, monkeypatch
):
    give_sight(monkeypatch, looks_both_ways=True)
    with pytest.raises(ModelLoadError, match=f"a picture takes {ROWS} rows"):
        engines.make(tiny_gemma3(), max_num_batched_tokens=ROWS - 1)
