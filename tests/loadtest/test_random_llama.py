from pathlib import Path

import gguf
import numpy as np
import pytest

from loadtest.random_llama import SHAPES, llama_tensors, quantized, write_random_llama


def test_the_shape_has_a_billion_parameters() -> None:
    sizes = [np.prod(tensor.shape) for tensor in llama_tensors(SHAPES["1b"], 49152)]
    assert 1.0e9 < sum(sizes) < 1.1e9


def test_the_file(tokenizer: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_random_llama(tmp_path / name, "tiny", tokenizer, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    reader = gguf.GGUFReader(tmp_path / "a")
    assert reader.fields["llama.embedding_length"].contents() == 256
    source = gguf.GGUFReader(tokenizer)
    for name, field in source.fields.items():
        if name.startswith("tokenizer."):
            copied = reader.fields[name]
            assert (copied.types, copied.contents()) == (field.types, field.contents()), name
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 1 + 2 * 9 + 1
    down = tensors["blk.1.ffn_down.weight"]
    assert down.tensor_type == gguf.GGMLQuantizationType.BF16
    assert list(down.shape) == [512, 256], "GGUF counts the inputs first"
    values = gguf.dequantize(down.data, down.tensor_type)
    # 131,072 normal numbers: their deviation is within 2 % at more than nine sigmas.
    assert values.std() == pytest.approx(1 / np.sqrt(512) / 2, rel=0.02)
    assert np.all(tensors["output_norm.weight"].data == 1)
    assert not list(tmp_path.glob("*.part"))


def test_what_cannot_be_written(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no size '2b'; there are: 1b, 4b, 8b, tiny"):
        write_random_llama(tmp_path / "a", "2b", tokenizer)
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.add_tensor("unused", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"bare\.gguf has no tokenizer"):
        write_random_llama(tmp_path / "a", "tiny", tmp_path / "bare.gguf")


def test_the_quantizing_program(tmp_path: Path) -> None:
    source, program = tmp_path / "s", tmp_path / "llama-quantize"
    source.write_text("weights")
    program.write_text(
        '#!/bin/sh\n[ "$3" = Q4_0 ] || { echo bad kind $3 >&2; exit 1; }\ncp $1 $2\n'
    )
    program.chmod(0o755)
    quantized(source, tmp_path / "to", "Q4_0", program)
    assert (tmp_path / "to").read_text() == "weights"
    with pytest.raises(RuntimeError, match="could not make Q9: bad kind Q9"):
        quantized(source, tmp_path / "other", "Q9", program)
    assert not (tmp_path / "other").exists()
