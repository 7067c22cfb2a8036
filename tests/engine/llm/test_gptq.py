"""Engines with GPTQ checkpoints beside those with the same weights unpacked."""

import json
import random
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from engine.errors import CorruptFile, MissingWeight, ModelLoadError, ShapeMismatch
from engine.quantization import int4_groups
from engine.quantization.gptq import GptqMethod
from engine.quantization.int4_groups import GroupedWeight, GroupPanels
from kernels import native
from tests.helpers.llm.packed_texts import CPU, assert_alike, plan_of, requests_of, states_of
from tests.helpers.quantization.gptq_checkpoints import Layout, write_gptq

LAYOUTS = {
    "plain": Layout(lm_head=True),
    "v2": Layout(version="gptq_v2", group_size=16),
    "side file": Layout(side_file=True, group_size=-1),
    "act-order": Layout(desc_act=True, sym=True, lm_head=True),
}


@pytest.fixture
def write(tiny_llama, tmp_path):
    """`write(layout, **config)` → folders of a random model in GPTQ's layout and of its twin."""

    def make(layout, **config):
        seed = random.randrange(1000)
        original = tiny_llama(seed=seed, vocab_size=64, **config)
        return write_gptq(original, tmp_path / f"model-{seed}", layout, seed)

    return make


def tokens(done):
    return {
        key: (one.token_ids, [entry.logprob for entry in one.logprobs]) for key, one in done.items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_texts_and_scores_are_those_of_the_unpacked_twin(name, engines, write):
    """Products in fp32 sum in other orders where weights are packed otherwise."""
    packed, twin = write(LAYOUTS[name])
    requests = requests_of(engines, name, logprobs=0)
    engine = engines.make(packed, dtype="float32", quantization="gptq")
    assert engine._executor._config.quantization == "gptq"
    found = engines.run(engine, requests)
    same = engines.run(engines.make(packed, dtype="float32", quantization="none"), requests)
    wanted = engines.run(engines.make(twin, dtype="float32"), requests)
    assert tokens(same) == tokens(wanted)
    assert_alike(found, wanted)


def test_a_quantised_output_layer_is_not_rounded_to_bf16(engines, write):
    packed, twin = write(LAYOUTS["plain"])
    requests = requests_of(engines, 6, max_tokens=1, prompt_logprobs=0)
    scores = [
        [
            entry.logprob
            for one in engines.run(
                engines.make(folder, dtype="bfloat16", quantization=quantization), requests
            ).values()
            for entry in one.prompt_logprobs
            if entry
        ]
        for folder, quantization in ((packed, "gptq"), (twin, "none"))
    ]
    differences = [abs(ours - theirs) for ours, theirs in zip(*scores, strict=True)]
    assert sum(differences) / len(differences) < 0.04  # of activations of one or two digits
    assert max(differences) < 0.2


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_stay_packed_and_take_what_was_planned(name, engines, write):
    layout = LAYOUTS[name]
    packed, _ = write(layout)
    engine = engines.make(packed, dtype="bfloat16", quantization="gptq")
    states = states_of(engine._executor._model)
    kept = [one for state in states if isinstance(state, tuple) for one in state]
    assert len(kept) >= 12
    kind = GroupedWeight if native.library() is None or layout.group_size == 16 else GroupPanels
    assert all(type(one) is kind for one in kept)
    assert isinstance(states[-1], tuple) is layout.lm_head
    plan = plan_of(packed, quantization="gptq")
    fields = [
        tensor
        for one in kept
        for tensor in (
            (one.state.panels.data, one.order)
            if isinstance(one, GroupPanels)
            else (one.qweight, one.scales, one.zeros, one.g_idx)
        )
    ]
    found = sum(tensor.nbytes for tensor in fields if tensor is not None)
    planned = sum(layer.num_bytes(2) for layer in plan.layers.values())
    assert 0.9 * planned <= found <= planned
    plain = sum(layer.in_features * layer.out_features for layer in plan.layers.values()) * 2
    assert found < 0.5 * plain


@pytest.mark.skipif(native.library() is None, reason=str(native.missing()))
@pytest.mark.parametrize(
    ("is_slower", "free_memory_bytes", "chosen"),
    [(True, 1 << 40, "none"), (True, 1 << 10, "gptq"), (False, 1 << 40, "gptq")],
)
def test_a_cpu_unpacks_them_where_that_is_faster_and_there_is_room(
    is_slower, free_memory_bytes, chosen, write, monkeypatch
):
    monkeypatch.setattr(int4_groups, "are_panels_slower", lambda *_: is_slower)
    packed, _ = write(LAYOUTS["plain"])
    machine = replace(CPU, free_memory_bytes=free_memory_bytes)
    assert plan_of(packed, machine).quantization == chosen


def test_int8_may_be_made_of_them(engines, write):
    if native.library() is None:
        pytest.skip("no C++ compiler")
    packed, twin = write(LAYOUTS["plain"])
    requests = requests_of(engines, 3, logprobs=0)
    found = tokens(engines.run(engines.make(packed, quantization="int8"), requests))
    assert found == tokens(engines.run(engines.make(twin, quantization="int8"), requests))


def test_a_tied_output_layer_is_the_embedding(engines, write):
    packed, twin = write(Layout(), tie_word_embeddings=True)
    requests = requests_of(engines, 4, logprobs=0)
    found = engines.run(engines.make(packed, quantization="gptq"), requests)
    assert_alike(found, engines.run(engines.make(twin), requests))


def test_what_is_not_there_cannot_be_asked_for(engines, tiny_llama):
    with pytest.raises(ModelLoadError, match="no weights quantised by GPTQ"):
        engines.make(tiny_llama(), quantization="gptq")


def test_other_formats_are_refused_by_name(engines, tiny_llama):
    folder = tiny_llama()
    config = json.loads((folder / "config.json").read_text())
    for stated, named in (({"quant_method": "aqlm"}, "aqlm"), ({"x": 1}, "unknown method")):
        text = json.dumps(config | {"quantization_config": stated})
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelLoadError, match=rf"quantised \({named}\), which is not supported"):
            engines.make(folder)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t: t["scales"].fill_(float("nan")), CorruptFile, "scales has values that are no"),
        (lambda t: t["g_idx"].fill_(99), CorruptFile, "g_idx names group 99"),
        (lambda t: t.pop("g_idx"), MissingWeight, "g_idx"),
        (lambda t: t.pop("qzeros"), MissingWeight, "qzeros"),
        (lambda t: t.update(scales=t["scales"][:1]), ShapeMismatch, "scales has shape"),
        (lambda t: t.update(qweight=t["qweight"][1:]), ShapeMismatch, "qweight has shape"),
        (
            lambda t: t.update(qweight=t["qweight"].float()),
            ShapeMismatch,
            "qweight has type float32",
        ),
    ],
)
def test_damaged_tensors_are_named(change, error, words, engines, write):
    packed, _ = write(LAYOUTS["act-order"])
    file = packed / "model.safetensors"
    prefix = "model.layers.1.mlp.down_proj."
    tensors = load_file(file)
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    change(own)
    save_file(rest | {f"{prefix}{kind}": t.contiguous() for kind, t in own.items()}, file)
    with pytest.raises(error, match=rf"down_proj\.{words}"):
        engines.make(packed)


JUNK = (None, True, -1, 0, 2**70, float("nan"), "", "x", "\ud800", [], {}, [[]], {"": None}, 1e308)


def test_whatever_is_stated_the_answer_is_a_model_or_a_reason(write):
    packed, _ = write(Layout())
    config = json.loads((packed / "config.json").read_text())
    dice = random.Random(7)
    for _ in range(150):
        stated = dict(config["quantization_config"])
        for key in dice.sample(sorted(stated), dice.randrange(1, 4)):
            stated[key] = dice.choice(JUNK)
        whole = config | {"quantization_config": dice.choice([stated, stated, dice.choice(JUNK)])}
        (packed / "config.json").write_text(json.dumps(whole))
        try:
            plan = plan_of(packed, quantization="gptq")
        except ModelLoadError as error:
            assert str(packed) not in str(error)
        else:
            assert all(isinstance(layer.method, GptqMethod) for layer in plan.layers.values())
