from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.diffusion.prompt.text import PromptText

LENGTH = 16


def read_as(text: str, syntax: PromptSyntax = PromptSyntax.PLAIN) -> PromptText:
    return PromptText(text=text, syntax=syntax)


@pytest.fixture(scope="module")
def tokenizer() -> T5Tokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz.,!"
    words = ["▁a", "▁red", "▁circle", "▁blue", "▁square"]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0)]
    vocab += [(word, -1.0) for word in words] + [(letter, -2.0) for letter in letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LENGTH)


@pytest.fixture(scope="module")
def encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    torch.manual_seed(3)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3
    )
    return T5EncoderModel(config).eval()


@pytest.fixture
def ours(tokenizer: T5Tokenizer, encoder: T5EncoderModel) -> T5PromptEncoder:
    return T5PromptEncoder(tokenizer, encoder, max_sequence_length=LENGTH)


@pytest.mark.parametrize("text", ["", "a red circle", "A zebra, 犬!", "a red circle. " * 9])
def test_plain_prompts_have_the_bits_of_diffusers(tokenizer, encoder, ours, text):
    pipeline = SimpleNamespace(
        tokenizer_2=tokenizer,
        text_encoder_2=encoder,
        tokenizer_3=tokenizer,
        text_encoder_3=encoder,
        text_encoder=encoder,
        tokenizer_max_length=LENGTH,
        _execution_device=torch.device("cpu"),
    )
    found = ours.encode(read_as(text))
    for family in (StableDiffusion3Pipeline, FluxPipeline):
        with torch.no_grad():
            expected = family._get_t5_prompt_embeds(pipeline, text, max_sequence_length=LENGTH)
        assert torch.equal(found.states, expected), family
    total = len(tokenizer(text).input_ids)
    assert found.truncated == (total > LENGTH) == bool(found.warnings)
    assert found.num_tokens == min(total, LENGTH) - 1
    assert not found.weights_ignored


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        (PromptSyntax.A1111, "a (red:1.3) BREAK [circle]"),
        (PromptSyntax.COMFY, "a (red) circle"),
        (PromptSyntax.COMPEL, "a red++ circle"),
    ],
)
def test_weights_do_nothing_and_say_so(ours, syntax, text):
    plain = ours.encode(read_as("a red circle"))
    found = ours.encode(read_as(text, syntax))
    assert torch.equal(found.states, plain.states)
    assert found.weights_ignored and "no effect" in found.warnings[0]
    unweighted = ours.encode(read_as("a red circle", syntax))
    assert not unweighted.weights_ignored
    assert torch.equal(unweighted.states, plain.states)


def test_blends_are_sums_of_prompts(ours):
    red, blue = (ours.encode(read_as(t)) for t in ("a red circle", "a blue square"))
    text = '("a red circle", "a blue square").blend(3, 1)'
    found = ours.encode(read_as(text, PromptSyntax.COMPEL))
    torch.testing.assert_close(found.states, 0.75 * red.states + 0.25 * blue.states)
    assert found.num_tokens == red.num_tokens + blue.num_tokens
    assert not found.weights_ignored
