"""Beam search against transformers': the same texts in the same order, with the same scores."""

import json
import random
import shutil
from collections import Counter

import pytest
import torch

from engine.contract.groups import BeamParams
from engine.contract.request import FinishReason

TOLERANCE = 1e-3
"""Of a text's log-probability; transformers' sums are fp32 too."""
NUM_TOKENS = 128
SEED = 3
"""Fixed: now and then a random model has two texts within the rounding of fp32."""


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=SEED)


@pytest.fixture(scope="module")
def engine(engines, folder):
    return engines.make(folder)


def prompts(num, vocab_size=400):
    rng = random.Random(SEED)
    return [[rng.randrange(vocab_size) for _ in range(rng.randrange(3, 40))] for _ in range(num)]


@torch.inference_mode()
def theirs(model, prompt, width, num_tokens, ends=(), **options):
    """Texts, each with its score."""
    found = model.generate(
        torch.tensor([prompt]),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=list(ends) or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    texts = found.sequences[:, len(prompt) :].tolist()
    lengths = [next((i + 1 for i, t in enumerate(text) if t in ends), num_tokens) for text in texts]
    cut = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    return cut, found.sequences_scores.tolist()


def ours(engines, engine, prompt, width, num_tokens, ends=(), min_tokens=0, **options):
    request = engines.request(
        "r",
        prompt,
        max_tokens=num_tokens,
        min_tokens=min_tokens,
        n=width,
        ignore_eos=True,
        stop_token_ids=tuple(ends),
        logprobs=0,
        beams=BeamParams(width=width, **options),
    )
    done = engines.run(engine, [request])
    completions = [done["r", index] for index in range(width)]
    penalty = options.get("length_penalty", 1.0)
    scores = [
        sum(token.logprob for token in c.logprobs) / len(c.token_ids) ** penalty
        for c in completions
    ]
    for completion in completions:
        has_ended = completion.token_ids[-1] in ends
        reason = FinishReason.STOP if has_ended else FinishReason.LENGTH
        assert completion.finish_reason is reason
    return [completion.token_ids for completion in completions], scores


def check_equal(found, expected):
    assert found[0] == expected[0]
    assert found[1] == pytest.approx(expected[1], abs=TOLERANCE)
    assert found[1] == sorted(found[1], reverse=True)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_texts_and_order(engines, engine, model, width):
    for prompt in prompts(2):
        check_equal(
            ours(engines, engine, prompt, width, NUM_TOKENS),
            theirs(model, prompt, width, NUM_TOKENS),
        )


@pytest.fixture(scope="module")
def ends(engines, engine):
    """Tokens that texts often have, as ends."""
    counts = Counter()
    for prompt in prompts(4):
        texts, _ = ours(engines, engine, prompt, 8, 24)
        counts.update(token for text in texts for token in set(text))
    return sorted(token for token, _ in counts.most_common(12))


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.0, 2.0])
def test_ends(engines, engine, model, ends, early_stopping, length_penalty):
    lengths = set()
    for width, prompt in zip((2, 4, 8), prompts(3), strict=True):
        options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
        found = ours(engines, engine, prompt, width, 40, ends, **options)
        check_equal(found, theirs(model, prompt, width, 40, ends, **options))
        lengths |= {len(text) for text in found[0]}
    if length_penalty < 2.0:  # which has all go on to the last token
        assert len(lengths) > 2, "the search has no ends to choose from"


@pytest.mark.parametrize("width", [2, 5])
def test_no_end_before_min_tokens(engines, engine, model, ends, width):
    [prompt] = prompts(1)
    found = ours(engines, engine, prompt, width, 30, ends, min_tokens=9)
    check_equal(found, theirs(model, prompt, width, 30, ends, min_new_tokens=9))
    assert min(len(text) for text in found[0]) > 9


def test_one_token(engines, engine, model):
    [prompt] = prompts(1)
    check_equal(ours(engines, engine, prompt, 4, 1), theirs(model, prompt, 4, 1))


def test_tokens_that_the_model_must_never_write(engines, folder, model, ends, tmp_path):
    """`ends` are tokens that texts often have; two of them stay possible ends here."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": ends[2:]}))
    engine = engines.make(tmp_path)
    for width, prompt in zip((2, 8), prompts(2), strict=True):
        found = ours(engines, engine, prompt, width, 40, ends[:2])
        check_equal(found, theirs(model, prompt, width, 40, ends[:2], suppress_tokens=ends[2:]))
        assert not {token for text in found[0] for token in text} & set(ends[2:])
