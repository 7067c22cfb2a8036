"""Engines with stored formats (bitsandbytes, compressed-tensors, FP8, MXFP4, GPTQ) beside plain
twins."""

import random
from dataclasses import replace

import pytest

from engine.errors import ModelLoadError
from engine.models.layers.linear import Linear
from engine.quantization import int4_groups
from engine.quantization.int4_groups import GroupPanels, takes_panels
from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.llm.packed_texts import assert_alike, plan_of, requests_of
from tests.helpers.quantization.gptq_checkpoints import Layout, write_gptq
from tests.helpers.quantization.stored_formats import VARIETIES, write_checkpoint

_NAMES = ("bnb nf4, nested", "bnb int8", "W4A16", "FP8 blocks")
SOME = {name: VARIETIES[name].name for name in _NAMES} | {"gptq": "gptq"}


@pytest.fixture
def write(tiny_llama, tiny_gpt_oss, tiny_qwen3_next, tmp_path):
    """`write(name)` → folders of a random model in a format and of its twin; with `mixes`, of a
    mixture of experts."""

    def make(name, *, mixes=False):
        tiny = tiny_qwen3_next if mixes else tiny_llama
        tiny = tiny_gpt_oss if name == "MXFP4" else tiny
        original = tiny(seed=random.randrange(1000), vocab_size=64)
        if name == "gptq":
            return write_gptq(original, tmp_path, Layout(desc_act=True, sym=True, lm_head=True))
        return write_checkpoint(original, tmp_path, VARIETIES[name])

    return make


def scores_of(done):
    return {key: [entry.logprob for entry in one.logprobs] for key, one in done.items()}


@pytest.mark.drawn(10)  # of layers of every format, tests/engine/quantization has tests
@pytest.mark.parametrize("name", VARIETIES)
def test_texts_and_scores_are_those_of_the_plain_twin(name, engines, write):
    packed, twin = write(name, mixes=random.random() < 0.5)
    requests = requests_of(engines, name, logprobs=0)
    wanted = engines.run(engines.make(twin, dtype="float32"), requests)
    kept = VARIETIES[name].name
    for quantization in (kept, "none"):
        engine = engines.make(packed, dtype="float32", quantization=quantization)
        assert engine._executor._config.quantization == quantization
        assert_alike(engines.run(engine, requests), wanted)


@pytest.mark.parametrize("name", SOME)
def test_text_does_not_depend_on_what_shares_the_step(name, engines, write):
    packed, _ = write(name)
    requests = requests_of(engines, 5)
    rng = random.Random(5)
    knobs = {"dtype": "bfloat16", "quantization": SOME[name]}
    together = engines.run(
        engines.make(packed, max_num_batched_tokens=24, **knobs),
        requests,
        arrivals=[rng.randrange(10) for _ in requests],
    )
    alone = engines.make(packed, **knobs)
    for request in requests:
        (done,) = engines.run(alone, [request]).values()
        assert done.token_ids == together[request.request_id, 0].token_ids


@pytest.mark.parametrize("name", VARIETIES)
def test_weights_stay_packed_and_take_what_was_planned(name, engines, write, monkeypatch):
    """They stay packed without a setting, where that is not slower."""
    if not takes_panels():
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(int4_groups, "are_panels_slower", lambda *_: False)
    packed, _ = write(name)
    model = engines.make(packed, dtype="bfloat16")._executor._model
    states = [state for m in model.modules() if isinstance(m, Linear) for _, state in m._parts]
    states = [state for state in states if isinstance(state, GroupPanels)]
    plan = plan_of(packed)
    assert plan.quantization == VARIETIES[name].name
    stated = sum(layer.num_bytes(2) for layer in plan.layers.values())
    assert sum(state.state.panels.data.nbytes for state in states) == stated


@pytest.mark.parametrize("name", SOME)
def test_adapters_beside_packed_weights(name, engines, write, tmp_path):
    packed, twin = write(name)
    write_adapter(twin, tmp_path / "lora")
    lora = (f"x={tmp_path / 'lora'}",)
    requests = [
        replace(request, adapter="x" if i % 2 else None)
        for i, request in enumerate(requests_of(engines, 3, logprobs=0))
    ]
    kept = SOME[name]
    engine = engines.make(packed, dtype="float32", quantization=kept, lora=lora)
    found = engines.run(engine, requests)
    wanted = engines.run(engines.make(twin, dtype="float32", lora=lora), requests)
    assert_alike(found, wanted)
    without = engines.run(engines.make(packed, dtype="float32", quantization=kept), requests[:1])
    assert scores_of(without)["0", 0] == scores_of(found)["0", 0]


def test_another_format_may_be_made_of_them(engines, write):
    packed, twin = write("FP8")
    requests = requests_of(engines, 4, logprobs=0)
    found, wanted = (
        engines.run(engines.make(folder, dtype="float32", quantization="int4"), requests)
        for folder in (packed, twin)
    )
    assert_alike(found, wanted)


def test_fp8_is_not_made_of_plain_weights(engines, tiny_llama):
    with pytest.raises(ModelLoadError, match="Tandem does not make them; use int8-weights"):
        engines.make(tiny_llama(), quantization="fp8")
