"""What is read of PEFT's files, and what is refused, with the reason."""

import json
import os
import pickle
import random
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
Q_A, Q_B, Q_MAGNITUDES = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", f"{Q}.lora_magnitude_vector"
Q_SHAPES = {Q_A: (4, 48), Q_B: (96, 4)}
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
HEAD_UPDATE = {
    f"{PREFIX}{HEAD}.lora_A.weight": torch.zeros(4, 48),
    f"{PREFIX}{HEAD}.lora_B.weight": torch.zeros(131, 4),
}
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
    """Change the saved tensors by a function, or by the new ones, of which None removes one."""
    tensors = load_file(folder / WEIGHTS)
    if callable(change):
        change(tensors)
    else:
        tensors = {key: one for key, one in (tensors | change).items() if one is not None}
    save_file(tensors, folder / WEIGHTS)


def test_numbers_names_and_scales(folder):
    adapter = plan_adapter(folder, MODEL, torch.float32).read()
    assert adapter.updates.keys() == SHAPES.keys()
    tensors = load_file(folder / WEIGHTS)
    update = adapter.updates["model.layers.0.self_attn.q_proj"]
    assert torch.equal(update.a, tensors[Q_A])
    assert torch.equal(update.b, tensors[Q_B].T)
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


def zeros_but_one(value, *shape):
    tensor = torch.zeros(shape)
    tensor.view(-1)[random.randrange(tensor.numel())] = value
    return tensor


def wide(tensors):
    for key in list(tensors):
        if key.endswith("lora_A.weight"):
            tensors[key] = torch.zeros(tensors[key].shape[0], 64)


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
        tensors[Q_MAGNITUDES] = magnitudes

    configure(folder, use_dora=True)
    rewrite(folder, add)
    if reason is None:
        update = plan_adapter(folder, MODEL, torch.bfloat16).read().updates[Q.removeprefix(PREFIX)]
        assert torch.equal(update.magnitude, magnitudes)
    else:
        with pytest.raises(ModelLoadError, match=reason):
            plan_adapter(folder, MODEL, torch.bfloat16).read()


def strangers(tensors):
    for key in list(tensors):
        tensors[key.replace("model.layers", "transformer.h")] = tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({Q_A: zeros_but_one(torch.nan, 4, 48)}, "not finite"),
        ({Q_B: zeros_but_one(1e30, 96, 4)}, "not finite in torch.float16"),
        ({Q_B: None}, "q_proj has no lora_B"),
        ({Q_A: torch.zeros(48, 4)}, "made for another model"),
        (wide, "made for another model; 13 more of its layers do not fit"),
        (
            {key.replace(".0.", ".7."): torch.zeros(shape) for key, shape in Q_SHAPES.items()},
            r"linear layers \(model.layers.7.self_attn.q_proj",
        ),
        (
            {Q_A: torch.zeros(4096, 48), Q_B: torch.zeros(96, 4096)},
            "rank 4096; the limit is 256",
        ),
        ({Q_A: torch.zeros(())}, "made for another model"),
        ({Q_A: torch.zeros(0, 48), Q_B: torch.zeros(96, 0)}, "made for another model"),
        ({Q_MAGNITUDES: torch.ones(96)}, "lora_magnitude_vector, which is not supported"),
        (
            {f"{PREFIX}{TABLE}.lora_embedding_A": torch.zeros(4, 131)},
            "the adapter changes model.embed_tokens",
        ),
        (HEAD_UPDATE, "the adapter changes lm_head"),
        ({Q_A: torch.zeros(4, 48, dtype=torch.int32)}, "has type I32"),
        (strangers, "has 0: the adapter was made"),
        (
            {
                key.replace("q_proj", "kv_b_proj"): torch.zeros(shape)
                for key, shape in Q_SHAPES.items()
            },
            r"changes model.layers.0.self_attn.kv_b_proj, and .* train one without kv_b_proj",
        ),
        (
            {"model.layers.0.self_attn.q_proj.lora_A": torch.zeros(9, 48)},
            "lora_A of model.layers.0.self_attn.q_proj twice",
        ),
        (dict.clear, "has 0: the adapter was made"),
    ],
)
def test_tensors_that_are_refused(folder, change, reason):
    rewrite(folder, change)
    with pytest.raises(ModelLoadError, match=reason):
        plan_adapter(folder, MODEL, torch.float16).read()


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"a": 1}))


def pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / WEIGHTS, 999),
    "a header cut": lambda folder: os.truncate(folder / WEIGHTS, 20),
    "pickled": pickled,
    "a pickle by another name": lambda f: (f / WEIGHTS).write_bytes(pickle.dumps({"a": 1})),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no configuration": lambda folder: (folder / CONFIG).unlink(),
    "a configuration cut": lambda folder: (folder / CONFIG).write_text("{"),
    "a configuration that is a list": lambda folder: (folder / CONFIG).write_text("[]"),
    "a pipe": pipe,
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{PREFIX}{HEAD}.weight": torch.zeros(132, 48)}, "another vocabulary"),
        ({f"{PREFIX}{TABLE}.lora_embedding_A": torch.zeros(4, 132)}, "made for another model"),
        (
            {f"{PREFIX}{TABLE}.base_layer.weight": torch.zeros(132, 48)},
            "base_layer.weight, which is not supported",
        ),
        ({f"{PREFIX}{TABLE}.lora_embedding_B": None}, "has no lora_embedding_B"),
        (HEAD_UPDATE, "both an update and a replacement of lm_head"),
        (
            {f"{PREFIX}{TABLE}.lora_A.weight": torch.zeros(4, 131)},
            "the adapter has lora_A of model.embed_tokens",
        ),
        (
            {f"{Q}.weight": torch.zeros(96, 48)},
            "the adapter replaces model.layers.0.self_attn.q_proj",
        ),
        (
            {f"{Q.replace('q_proj', 'q_norm')}.weight": torch.zeros(16)},
            "the adapter replaces model.layers.0.self_attn.q_norm",
        ),
        ({"lm_head.weight": torch.zeros(131, 48)}, "lm_head twice"),
        (
            {f"{PREFIX}{NORM}.weight": zeros_but_one(torch.inf, 48)},
            "model.norm has numbers that are not finite",
        ),
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
