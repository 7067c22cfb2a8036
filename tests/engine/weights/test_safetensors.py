import json
import os
import random
import struct
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import CorruptFile, MissingWeight, ModelLoadError
from engine.weights import safetensors as reading
from engine.weights.loader import iter_weights, load_model_config
from engine.weights.safetensors import (
    file_headers,
    folder_headers,
    iter_folder_weights,
    read_header,
    read_tensors,
)
from tests.helpers.models.checkpoints import in_folder, num_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def config(tiny_llama):
    return load_model_config(in_folder(tiny_llama()))


@pytest.fixture(scope="module")
def tied(tiny_llama):
    return load_model_config(in_folder(tiny_llama(tie_word_embeddings=True)))


def shard(folder: Path, **files: dict[str, torch.Tensor]) -> Path:
    """Files and their index."""
    weight_map = {}
    for stem, tensors in files.items():
        save_file(tensors, folder / f"{stem}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"{stem}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_yields_every_tensor_of_a_folder(dtype, tiny_qwen3):
    checkpoint = in_folder(tiny_qwen3(dtype=dtype))
    ours = dict(iter_weights(checkpoint, load_model_config(checkpoint)))
    theirs = load_file(checkpoint.path / "model.safetensors")
    assert_same(ours, theirs)
    assert all(tensor.dtype == getattr(torch, dtype) for tensor in ours.values())
    assert num_weights(checkpoint) == sum(tensor.numel() for tensor in theirs.values())


def test_yields_every_tensor_of_a_sharded_model(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_llama()
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    checkpoint = in_folder(tmp_path)
    ours = dict(iter_weights(checkpoint, load_model_config(checkpoint)))
    assert_same(ours, load_file(folder / "model.safetensors"))
    assert num_weights(checkpoint) == num_weights(in_folder(folder))


def test_the_index_decides_between_copies(config, tmp_path):
    shard(tmp_path, a={"x": torch.zeros(2)}, b={"y": torch.ones(3), "z": torch.ones(1)})
    save_file({"x": torch.full((2,), 7.0)}, tmp_path / "consolidated.safetensors")
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    del weight_map["z"]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    weights = dict(iter_folder_weights(tmp_path, config))
    assert weights.keys() == {"x", "y"}
    assert weights["x"].tolist() == [0, 0]


def test_without_an_index_the_usual_file_or_all(config, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"y": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert dict(iter_folder_weights(tmp_path, config)).keys() == {"x", "y"}
    save_file({"z": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert dict(iter_folder_weights(tmp_path, config)).keys() == {"z"}


def test_what_the_model_does_not_read_is_left_out(config, tied, tmp_path):
    names = ("lm_head.weight", "a.rotary_emb.inv_freq", "mtp.fc.weight")
    tensors = {name: torch.zeros(2, 2) for name in names}
    save_file(tensors, tmp_path / "model.safetensors")
    assert dict(iter_folder_weights(tmp_path, config)).keys() == {"lm_head.weight"}
    assert dict(iter_folder_weights(tmp_path, tied)) == {}


def test_reads_a_big_file_without_copying_it(config, tmp_path):
    import psutil

    save_file({"x": torch.zeros(64 << 20, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    process = psutil.Process()
    before = process.memory_info().rss
    for _, tensor in iter_folder_weights(tmp_path, config):
        assert tensor.numel() == 64 << 20
        assert process.memory_info().rss - before < 8 << 20


def test_missing_files_and_tensors(config, tmp_path):
    shard(tmp_path, a={"x": torch.zeros(2)}, b={"y": torch.zeros(2)})
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(MissingWeight, match=r"b\.safetensors"):
        dict(iter_folder_weights(tmp_path, config))
    save_file({"other": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(MissingWeight, match=r"b\.safetensors lacks tensor 'y'"):
        folder_headers(tmp_path)


@pytest.mark.parametrize(
    "index",
    ["{}", '{"weight_map": []}', '{"weight_map": {"x": 1}}', '{"weight_map": {"x": "../a"}}', "x"],
)
def test_a_bad_index(index, config, tmp_path):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CorruptFile, match="index"):
        dict(iter_folder_weights(tmp_path, config))


def test_an_unknown_dtype_or_layout(config, tmp_path):
    path = tmp_path / "model.safetensors"
    for dtype, end in (("NEW8", 4), ("F32", 4), ("F32", 400)):
        entry = {"x": {"dtype": dtype, "shape": [4], "data_offsets": [0, end]}}
        header = json.dumps(entry).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(end))
        with pytest.raises(CorruptFile):
            dict(iter_folder_weights(tmp_path, config))


@pytest.mark.parametrize("shape", ["", {}, None, 1])
def test_a_shape_that_is_no_list(shape, tmp_path):
    path = tmp_path / "model.safetensors"
    entry = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}
    header = json.dumps(entry).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CorruptFile):
        dict(chain.from_iterable(read_tensors(path, "x")))


def test_truncated_or_changed_anywhere(config, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.randn(16, 16), "y": torch.randn(7), "z": torch.randn(3, 5)}, path)
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0] + 8
    cuts = [0, 1, 7, 8, header, len(whole) - 1]
    for cut in cuts + [random.randrange(len(whole)) for _ in range(60)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptFile):
            dict(iter_folder_weights(tmp_path, config))
            pytest.fail(f"cut at {cut} went unnoticed")
    for _ in range(300):
        data = bytearray(whole)
        data[random.randrange(header)] = random.randrange(256)
        path.write_bytes(data)
        try:
            folder_headers(tmp_path)
            dict(chain.from_iterable(read_tensors(path, "xyz")))
            dict(iter_folder_weights(tmp_path, config))
        except ModelLoadError:
            pass
        except BaseException as error:
            pytest.fail(f"{error!r}")


@pytest.mark.parametrize("piece_bytes", [1, 80, 4096])
def test_some_tensors_in_memory_of_their_own(piece_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_PIECE_BYTES", piece_bytes)
    path = tmp_path / "a.safetensors"
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).bfloat16(),
        "c": torch.randn(2, 2, 2).half(),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(3.0),
        "other": torch.arange(9),
    }
    save_file(tensors, path)
    del tensors["other"]
    found = dict(chain.from_iterable(read_tensors(path, tensors)))
    os.truncate(path, 10)
    assert_same(found, tensors)


@pytest.mark.parametrize("names", [("other",), ("a", "unheard of")])
def test_tensors_that_are_not_read(names, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(3), "other": torch.arange(9)}, path)
    with pytest.raises(CorruptFile):
        dict(chain.from_iterable(read_tensors(path, names)))


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path, monkeypatch):
    """If the file were mapped, missing pages would end the process."""
    path, look = tmp_path / "a.safetensors", reading._checked_header
    save_file({"a": torch.zeros(1 << 20)}, path)

    def looked_at(*args):
        found = look(*args)
        os.truncate(path, 1 << 16)
        return found

    monkeypatch.setattr(reading, "_checked_header", looked_at)
    with pytest.raises(CorruptFile):
        dict(chain.from_iterable(read_tensors(path, ("a",))))


@pytest.mark.parametrize("length", [2**63, 2**40, 100 << 20, 10])
def test_a_header_length_that_cannot_be(length, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" * 100)
    with pytest.raises(CorruptFile):
        read_header(path)


def test_headers_read_small_tensors_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"few": torch.tensor([3, 1 << 40]), "none": torch.zeros(0), "many": torch.zeros(2000)}
    save_file(tensors, path)
    headers = file_headers(path)
    assert headers["few"].content is not None
    assert headers["few"].content() == tensors["few"].numpy().tobytes()
    assert headers["none"].content is not None
    assert headers["none"].content() == b""
    assert headers["many"].content is None
    path.unlink()
    with pytest.raises(ModelLoadError):
        headers["few"].content()
