import random
import threading
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file

from engine.errors import CorruptFile, ModelLoadError
from engine.models.config import ModelConfig
from engine.models.gguf_keys import LAYER_TENSORS
from engine.weights import gguf as reader
from engine.weights.gguf_tensors import read_tensors
from engine.weights.loader import iter_weights, load_model_config
from tests.helpers.models.checkpoints import in_gguf, num_weights
from tests.helpers.models.gguf_files import write_gguf

CONFIG = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=8,
    hidden_size=512,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-6,
    max_position_embeddings=64,
)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {"dtype": "float16", "attention_bias": True}),
        ("phi3", {}),
    ],
)
def test_gives_back_what_the_converter_was_given(family, options, make_gguf, request):
    folder = request.getfixturevalue(f"tiny_{family}")(**options)
    checkpoint = in_gguf(make_gguf(folder, family))
    config = load_model_config(checkpoint)
    ours = dict(iter_weights(checkpoint, config))
    theirs = load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert config.tie_word_embeddings == options.get("tie_word_embeddings", False)
    assert num_weights(checkpoint) == sum(tensor.numel() for tensor in theirs.values())


def write(folder: Path, tensors: dict[str, np.ndarray], **types: GGMLQuantizationType) -> Path:
    """Write tensors into a file. `types` has those of parts of the first layer's MLP."""
    of_name = {f"blk.0.ffn_{part}.weight": type_ for part, type_ in types.items()}
    return write_gguf(folder / "a.gguf", "qwen2", {}, tensors, of_name)


def quantised_types() -> list[GGMLQuantizationType]:
    """All that the library can dequantise, plain floats apart."""
    found = []
    for kind in GGMLQuantizationType:
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16):
            continue
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", quantised_types(), ids=lambda kind: kind.name)
def test_every_type_is_dequantised_the_same_in_chunks(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK_ELEMENTS", 1500)
    seed = random.randrange(1 << 30)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(seed).integers(
        0, 256, (7, 512 // block_size * block_bytes), dtype=np.uint8
    )
    path = write(tmp_path, {"blk.0.ffn_up.weight": raw}, up=kind)
    [(name, tensor)] = reader.iter_gguf_weights(path, CONFIG)
    assert name == "model.layers.0.mlp.up_proj.weight"
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, kind)
    assert tensor.shape == (7, 512)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=f"seed {seed}")


@pytest.mark.parametrize("kind", ["I8", "Q8_K", "F64", "Q1_0"])
def test_a_type_that_cannot_be_dequantised_is_named(kind, tmp_path):
    quant = GGMLQuantizationType[kind]
    if quant in quantised_types():
        pytest.skip("the installed gguf package can dequantise it")
    row_bytes = 512 // gguf.GGML_QUANT_SIZES[quant][0] * gguf.GGML_QUANT_SIZES[quant][1]
    raw = np.zeros((2, row_bytes), np.uint8)
    path = write(tmp_path, {"blk.0.ffn_up.weight": raw}, up=quant)
    with pytest.raises(ModelLoadError, match=rf"blk\.0\.ffn_up\.weight.*type {kind}"):
        dict(reader.iter_gguf_weights(path, CONFIG))


def test_plain_types_keep_their_precision(tmp_path):
    rng = np.random.default_rng(random.getrandbits(64))
    values = rng.standard_normal((3, 32), np.float32)
    bf16 = torch.from_numpy(values).bfloat16()
    tensors = {
        "blk.0.ffn_up.weight": values,
        "blk.0.ffn_gate.weight": values.astype(np.float16),
        "blk.0.ffn_down.weight": bf16.view(torch.uint8).numpy(),
    }
    path = write(tmp_path, tensors, down=GGMLQuantizationType.BF16)
    weights = {name.split(".")[-2]: w for name, w in reader.iter_gguf_weights(path, CONFIG)}
    assert torch.equal(weights["up_proj"], torch.from_numpy(values))
    assert torch.equal(weights["gate_proj"], torch.from_numpy(values.astype(np.float16)))
    assert torch.equal(weights["down_proj"], bf16)
    assert all(tensor.is_contiguous() for tensor in weights.values())


def test_an_unknown_tensor_is_named(tmp_path):
    path = write(tmp_path, {"blk.0.attn_sinks.weight": np.zeros(32, np.float32)})
    with pytest.raises(ModelLoadError, match=r"blk\.0\.attn_sinks\.weight"):
        dict(reader.iter_gguf_weights(path, CONFIG))


def test_rows_that_do_not_divide_into_heads(tmp_path):
    path = write(tmp_path, {"blk.0.attn_q.weight": np.zeros((12, 32), "f4")})
    llama = replace(CONFIG, architecture="LlamaForCausalLM", num_attention_heads=5)
    with pytest.raises(ModelLoadError, match="12 rows"):
        dict(reader.iter_gguf_weights(path, llama))


TWENTY = {f"blk.{i}.ffn_up.weight": np.zeros((16, 32), np.float32) for i in range(20)}


def test_converts_a_bounded_number_of_bytes_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_AHEAD_BYTES", 5000)
    started = []
    load = reader.load_tensor

    def counted(tensor, **options):
        started.append(tensor.name)
        return load(tensor, **options)

    monkeypatch.setattr(reader, "load_tensor", counted)
    weights = reader.iter_gguf_weights(write(tmp_path, TWENTY), CONFIG)
    for num_taken in range(1, 21):
        next(weights)
        assert len(started) <= num_taken + 1
    assert next(weights, None) is None
    assert len(started) == 20


def test_a_consumer_that_stops_early_leaves_no_threads(tmp_path):
    weights = reader.iter_gguf_weights(write(tmp_path, TWENTY), CONFIG)
    next(weights)
    weights.close()
    assert [t.name for t in threading.enumerate() if t.name.startswith("gguf")] == []


def test_a_file_that_becomes_shorter_is_named(tmp_path):
    path = write(tmp_path, {"blk.0.ffn_up.weight": np.zeros((16, 32), "f4")})
    [tensor] = read_tensors(path).values()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptFile, match=r"a\.gguf became shorter"):
        reader.load_tensor(tensor)
    path.unlink()
    with pytest.raises(ModelLoadError, match=r"a\.gguf cannot be read"):
        reader.load_tensor(tensor)


def test_names():
    assert (
        reader.hugging_face_name("blk.12.attn_q.bias", LAYER_TENSORS)
        == "model.layers.12.self_attn.q_proj.bias"
    )
    assert reader.hugging_face_name("output.weight", LAYER_TENSORS) == "lm_head.weight"
    for name in ("blk.x.attn_q.weight", "blk.1.attn_q", "blk.1.ffn_up_exps.weight", "weight", ""):
        assert reader.hugging_face_name(name, LAYER_TENSORS) is None


def test_the_directory_agrees_with_the_library(make_gguf, tiny_llama):
    path = make_gguf(tiny_llama(), "llama", general__alignment=64)
    theirs = {
        t.name: (tuple(map(int, reversed(t.shape))), t.tensor_type, t.data_offset, t.n_bytes)
        for t in gguf.GGUFReader(path).tensors
    }
    ours = {t.name: (t.shape, t.type, t.offset, t.num_bytes) for t in read_tensors(path).values()}
    assert ours == theirs
