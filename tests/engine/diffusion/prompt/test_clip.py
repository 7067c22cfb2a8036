"""Against diffusers' `encode_prompt` where it has an answer, else the rule written out."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter

A1111, COMFY, COMPEL = PromptSyntax.A1111, PromptSyntax.COMFY, PromptSyntax.COMPEL
PROMPTS = [
    "",
    "a red circle",
    "A Café, 3 zebras & don't 犬!",
    "a red circle left of a blue square on a white background, a small green triangle",
    "<|endoftext|> a red circle",
]
LONG = "a red circle left of a blue square on a white background, " * 4


def read_as(text: str, syntax: PromptSyntax = PromptSyntax.PLAIN, clip_skip: int = 0) -> PromptText:
    return PromptText(text=text, syntax=syntax, clip_skip=clip_skip)


@pytest.fixture(scope="module")
def encoder(make_clip):
    return make_clip(6)


@pytest.fixture(scope="module")
def ours(clip_tokenizer, encoder):
    return ClipPromptEncoder(clip_tokenizer, encoder, final_norm=True)


def diffusers_states(tokenizer, encoder, prompt, clip_skip=None):
    # diffusers asks for the wrapped text model of transformers 4. Past `__setattr__`, which would
    # make the encoder a module of its own.
    encoder.__dict__["text_model"] = encoder
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=encoder, unet=None)
    with torch.no_grad():
        states, _ = StableDiffusionPipeline.encode_prompt(
            pipeline, prompt, torch.device("cpu"), 1, False, clip_skip=clip_skip
        )
    del encoder.__dict__["text_model"]
    return states


def token_states(tokenizer, encoder, text, *, masked=()):
    """Last states of a one-chunk text, positions of `masked` hidden from attention."""
    inputs = tokenizer(text, padding="max_length", return_tensors="pt")
    mask = torch.ones_like(inputs.input_ids)
    mask[0, list(masked)] = 0
    with torch.no_grad():
        return encoder(inputs.input_ids, attention_mask=mask if masked else None)[0]


@pytest.mark.parametrize("clip_skip", [0, 1, 2, 3])
@pytest.mark.parametrize("use_attention_mask", [False, True])
def test_plain_prompts_have_the_bits_of_diffusers(
    clip_tokenizer, make_clip, clip_skip, use_attention_mask
):
    encoder = make_clip(clip_skip, use_attention_mask=use_attention_mask)
    ours = ClipPromptEncoder(clip_tokenizer, encoder, final_norm=True)
    for prompt in PROMPTS:
        expected = diffusers_states(clip_tokenizer, encoder, prompt, clip_skip or None)
        found = ours.encode(read_as(prompt, clip_skip=clip_skip))
        assert torch.equal(found.states, expected), (prompt, clip_skip)
        assert found.num_tokens == len(clip_tokenizer(prompt).input_ids) - 2


@pytest.mark.parametrize("clip_skip", [0, 1, 2])
def test_sdxl_takes_earlier_states_without_norm(clip_tokenizer, make_clip, clip_skip):
    first, second = make_clip(11), make_clip(12, projection=True)
    pipeline = SimpleNamespace(
        tokenizer=clip_tokenizer,
        tokenizer_2=clip_tokenizer,
        text_encoder=first,
        text_encoder_2=second,
        config=SimpleNamespace(force_zeros_for_empty_prompt=True),
        _execution_device=torch.device("cpu"),
    )
    encoders = [
        ClipPromptEncoder(clip_tokenizer, e, final_norm=False, default_skip=1)
        for e in (first, second)
    ]
    for prompt in PROMPTS:
        with torch.no_grad():
            states, _, pooled, _ = StableDiffusionXLPipeline.encode_prompt(
                pipeline,
                prompt,
                do_classifier_free_guidance=False,
                clip_skip=clip_skip or None,
            )
        found = [e.encode(read_as(prompt, clip_skip=clip_skip)) for e in encoders]
        assert torch.equal(torch.cat([f.states for f in found], dim=-1), states), prompt
        assert torch.equal(found[1].pooled, pooled), prompt


def test_pooled_is_what_sd3_and_flux_take(clip_tokenizer, make_clip):
    """The projection where the encoder has one; of a long prompt what truncation leaves."""
    plain, projecting = make_clip(21), make_clip(22, projection=True)
    pipeline = SimpleNamespace(
        tokenizer=clip_tokenizer,
        tokenizer_2=None,
        text_encoder=plain,
        text_encoder_2=None,
        tokenizer_max_length=clip_tokenizer.model_max_length,
        _execution_device=torch.device("cpu"),
    )
    for prompt in [*PROMPTS, LONG]:
        pipeline.text_encoder = plain
        with torch.no_grad():
            expected = FluxPipeline._get_clip_prompt_embeds(pipeline, prompt)
        encoder = ClipPromptEncoder(clip_tokenizer, plain, final_norm=True)
        assert torch.equal(encoder.encode(read_as(prompt)).pooled, expected), prompt
        pipeline.text_encoder = projecting
        with torch.no_grad():
            states, expected = StableDiffusion3Pipeline._get_clip_prompt_embeds(pipeline, prompt)
        encoder = ClipPromptEncoder(clip_tokenizer, projecting, final_norm=False, default_skip=1)
        found = encoder.encode(read_as(prompt))
        assert torch.equal(found.pooled, expected), prompt
        assert torch.equal(found.states[:, : states.shape[1]], states), prompt


def test_half_precision_stays_half(clip_tokenizer, make_clip):
    encoder = make_clip(5).to(torch.bfloat16)
    ours = ClipPromptEncoder(clip_tokenizer, encoder, final_norm=True)
    plain = ours.encode(read_as("a red circle"))
    assert torch.equal(plain.states, diffusers_states(clip_tokenizer, encoder, "a red circle"))
    for syntax, text in ((A1111, "a (red:1.5)"), (COMFY, "a (red:1.5)"), (COMPEL, "a red--")):
        weighted = ours.encode(read_as(text, syntax))
        assert weighted.states.dtype == weighted.pooled.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (A1111, "a ([red]) (circle:1), (green:1.0)"),
        (COMFY, "a (red:1) ((circle:1.0)), (green:1)"),
        (COMPEL, "a (red) (circle)1.0, (green)1"),
    ],
)
def test_weights_of_one_change_no_bit(ours, syntax, text):
    plain = ours.encode(read_as("a red circle, green"))
    found = ours.encode(read_as(text, syntax))
    assert torch.equal(found.states, plain.states)
    assert torch.equal(found.pooled, plain.pooled)


def test_a1111_multiplies_and_restores_the_mean(clip_tokenizer, encoder, ours):
    found = ours.encode(read_as("a (red:1.5) [circle]", A1111))
    states = token_states(clip_tokenizer, encoder, "a red circle")
    scaled = states.clone()
    scaled[0, 2] *= 1.5
    scaled[0, 3] /= 1.1
    torch.testing.assert_close(found.states, scaled * states.mean() / scaled.mean())
    assert found.states.mean().item() == pytest.approx(states.mean().item(), rel=1e-4)
    plain = ours.encode(read_as("a red circle"))
    assert torch.equal(found.pooled, plain.pooled)


def test_comfy_moves_away_from_the_empty_prompt(clip_tokenizer, encoder, ours):
    found = ours.encode(read_as("a (red:1.5) (circle:0)", COMFY)).states
    states = token_states(clip_tokenizer, encoder, "a red circle")
    empty = token_states(clip_tokenizer, encoder, "")
    torch.testing.assert_close(found[0, 2], empty[0, 2] + 1.5 * (states[0, 2] - empty[0, 2]))
    torch.testing.assert_close(found[0, 3], empty[0, 3])
    untouched = [0, 1, *range(4, states.shape[1])]
    assert torch.equal(found[0, untouched], states[0, untouched])


def test_compel_below_one_mixes_in_the_prompt_without_the_fragment(clip_tokenizer, encoder, ours):
    empty = token_states(clip_tokenizer, encoder, "")
    full = token_states(clip_tokenizer, encoder, "a red circle")
    without_red = token_states(clip_tokenizer, encoder, "a red circle", masked=[2])
    without_circle = token_states(clip_tokenizer, encoder, "a red circle", masked=[3])

    def moved(states, weights):
        out = states.clone()
        for position, weight in weights.items():
            out[0, position] = empty[0, position] + weight * (
                states[0, position] - empty[0, position]
            )
        return out

    found = ours.encode(read_as("a (red)0.5 circle", COMPEL)).states
    expected = (moved(full, {2: 0.5}) + moved(without_red, {2: 0.5})) / 2
    torch.testing.assert_close(found, expected)

    found = ours.encode(read_as("(a)1.2 (red)0.3 (circle)0.8", COMPEL)).states
    weights = {1: 1.2, 2: 0.3, 3: 0.8}
    shares = [1.0, math.tan(0.7 * math.pi / 2), math.tan(0.2 * math.pi / 2)]
    parts = [moved(s, weights) for s in (full, without_red, without_circle)]
    expected = sum(s * p for s, p in zip(shares, parts, strict=True)) / sum(shares)
    torch.testing.assert_close(found, expected)

    found = ours.encode(read_as("a (red)0 circle", COMPEL)).states
    kept = [0, 1, *range(3, full.shape[1])]
    torch.testing.assert_close(found[0, kept], without_red[0, kept], atol=1e-3, rtol=1e-3)


def test_compel_blends_and_joins_prompts(ours):

    def plain(text):
        return ours.encode(read_as(text))

    red, blue, empty = plain("red circle"), plain("a blue square"), plain("")
    joined = ours.encode(read_as('("red circle", "a blue square").and()', COMPEL))
    assert torch.equal(joined.states, torch.cat([red.states, blue.states], dim=1))
    assert joined.num_tokens == red.num_tokens + blue.num_tokens

    blend = ours.encode(read_as('("red circle", "a blue square").blend(3, 1)', COMPEL))
    torch.testing.assert_close(blend.states, 0.75 * red.states + 0.25 * blue.states)
    torch.testing.assert_close(blend.pooled, 0.75 * red.pooled + 0.25 * blue.pooled)

    long = plain(LONG)
    blend = ours.encode(read_as(f'("red circle", "{LONG}").blend()', COMPEL))
    filled = torch.cat([red.states, *[empty.states] * (long.states.shape[1] // 32 - 1)], dim=1)
    torch.testing.assert_close(blend.states, (filled + long.states) / 2)


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (A1111, "a (red:1.4) circle BREAK a [blue] square"),
        (COMPEL, '("a (red)1.4 circle", "a blue- square").and()'),
    ],
)
def test_chunks_do_not_change_each_other(ours, syntax, text):
    """Means and blends are taken within a chunk: two chunks are two prompts, side by side."""
    one, two = {
        A1111: ("a (red:1.4) circle", "a [blue] square"),
        COMPEL: ("a (red)1.4 circle", "a blue- square"),
    }[syntax]
    first, second = (ours.encode(read_as(part, syntax)) for part in (one, two))
    found = ours.encode(read_as(text, syntax))
    assert torch.equal(found.states, torch.cat([first.states, second.states], dim=1))
    assert torch.equal(found.pooled, first.pooled)


def test_a_long_prompt_begins_as_diffusers_truncates_it(clip_tokenizer, encoder, ours):
    found = ours.encode(read_as(LONG))
    length = clip_tokenizer.model_max_length
    expected = diffusers_states(clip_tokenizer, encoder, LONG)
    assert torch.equal(found.states[:, :length], expected)
    num_tokens = len(clip_tokenizer(LONG).input_ids) - 2
    assert found.num_tokens == num_tokens
    assert found.states.shape[1] == length * math.ceil(num_tokens / (length - 2))


def test_order_and_neighbours_do_not_matter(ours):
    prompts = [
        read_as(text, syntax, clip_skip)
        for text in ("a (red:1.3) circle", LONG, "", "(blue)0.5 square--")
        for syntax in PromptSyntax
        for clip_skip in (0, 1)
    ]
    first = [ours.encode(prompt).states for prompt in prompts]
    again = [ours.encode(prompt).states for prompt in reversed(prompts)][::-1]
    for prompt, one, other in zip(prompts, first, again, strict=True):
        assert torch.equal(one, other), prompt


@settings(max_examples=40, deadline=None)
@given(
    text=st.lists(st.sampled_from([*'()[]:,+-"', "red ", "circle", "1.3)", "犬"]) | st.text()),
    syntax=st.sampled_from(list(PromptSyntax)),
)
def test_any_prompt_has_finite_states_of_whole_chunks(clip_tokenizer, ours, text, syntax):
    try:
        found = ours.encode(read_as("".join(text), syntax))
    except InvalidParameter:
        return
    assert found.states.shape[1] % clip_tokenizer.model_max_length == 0
    assert found.states.isfinite().all()


def test_other_padding_than_the_end_token(clip_tokenizer, make_clip):
    """SD 2 and SDXL's second tokenizer pad with another token."""
    tokenizer = copy.deepcopy(clip_tokenizer)
    tokenizer.pad_token = "!"
    encoder = make_clip(16)
    ours = ClipPromptEncoder(tokenizer, encoder, final_norm=True)
    for prompt in PROMPTS:
        expected = diffusers_states(tokenizer, encoder, prompt)
        assert torch.equal(ours.encode(read_as(prompt)).states, expected)


def test_the_encoder_limits_a_tokenizer_without_limit(clip_tokenizer, make_clip):
    tokenizer = copy.deepcopy(clip_tokenizer)
    tokenizer.model_max_length = int(1e30)
    ours = ClipPromptEncoder(tokenizer, make_clip(17), final_norm=True)
    assert ours.encode(read_as("a red circle")).states.shape[1] == 32


@pytest.mark.parametrize("clip_skip", [-1, 4, 100])
def test_clip_skip_must_leave_a_layer(ours, clip_skip):
    with pytest.raises(InvalidParameter, match="allows 0 to 3") as caught:
        ours.encode(read_as("a", clip_skip=clip_skip))
    assert caught.value.param == "clip_skip"


def test_states_carry_no_gradient(ours):
    found = ours.encode(read_as("a (red:1.3) circle", A1111))
    assert not found.states.requires_grad
    assert not found.pooled.requires_grad
