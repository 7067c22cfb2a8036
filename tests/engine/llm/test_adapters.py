"""Texts of adapters: each as if its adapter were alone in the engine, and the base's as if there
were none, bit for bit."""

import shutil
from dataclasses import replace
from functools import partial

import pytest

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.knob import GIB
from engine.errors import TooManyAdapters, UnknownAdapter
from engine.llm.runner.step_graph import StepKind
from kernels import native
from tests.helpers.adapters.peft_adapters import write_adapter
from tests.helpers.llm.repetitive import outcome

pytestmark = pytest.mark.usefixtures("cheap_rows")
VOCAB = 400
NAMES = ("a", "b", None)
ENOUGH_GUESTS = 6


@pytest.fixture(scope="module")
def folder(tiny_llama):
    return tiny_llama(seed=11, head_dim=64)


@pytest.fixture(scope="module")
def lora(folder, tmp_path_factory):
    """The setting for two adapters of different ranks and layers."""
    places = [tmp_path_factory.mktemp(name) for name in "ab"]
    write_adapter(folder, places[0], 1, r=5, rank_pattern={"v_proj": 9})
    write_adapter(folder, places[1], 2, r=12, target_modules=("k_proj", "o_proj", "up_proj"))
    return tuple(f"{name}={place}" for name, place in zip("ab", places, strict=True))


def make_requests(engines, rng, count=8, output_tokens=(1, 25)):
    prefix = [rng.randrange(VOCAB) for _ in range(40)]
    requests = []
    for i in range(count):
        prompt = prefix + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 30))]
        sampling = {"temperature": rng.choice([0.0, 0.9]), "seed": i, "n": rng.choice([1, 1, 3])}
        sampling |= {"max_tokens": rng.randrange(*output_tokens), "ignore_eos": True}
        scores = {"logprobs": 1, "prompt_logprobs": 1 if i == 4 else None}
        requests.append(engines.request(str(i), prompt, adapter=NAMES[i % 3], **sampling, **scores))
    return requests


def alone(engines, folder, lora, requests, names=NAMES, **knobs):
    """Each request in an engine that has its adapter only, without anything that could go wrong."""
    plain = {"enable_prefix_caching": False, "record_steps": False} | knobs
    found = {}
    for name in names:
        own = tuple(entry for entry in lora if entry.partition("=")[0] == name)
        engine = engines.make(folder, lora=own, **plain)
        for request in requests:
            if request.adapter == name:
                found |= outcome(engines.run(engine, [request]))
    return found


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"lora_dtype": "int8"},
        {"max_num_batched_tokens": 9, "max_num_seqs": 5},
        {"num_kv_blocks": 14, "max_model_len": 14 * 16},
        {"num_speculative_tokens": 6, "prompt_lookup_min": 1},
        {"num_speculative_tokens": 6, "prompt_lookup_min": 1, "async_scheduling": "on"},
        {"record_steps": False},
        {"async_scheduling": "on"},
    ],
    ids=lambda knobs: ",".join(knobs) or "default",
)
def test_any_mixture(engines, folder, lora, rng, knobs):
    tight = "num_kv_blocks" in knobs
    requests = make_requests(engines, rng, output_tokens=(50, 80) if tight else (1, 25))
    # The later ones find the prefix that one of the earlier ones has computed.
    arrivals = [rng.randrange(6) + 30 * (i > 5) for i in range(len(requests))]
    kept = {name: knobs[name] for name in ("dtype", "lora_dtype", "max_model_len") if name in knobs}
    expected = alone(engines, folder, lora, requests, **kept)
    engine = engines.make(folder, lora=lora, **knobs)
    assert outcome(engines.run(engine, requests, arrivals=arrivals)) == expected
    stats = engine.stats()
    assert stats.kv_blocks_used == 0
    assert stats.prefix_cache_hits > 0 or tight, "blocks that are kept by chance alone"
    assert stats.num_preemptions > 0 or not tight


