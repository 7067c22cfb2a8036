"""What the engine does around a model that transformers' code runs."""

import random
from dataclasses import replace

import pytest
import torch

from engine.errors import ModelLoadError
from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.llm.repetitive import outcome

VOCAB = 400


@pytest.fixture(scope="module")
def folder(tiny_olmo2):
    return tiny_olmo2(seed=3)


def prompts(count=6):
    prefix = [random.randrange(VOCAB) for _ in range(40)]
    return [
        prefix + [random.randrange(VOCAB) for _ in range(random.randrange(1, 30))]
        for _ in range(count)
    ]


def requests_for(engines, prompts, **sampling):
    settings = {"max_tokens": 20, "ignore_eos": True, "logprobs": 0} | sampling
    return [engines.request(str(i), prompt, **settings) for i, prompt in enumerate(prompts)]


def test_no_step_is_recorded(engines, folder):
    engine = engines.make(folder, record_steps=True)
    assert engine._executor.graph_sizes == []


@pytest.mark.parametrize("quantization", ["int8"])
def test_weights_in_few_bits_stay_near_plain_ones(engines, folder, quantization):
    [prompt] = prompts(1)
    found = []
    for chosen in ("none", quantization):
        engine = engines.make(folder, quantization=chosen)
        [request] = requests_for(engines, [prompt], max_tokens=0, prompt_logprobs=0)
        [done] = engines.run(engine, [request]).values()
        found.append(torch.tensor([score.logprob for score in done.prompt_logprobs[1:]]))
    plain, few = found
    assert not torch.equal(plain, few)
    # Far more than any of these formats costs a model of three layers, far less than chance.
    assert (plain - few).abs().mean() < 1.0


def test_adapters_belong_to_their_rows(engines, folder, tmp_path):
    write_adapter(folder, tmp_path, 1, r=6)
    texts = prompts()
    requests = requests_for(engines, texts)
    mixed = [replace(r, adapter="a" if i % 2 else None) for i, r in enumerate(requests)]
    engine = engines.make(folder, lora=(f"a={tmp_path}",))
    found = outcome(engines.run(engine, mixed))
    plain = outcome(engines.run(engines.make(folder), requests))
    alone = {}
    for request in mixed[1::2]:
        fresh = engines.make(folder, lora=(f"a={tmp_path}",), enable_prefix_caching=False)
        alone |= outcome(engines.run(fresh, [request]))
    assert {key: found[key] for key in alone} == alone
    assert {key: found[key] for key in found.keys() - alone.keys()} == {
        key: plain[key] for key in plain.keys() - alone.keys()
    }
    assert all(found[key] != plain[key] for key in alone)


def test_gpt2s_transposed_weights_are_not_quantised(engines, tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=2, n_positions=128
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    done = engines.run(engines.make(folder), [engines.request("0", [1, 2, 3])])
    assert len(done["0", 0].token_ids) == 20
    with pytest.raises(ModelLoadError, match="set quantization to none"):
        engines.make(folder, quantization="int8")
