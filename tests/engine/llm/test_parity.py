"""The whole engine against transformers: the same tokens, the same log-probabilities.

transformers scores prompt and output in one forward pass. If its best token at every position is
the one we generated, or as likely but for rounding, its own greedy text is ours.
"""

import random
import zlib

import pytest
import torch
import transformers

from kernels import native

NUM_PROMPTS, NUM_TOKENS = 20, 17
"""Each text crosses the border of a block while it is written."""
FEWER_TOKENS = 8
"""The number of tokens from a real model, which is slow."""
TOLERANCE = 1e-4
RECURRENT = (
    "tiny_qwen3_5",
    "tiny_qwen3_5_moe",
    "tiny_qwen3_next",
    "tiny_mamba2",
    "tiny_granite_hybrid",
    "tiny_bamba",
    "tiny_falcon_h1",
    "tiny_nemotron_h",
    "tiny_jamba",
    "tiny_zamba2",
    "tiny_kimi_linear",
)
OF_CHUNKS = 1e-3
"""For recurrent states, which transformers computes in chunks whose sums round more."""
CLEAR_LEAD = 0.5
"""In bf16, judge only positions where the best logit (in fp32) leads by this much."""


def random_prompts(rng, vocab_size, lengths):
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]


def prompt_lengths(rng):
    """Around the borders of blocks (16) and chunks (48), and some at random."""
    return [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97] + [
        rng.randrange(1, 130) for _ in range(NUM_PROMPTS - 17)
    ]


def generate(engines, engine, prompts, num_tokens=NUM_TOKENS):
    requests = [
        engines.request(str(i), p, max_tokens=num_tokens, ignore_eos=True, logprobs=0)
        for i, p in enumerate(prompts)
    ]
    done = engines.run(engine, requests)
    return [done[str(i), 0] for i in range(len(prompts))]


@torch.inference_mode()
def reference_logprobs(model, prompt, output):
    """transformers' log-probabilities at the positions that predict `output`: [len(output), V]."""
    logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1)


def assert_equal_to(model, prompts, completions, tolerance=TOLERANCE):
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = reference_logprobs(model, prompt, completion.token_ids)
        ours = torch.tensor([entry.logprob for entry in completion.logprobs])
        theirs = expected.gather(1, torch.tensor([completion.token_ids]).T)[:, 0]
        # Rounding decides between tokens that are equally likely.
        torch.testing.assert_close(theirs, expected.amax(-1), atol=tolerance, rtol=0)
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.each_value  # each family with one of them: tests/engine/models has tests of logits
@pytest.mark.parametrize("implementation", ["cpu", "composed"])
@pytest.mark.parametrize(
    "family",
    [
        "tiny_llama",
        "tiny_qwen2",
        "tiny_qwen3",
        "tiny_gemma3",
        "tiny_gemma3n",
        "tiny_gemma4",
        "tiny_phi3",
        "tiny_mixtral",
        "tiny_gpt_oss",
        "tiny_qwen2_moe",
        "tiny_qwen3_moe",
        *RECURRENT,
        "tiny_mamba",
        "tiny_falcon_mamba",
        "tiny_lfm2",
        "tiny_lfm2_moe",
        "tiny_llama4",
        "tiny_hunyuan_moe",
        "tiny_mimo_v2_flash",
        "tiny_deepseek",
        "tiny_gpt_neox",
    ],
)
def test_tiny_models_in_fp32(family, implementation, engines, request, monkeypatch):
    if implementation == "composed":
        monkeypatch.setattr(native, "library", lambda: None)
    # Fixed per family: of hundreds of best tokens a fresh model now and then has two within the
    # rounding of fp32.
    seed = zlib.crc32(family.encode())
    rng = random.Random(seed)
    folder = request.getfixturevalue(family)(seed=seed % 1000)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = engines.make(folder, max_num_batched_tokens=48)
    # The composed operations are slower, and each has tests of its own.
    lengths = rng.sample(prompt_lengths(rng), 12 if implementation == "cpu" else 5)
    prompts = random_prompts(rng, model.config.vocab_size, lengths)
    tolerance = OF_CHUNKS if family in RECURRENT else TOLERANCE
    assert_equal_to(model, prompts, generate(engines, engine, prompts), tolerance)