def test_recorded_steps_carry_adapters(engines, folder, lora, rng):
    requests = make_requests(engines, rng, 6, (30, 31))
    requests = [
        replace(r, sampling=replace(r.sampling, n=1), adapter=NAMES[i % 3])
        for i, r in enumerate(requests)
    ]
    engine = engines.make(folder, lora=lora)
    found = outcome(engines.run(engine, requests))
    recorded = {size.has_adapters for size in engine._executor._graphs._graphs}
    assert recorded == {True}
    found |= outcome(engines.run(engine, [r for r in requests if r.adapter is None]))
    recorded = {size.has_adapters for size in engine._executor._graphs._graphs}
    assert recorded == {True, False}
    assert found == alone(engines, folder, lora, requests)


@pytest.mark.skipif(native.library() is None, reason=str(native.missing()))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_with_prompts_carry_adapters(engines, folder, lora, rng, tmp_path, dtype):
    """One recording serves every mixture of decodes, prompts and adapters: also those that scale
    whole outputs, or bring modules of their own."""
    own = {"use_dora": True, "modules_to_save": ["input_layernorm"]}
    write_adapter(folder, tmp_path, 3, r=3, target_modules=("q_proj", "down_proj"), **own)
    names, lora = (*"abc", None), (*lora, f"c={tmp_path}")
    requests = [
        replace(request, adapter=names[i % 4])
        for i, request in enumerate(make_requests(engines, rng, 8, (1, 20)))
    ]
    engine = engines.make(folder, lora=lora, dtype=dtype, max_num_batched_tokens=24)
    arrivals = [3 * i for i in range(len(requests))]
    found = outcome(engines.run(engine, requests, arrivals=arrivals))
    sizes = engine._executor._graphs._graphs
    assert StepKind(has_adapters=True, has_prompts=True) in {size.kind for size in sizes}
    assert found == alone(engines, folder, lora, requests, names, dtype=dtype)


def test_what_one_adapter_has_cached_serves_no_other(engines, folder, lora):
    engine = engines.make(folder, lora=lora)
    texts = {}
    for turn in range(2):
        for name in NAMES:
            request = engines.request("x", list(range(2, 60)), adapter=name)
            (done,) = engines.run(engine, [request]).values()
            assert done.num_cached_tokens == 48 * turn
            assert texts.setdefault(name, done.token_ids) == done.token_ids
    assert len(set(map(tuple, texts.values()))) == len(NAMES)


def test_a_broken_adapter_harms_nobody(engines, folder, lora, tmp_path, rng):
    requests = [r for r in make_requests(engines, rng) if r.adapter != "b"]
    expected = outcome(engines.run(engines.make(folder, lora=lora[:1]), requests))
    engine = engines.make(folder, lora=(f"c={tmp_path}", *lora))
    assert outcome(engines.run(engine, requests)) == expected
    for name in ("c", "d"):
        with pytest.raises(UnknownAdapter):
            engine.add(replace(requests[0], adapter=name))


def test_an_adapter_whose_logits_are_not_finite_ends_its_own_requests(
    engines, folder, lora, tmp_path
):
    write_adapter(folder, tmp_path, lora_alpha=1e30)
    requests = [
        engines.request(str(i), [5, 6, 7], adapter=name)
        for i, name in enumerate(("wild", "a", None))
    ]
    engine = engines.make(folder, lora=(f"wild={tmp_path}", *lora))
    done = engines.run(engine, requests)
    assert [done[str(i), 0].finish_reason for i in range(3)] == ["error", "length", "length"]
    assert done["1", 0].token_ids == engines.run(engine, requests[1:2])["1", 0].token_ids


