"""What is read of PEFT's files, and what is refused, with the reason."""

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.contract.adapter_orders import AdapterReport
from engine.errors import ModelLoadError, ModelNotFound
from engine.lora.file_parts import WEIGHTS
from engine.lora.peft_config import CONFIG
from engine.lora.peft_files import ModelShapes, plan_adapter
from tests.helpers.adapters.peft_adapters import load, write_adapter
from tests.helpers.models.tiny_pairs import create_pair

PREFIX = "base_model.model."
Q = f"{PREFIX}model.layers.0.self_attn.q_proj"
SHAPES = {
    f"model.layers.{layer}.{name}": shape
    for layer in range(2)
    for name, shape in {
        "self_attn.q_proj": (96, 48),
        "self_attn.k_proj": (32, 48),
        "self_attn.v_proj": (32, 48),
        "self_attn.o_proj": (48, 96),
        "mlp.gate_proj": (80, 48),
        "mlp.up_proj": (80, 48),
        "mlp.down_proj": (48, 80),
    }.items()
}


MODEL = ModelShapes(SHAPES)
TABLE, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
WHOLE = ModelShapes(
    SHAPES | {HEAD: (131, 48)},
    tables={TABLE: (48, 131)},
    copies={TABLE: (131, 48), HEAD: (131, 48), NORM: (48,)},
)
"""With the ends of the model, too."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    write_adapter(create_pair("Llama", 3)[1], folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "adapter")


def configure(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_numbers_names_and_scales(folder):
    adapter = plan_adapter(folder, MODEL, torch.float32).read()
    assert adapter.updates.keys() == SHAPES.keys()
    tensors = load_file(folder / WEIGHTS)
    update = adapter.updates["model.layers.0.self_attn.q_proj"]
    assert torch.equal(update.a, tensors[f"{Q}.lora_A.weight"])
    assert torch.equal(update.b, tensors[f"{Q}.lora_B.weight"].T)
    assert (update.rank, update.scale) == (4, 2.0)
    assert adapter.report == AdapterReport(num_layers=14, ranks=(4,))


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"lora_alpha": 6}, 1.5),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 1}}, 0.25),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 1}}, 2.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 1, "q_proj": 2}}, 0.25),
        ({"alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 1}}, 0.25),
        ({"alpha_pattern": {"^q_proj": 1}}, 2.0),
        ({"alpha_pattern": {"_proj": 1}}, 2.0),
        ({"rank_pattern": {"q_proj": 4}, "r": 4}, 2.0),
    ],
)
def test_scales(folder, changes, scale):
    configure(folder, **changes)
    adapter = plan_adapter(folder, MODEL, torch.float32).read()
    assert adapter.updates["model.layers.0.self_attn.q_proj"].scale == scale


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LOHA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"use_dora": True}, "has no lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "lists lm_head in modules_to_save, but"),
        ({"modules_to_save": "lm_head"}, "must be a list of names"),
        ({"modules_to_save": [7]}, "must be a list of names"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "all"}, "biases"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"lora_alpha": "8"}, "must be a finite number"),
        ({"lora_alpha": float("nan")}, "must be a finite number"),
        ({"lora_alpha": True}, "must be a finite number"),
        ({"lora_alpha": 10**400}, "must be a finite number"),
        ({"lora_alpha": 1e39}, "must be a finite number"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "regular expression"),
        ({"alpha_pattern": [1]}, "must be an object"),
        ({"rank_pattern": {f"layer{n}": 4 for n in range(5000)}}, "has 5000 patterns in rank_pat"),
        ({"r": 5}, "rank 4; adapter_config.json says 5"),
        ({"rank_pattern": {"q_proj": "x" * 9999}}, "says x"),
    ],
)
def test_configurations_that_are_refused(folder, changes, reason):
    configure(folder, **changes)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        plan_adapter(folder, MODEL, torch.float32).read()
    assert len(caught.value.message) < 500
    assert str(folder) not in caught.value.message


def nan(tensors):
    tensors[f"{Q}.lora_A.weight"][1, 2] = torch.nan


def large(tensors):
    tensors[f"{Q}.lora_B.weight"][0, 0] = 1e30


def half(tensors):
    del tensors[f"{Q}.lora_B.weight"]


def transposed(tensors):
    key = f"{Q}.lora_A.weight"
    tensors[key] = tensors[key].T.contiguous()


def wide(tensors):
    for key in list(tensors):
        if key.endswith("lora_A.weight"):
            tensors[key] = torch.zeros(tensors[key].shape[0], 64)


def deep(tensors):
    for side, shape in (("A", (4, 48)), ("B", (96, 4))):
        tensors[f"{Q.replace('.0.', '.7.')}.lora_{side}.weight"] = torch.zeros(shape)


def huge(tensors):
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(4096, 48)
    tensors[f"{Q}.lora_B.weight"] = torch.zeros(96, 4096)


def flat(tensors):
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(())


def no_rank(tensors):
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(0, 48)
    tensors[f"{Q}.lora_B.weight"] = torch.zeros(96, 0)


def magnitudes(tensors):
    tensors[f"{Q}.lora_magnitude_vector"] = torch.ones(96)


@pytest.mark.parametrize(
    ("magnitudes", "reason"),
    [
        (torch.ones(96), None),
        (torch.ones(95), r"has \[95\] magnitudes"),
        (torch.ones(96, 1), r"has \[96, 1\] magnitudes"),
        (torch.full((96,), torch.inf), "not finite"),
        (torch.ones(96, dtype=torch.int32), "has type I32"),
    ],
)
def test_magnitudes_of_dora(folder, magnitudes, reason):
    def add(tensors):
        for key in list(tensors):
            if key.endswith("lora_A.weight"):
                name = key.replace("lora_A.weight", "lora_magnitude_vector")
                other = key.replace("lora_A", "lora_B")
                tensors[name] = torch.ones(len(tensors[other]))
        tensors[f"{Q}.lora_magnitude_vector"] = magnitudes

    configure(folder, use_dora=True)
    rewrite(folder, add)
    if reason is None:
        update = plan_adapter(folder, MODEL, torch.bfloat16).read().updates[Q.removeprefix(PREFIX)]
        assert torch.equal(update.magnitude, magnitudes)
    else:
        with pytest.raises(ModelLoadError, match=reason):
            plan_adapter(folder, MODEL, torch.bfloat16).read()


def embedding(tensors):
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 131)


def head(tensors):
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 48)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(131, 4)


def integers(tensors):
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(4, 48, dtype=torch.int32)


def strangers(tensors):
    for key in list(tensors):
        tensors[key.replace("model.layers", "transformer.h")] = tensors.pop(key)


def twice(tensors):
    tensors["model.layers.0.self_attn.q_proj.lora_A"] = torch.zeros(9, 48)


def nothing(tensors):
    tensors.clear()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (nan, "not finite"),
        (large, "not finite in torch.float16"),
        (half, "q_proj has no lora_B"),
        (transposed, "made for another model"),
        (wide, "made for another model; 13 more of its layers do not fit"),
        (deep, r"linear layers \(model.layers.7.self_attn.q_proj"),
        (huge, "rank 4096; the limit is 256"),
        (flat, "made for another model"),
        (no_rank, "made for another model"),
        (magnitudes, "lora_magnitude_vector, which is not supported"),
        (embedding, "the adapter changes model.embed_tokens"),
        (head, "the adapter changes lm_head"),
        (integers, "has type I32"),
        (strangers, "has 0: the adapter was made"),
        (twice, "lora_A of model.layers.0.self_attn.q_proj twice"),
        (nothing, "has 0: the adapter was made"),
    ],
)
def test_tensors_that_are_refused(folder, change, reason):
    rewrite(folder, change)
    with pytest.raises(ModelLoadError, match=reason):
        plan_adapter(folder, MODEL, torch.float16).read()


def truncate(folder):
    os.truncate(folder / WEIGHTS, 999)


def cut_header(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:20])


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))


def disguised(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps({"a": 1}))


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def no_config(folder):
    (folder / CONFIG).unlink()


def bad_config(folder):
    (folder / CONFIG).write_text("{")


def listed_config(folder):
    (folder / CONFIG).write_text("[]")


def pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        cut_header,
        pickled,
        disguised,
        no_weights,
        no_config,
        bad_config,
        listed_config,
        pipe,
        shutil.rmtree,
    ],
)
def test_damaged_files_harm_nobody(folder, saved, damage):
    damage(folder)
    with pytest.raises(ModelLoadError) as caught:
        plan_adapter(folder, MODEL, torch.float32).read()
    assert str(folder) not in caught.value.message
    loaded = load(create_pair("Llama", 3)[0], {"bad": folder, "good": saved})
    assert loaded.names == ("good",)
    assert loaded.failed == {"bad": caught.value.message}


@pytest.mark.parametrize("decoder", ["model.language_model", "language_model.model"])
def test_names_of_a_model_for_pictures_and_text_are_known(folder, decoder):
    expected = plan_adapter(folder, MODEL, torch.float32).read()

    def wrap(tensors):
        for name in list(tensors):
            tensors[name.replace(f"{PREFIX}model", f"{PREFIX}{decoder}")] = tensors.pop(name)

    rewrite(folder, wrap)
    adapter = plan_adapter(folder, MODEL, torch.float32).read()
    assert adapter.report == expected.report
    assert adapter.updates.keys() == SHAPES.keys()


def test_layers_beside_the_decoders_are_left_out(folder):
    def add(tensors):
        for side, shape in (("A", (4, 9)), ("B", (9, 4))):
            key = f"base_model.model.vision_tower.fc.lora_{side}.weight"
            tensors[key] = torch.full(shape, torch.nan)

    rewrite(folder, add)
    adapter = plan_adapter(folder, MODEL, torch.float32).read()
    assert adapter.updates.keys() == SHAPES.keys()
    assert (adapter.report.num_left_out, adapter.report.left_out) == (1, ("vision_tower.fc",))


def with_ends(tensors):
    tensors[f"{PREFIX}{TABLE}.lora_embedding_A"] = torch.randn(4, 131)
    tensors[f"{PREFIX}{TABLE}.lora_embedding_B"] = torch.randn(48, 4)
    tensors[f"{PREFIX}{TABLE}.base_layer.weight"] = torch.full((131, 48), torch.nan)
    tensors[f"{PREFIX}{HEAD}.weight"] = torch.randn(131, 48)
    tensors[f"{PREFIX}{NORM}.weight"] = torch.randn(48)


def test_the_ends_of_a_model(folder):
    """The base's own embedding, which PEFT saves beside an update of it, is not looked at."""
    rewrite(folder, with_ends)
    configure(folder, modules_to_save=["lm_head", "norm"])
    adapter = plan_adapter(folder, WHOLE, torch.bfloat16).read()
    tensors = load_file(folder / WEIGHTS)
    update = adapter.updates[TABLE]
    assert torch.equal(update.a, tensors[f"{PREFIX}{TABLE}.lora_embedding_A"].bfloat16())
    assert torch.equal(update.b, tensors[f"{PREFIX}{TABLE}.lora_embedding_B"].bfloat16().T)
    assert adapter.copies.keys() == {HEAD, NORM}
    assert torch.equal(adapter.copies[NORM], tensors[f"{PREFIX}{NORM}.weight"])
    assert adapter.size.copy_bytes == 131 * 48 * 2 + 48 * 4
    assert adapter.report.num_layers == len(SHAPES) + 3


