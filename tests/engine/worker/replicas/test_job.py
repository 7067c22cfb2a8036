"""What requests cost, and which of them begin alike."""

import random
from dataclasses import replace

import pytest

from engine.contract.draw import DrawParams, Enlarging, HiresPass, ImageRequest
from engine.contract.embed import EmbeddingRequest
from engine.contract.generate import GenerateRequest
from engine.contract.sampling_params import SamplingParams
from engine.llm.cache.prefix_cache import chain_root, extend_chain
from engine.worker.replicas.job import ANSWER_TOKENS, job_of
from tests.helpers.worker.replicas import text_model


def text(**more):
    prompt = random.choices(range(50), k=random.randint(40, 90))
    sampling = SamplingParams(max_tokens=random.randint(1, 500))
    values = {"prompt_token_ids": prompt, "sampling": sampling, **more}
    return GenerateRequest(request_id="r", model="m", **values)


def test_a_texts_blocks_have_the_hashes_of_the_workers_cache():
    request = text(cache_salt="salt", adapter="poet")
    job = job_of(request, text_model(), 1)
    expected: list[bytes] = []
    extend_chain(expected, chain_root("salt", "poet"), request.prompt_token_ids, 16)
    assert job.chain == expected != []
    assert job.num_prompt_tokens == len(request.prompt_token_ids)
    assert job.work == min(request.sampling.max_tokens, ANSWER_TOKENS)


@pytest.mark.parametrize("other", [{"cache_salt": "theirs"}, {"adapter": "poet"}])
def test_salts_and_adapters_share_nothing(other):
    """TensorRT-LLM's router dropped adapters, and hashed salts in another way than its engine."""
    request = text()
    own = job_of(request, text_model(), 1).chain
    assert not {*own} & {*job_of(replace(request, **other), text_model(), 1).chain}


def test_a_prompt_that_is_scored_uses_no_cache():
    request = text(sampling=SamplingParams(prompt_logprobs=1))
    assert job_of(request, text_model(), 0).chain == []


def test_several_answers_are_several_times_the_work():
    request = text(sampling=SamplingParams(n=3, max_tokens=10))
    assert job_of(request, text_model(), 0).work == 30


def test_adapters_count_only_if_they_do_not_all_fit():
    request = text(adapter="a")
    model = text_model(adapters=("a", "b", "c"))
    assert job_of(request, model, 3).adapters == ()
    assert job_of(request, model, 2).adapters == ("a",)


def test_an_image_costs_pixels_times_steps_of_all_its_passes():
    width, height, steps = (8 * random.randint(1, 64) for _ in range(3))
    params = DrawParams(width=width, height=height, num_inference_steps=steps, seed=1, n=2)
    request = ImageRequest(request_id="r", model="m", prompt="a cat", params=params)
    assert job_of(request, text_model(), 0).work == 2 * width * height * steps
    more = HiresPass(
        width=2 * width,
        height=2 * height,
        enlarging=Enlarging.LATENT,
        num_inference_steps=4,
        strength=0.5,
        guidance_scale=1.0,
        scheduler=None,
        prompt="a cat",
        negative_prompt="",
    )
    twice = replace(request, params=replace(params, hires=more))
    expected = 2 * (width * height * steps + 4 * width * height * 2)
    assert job_of(twice, text_model(), 0).work == expected


def test_embeddings_cost_their_tokens():
    request = EmbeddingRequest(request_id="r", model="m", inputs=[[1] * 7, [2] * 5])
    assert job_of(request, text_model(), 0).work == 12
