"""Damaged GGUF files end in a clear error: no crash, no hang, no huge allocation."""

import random
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from engine.errors import CorruptFile, ModelLoadError
from engine.weights.gguf_tensors import read_tensors
from engine.weights.loader import iter_weights, load_model_config, weight_headers
from engine.weights.source import Checkpoint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small but complete Llama, Q8_0 where rows allow it."""
    import gguf

    path = tmp_path_factory.mktemp("whole") / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 64,
        "feed_forward_length": 64,
        "attention.head_count": 4,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(32)])
    writer.add_array("tokenizer.ggml.token_type", [1] * 32)
    rng = np.random.default_rng(0)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"):
        data = rng.standard_normal((64, 64)).astype(np.float32)
        quant = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"blk.0.{name}.weight", gguf.quantize(data, quant), raw_dtype=quant)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, np.float32))
    writer.add_tensor("token_embd.weight", rng.standard_normal((32, 64)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


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
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    header = header_bytes(whole)
    cuts = [0, 1, 3, 4, 8, 23, 24, len(whole) - 1]
    cuts += [rng.randrange(header) for _ in range(100)]
    cuts += [rng.randrange(header, len(whole)) for _ in range(50)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(CorruptFile):
            load(path)
            pytest.fail(f"cut at {cut} went unnoticed, seed {seed}")


@pytest.mark.parametrize("style", ["bit", "byte", "word"])
def test_changed_header(whole, tmp_path, style):
    """A flipped bit may still make a valid file; nothing but our own errors may come of it."""
    path = tmp_path / "a.gguf"
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    header = header_bytes(whole)
    num_refused = 0
    tracemalloc.start()
    for trial in range(80):
        data = bytearray(whole)
        at = rng.randrange(header - 8)
        if style == "bit":
            data[at] ^= 1 << rng.randrange(8)
        elif style == "byte":
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        else:
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**31, 2**32, 2**62, 2**64 - 1]))
        path.write_bytes(data)
        started_s = time.thread_time()
        try:
            load(path)
        except ModelLoadError:
            num_refused += 1
        except BaseException as error:
            pytest.fail(f"{error!r} at byte {at}, trial {trial}, seed {seed}")
        assert time.thread_time() - started_s < 5, f"slow at byte {at}, trial {trial}, seed {seed}"
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_refused > 10
    assert peak_bytes < 64 << 20


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


def test_an_unknown_type_is_named(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_of(entry(b"blk.0.attn_q.weight", (32, 2), 4711, 0)))
    with pytest.raises(ModelLoadError, match=r"blk\.0\.attn_q\.weight.*4711"):
        read_tensors(path)


def test_arrays_of_arrays_are_stepped_over(tmp_path):
    inner = struct.pack("<IQII", 4, 2, 7, 8)
    outer = struct.pack("<IQ", 9, 2) + inner + inner
    key = struct.pack("<Q1sI", 1, b"k", 9) + outer
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + key + entry(b"a", (32,), 0, 0)
    path = tmp_path / "a.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(128))
    assert read_tensors(path)["a"].shape == (32,)