def other_vocabulary(tensors):
    tensors[f"{PREFIX}{HEAD}.weight"] = torch.zeros(132, 48)


def other_table(tensors):
    tensors[f"{PREFIX}{TABLE}.lora_embedding_A"] = torch.zeros(4, 132)


def resized(tensors):
    tensors[f"{PREFIX}{TABLE}.base_layer.weight"] = torch.zeros(132, 48)


def half_table(tensors):
    del tensors[f"{PREFIX}{TABLE}.lora_embedding_B"]


def both(tensors):
    tensors[f"{PREFIX}{HEAD}.lora_A.weight"] = torch.zeros(4, 48)
    tensors[f"{PREFIX}{HEAD}.lora_B.weight"] = torch.zeros(131, 4)


def mixed(tensors):
    tensors[f"{PREFIX}{TABLE}.lora_A.weight"] = torch.zeros(4, 131)


def whole_layer(tensors):
    tensors[f"{Q}.weight"] = torch.zeros(96, 48)


def head_norm(tensors):
    tensors[f"{Q.replace('q_proj', 'q_norm')}.weight"] = torch.zeros(16)


def copy_twice(tensors):
    tensors["lm_head.weight"] = torch.zeros(131, 48)


def infinite_norm(tensors):
    tensors[f"{PREFIX}{NORM}.weight"][3] = torch.inf


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (other_vocabulary, "another vocabulary"),
        (other_table, "made for another model"),
        (resized, "base_layer.weight, which is not supported"),
        (half_table, "has no lora_embedding_B"),
        (both, "both an update and a replacement of lm_head"),
        (mixed, "the adapter has lora_A of model.embed_tokens"),
        (whole_layer, "the adapter replaces model.layers.0.self_attn.q_proj"),
        (head_norm, "the adapter replaces model.layers.0.self_attn.q_norm"),
        (copy_twice, "lm_head twice"),
        (infinite_norm, "model.norm has numbers that are not finite"),
    ],
)
def test_ends_that_are_refused(folder, change, reason):
    rewrite(folder, with_ends)
    rewrite(folder, change)
    with pytest.raises(ModelLoadError, match=reason):
        plan_adapter(folder, WHOLE, torch.float32).read()


def test_dora_is_for_linear_layers(folder):
    def only_table(tensors):
        tensors.clear()
        with_ends(tensors)
        tensors[f"{PREFIX}{TABLE}.lora_magnitude_vector"] = torch.ones(48)

    rewrite(folder, only_table)
    configure(folder, use_dora=True)
    with pytest.raises(ModelLoadError, match=r"DoRA for model\.embed_tokens"):
        plan_adapter(folder, WHOLE, torch.float32).read()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"^there is no folder 'nothing'$"):
        plan_adapter(tmp_path / "nothing", MODEL, torch.float32)
