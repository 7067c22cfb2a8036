"""What rows with adapters are, against PEFT, and that each row's bits are its own adapter's."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.adapters.peft_adapters import Host, load, write_adapter
from tests.helpers.models.tiny_pairs import PagedTexts, create_pair

FAMILIES = ("Llama", "Qwen2", "Qwen3", "Gemma3")
OPTIONS = (
    {"r": 5, "lora_alpha": 12, "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 7}},
    {"alpha_pattern": {"v_proj": 3, "layers.0.mlp.down_proj": 1}, "use_rslora": True},
    {"target_modules": ("q_proj", "o_proj"), "layers_to_transform": [1]},
    {"r": 256, "target_modules": ("v_proj", "gate_proj")},
    {"use_dora": True, "r": 6, "rank_pattern": {"k_proj": 2}},
)


ENDS = (
    {"r": 5, "target_modules": ("q_proj", "embed_tokens", "lm_head")},
    {"target_modules": ("v_proj",), "modules_to_save": ["embed_tokens", "lm_head"]},
    {"target_modules": ("v_proj",), "modules_to_save": ["layernorm", "model.norm"]},
    {"use_dora": True, "target_modules": ("q_proj", "lm_head")},
)
"""Of embeddings, output layers and norms: updates, and whole ones."""
MIXED_ENDS = (ENDS[0], ENDS[1] | {"modules_to_save": ["embed_tokens", "lm_head", "norm"]}, ENDS[3])
MIXED = (OPTIONS[0], OPTIONS[2], {"use_dora": True, "target_modules": ("q_proj", "down_proj")})


class AdaptedTexts(PagedTexts):
    """Every text has the adapter of its slot."""

    def __init__(self, model, config, loaded, slots):
        super().__init__(model, config)
        self._forward, self._compute = model.forward, model.compute_logits
        self._loaded, self._adapter_of = loaded, slots

    def step(self, pieces):
        # `lay_out` puts single rows first.
        order = sorted(pieces, key=lambda i: (pieces[i] > 1, -self.computed[i] - pieces[i]))
        slots = torch.tensor([self._adapter_of[i] for i in order for _ in range(pieces[i])])
        rows = self._loaded.of_rows(slots.int())
        self.model.forward = lambda ids, at, ctx: self._forward(
            ids, at, replace(ctx, adapters=rows)
        )
        self.model.compute_logits = lambda hidden: self._compute(hidden, rows)
        try:
            return super().step(pieces)
        finally:
            self.model.forward, self.model.compute_logits = self._forward, self._compute


FACTORS = {"FalconH1": {"embedding_multiplier": 2.5, "lm_head_multiplier": 0.5}}
"""Factors that the adapters of a family are multiplied by, too."""


def random_text(length=20):
    return torch.randint(0, 131, (length,)).tolist()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *product(FAMILIES, (*OPTIONS, *ENDS)),
        ("Mamba", {"target_modules": ("in_proj", "x_proj", "embeddings")}),
        ("FalconH1", {"target_modules": ("in_proj", "q_proj", "embed_tokens", "lm_head")}),
    ],
)
def test_peft(family, options, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.lora.dora.INPUTS_AT_ONCE", 20)  # of 48 and more
    ours, theirs, config = create_pair(family, 3, **FACTORS.get(family, {}))
    peft_model = write_adapter(theirs, tmp_path, **options)
    loaded = load(ours, {"a": tmp_path})
    texts, text = AdaptedTexts(ours, config, loaded, {0: 0}), random_text()
    texts.add(0, text)
    with torch.no_grad():
        expected = peft_model(torch.tensor([text])).logits[0]
        with peft_model.disable_adapter():
            base = peft_model(torch.tensor([text])).logits[0]
    assert (base - expected).abs().max() > 0.1
    torch.testing.assert_close(texts.run(0, [7, 1, 12]), expected, atol=1e-4, rtol=1e-4)


def test_a_row_without_a_length_is_refused(tmp_path):
    ours, theirs, _ = create_pair("Llama", 3)
    layer = "model.layers.0.self_attn.q_proj"
    weight = theirs.get_submodule(layer).weight.detach().clone()
    own = {"r": 1, "lora_alpha": 1, "target_modules": ("q_proj",), "layers_to_transform": [0]}
    write_adapter(theirs, tmp_path, use_dora=True, **own)
    file, side = tmp_path / "adapter_model.safetensors", f"base_model.model.{layer}.lora_"
    opposite = {f"{side}A.weight": -weight[:1], f"{side}B.weight": torch.eye(len(weight), 1)}
    save_file(load_file(file) | opposite, file)
    failed = load(ours, {"a": tmp_path}).failed
    assert failed == {"a": f"{layer} has a row of weights with length 0; DoRA cannot scale it"}


@pytest.fixture(scope="module", params=[MIXED, MIXED_ENDS], ids=["layers", "ends"])
def three(tmp_path_factory, request):
    """A model with adapters of different ranks and layers."""
    folders = {name: str(tmp_path_factory.mktemp(name)) for name in "abc"}
    for seed, (folder, options) in enumerate(zip(folders.values(), request.param, strict=True)):
        write_adapter(create_pair("Qwen2", 3)[1], folder, seed, **options)
    ours, _, config = create_pair("Qwen2", 3)
    host = Host()
    return ours, config, load(ours, folders, host), host


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
