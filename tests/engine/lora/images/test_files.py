"""Files of image adapters: what they may be called, and what is refused, why, and before what."""

import hashlib
import json
import os
import random
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.contract.adapter_orders import AdapterReport
from engine.contract.draw import LoraUse
from engine.errors import (
    CorruptFile,
    InsufficientMemory,
    ModelConflict,
    ModelLoadError,
    ShapeMismatch,
    TooManyAdapters,
)
from engine.lora.images import image_adapters
from engine.lora.images.changes import Layer
from engine.lora.images.files import plan_adapter, read_changes
from engine.lora.images.layers import AdaptedLayers
from tests.helpers.adapters.image_adapters import (
    WAYS,
    Written,
    bring,
    dotted,
    kohya,
    load,
    merge,
    table_of,
    use_of,
    write,
)
from tests.helpers.adapters.peft_adapters import Host

CPU = torch.device("cpu")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.to_v, self.to_out = nn.Linear(8, 8), nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x):
        return self.to_out[0](torch.tanh(self.to_q(x)) * self.to_k(x) + self.to_v(x))


class Model(nn.Module):
    """A block with underscores in its name, beside which guessing goes wrong."""

    def __init__(self):
        super().__init__()
        self.attn_blocks = nn.ModuleList([Attention(), Attention()])

    def forward(self, x):
        return self.attn_blocks[1](self.attn_blocks[0](x))