@pytest.mark.parametrize(("max_model_len", "lengths"), [(128, (1, 40, 100)), (None, (129, 200))])
def test_longrope_is_that_of_the_longest_text_served(max_model_len, lengths, engines, tiny_phi3):
    """transformers takes one list of divisors up to 128 tokens and the other for longer texts."""
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0],
        "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0, 20.0],
        "original_max_position_embeddings": 128,
    }
    folder = tiny_phi3(seed=11, rope_parameters=rope, original_max_position_embeddings=128)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = engines.make(folder, max_num_batched_tokens=48, max_model_len=max_model_len)
    prompts = random_prompts(random.Random(11), model.config.vocab_size, lengths)
    assert_equal_to(model, prompts, generate(engines, engine, prompts, num_tokens=20))


@pytest.fixture(scope="module")
def text_prompts(smollm2_checkpoint):
    """Real text: chat questions and pieces of an encyclopedia, cut at the borders' lengths."""
    from engine.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(smollm2_checkpoint.path)
    text = "The history of the lighthouse begins long before electric light. " * 20
    ids = tokenizer.encode(text, add_special_tokens=False)
    rng = random.Random(0)
    prompts = [ids[i : i + length] for i, length in enumerate(prompt_lengths(rng))]
    return prompts[::3]  # as a real model is slow


@pytest.mark.slow
def test_smollm2_in_fp32(engines, smollm2_checkpoint, smollm2_reference, text_prompts):
    engine = engines.make(smollm2_checkpoint.path, max_num_batched_tokens=48)
    completions = generate(engines, engine, text_prompts, num_tokens=FEWER_TOKENS)
    assert_equal_to(smollm2_reference, text_prompts, completions)


@pytest.mark.slow
def test_smollm2_in_bf16(
    engines, smollm2_checkpoint, smollm2_reference, text_prompts, record_property
):
    """Where fp32 is sure of the next token, bf16 agrees; the unsure positions are counted."""
    engine = engines.make(
        smollm2_checkpoint.path,
        dtype="bfloat16",
        quantization="none",
        max_num_batched_tokens=48,
    )
    judged = excluded = 0
    completions = generate(engines, engine, text_prompts, num_tokens=FEWER_TOKENS)
    for prompt, completion in zip(text_prompts, completions, strict=True):
        expected = reference_logprobs(smollm2_reference, prompt, completion.token_ids)
        best = expected.topk(2).values
        for position, token in enumerate(completion.token_ids):
            if best[position, 0] - best[position, 1] < CLEAR_LEAD:
                excluded += 1
                continue
            judged += 1
            assert token == int(expected[position].argmax())
    record_property("judged", judged)
    record_property("excluded", excluded)
    assert judged > excluded, f"{judged} judged, {excluded} too close to call"


def test_prompt_log_probabilities(engines, tiny_llama):
    folder = tiny_llama(seed=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = engines.make(folder, max_num_batched_tokens=24)
    prompts = random_prompts(random, model.config.vocab_size, [1, 2, 16, 17, 24, 25, 70])
    requests = [
        engines.request(str(i), p, max_tokens=i % 2, prompt_logprobs=2)
        for i, p in enumerate(prompts)
    ]
    done = engines.run(engine, requests)
    for i, prompt in enumerate(prompts):
        scores = done[str(i), 0].prompt_logprobs
        assert len(scores) == len(prompt)
        assert scores[0] is None
        if len(prompt) > 1:
            expected = reference_logprobs(model, prompt[:1], prompt[1:])
            theirs = expected.gather(1, torch.tensor([prompt[1:]]).T)[:, 0]
            ours = torch.tensor([score.logprob for score in scores[1:]])
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
            tops = torch.tensor([score.top_logprobs for score in scores[1:]])
            torch.testing.assert_close(tops, expected.topk(2).values, atol=TOLERANCE, rtol=0)