class Storm:
    """An engine whose adapter `c` comes, is replaced and goes at random while it is stepped, for so
    many steps and until there were enough guests: how many steps a load takes is up to the machine.
    """

    def __init__(self, engine, folders, rng, request):
        self.engine, self.folders, self.rng, self.request = engine, folders, rng, request
        self.guests = {}
        """Requests for `c` with its folder then."""
        self.outcomes = []
        self.is_there = self.is_loading = False
        self.num_steps = 0
        self.add, self.abort = engine.add, engine.abort

    def is_over(self):
        return self.num_steps >= 80 and len(self.guests) >= ENOUGH_GUESTS

    def has_work(self):
        return not self.is_over() or self.engine.has_work()

    def step(self):
        self.num_steps += 1
        if not self.is_over() and not self.is_loading and self.rng.random() < 0.3:
            self.change()
        return self.engine.step() if self.engine.has_work() else ([], None)

    def change(self):
        if self.is_there and self.rng.random() < 0.5:
            self.is_there = False
            self.engine.unload_adapter("c", self.outcomes.append)
            with pytest.raises(UnknownAdapter):
                self.engine.add(replace(self.request("late", [5]), adapter="c"))
            return
        folder = self.rng.choice(self.folders)
        self.is_loading = True
        order = AdapterOrder(name="c", folder=str(folder), replaces=self.is_there)
        self.engine.load_adapter(order, partial(self.note, folder))

    def note(self, folder, outcome):
        self.is_loading = False
        self.outcomes.append(outcome)
        if not isinstance(outcome, AdapterReport):
            return
        self.is_there = True
        for _ in range(2):
            # What the last adapter of that name has cached fits the prompt.
            request = self.request(f"guest {len(self.guests)}", list(range(2, 60)))
            self.guests[request.request_id] = (replace(request, adapter="c"), folder)
            self.engine.add(self.guests[request.request_id][0])


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"async_scheduling": "on"},
        {"num_kv_blocks": 20, "max_model_len": 16 * 16},
    ],
    ids=lambda knobs: ",".join(knobs) or "default",
)
def test_storms_of_adapters_change_no_text(engines, folder, lora, rng, tmp_path, knobs):
    folders = [tmp_path / name for name in ("low", "high", "broken")]
    write_adapter(folder, folders[0], 3, r=2, target_modules=("q_proj", "v_proj"))
    write_adapter(folder, folders[1], 4, r=30, use_dora=True)
    kept = {name: knobs[name] for name in ("max_model_len",) if name in knobs}
    requests = [
        replace(r, sampling=replace(r.sampling, n=1))
        for r in make_requests(engines, rng, 8, (40, 70))
    ]
    expected = alone(engines, folder, lora, requests, **kept)
    engine = engines.make(folder, lora=lora, max_loras=4, **knobs)
    guest = partial(engines.request, max_tokens=12, ignore_eos=True, logprobs=1)
    storm = Storm(engine, folders, rng, guest)
    found = outcome(engines.run(storm, requests, arrivals=[8 * i for i in range(8)]))
    for place in folders[:2]:
        only = engines.make(
            folder, lora=(f"c={place}",), enable_prefix_caching=False, record_steps=False, **kept
        )
        for request, of_guest in storm.guests.values():
            if of_guest == place:
                expected |= outcome(engines.run(only, [request]))
    assert found == expected
    refusals = [o for o in storm.outcomes if o is not None and not isinstance(o, AdapterReport)]
    assert all(
        isinstance(o, TooManyAdapters) or "there is no folder" in o.message for o in refusals
    )
    if storm.is_there:
        engine.unload_adapter("c", storm.outcomes.append)
    engines.run(engine, [])
    assert engine._adapters.names == ("a", "b")
    assert len(engine._adapters._kept) == 2
    assert engine.stats().kv_blocks_used == 0


def test_a_model_without_room_for_adapters_says_so(engines, folder, tmp_path):
    engine, answers = engines.make(folder), []
    engine.load_adapter(AdapterOrder(name="c", folder=str(tmp_path)), answers.append)
    engine.unload_adapter("c", answers.append)
    assert [type(answer) for answer in answers] == [TooManyAdapters, UnknownAdapter]