PATHS = [f"attn_blocks.{n}.{name}" for n in (0, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")]
QKV = {f"blocks.{n}.qkv": tuple(f"attn_blocks.{n}.to_{x}" for x in "qkv") for n in (0, 1)}


@pytest.fixture
def model():
    torch.manual_seed(random.randrange(1 << 30))
    return Model().requires_grad_(False)


@pytest.fixture
def layers(model):
    """A model whose text encoder has the same layers as its denoiser."""
    text = Model().requires_grad_(False)
    return AdaptedLayers(
        {"unet": [model], "text_encoder": [text]}, device=CPU, aliases={"unet": QKV}
    )


def output(layers, model, key=None):
    x = torch.ones(1, 3, 8)
    with torch.no_grad(), layers.rows([(LoraUse(name=key),) if key else ()]):
        return model(x)


def check_merged(found, layers, model, updates):
    """It is what the model makes with the updates in its weights."""
    merge(model, updates)
    torch.testing.assert_close(found, output(layers, model), atol=1e-5, rtol=1e-5)


def renamed(tensors, **parts):
    found = {}
    for key, tensor in tensors.items():
        for before, after in parts.items():
            key = key.replace(f".{before}.weight", after)
        found[key] = tensor
    return found


NAMES = {
    "kohya": (kohya("lora_unet"), {}),
    "lycoris": (kohya("lycoris"), {}),
    "one trainer": (kohya("lora_transformer"), {}),
    "diffusers": (dotted("unet"), {"lora_down": ".lora_A.weight", "lora_up": ".lora_B.weight"}),
    "peft": (
        dotted("base_model.model"),
        {"lora_down": ".lora_A.default.weight", "lora_up": ".lora_B.default.weight"},
    ),
    "bare": (lambda path: path, {"lora_down": ".lora.down.weight", "lora_up": ".lora.up.weight"}),
    "comfy": (dotted("diffusion_model"), {}),
    "old diffusers": (
        lambda path: f"unet.{path.removesuffix('.0').replace('.to_', '.processor.to_')}",
        {"lora_down": "_lora.down.weight", "lora_up": "_lora.up.weight"},
    ),
}


@pytest.mark.parametrize("style", NAMES)
def test_all_that_trainers_call_layers(layers, model, tmp_path, style):
    name_of, parts = NAMES[style]
    made = write(model, PATHS, name_of, alpha=None if style == "old diffusers" else 2.0)
    made.tensors = renamed(made.tensors, **parts)
    table = table_of(layers)
    file = made.save(tmp_path / "a.safetensors")
    report = load(table, "a", file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert report == AdapterReport(num_layers=8, ranks=(3, 5), digest=digest)
    assert table.digests == {"a": digest}
    found = output(layers, model, table.key_of("a"))
    check_merged(found, layers, model, made.updates)
    assert layers.of_prompts((LoraUse(name=table.key_of("a")),)) == ()


@pytest.mark.parametrize(
    "prefix", ["lora_te", "lora_te1", "text_encoder", "text_encoder.text_model"]
)
def test_text_encoders_are_told_apart(layers, tmp_path, prefix):
    name_of = kohya(prefix) if prefix.startswith("lora") else dotted(prefix)
    made = write(Model(), PATHS, name_of)
    if "." in prefix:
        parts = {"lora_down": ".lora_linear_layer.down.weight"}
        made.tensors = renamed(made.tensors, lora_up=".lora_linear_layer.up.weight", **parts)
    use = use_of(table_of(layers), made, tmp_path)
    assert layers.of_prompts((use,)) == (use,)


@pytest.mark.parametrize("way", ["lora", "loha", "lokr"])
def test_layers_that_the_original_has_as_one(layers, model, tmp_path, way):
    fused = nn.Module()
    fused.blocks = nn.ModuleList([nn.Module(), nn.Module()])
    for block in fused.blocks:
        block.qkv = nn.Linear(8, 24)
    made = write(fused, QKV, kohya("lora_unet"), way=way)
    table = table_of(layers)
    report = load(table, "a", made.save(tmp_path / "a.safetensors"))
    assert isinstance(report, AdapterReport), report
    assert report.num_layers == 6
    found = output(layers, model, table.key_of("a"))
    updates = {
        path: update
        for name, paths in QKV.items()
        for path, update in zip(paths, made.updates[name].split(8), strict=True)
    }
    check_merged(found, layers, model, updates)


def test_alpha_of_a_configuration_in_the_header(layers, model, tmp_path):
    """As diffusers writes it since 0.34."""
    made = write(model, PATHS, dotted("unet"), alpha=None)
    tensors = renamed(made.tensors, lora_down=".lora_A.weight", lora_up=".lora_B.weight")
    config = {
        "unet.r": 3,
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {"attn_blocks.1.to_k": 20},
        "unet.use_rslora": False,
    }
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    table = table_of(layers)
    load(table, "a", tmp_path / "a.safetensors")
    found = output(layers, model, table.key_of("a"))
    for place, (path, update) in enumerate(made.updates.items()):
        rank, alpha = (3, 5)[place % 2], 20 if path == "attn_blocks.1.to_k" else 6
        update *= alpha / rank
    check_merged(found, layers, model, made.updates)


def test_what_the_model_has_not_is_left_out_and_named(layers, model, tmp_path):
    made = write(model, PATHS[:3], kohya("lora_unet"))
    other = write(model, PATHS[3:5], kohya("lora_te2"))
    made.tensors |= other.tensors
    report = load(table_of(layers), "a", made.save(tmp_path / "a.safetensors"))
    assert (report.num_layers, report.num_left_out) == (3, 2)
    assert report.left_out == ("lora_te2_attn_blocks_0_to_out_0", "lora_te2_attn_blocks_1_to_q")


def test_folders(layers, model, tmp_path):
    made = write(model, PATHS, dotted("unet"))
    table = table_of(layers)
    made.save(tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    made.save(tmp_path / "one" / "whatever.safetensors")
    for name in ("diffusers", "one"):
        assert load(table, name, tmp_path / name).num_layers == 8
    made.save(tmp_path / "one" / "another.safetensors")
    error = load(table, "x", tmp_path / "one")
    assert isinstance(error, ModelLoadError) and "2 .safetensors files" in error.message


def first(tensors, end="lora_down.weight"):
    return next(key for key in tensors if key.endswith(end))


def changed(end, value):
    """Replace the first tensor whose name ends so; None removes it."""

    def damage(tensors):
        key = first(tensors, end)
        tensors[key] = value
        if value is None:
            del tensors[key]

    return damage


def nan(tensors):
    tensors[first(tensors)][0, 0] = float("nan")


def renamed_all(tensors):
    for key in list(tensors):
        tensors[key.replace("attn_blocks", "elsewhere")] = tensors.pop(key)


def both_spellings(tensors):
    for key in [key for key in tensors if key.startswith("unet.attn_blocks.0.to_q.")]:
        tensors[key.replace("unet.", "diffusion_model.")] = tensors[key].clone()


def beside(part, value):
    """Add a tensor of the first layer."""
    return lambda tensors: tensors.update({first(tensors).replace("lora_down.weight", part): value})


DAMAGES = {
    "no up": (changed("lora_up.weight", None), CorruptFile, "has no up"),
    "no down": (changed("lora_down.weight", None), CorruptFile, "has no down"),
    "not a number": (nan, ModelLoadError, "not finite"),
    "another model's": (renamed_all, ModelLoadError, "none of the adapter's 8 layers"),
    "another size": (changed("lora_down.weight", torch.ones(3, 9)), ShapeMismatch, "8 inputs"),
    "another rank": (changed("lora_up.weight", torch.ones(8, 4)), ShapeMismatch, "another model"),
    "no axis": (changed("lora_down.weight", torch.tensor(1.0)), ShapeMismatch, "another model"),
    "a kernel": (changed("lora_down.weight", torch.ones(3, 8, 3, 3)), ShapeMismatch, "another"),
    "no rank": (changed("lora_down.weight", torch.ones(0, 8)), ShapeMismatch, "another model"),
    "integers": (changed("alpha", torch.tensor(1)), ModelLoadError, "has type I64"),
    "many alphas": (changed("alpha", torch.ones(2)), CorruptFile, "must be a single number"),
    "endless alpha": (
        changed("alpha", torch.tensor(float("inf"))),
        ModelLoadError,
        "alpha that is",
    ),
    "twice": (beside("lora_A.weight", torch.ones(3, 8)), CorruptFile, "twice"),
    "spelt twice": (both_spellings, CorruptFile, "the same layer"),
    "two ways": (beside("hada_w1_a", torch.ones(8, 2)), CorruptFile, "two adapter types"),
    "lengths alone": (
        lambda t: t.update({"unet.attn_blocks.9.to_q.dora_scale": torch.ones(8, 1)}),
        CorruptFile,
        "DoRA magnitudes without weights",
    ),
    "lengths of inputs": (beside("dora_scale", torch.ones(1, 8)), ModelLoadError, "per input"),
    "lengths of another": (beside("dora_scale", torch.ones(7, 1)), ShapeMismatch, "another model"),
    "endless lengths": (
        beside("dora_scale", torch.full((8, 1), torch.inf)),
        ModelLoadError,
        "not finite",
    ),
    "a long name": (lambda t: t.update({"x" * 600 + ".alpha": torch.ones(())}), ModelLoadError, ""),
    "nothing": (dict.clear, ModelLoadError, "none of the adapter's 0 layers"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_broken_one_is_refused_and_changes_nothing(layers, model, tmp_path, case):
    damage, kind, words = DAMAGES[case]
    host = Host()
    table = table_of(layers, host=host)
    good = write(model, PATHS, dotted("unet"), seed=1)
    load(table, "good", good.save(tmp_path / "good.safetensors"))
    key, lent = table.key_of("good"), dict(host.lent)
    before = output(layers, model, key)
    made = write(model, PATHS, dotted("unet"))
    damage(made.tensors)
    error = load(table, "bad", made.save(tmp_path / "bad.safetensors"))
    assert isinstance(error, kind), error
    assert words in error.message
    assert str(tmp_path) not in error.message and len(error.message) < 500
    assert (table.names, host.lent) == (("good",), lent)
    assert torch.equal(output(layers, model, key), before)


def header(entries, extra=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + extra


LAYER = "unet.attn_blocks.0.to_q"
HUGE = {
    f"{LAYER}.lora_A.weight": {"dtype": "F32", "shape": [1 << 40, 8], "data_offsets": [0, 16]},
    f"{LAYER}.lora_B.weight": {"dtype": "F32", "shape": [8, 1 << 40], "data_offsets": [16, 32]},
}
RANK_257 = {
    f"{LAYER}.lora_A.weight": {"dtype": "F32", "shape": [257, 8], "data_offsets": [0, 8224]},
    f"{LAYER}.lora_B.weight": {"dtype": "F32", "shape": [8, 257], "data_offsets": [8224, 16448]},
}
FILES = {
    "empty": (b"", CorruptFile, "damaged"),
    "cut": (header(RANK_257, bytes(100)), CorruptFile, "fetch it again"),
    "a header without end": (struct.pack("<Q", 1 << 60) + b"{}", CorruptFile, "damaged"),
    "a large header": (struct.pack("<Q", 17 << 20) + bytes(18 << 20), CorruptFile, "damaged"),
    "no header": (b"PK\3\4" + bytes(50), CorruptFile, "damaged"),
    "a rank beyond memory": (header(HUGE, bytes(32)), ModelLoadError, "rank 1099511627776"),
    "a rank beyond the limit": (header(RANK_257, bytes(16448)), ModelLoadError, "1 to 256"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_none(layers, tmp_path, case):
    data, kind, words = FILES[case]
    (tmp_path / "a.safetensors").write_bytes(data)
    host = Host()
    error = load(table_of(layers, host=host), "a", tmp_path / "a.safetensors")
    assert isinstance(error, kind), error
    assert words in error.message
    assert host.lent == {}


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.ckpt"])
def test_pickles_are_never_opened(layers, tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"x": Trap()}, tmp_path / name)
    for place in (tmp_path / name, tmp_path):
        error = load(table_of(layers), "a", place)
        assert isinstance(error, ModelLoadError) and "can run any code" in error.message
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("part", "value"), [("lokr_w1_b", torch.ones(())), ("lokr_w2", torch.ones(4, 4))]
)
def test_a_side_of_lokr_is_whole_or_in_factors(layers, model, tmp_path, part, value):
    made = write(model, PATHS, dotted("unet"), way="lokr")
    made.tensors[f"{LAYER}.{part}"] = value
    error = load(table_of(layers), "a", made.save(tmp_path / "a.safetensors"))
    assert isinstance(error, ShapeMismatch) and part in error.message


@pytest.mark.parametrize(
    ("way", "part", "value"),
    [
        ("lokr whole", "lokr_w2", torch.ones(4, 5)),
        ("lokr whole", "lokr_w1", torch.ones(4, 4)),
        ("lokr factored", "lokr_w1_a", torch.ones(3, 3)),
        ("lokr core", "lokr_t2", torch.ones(3, 4, 3, 3)),
        ("lokr core", "lokr_t2", torch.ones(3, 3, 3, 2)),
        ("loha tucker", "hada_t1", torch.ones(3, 3, 3, 2)),
    ],
)
def test_sizes_that_do_not_go_together(tmp_path, way, part, value):
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3) if way.endswith(("core", "tucker")) else nn.Linear(8, 8)
    )
    made = write(model, ["0"], dotted("unet"), way=way)
    made.tensors[f"unet.0.{part}"] = value
    table = table_of(AdaptedLayers({"unet": [model]}, device=CPU))
    error = load(table, "a", made.save(tmp_path / "a.safetensors"))
    assert isinstance(error, ShapeMismatch) and part in error.message


@pytest.mark.parametrize("way", WAYS)
def test_as_many_numbers_are_kept_as_were_planned(model, tmp_path, way):
    """Whatever takes fewer, factors or their product."""
    paths = ["linear", "map"]
    own = nn.ModuleDict({"linear": nn.Linear(24, 40), "map": nn.Conv2d(6, 8, 3)})
    for rank in (1, 3, 6):
        made = write(own, paths, dotted("unet"), way=way, ranks=(rank,))
        file = made.save(tmp_path / f"{rank}.safetensors")
        places = {("unet", path): Layer.of(own[path]) for path in paths}
        plan = plan_adapter(file, {f"unet.{path}": (("unet", path),) for path in paths}, places)
        changes = read_changes(plan, torch.float32, CPU).values()
        kept = sum(tensor.numel() for change in changes for tensor in change.tensors)
        assert kept == plan.num_weights, rank


def same_shapes(made):
    for tensor in made.tensors.values():
        tensor.mul_(2)


def another_rank(made):
    made.tensors = write(Model(), PATHS, dotted("unet"), ranks=(4,)).tensors


def test_one_whose_file_has_changed_does_not_come_back(layers, model, tmp_path):
    host = Host()
    table = table_of(layers, host=host, max_slots=1)
    for name in "ab":
        file = write(model, PATHS, dotted("unet")).save(tmp_path / f"{name}.safetensors")
        load(table, name, file)
    os.utime(file, ns=(0, 0))
    error = bring(table, "b")
    assert "the adapter's files have changed since it was loaded" in error.message
    assert (table.take((table.key_of("b"),)), host.lent) == (False, {})


@pytest.mark.parametrize("change", [same_shapes, another_rank])
def test_one_that_is_written_to_while_it_is_read_is_refused(
    layers, model, tmp_path, monkeypatch, change
):
    made, plan = write(model, PATHS, dotted("unet")), image_adapters.plan_adapter
    file = made.save(tmp_path / "a.safetensors")
    os.utime(file, ns=(0, 0))  # clocks of file systems are coarse

    def planned(*args):
        found = plan(*args)
        change(made)
        made.save(file)
        return found

    monkeypatch.setattr(image_adapters, "plan_adapter", planned)
    host = Host()
    table = table_of(layers, host=host)
    error = load(table, "a", file)
    assert isinstance(error, ModelLoadError)
    assert "have changed since reading them began" in error.message
    assert (table.names, host.lent) == ((), {})


def test_a_place_that_is_not_there(layers, tmp_path):
    error = load(table_of(layers), "a", tmp_path / "nowhere.safetensors")
    assert isinstance(error, ModelLoadError) and "there is no file or folder" in error.message


def test_names_and_numbers_are_limited(layers, model, tmp_path):
    file = write(model, PATHS, dotted("unet")).save(tmp_path / "a.safetensors")
    table = table_of(layers, room=1)
    load(table, "a", file)
    assert isinstance(load(table, "a", file), ModelConflict)
    assert isinstance(load(table, "b", file), TooManyAdapters)
    before = table.key_of("a")
    assert isinstance(load(table, "a", file, replaces=True, in_use=[before]), AdapterReport)
    assert table.key_of("a") != before


def test_memory_is_asked_for_and_given_back(layers, model, tmp_path):
    made = write(model, PATHS, dotted("unet"))
    file = made.save(tmp_path / "a.safetensors")
    weights = sum(t.nbytes for key, t in made.tensors.items() if not key.endswith("alpha"))
    host = Host(capacity=weights + 100)
    table = table_of(layers, host=host)
    load(table, "a", file)
    assert list(host.lent.values()) == [weights]
    assert isinstance(load(table, "b", file), InsufficientMemory)
    table.unload("a", lambda _: None)
    table.advance(set)
    assert host.lent == {}
    assert isinstance(load(table, "b", file), AdapterReport)


def test_peft_folders_of_each_kind(layers, model, tmp_path):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    targets = ["to_q", "to_v", "to_out.0"]
    kinds = {
        "lora": peft.LoraConfig(
            r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False,
            rank_pattern={"attn_blocks.1.to_q": 2}, use_rslora=True,
        ),
        "loha": peft.LoHaConfig(r=4, alpha=6, target_modules=targets, init_weights=False),
        "lokr": peft.LoKrConfig(r=4, alpha=6, target_modules=targets, init_weights=False),
    }  # fmt: skip
    table = table_of(layers)
    for name, config in kinds.items():
        own = Model()
        own.load_state_dict(model.state_dict())
        tuned = peft.get_peft_model(own, config)
        tuned.save_pretrained(tmp_path / name)
        report = load(table, name, tmp_path / name)
        assert isinstance(report, AdapterReport), (name, report)
        assert report.num_layers == 6
        with torch.no_grad():
            wanted = tuned.eval()(torch.ones(1, 3, 8))
        found = output(layers, model, table.key_of(name))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_written_is_what_it_says():
    """The oracle of these tests itself: a low rank update is the product of its parts."""
    layer = nn.Module()
    layer.a = nn.Linear(4, 6)
    made = write(layer, ["a"], dotted("unet"), alpha=2.0, ranks=(3,))
    assert isinstance(made, Written)
    product = made.tensors["unet.a.lora_up.weight"] @ made.tensors["unet.a.lora_down.weight"]
    torch.testing.assert_close(made.updates["a"], product * 2 / 3)
