"""What rows with adapters are, against PEFT, and that each row's bits are its own adapter's."""

from dataclasses import replace

import pytest
import torch
from peft_adapters import Host, write_adapter
from tiny_pairs import PagedTexts, create_pair

from engine.errors import UnknownAdapter
from engine.lora import slots
from engine.lora.slots import load_adapters

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma3")
OPTIONS = (
    {"r": 5, "lora_alpha": 12, "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 7}},
    {"alpha_pattern": {"v_proj": 3, "layers.0.mlp.down_proj": 1}, "use_rslora": True},
    {"target_modules": ("q_proj", "o_proj"), "layers_to_transform": [1]},
)


class AdaptedTexts(PagedTexts):
    """Every text has the adapter of its slot."""

    def __init__(self, model, config, loaded, slots):
        super().__init__(model, config)
        self._forward, self._loaded, self._slots = model.forward, loaded, slots

    def step(self, pieces):
        # `lay_out` puts single rows first.
        order = sorted(pieces, key=lambda i: (pieces[i] > 1, -self.computed[i] - pieces[i]))
        slots = torch.tensor([self._slots[i] for i in order for _ in range(pieces[i])])
        rows = self._loaded.slots.of_rows(slots.int())
        self.model.forward = lambda ids, at, ctx: self._forward(
            ids, at, replace(ctx, adapters=rows)
        )
        try:
            return super().step(pieces)
        finally:
            self.model.forward = self._forward


def random_text(length=20):
    return torch.randint(0, 131, (length,)).tolist()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft(family, options, tmp_path):
    ours, theirs, config = create_pair(family, 3)
    peft_model = write_adapter(theirs, tmp_path, **options)
    loaded = load_adapters({"a": str(tmp_path)}, ours, Host(), 1)
    texts, text = AdaptedTexts(ours, config, loaded, {0: 0}), random_text()
    texts.add(0, text)
    with torch.no_grad():
        expected = peft_model(torch.tensor([text])).logits[0]
        with peft_model.disable_adapter():
            base = peft_model(torch.tensor([text])).logits[0]
    assert (base - expected).abs().max() > 0.1
    torch.testing.assert_close(texts.run(0, [7, 1, 12]), expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A model with adapters of different ranks and layers."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in "abc"}
    for seed, (folder, options) in enumerate(zip(folders.values(), OPTIONS, strict=True)):
        write_adapter(create_pair("Qwen2", 3)[1], folder, seed, **options)
    ours, _, config = create_pair("Qwen2", 3)
    host = Host()
    return ours, config, load_adapters(folders, ours, host, 1), host


def test_rows_do_not_depend_on_adapters_beside_them(three):
    ours, config, loaded, _ = three
    slot_of = {0: 0, 1: 1, 2: 2, 3: -1, 4: 0}
    texts = [random_text() for _ in slot_of]

    def alone(text_id, sizes):
        run = AdaptedTexts(ours, config, loaded, slot_of)
        run.add(text_id, texts[text_id])
        return run.run(text_id, sizes)

    together = AdaptedTexts(ours, config, loaded, slot_of)
    for text_id, text in enumerate(texts):
        together.add(text_id, text)
    steps = ({0: 9, 1: 12, 3: 1}, {0: 1, 1: 1, 2: 13, 3: 4, 4: 19}, {0: 10, 2: 1, 4: 1, 3: 15})
    found = {i: [] for i in slot_of}
    for pieces in steps:
        for text_id, logits in together.step(pieces).items():
            found[text_id].append(logits)
    for text_id, parts in found.items():
        whole = torch.cat(parts)
        assert torch.equal(whole, alone(text_id, [len(whole)])), text_id
    plain = PagedTexts(ours, config)
    plain.add(0, texts[3])
    assert torch.equal(torch.cat(found[3]), plain.run(0, [20])), "as if there were no adapters"


def test_memory_is_asked_for_before_it_is_taken(three, tmp_path):
    ours, _, loaded, host = three
    kept = [s for shards in loaded.slots._updates.values() for s in shards]
    taken = sum(shard.a.nbytes + shard.b.nbytes for shard in kept)
    assert host.reserved == [("cpu", "adapters", taken)]
    assert loaded.num_bytes == taken
    write_adapter(create_pair("Qwen2", 3)[1], tmp_path)
    refused = load_adapters({"a": str(tmp_path)}, ours, Host(9), 1)
    assert (refused.slots, refused.num_bytes) == (None, 0)
    assert refused.failed == {"a": "there is none left"}


def test_names(three):
    filled = three[2].slots
    assert [filled.slot_of(name) for name in filled.names] == [0, 1, 2]
    with pytest.raises(UnknownAdapter):
        filled.slot_of("d")


def test_a_model_without_adapters_asks_for_nothing(three):
    host = Host()
    loaded = load_adapters({}, three[0], host, 1)
    assert (loaded.slots, loaded.names, loaded.failed, host.reserved) == (None, (), {}, [])


def test_what_nobody_thought_of_harms_no_model(three, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(slots, "read_adapter", fail)
    loaded = load_adapters({"a": "/nowhere"}, three[0], Host(), 1)
    assert loaded.slots is None
    assert loaded.failed == {"a": "ZeroDivisionError while its files were read"}