def test_a_model_that_began_without_adapters_records_steps_with_them(engines, folder, lora, rng):
    place = lora[0].partition("=")[2]
    request = engines.request("x", [5, 6, 7], max_tokens=30, ignore_eos=True, adapter="a")
    expected = alone(engines, folder, lora, [request])
    engine, answers = engines.make(folder, max_loras=1), []
    for _ in range(2):
        engine.load_adapter(AdapterOrder(name="a", folder=place), answers.append)
        engines.run(engine, [])
        assert outcome(engines.run(engine, [request])) == expected
        assert any(size.has_adapters for size in engine._executor._graphs._graphs)
        engine.unload_adapter("a", answers.append)
        engines.run(engine, [])
    assert [type(answer) for answer in answers] == [AdapterReport, type(None)] * 2


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "knobs",
    [
        {"max_loras": 3},
        {"max_loras": 1, "async_scheduling": "on"},
        {"lora_memory_gib": 0.5, "num_kv_blocks": 20, "max_model_len": 16 * 16},
    ],
    ids=",".join,
)
def test_twice_as_many_as_there_is_room_for(engines, folder, lora, rng, tmp_path, knobs):
    """Random requests for more adapters than have slots or memory: each text is that of its
    adapter, nobody waits for ever, and nothing is left."""
    names = (*"abcdef", None)
    for seed, name in enumerate("cdef", 5):
        modules = rng.sample(("q_proj", "k_proj", "o_proj", "down_proj", "embed_tokens"), 2)
        own = rng.sample(("lm_head", "input_layernorm", "model.norm"), 2) if name in "cd" else None
        options = {"target_modules": modules, "modules_to_save": own}
        write_adapter(folder, tmp_path / name, seed, r=rng.randrange(2, 20), **options)
    lora = (*lora, *(f"{name}={tmp_path / name}" for name in "cdef"))
    if "lora_memory_gib" in knobs:  # as a share of what all of them take
        whole = engines.make(folder, lora=lora)._adapters.num_bytes
        knobs = knobs | {"lora_memory_gib": knobs["lora_memory_gib"] * whole / GIB}
    requests = [
        replace(r, sampling=replace(r.sampling, n=1), adapter=rng.choice(names))
        for r in make_requests(engines, rng, 16, (5, 25))
    ]
    aborts = {request.request_id: rng.randrange(20) for request in rng.sample(requests, 4)}
    engine = engines.make(folder, lora=lora, **knobs)
    arrivals = [rng.randrange(24) for _ in requests]
    found = outcome(engines.run(engine, requests, arrivals=arrivals, aborts=aborts))
    kept = {name: knobs[name] for name in ("max_model_len",) if name in knobs}
    expected = alone(engines, folder, lora, requests, names, **kept)
    served = {key: text for key, text in found.items() if key[0] not in aborts}
    assert served == {key: text for key, text in expected.items() if key[0] not in aborts}
    for name in names[:-1]:
        engine.unload_adapter(name, lambda answer: None)
    engines.run(engine, [])
    table = engine._adapters
    assert (table._kept, table._copies.num_bytes, table.num_bytes, table._grants) == ({}, 0, 0, [])
    assert engine.stats().kv_blocks_used == 0


def test_one_whose_files_are_gone_fails_its_own_requests(engines, folder, lora, tmp_path):
    write_adapter(folder, tmp_path / "c", 3)
    engine = engines.make(folder, lora=(*lora, f"c={tmp_path / 'c'}"), max_loras=1)
    engine._adapters._copies.shrink(0)
    shutil.rmtree(tmp_path / "c")
    requests = [
        engines.request(str(i), [5, 6, 7], adapter=name) for i, name in enumerate(("c", "b", None))
    ]
    done = engines.run(engine, requests)
    assert [done[str(i), 0].finish_reason for i in range(3)] == ["error", "length", "length"]
    assert engine.stats().num_waiting == 0
