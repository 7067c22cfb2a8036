"""Checkpoints that are made here: read back number by number, served, and refused where they must
be."""

import json
import os
import random
import shutil
import stat
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.commands.quality.measurement import measure
from engine.commands.quantizing import gguf_file, gptq_model, rounded
from engine.commands.quantizing.order import carry_out
from engine.contract.orders import MeasuringOrder, QuantizingOrder
from engine.contract.settings import EngineConfig
from engine.errors import EngineError, InvalidParameter, ModelLoadError, UnsupportedFeature
from tests.helpers.models.gguf_files import write_gguf
from tests.helpers.quantization.gptq_checkpoints import pack_inputs, pack_outputs


def order(model, output, method="int4", **changes):
    values = {
        "model": str(model),
        "method": method,
        "output": output,
        "cache_dir": output.parent,
        "offline": True,
    }
    return QuantizingOrder(**(values | changes))


def made(*arguments, **changes):
    told = []
    report = carry_out(order(*arguments, **changes), told.append)
    assert told[-1].get("progress") in (None, 1.0)
    return report


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(seed=random.randrange(1 << 16))


def numbers(words, bits):
    """[K · bits / 32, N] int32 → [K, N], bit by bit."""
    together = 32 // bits
    rows = [(words.long() >> bits * at) & (2**bits - 1) for at in range(together)]
    return torch.stack(rows, 1).reshape(-1, words.shape[1])


def dequantised(tensors, layer, bits):
    """[N, K] fp32."""
    codes = numbers(tensors[f"{layer}.qweight"], bits)
    zeros = numbers(tensors[f"{layer}.qzeros"].T.contiguous(), bits).T + 1
    scales, groups = tensors[f"{layer}.scales"].float(), tensors[f"{layer}.g_idx"].long()
    return ((codes - zeros[groups]) * scales[groups]).T


@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_are_packed_as_the_layout_says(bits):
    codes = torch.randint(0, 2**bits, (64, 40))
    assert torch.equal(rounded.packed(codes, bits), pack_inputs(codes, bits))
    assert torch.equal(rounded.packed(codes.T, bits).T, pack_outputs(codes, bits))


@pytest.mark.parametrize(("bits", "most"), [(4, 0.13), (8, 0.01)])
def test_a_rounded_layer_is_near_and_no_farther_than_said(bits, most):
    # Scales of 8 bits in smaller weights are so small that fp16 has few bits of them.
    weight = torch.randn(16, 96) * 10.0 ** random.uniform(-1.5, 1)
    weight[3] = 0.0
    tensors, error = rounded.rounded_layer(weight, bits, 32)
    found = dequantised({f"a.{kind}": tensor for kind, tensor in tensors.items()}, "a", bits)
    relative = float((found - weight).square().sum().sqrt() / weight.square().sum().sqrt())
    assert relative == pytest.approx(error, rel=1e-3)
    assert error < most
    assert not found[3].any()
    if bits == 4:  # no worse than a scale that fits the largest weight
        groups = weight.view(16, 3, 32)
        scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float().clamp(min=1e-7)
        plain = ((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum()
        assert (found - weight).square().sum() <= plain * (1 + 1e-5)


def twin_of(made_folder, model, folder, bits):
    """A plain model with the numbers that a rounded one stands for."""
    tensors = load_file(made_folder / "model.safetensors")
    twin = load_file(model / "model.safetensors")
    for name in twin:
        layer = name.removesuffix(".weight")
        if f"{layer}.qweight" in tensors:
            twin[name] = dequantised(tensors, layer, bits).contiguous()
        else:
            assert torch.equal(tensors[name], twin[name])
    shutil.copytree(model, folder)
    save_file(twin, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("method", "most"), [("int4", 0.13), ("int8", 0.01)])
def test_a_rounded_model_is_near_its_original(model, tmp_path, method, most):
    bits = int(method[3:])
    report = made(model, tmp_path / "made", method)
    assert (report["bits"], report["group_size"], report["layers"]) == (bits, 32, 21)
    assert report["bytes_after"] < report["bytes_before"]
    assert 0 < report["relative_error"] < most
    config = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["sym"]) == ("gptq", bits, True)
    twin = load_file(twin_of(tmp_path / "made", model, tmp_path / "t", bits) / "model.safetensors")
    for name, tensor in load_file(model / "model.safetensors").items():
        assert (twin[name] - tensor).norm() <= most * tensor.norm()
    files = {path.name for path in (tmp_path / "made").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= files


@pytest.mark.parametrize(("method", "bits"), [("int4", 4), ("int8", 8)])
def test_a_rounded_model_serves_as_its_numbers_say(model, tmp_path, method, bits):
    made(model, tmp_path / "made", method)
    text = tmp_path / "text"
    text.write_text("".join(random.choices(["the quick", " brown fox", " 1984", "{ _"], k=60)))
    compared = MeasuringOrder(
        model=str(tmp_path / "made"),
        against=str(twin_of(tmp_path / "made", model, tmp_path / "twin", bits)),
        config=EngineConfig(device="cpu", dtype="float32", num_threads=1),
        text=text,
        context=24,
        passages=2,
        cache_dir=tmp_path,
    )
    # The same numbers, summed in another order.
    assert measure(compared, lambda message: None)["kl_divergence"] < 1e-5


def test_large_models_come_in_several_files(model, tmp_path, monkeypatch):
    made(model, tmp_path / "one")
    monkeypatch.setattr(rounded, "SHARD_BYTES", 20_000)
    made(model, tmp_path / "many")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2 and set(index["weight_map"].values()) == set(files)
    together = {}
    for name in files:
        together |= load_file(tmp_path / "many" / name)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    assert together.keys() == whole.keys() == index["weight_map"].keys()
    assert all(torch.equal(whole[name], together[name]) for name in whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "int5"}, "method is 'int5'; it must be one of int4, int8, gptq, awq, gguf-"),
        ({"method": "gguf-q9_9"}, "must be one of"),
        ({"method": "gguf-"}, "must be one of"),
        ({"method": "int4", "bits": 8}, "for int4 it must be 4"),
        ({"method": "awq", "calibration": "t", "bits": 3}, "for awq it must be 4"),
        ({"method": "gptq"}, "--calibration FILE"),
        ({"method": "int8", "calibration": "t"}, "does not use --calibration"),
        ({"method": "gguf-q8_0", "bits": 8}, "leave --bits"),
        ({"group_size": 48}, "group_size is 48"),
        ({"method": "gptq", "calibration": "short", "group_size": 48}, "group_size is 48"),
        ({"group_size": 4}, "at least 8"),
        ({"method": "gptq", "calibration": "nothing"}, "cannot be read"),
        ({"method": "gptq", "calibration": "short"}, "at least 4096"),
        ({"method": "gguf-q8_0"}, "is not a GGUF file"),
    ],
)
def test_what_cannot_be_made_leaves_nothing_behind(model, tmp_path, changes, words):
    (tmp_path / "short").write_text("few words")
    if "calibration" in changes:
        changes = {**changes, "calibration": tmp_path / changes["calibration"]}
    with pytest.raises(EngineError, match=words):
        made(model, tmp_path / "made", **changes)
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


