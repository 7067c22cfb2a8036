"""Adapters in the image engine: who draws with what, sweeps, and adapters that come and go."""

import random
from dataclasses import replace

import numpy as np
import pytest

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.draw import ImageTask, LoraUse
from engine.errors import InvalidParameter, TooManyAdapters, UnknownAdapter
from tests.helpers.adapters.image_adapters import kohya, table_of, write
from tests.helpers.diffusion.engine_runs import results, run
from tests.helpers.diffusion.tiny_pipelines import tiny_parts
from tests.helpers.diffusion.toy_family import picture, request

SIZE = {"width": 16, "height": 16, "num_inference_steps": 3, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny family, and files of adapters `a` and `b` for its UNet, `t` for its text encoder."""
    parts, folder = tiny_parts(3), tmp_path_factory.mktemp("adapters")
    block = "mid_block.attentions.0.transformer_blocks.0"
    blocks = [f"{block}.attn{n}.to_{x}" for n in (1, 2) for x in "qkv"]
    texts = [f"encoder.layers.{n}.mlp.fc1" for n in (0, 1)]
    if not any(path == texts[0] for path, _ in parts.text_encoder.named_modules()):
        texts = [f"text_model.{path}" for path in texts]
    for seed, name in enumerate("ab"):
        made = write(parts.unet, [*blocks, "conv_in"], kohya("lora_unet"), seed=seed, size=2.0)
        made.save(folder / f"{name}.safetensors")
    made = write(parts.text_encoder, texts, kohya("lora_te"), size=2.0)
    made.save(folder / "t.safetensors")
    return parts, folder


@pytest.fixture
def start(make_engine, model):
    def start(*names, room=4, shelf=None, **limits):
        parts, folder = model
        family = parts.family()
        table = table_of(family.adapted, room=room, **(shelf or {}))
        table.load_first({name: str(folder / f"{name}.safetensors") for name in names})
        assert table.failed == {}
        return make_engine(family, adapters=table, **limits)

    return start


def ask(id, *settings, n=None, prompt="a fox", **changes):
    """A request; each setting is {name: scale}."""
    made = request(id, prompt=prompt, n=n or max(1, len(settings)), **{**SIZE, **changes})
    loras = [[LoraUse(name=name, scale=scale) for name, scale in one.items()] for one in settings]
    return replace(made, loras=loras)


def drawn(engine, *requests):
    found = results(run(engine, list(requests)))
    return {key: found[key] for key in sorted(found)}


def picture_of(engine, request):
    """The only picture of a request."""
    [image] = drawn(engine, request).values()
    return image


def unload_all(engine, *names):
    """Ask for all of them to go, and go on until the engine has nothing left to do."""
    answers = []
    for name in names:
        engine.unload_adapter(name, answers.append)
    return answers, run(engine)


def differ(one, other):
    return np.abs(one - other).max() > 0


def test_rows_with_different_adapters_share_steps(start):
    engine = start("a", "b", "t")
    settings = [{"a": 1.0}, {}, {"b": 0.7}, {"a": 0.5, "b": -0.5}, {"t": 1.0}, {"t": 0.5, "a": 1.0}]
    requests = [ask(f"r{n}", one, seed=n) for n, one in enumerate(settings)]
    together = drawn(engine, *requests)
    assert engine.stats().num_steps < sum(one.params.num_inference_steps for one in requests)
    base = start()
    for n, one in enumerate(requests):
        alone = picture_of(start("a", "b", "t"), one)
        assert np.abs(together[f"r{n}", 0] - alone).max() <= 1
        plain = picture_of(base, ask(f"p{n}", seed=n))
        assert differ(plain, alone) == bool(settings[n])


def test_deterministic_ones_have_the_same_bits(start):
    requests = [ask("x", {"a": 1.0, "t": 0.3}), ask("y", {"b": 1.0}), ask("z")]
    together = drawn(start("a", "b", "t", deterministic=True), *requests)
    for one in requests:
        alone = picture_of(start("a", "b", "t", deterministic=True), one)
        assert np.array_equal(together[one.request_id, 0], alone)


def test_a_sweep_draws_the_same_noise_with_each_scale(start):
    engine = start("a", deterministic=True)
    scales = [0.0, 0.5, 1.0]
    swept = drawn(engine, ask("s", *({"a": scale} for scale in scales), n=6, seed=40))
    assert list(swept) == [("s", index) for index in range(6)]
    for place, scale in enumerate(scales):
        for image in range(2):
            alone = picture_of(engine, ask("one", {"a": scale}, n=1, seed=40 + image))
            assert np.array_equal(swept["s", 2 * place + image], alone)
    plain = picture_of(engine, ask("plain", seed=40))
    assert np.array_equal(swept["s", 0], plain), "scale 0 is the base, bit for bit"
    assert differ(swept["s", 2], swept["s", 4])


def test_seeds_of_a_sweep_are_told(start):
    events = run(start("a"), [ask("s", {"a": 0.0}, {"a": 1.0}, n=4, seed=7)])
    seeds = {event.index: event.seed for event in events if event.image is not None}
    assert seeds == {0: 7, 1: 8, 2: 7, 3: 8}


def test_a_sweep_over_several_input_images(start):
    engine = start("a", deterministic=True)
    images = [picture(16, 16, seed) for seed in (1, 2)]
    options = {"task": ImageTask.IMAGE_TO_IMAGE, "strength": 0.7, "seed": 5}
    both = ask("s", {"a": 0.0}, {"a": 1.0}, n=4, **options)
    swept = drawn(engine, replace(both, images=images))
    for index, (scale, image) in enumerate([(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)]):
        one = ask("one", {"a": scale}, n=1, **{**options, "seed": 5 + image})
        alone = picture_of(engine, replace(one, images=[images[image]]))
        assert np.array_equal(swept["s", index], alone)


def test_prompts_are_kept_by_the_adapters_that_read_them(start):
    engine = start("a", "t", deterministic=True)
    first = drawn(engine, ask("x"), ask("y", {"t": 1.0}), ask("z", {"a": 1.0}))
    lookups = engine.stats()
    assert lookups.prompt_cache_hits == 2, "that of the denoiser alone reads as the base does"
    again = drawn(engine, ask("x"), ask("y", {"t": 1.0}), ask("z", {"a": 1.0}))
    assert engine.stats().prompt_cache_hits == lookups.prompt_cache_hits + 6
    assert all(np.array_equal(first[key], again[key]) for key in first)
    weaker = drawn(engine, ask("w", {"t": 0.5}))
    assert differ(weaker["w", 0], first["y", 0])


def test_what_the_model_has_not_is_refused(start, make_engine):
    engine = start("a")
    with pytest.raises(UnknownAdapter) as caught:
        engine.add(ask("x", {"nobody": 1.0}))
    assert caught.value.param == "loras"
    assert not engine.has_work()
    bare = make_engine(tiny_parts(0).family())
    with pytest.raises(UnknownAdapter):
        bare.add(ask("x", {"a": 1.0}))
    answers = []
    bare.load_adapter(AdapterOrder(name="a", folder="x"), answers.append)
    bare.unload_adapter("a", answers.append)
    assert [type(answer) for answer in answers] == [TooManyAdapters, UnknownAdapter]


def test_an_unload_waits_for_those_who_draw(start, model):
    engine = start("a", deterministic=True)
    wanted = picture_of(start("a", deterministic=True), ask("x", {"a": 1.0}))
    engine.add(ask("x", {"a": 1.0}))
    engine.step()
    answers = []
    engine.unload_adapter("a", answers.append)
    with pytest.raises(UnknownAdapter):
        engine.add(ask("y", {"a": 1.0}))
    events = []
    while not answers:
        events += engine.step()[0]
    [found] = results(events).values()
    assert np.array_equal(found, wanted)
    assert answers == [None]
    base = picture_of(start(deterministic=True), ask("z"))
    assert np.array_equal(picture_of(engine, ask("z")), base), "nothing is left"


def test_one_that_waits_has_what_its_name_meant(start, model):
    _, folder = model
    engine = start("a", max_num_images=1, deterministic=True)
    waiting = [ask(f"r{n}", {"a": 1.0}, seed=n) for n in range(2)]
    for one in waiting:
        engine.add(one)
    engine.step()
    answers = []
    file = str(folder / "b.safetensors")
    engine.load_adapter(AdapterOrder(name="a", folder=file, replaces=True), answers.append)
    events = []
    while not answers:
        events += engine.step()[0]
    assert isinstance(answers[0], AdapterReport)
    found = results(events + run(engine, [ask("r2", {"a": 1.0}, seed=0)]))
    for one in waiting:
        alone = picture_of(start("a", deterministic=True), one)
        assert np.array_equal(found[one.request_id, 0], alone)
    other = picture_of(start("b", deterministic=True), ask("r2", {"b": 1.0}, seed=0))
    assert np.array_equal(found["r2", 0], other)


def test_storms_of_loads_and_unloads_change_nobodys_picture(start, model):
    """Adapters that come, go and are replaced beside requests; whoever is taken draws what it asked
    for, and nothing is left at the end."""
    _, folder = model
    rng = random.Random(random.randrange(1 << 30))
    names = ("a", "b", "t")
    engine = start(room=3, deterministic=True)
    wanted = {
        name: picture_of(start(name, deterministic=True), ask("x", {name: 1.0})) for name in names
    }
    answers, asked, events = [], {}, []
    for turn in range(60):
        name = rng.choice(names)
        match rng.randrange(4):
            case 0:
                order = AdapterOrder(name=name, folder=str(folder / f"{name}.safetensors"))
                engine.load_adapter(replace(order, replaces=rng.random() < 0.5), answers.append)
            case 1:
                engine.unload_adapter(name, answers.append)
            case 2:
                try:
                    engine.add(ask(f"r{turn}", {name: 1.0}))
                    asked[f"r{turn}"] = name
                except UnknownAdapter:
                    pass
            case _:
                if asked:
                    engine.abort(rng.choice(list(asked)))
        if engine.has_work():
            events += engine.step()[0]
    events += run(engine)
    found = results(events + unload_all(engine, *names)[1])
    assert all(np.array_equal(image, wanted[asked[key[0]]]) for key, image in found.items())
    assert engine._adapters._host.lent == {}
    assert np.array_equal(
        picture_of(engine, ask("z")), picture_of(start(deterministic=True), ask("z"))
    )


@pytest.mark.parametrize("most", ["max_slots", "max_bytes"])
def test_more_adapters_than_there_is_room_for(start, most):
    """Random requests for adapters that have to make way for one another draw what each would
    alone; those that ask for several at once have all of them."""
    rng = random.Random(random.randrange(1 << 30))
    whole = start("a", "b", "t")._adapters
    sizes = sorted(kept.size for kept in whole._kept.values())
    limit = {"max_slots": 2, "max_bytes": sum(sizes[1:])}[most]
    engine = start("a", "b", "t", deterministic=True, shelf={most: limit})
    settings = [{"a": 1.0}, {"b": 0.5}, {"t": 1.0}, {"a": 0.5, "t": 1.0}, {}, {"a": 1.0, "b": 1.0}]
    wanted = [picture_of(start(*one, deterministic=True), ask("x", one)) for one in settings]
    chosen = [rng.randrange(len(settings)) for _ in range(16)]
    found = {}
    for number, one in enumerate(chosen):
        engine.add(ask(f"r{number}", settings[one]))
        if number % 5 == 0:
            engine.abort(f"r{rng.randrange(number + 1)}")
        for _ in range(rng.randrange(4)):
            found |= results(engine.step()[0])
    found |= results(run(engine))
    assert len(found) >= 12
    for (name, _), image in found.items():
        assert np.array_equal(image, wanted[chosen[int(name[1:])]])
    answers, _ = unload_all(engine, "a", "b", "t")
    assert (answers, engine._adapters._host.lent) == ([None] * 3, {})


def test_more_than_can_be_there_at_once_are_refused(start):
    engine = start("a", "b", "t", shelf={"max_slots": 2})
    with pytest.raises(InvalidParameter, match="max_loras is 2") as caught:
        engine.add(ask("x", {"a": 1.0, "b": 1.0, "t": 1.0}))
    assert caught.value.param == "loras"
    assert not engine.has_work()
