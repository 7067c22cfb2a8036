"""Damaged GGUF files end in a clear error: no crash, no hang, no huge allocation."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from engine.errors import CorruptFile, ModelLoadError
from engine.weights.gguf_tensors import read_tensors
from engine.weights.loader import iter_weights, load_model_config, weight_headers
from engine.weights.source import Checkpoint
from tests.helpers.models.damage import num_refused
from tests.helpers.models.gguf_files import write_gguf


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small but complete Llama, Q8_0 where rows allow it."""
    metadata = {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(32)],
        "tokenizer.ggml.token_type": [1] * 32,
    }
    rng = np.random.default_rng(0)
    quant = gguf.GGMLQuantizationType.Q8_0
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down")
    tensors = {
        f"blk.0.{name}.weight": gguf.quantize(rng.standard_normal((64, 64), np.float32), quant)
        for name in parts
    }
    types = dict.fromkeys(tensors, quant)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[f"{name}.weight"] = np.ones(64, np.float32)
    tensors["token_embd.weight"] = rng.standard_normal((32, 64), np.float32)
    path = tmp_path_factory.mktemp("whole") / "a.gguf"
    return write_gguf(path, "llama", metadata, tensors, types).read_bytes()


def load(path: Path) -> None:
    checkpoint = Checkpoint("gguf", path, "damaged")
    config = load_model_config(checkpoint)
    weight_headers(checkpoint, config)
    for _, tensor in iter_weights(checkpoint, config):
        tensor.sum()


def header_bytes(data: bytes) -> int:
    """Give the bytes before the tensor data, which begins soon after the last name."""
    return data.rindex(b"token_embd.weight") + 64


def test_the_whole_file_loads(whole, tmp_path):
    (tmp_path / "a.gguf").write_bytes(whole)
    load(tmp_path / "a.gguf")


def test_truncated_anywhere(whole, tmp_path):
    path = tmp_path / "a.gguf"
    header = header_bytes(whole)
    cuts = [0, 1, 3, 4, 8, 23, 24, len(whole) - 1]
    cuts += [random.randrange(header) for _ in range(100)]
    cuts += [random.randrange(header, len(whole)) for _ in range(50)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptFile):
            load(path)
            pytest.fail(f"cut at {cut} went unnoticed")


@pytest.mark.parametrize("style", ["bit", "byte", "word"])
def test_changed_header(whole, tmp_path, style):
    path = tmp_path / "a.gguf"
    path.write_bytes(whole)
    assert num_refused({path: header_bytes(whole)}, lambda: load(path), 80, [style]) > 10


def entry(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    layout = f"<Q{len(name)}sI{len(dims)}QIQ"
    return struct.pack(layout, len(name), name, len(dims), *dims, kind, offset)


def gguf_of(*entries: bytes, version: int = 3) -> bytes:
    data = struct.pack("<4sIQQ", b"GGUF", version, len(entries), 0) + b"".join(entries)
    return data + bytes(-len(data) % 32) + bytes(4096)


@pytest.mark.parametrize(
    "entries",
    [
        [entry(b"a", (), 0, 0)],
        [entry(b"a", (1, 1, 1, 1, 1), 0, 0)],
        [entry(b"a", (0, 4), 0, 0)],
        [entry(b"a", (2**40, 2**40), 0, 0)],
        [entry(b"a", (2**63, 2), 0, 0)],
        [entry(b"a", (33, 2), 8, 0)],
        [entry(b"a", (32,), 0, 2**63)],
        [entry(b"a", (1025,), 0, 0)],
        [entry(b"a", (32,), 0, 0), entry(b"a", (32,), 0, 128)],
        [entry(b"\xff\xfe", (32,), 0, 0)],
    ],
)
def test_impossible_tensors(entries, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_of(*entries))
    with pytest.raises(CorruptFile):
        read_tensors(path)


@pytest.mark.parametrize(("number", "name"), [(4711, "type number 4711"), (42, "type Q2_0")])
def test_an_unknown_type_is_named(number, name, tmp_path):
    if number in list(gguf.GGMLQuantizationType):
        pytest.skip("the installed gguf package knows it")
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_of(entry(b"blk.0.attn_q.weight", (32, 2), number, 0)))
    with pytest.raises(ModelLoadError, match=rf"blk\.0\.attn_q\.weight.*{name}"):
        read_tensors(path)


def test_arrays_of_arrays_are_stepped_over(tmp_path):
    inner = struct.pack("<IQII", 4, 2, 7, 8)
    outer = struct.pack("<IQ", 9, 2) + inner + inner
    key = struct.pack("<Q1sI", 1, b"k", 9) + outer
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + key + entry(b"a", (32,), 0, 0)
    path = tmp_path / "a.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(128))
    assert read_tensors(path)["a"].shape == (32,)