def test_nothing_is_overwritten(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "dangling"):
        with pytest.raises(InvalidParameter, match="exists already"):
            made(model, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InvalidParameter, match="create it first"):
        made(model, tmp_path / "no" / "folder")


def test_what_is_quantised_or_damaged_is_not_quantised(model, tmp_path):
    made(model, tmp_path / "once")
    (tmp_path / "text").write_text("words")
    for changes in ({}, {"method": "gptq", "calibration": tmp_path / "text"}):
        with pytest.raises(UnsupportedFeature, match="already quantised"):
            made(tmp_path / "once", tmp_path / "twice", **changes)
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name][1, 2] = random.choice([float("nan"), float("inf")])
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match="not finite"):
        made(model, tmp_path / "bad")
    assert {path.name for path in tmp_path.iterdir()} == {"once", "text"}


@pytest.fixture
def plain_gguf(tmp_path):
    """A file of some matrices, a vector, and metadata of several kinds."""
    path = tmp_path / "plain.gguf"
    metadata = {
        "general.name": "tiny",
        "llama.block_count": 1,
        "tokenizer.ggml.tokens": ["a", "b", "ü"],
        "tokenizer.ggml.scores": [0.5, 1.5, -2.0],
        "general.file_type": int(gguf.LlamaFileType.ALL_F32),
    }
    shapes = {"a.weight": (6, 64), "odd.weight": (3, 20), "norm.weight": (64,)}
    tensors = {name: torch.randn(shape).numpy() for name, shape in shapes.items()}
    return write_gguf(path, "llama", metadata, tensors)


@pytest.mark.parametrize("name", gguf_file.SIMPLE)
def test_simple_gguf_types_need_no_tool(plain_gguf, tmp_path, monkeypatch, name):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    report = made(plain_gguf, tmp_path / "made.gguf", f"gguf-{name.lower()}")
    assert report["made_by"] == "gguf"
    before, after = (gguf.GGUFReader(p) for p in (plain_gguf, tmp_path / "made.gguf"))
    wanted = gguf.GGMLQuantizationType[name]
    sources = {tensor.name: tensor.data for tensor in before.tensors}
    for tensor in after.tensors:
        is_packed = tensor.name == "a.weight" or (name in ("F16", "BF16") and "odd" in tensor.name)
        if is_packed:
            assert tensor.tensor_type is wanted
            expected = gguf.quantize(sources[tensor.name], wanted)
            assert np.array_equal(tensor.data.view(np.uint8), expected.view(np.uint8))
        else:
            assert np.array_equal(tensor.data, sources[tensor.name])
    for key, entry in before.fields.items():
        if key != "general.file_type" and not key.startswith("GGUF."):
            assert after.fields[key].contents() == entry.contents(), key
    assert after.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{name}"]
    assert "few_bits_before" not in report


def test_a_gguf_file_of_few_bits_is_made_of_fewer_and_the_report_says_so(
    plain_gguf, tmp_path, monkeypatch
):
    """All built-in language models are such files."""
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    made(plain_gguf, tmp_path / "made.gguf", "gguf-q8_0")
    report = made(tmp_path / "made.gguf", tmp_path / "again.gguf", "gguf-q4_0")
    assert report["few_bits_before"] == ["Q8_0"]
    before, after = (
        next(one for one in gguf.GGUFReader(tmp_path / name).tensors if one.name == "a.weight")
        for name in ("made.gguf", "again.gguf")
    )
    plain = gguf.dequantize(before.data, before.tensor_type)
    expected = gguf.quantize(plain, gguf.GGMLQuantizationType.Q4_0)
    assert np.array_equal(after.data.view(np.uint8), expected.view(np.uint8))


def test_other_gguf_types_are_the_tools(plain_gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(UnsupportedFeature, match=r"llama-quantize.*choose one of gguf-q8_0"):
        made(plain_gguf, tmp_path / "made.gguf", "gguf-q4_k_m")
    tool = tmp_path / "llama-quantize"
    tool.write_text('#!/bin/sh\necho "[   2/   2] made"\ncp "$2" "$3"; echo "$1 $4" > "$3.type"\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda name: str(tool))
    assert made(plain_gguf, tmp_path / "made.gguf", "gguf-q4_k_m")["made_by"] == "llama-quantize"
    [noted] = tmp_path.glob(".made.gguf.*.type")
    assert noted.read_text() == "--allow-requantize Q4_K_M\n"
    tool.write_text("#!/bin/sh\necho no such type >&2; exit 3\n")
    with pytest.raises(ModelLoadError, match="exit code 3: no such type"):
        made(plain_gguf, tmp_path / "other.gguf", "gguf-q4_k_m")
    assert not list(tmp_path.glob("*other.gguf*"))


@pytest.fixture
def long_text(tmp_path):
    path = tmp_path / "calibration.txt"
    path.write_text("".join(random.choices(["the quick", " brown fox", " jumps 19"], k=9000)))
    return path


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods_name_what_to_install(model, tmp_path, monkeypatch, long_text, method):
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    with pytest.raises(ModelLoadError, match=r"pip install 'tandem-server\[quantize\]'"):
        made(model, tmp_path / "made", method, calibration=long_text)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_gptqmodel_gets_samples_and_enough_workers(model, tmp_path, monkeypatch, long_text, method):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "environ", {**os.environ})
    os.environ.pop("GPTQMODEL_CPU_WORKERS", None)
    asked = {}

    class Made:
        def quantize(self, samples, batch_size, backend):
            workers = os.environ["GPTQMODEL_CPU_WORKERS"]
            asked.update(samples=samples, backend=backend, workers=workers)
            Path("a_log").touch()

        def save(self, folder):
            shutil.copytree(model, folder)

    library = ModuleType("gptqmodel")
    library.BACKEND = SimpleNamespace(AUTO="any", AWQ_TORCH="without a GPU")
    library.QuantizeConfig = lambda **values: values
    library.quantization = SimpleNamespace(AWQConfig=lambda **values: {**values, "is": "awq"})

    def load(path, config):
        asked["config"] = config
        return Made()

    library.GPTQModel = SimpleNamespace(load=load)
    monkeypatch.setitem(sys.modules, "gptqmodel", library)
    report = made(model, tmp_path / "made", method, calibration=long_text)
    # The largest that divides all rows.
    assert (report["bits"], report["group_size"]) == (4, 32)
    assert asked["config"]["group_size"] == 32
    assert asked["workers"] == "2"
    assert not Path("a_log").exists()
    assert asked["config"].get("is", "gptq") == method
    assert asked["backend"] == ("any" if method == "gptq" else "without a GPU")
    # AWQ without zero points is no AWQ to those who read it, us among them.
    assert asked["config"].get("sym", True) == (method == "gptq")
    assert len(asked["samples"]) == report["samples"]
    assert 8 <= report["samples"] <= gptq_model.NUM_SAMPLES[method]
    assert {len(one["input_ids"]) for one in asked["samples"]} == {gptq_model.SAMPLE_TOKENS}
